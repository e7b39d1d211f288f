"""Tunes the baseline: runs the grid of rates and lambdas with decoupled decay, and writes configs/tuned/ from it.

python scripts/tune.py                 run what is missing of the laptop grid, write configs/tuned/laptop*.yaml
python scripts/tune.py --images        likewise of the image classifiers: configs/tuned/MODEL_*.yaml
python scripts/tune.py --show          only show what the runs that are there say

Options are those of scripts/artifact.py. A file is written once all runs of its optimizer have ended.
"""

import subprocess
import sys
from pathlib import Path

from cwd.cli import door
from cwd.errors import UserError
from cwd.evidence.artifact_files import Ladder
from cwd.evidence.search import Searched, searches
from cwd.evidence.study import Study
from cwd.evidence.tuning import tuned_file, tuned_name
from cwd.files import write_atomically
from cwd.sweeps import CONFIGS

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """See the module's docstring."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    show, artifact = "--show" in sys.argv, "tuning_images" if "--images" in sys.argv else "tuning"
    words = [word for word in sys.argv[1:] if word not in ("--show", "--images")]
    scale, runs = option(words, "--scale", "laptop"), option(words, "--runs", "runs")
    if scale == "smoke":
        raise UserError("SCALE=smoke: is not tuned, its values are chosen to move in a few steps")
    if not show:
        command = [sys.executable, str(ROOT / "scripts" / "artifact.py"), artifact, *words]
        if status := subprocess.run(command).returncode:
            sys.exit(status)
    study = Study(scale, Path(runs))
    for search in searches(study.state(artifact).points, study.ladder):
        print(search)
        if not show:
            write(search, study.ladder)


def option(words: list[str], name: str, default: str) -> str:
    """The word after `name`."""
    return words[words.index(name) + 1] if name in words[:-1] else default


def write(search: Searched, ladder: Ladder) -> None:
    """The optimizer's file of configs/tuned/."""
    path = CONFIGS / "tuned" / f"{tuned_name(search, ladder)}.yaml"
    write_atomically(path, tuned_file(search).encode())
    print(f"  written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    door(main)
