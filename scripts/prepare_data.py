"""Prepares a dataset for train.py. ``python scripts/prepare_data.py dataset=c4 [key=value ...] [--processes N]``

The key=value are train.py's. Of c4, dolma, pile and fineweb_edu the files come from the Hugging Face hub, or from
dataset.source=FOLDER; the prepared set goes below machine.data, or to dataset.folder. Stop it as you like: the same
command goes on from what was saved. Neither that nor the number of processes changes a byte of the result.
"""

import argparse
import os
import sys
import time
from typing import Any

from cwd.cli import door
from cwd.sweeps import compose_config
from cwd.training.sources import prepare_tokens

LINE_SECONDS = 30.0  # where no terminal shows a bar


class Shown:
    """How far it is, in bytes of the source: a bar in a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` bytes are read."""
        if sys.stdout.isatty():
            if self._bar is None:
                self._open()
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            self.say(f"data: {100 * done / total:.1f}% of the source")

    def say(self, line: str) -> None:
        """Prints a line, at once."""
        print(line, flush=True)

    def _open(self) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._task = self._bar.add_task("prepare")
        self._bar.start()

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.stop()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.py's, dataset=... first of all")
    parser.add_argument("--processes", type=int, help="how many at once; one for each processor if not given")
    arguments = parser.parse_intermixed_args()
    if arguments.processes is not None and arguments.processes < 1:
        parser.error("--processes must be at least 1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    shown = Shown()
    try:
        data = prepare_tokens(compose_config(arguments.overrides), arguments.processes, shown.say, shown)
    finally:
        shown.close()
    counts = ", ".join(f"{data.manifest['splits'][split]['tokens']:,} {split}" for split in data.manifest["splits"])
    shown.say(f"data: {counts} tokens in {data.folder}, fingerprint {data.fingerprint}")


if __name__ == "__main__":
    door(main)
