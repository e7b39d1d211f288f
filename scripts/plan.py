"""The plan before a GPU hour is spent: runs, time, memory, disk, cost, and what the seeds can resolve.

python scripts/plan.py table10 --scale paper --gpu h100 --gpus 64 --price 2.5
python scripts/plan.py --scale paper                     every artifact, runs that they share once
python scripts/plan.py table10 --sharding full --micro-batch 4 --checkpointing --chunked-loss --mfu 0.4
python scripts/plan.py --check                           the memory model and the FLOPs against small measured runs
python scripts/plan.py table3 --scale laptop --against-runs    forecasts of before the recorded runs, and what they took

Every assumption is printed; docs/plan.md has the reasons.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cwd.cli import door
from cwd.errors import UserError
from cwd.evidence.render import terminal, to_terminal, write_all

if TYPE_CHECKING:
    from cwd.planning.plan import Request


def main() -> None:
    """See the module's docstring."""
    arguments = parsed()
    if arguments.check:
        from cwd.planning.check import check_page

        document = check_page(arguments.scale, arguments.runs, say)
    elif arguments.against_runs:
        from cwd.planning.against import against_page

        document = against_page(arguments.artifact, arguments.scale, arguments.runs)
    else:
        from cwd.planning.page import page
        from cwd.planning.plan import make_plan

        document = page(make_plan(request_of(arguments), say))
    to_terminal(document, terminal())
    if arguments.out:
        for path in write_all(document, arguments.out / arguments.scale):
            print(path)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="*", help="files of configs/artifact/; none: all")
    parser.add_argument("--scale", default="paper", help="smoke, laptop or paper")
    parser.add_argument("--gpu", help="h100, h200, a100-40, a100-80, l40s, rtx4090, b200, or cpu; cpu at laptop scale")
    parser.add_argument("--gpus", help="how many train a run together, or how many cores; a node's")
    parser.add_argument("--price", help="of one device and hour")
    parser.add_argument("--seeds", help="report seeds; the ladder's number if not given")
    parser.add_argument("--mfu", help="the part of the device's peak that training reaches, in (0, 1]")
    parser.add_argument("--sharding", help="none, hybrid or full; the simplest that fits if not given")
    parser.add_argument(
        "--micro-batch", help="sequences or images at once on a device; the largest that fits if not given"
    )
    parser.add_argument(
        "--checkpointing", action="store_true", help="activations are computed again in the backward pass"
    )
    parser.add_argument("--chunked-loss", action="store_true", help="the logits are never there as a whole")
    parser.add_argument("--vocab", action="append", default=[], help="TOKENIZER=N: the ids of a tokenizer")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder")
    parser.add_argument("--out", type=Path, help="a folder for Markdown, LaTeX and JSON, under the scale's name")
    parser.add_argument("--check", action="store_true", help="predicted against measured, on this machine")
    parser.add_argument(
        "--against-runs", action="store_true", help="forecasts beside what the recorded runs of artifacts took"
    )
    return parser.parse_args()


def request_of(arguments: argparse.Namespace) -> "Request":
    """The request that the command line makes."""
    from cwd.planning.devices import find_device
    from cwd.planning.layout import Wishes
    from cwd.planning.plan import Request

    gpus, seeds, micro = (
        count(name, text)
        for name, text in (
            ("GPUS", arguments.gpus),
            ("SEEDS", arguments.seeds),
            ("--micro-batch", arguments.micro_batch),
        )
    )
    return Request(
        tuple(arguments.artifact),
        arguments.scale,
        arguments.runs,
        find_device(arguments.gpu or ("h100" if arguments.scale == "paper" else "cpu"), gpus),
        seeds,
        number("PRICE", arguments.price, math.inf),
        number("--mfu", arguments.mfu, 1.0),
        Wishes(arguments.sharding, micro, arguments.checkpointing, arguments.chunked_loss),
        dict(vocabulary(text) for text in arguments.vocab),
    )


def count(name: str, text: str | None) -> int | None:
    """A whole number from 1."""
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={text}: a whole number from 1 is needed")
    return int(text)


def number(name: str, text: str | None, high: float) -> float | None:
    """A number above 0, at most `high`; a price may be 0."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 <= value <= high) or (value == 0 and high == 1):
        allowed = "above 0, at most 1" if high == 1 else "from 0"
        raise UserError(f"{name}={text}: a number {allowed} is needed")
    return value


def vocabulary(text: str) -> tuple[str, int]:
    """(tokenizer, number of ids) of TOKENIZER=N."""
    name, equals, ids = text.rpartition("=")
    if not equals or not name:
        raise UserError(f"--vocab {text}: is written TOKENIZER=N")
    found = count(f"--vocab {name}", ids)
    assert found is not None
    return name, found


def say(text: str) -> None:
    """A line about what goes on, for people who wait."""
    if sys.stderr.isatty():
        print(f"  {text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    door(main)
