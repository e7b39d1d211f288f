"""Trains a run or a sweep of runs: ``python train.py optimizer=lion decay=cautious``; ``--help`` shows every choice."""

import sys

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed; make setup, then .venv/bin/python train.py ...")

from cwd.cli import guarded, job
from cwd.config import validate


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
@job
def main(config: DictConfig) -> float:
    """Returns the final loss, for sweepers that search."""
    checked = validate(config)
    from cwd.training.run import run

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    summary = run(checked, hydra_config.overrides.task, wait=in_sweep).summary
    return summary["loss"] if summary else float("inf")


if __name__ == "__main__":
    guarded(main)
