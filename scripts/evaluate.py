"""Evaluates finished runs on downstream tasks by lm-evaluation-harness; results stand in each run's folder.

python scripts/evaluate.py run=3f2a suite=local                        one run; the key's first digits are enough
python scripts/evaluate.py optimizer=lion scale=laptop suite=local     every finished run that matches
python scripts/evaluate.py run=3f2a suite=table4                       the paper's six tasks, from the hub
python scripts/evaluate.py run=3f2a suite=my_tasks/                    a folder of the harness's YAML files
python -m torch.distributed.run --nproc_per_node 8 scripts/evaluate.py ...    each GPU takes a part of the items
"""

import argparse
from pathlib import Path

from cwd.cli import door
from cwd.errors import UserError
from cwd.evaluation.run import Evaluator, evaluate_runs
from cwd.evidence.listing import find, select
from cwd.suites import load_suite, suite_names


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of prepared data")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=64, help="questions at once")
    parser.add_argument("words", nargs="+", metavar="run=KEY[,KEY] | key=value | suite=NAME")
    arguments = parser.parse_args()
    named = [word.partition("=")[2] for word in arguments.words if word.startswith("suite=")]
    if len(named) != 1:
        raise UserError(f"suite=NAME: one is needed; allowed are {', '.join(suite_names())}, or a folder of task files")
    suite = load_suite(named[0])
    keys = [key for word in arguments.words if word.startswith("run=") for key in word[4:].split(",")]
    filters = [word for word in arguments.words if not word.startswith(("run=", "suite="))]
    if keys and filters:
        raise UserError(f"{filters[0]}: with run= no filters are needed")
    records = [find(arguments.runs, key) for key in keys] or select(arguments.runs, [*filters, "state=done"])
    if not records:
        raise UserError(f"no finished run in {arguments.runs} matches {' '.join(filters)}".rstrip())
    evaluator = Evaluator(
        suite, arguments.data, arguments.device, arguments.batch_size, lambda text: print(text, flush=True)
    )
    wrong = evaluate_runs(records, evaluator)
    if wrong:
        raise UserError(f"{len(wrong)} of {len(records)} runs were not evaluated; {wrong[0]}")


if __name__ == "__main__":
    door(main)
