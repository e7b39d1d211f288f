"""One of several processes that train runs one after another, as a launcher would start it.

``python -m tests.parallel_worker FOLDER CASES``: CASES is JSON, a list of objects. ``overrides``: of the configuration.
``stop``: the number of updates after which SIGTERM comes, to every process. ``die``: [rank, updates] after which that
process is killed; ``freeze``: likewise, but it is stopped, and neither computes nor ends. ``silence``: seconds after
which a silent process counts as lost.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cwd.cli import door
from cwd.training import processes
from tests.training_helpers import train

RANK = int(os.environ.get("RANK", "0"))
UPDATE: list[Any] = []  # the trainer's own


def prepare(case: dict[str, Any]) -> None:
    from cwd.training.trainer import Trainer

    UPDATE.append(Trainer._update)
    ends = {
        "stop": (RANK, case.get("stop"), signal.SIGTERM),
        "die": (*case.get("die", (None, None)), signal.SIGKILL),
        "freeze": (*case.get("freeze", (None, None)), signal.SIGSTOP),
    }

    def update(trainer: Any) -> None:
        UPDATE[0](trainer)
        for rank, updates, number in ends.values():
            if rank == RANK and updates == trainer.step + 1:
                os.kill(os.getpid(), number)

    Trainer._update = update


def main(folder: Path, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        processes.SILENCE = case.get("silence", processes.SILENCE)
        if len(case) > 2 or UPDATE:  # a trainer that was changed is changed again
            prepare(case)
        try:
            door(lambda case=case: train(folder / case["folder"], *case["overrides"]))
        except SystemExit:
            if "stop" not in case:
                raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
