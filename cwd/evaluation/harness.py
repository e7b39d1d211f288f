"""lm-evaluation-harness, one model and one task at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cwd.errors import UserError, nearest
from cwd.suites import METRICS, Entry, Suite

BOOTSTRAPS = 1000  # of a group whose metric has no closed form; means have one


def harness_version() -> str:
    """Of lm-evaluation-harness.

    Raises:
        UserError: it is not installed.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise UserError("lm_eval is not installed; pip install -c requirements.lock -e '.[finetune]'") from error


class Harness:
    """The harness with the tasks of one suite.

    Args:
        suite: what is asked.
        folder: of the tasks' files, where they are not the harness's own.

    Raises:
        UserError: the harness is not installed, or has no such task.
    """

    def __init__(self, suite: Suite, folder: Path | None) -> None:
        self.suite, self.version = suite, harness_version()
        with _quiet():
            from lm_eval.tasks import TaskManager

            include = str(folder) if folder else None
            self._manager = TaskManager(include_path=include, include_defaults=folder is None)
        for entry in suite.tasks:
            known = self._manager.all_tasks
            if entry.task not in known:
                raise UserError(
                    f"suite={suite.name}: {entry.task}: the harness has no such task{nearest(entry.task, known)}"
                )

    def load(self, folder: Path, tokenizer: Any, device: str, batch_size: int) -> Any:
        """The model of a folder, ready to be asked. On several processes (accelerate) each gets a part of the items.

        Args:
            tokenizer: a transformers tokenizer; None: the one in the folder.
            device: auto, cpu or cuda.

        Raises:
            UserError: transformers cannot load it.
        """
        import torch

        import cwd.models  # noqa: F401 (registers ours with transformers)

        place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        with _quiet():
            from lm_eval.models.huggingface import HFLM
            from transformers import AutoConfig

            try:
                start = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).bos_token_id
                return HFLM(
                    pretrained=str(folder),
                    tokenizer=tokenizer,
                    device=place,
                    batch_size=batch_size,
                    prefix_token_id=start,
                    trust_remote_code=False,
                )
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{folder}: transformers cannot load it ({_line(error)})") from error

    def score(self, model: Any, entry: Entry) -> dict[str, Any] | None:
        """What a task's items and their mean came to, for :mod:`cwd.runs.evaluations`; None but on the main process.

        Raises:
            UserError: the task's data cannot be loaded, or it does not have the metric.
        """
        from lm_eval import simple_evaluate

        try:
            with _quiet():
                found = simple_evaluate(
                    model=model,
                    tasks=[entry.task],
                    num_fewshot=self.suite.shots(entry),
                    task_manager=self._manager,
                    bootstrap_iters=BOOTSTRAPS,
                )
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            raise UserError(f"suite={self.suite.name}: {entry.task}: cannot be evaluated ({_line(error)})") from error
        except AssertionError as error:
            limit = f"is an answer empty, or longer than the model's {model.max_length} tokens?"
            raise UserError(f"suite={self.suite.name}: {entry.task}: cannot be evaluated ({limit})") from error
        return None if found is None else self._kept(entry, found)

    def _kept(self, entry: Entry, found: dict[str, Any]) -> dict[str, Any]:
        whole = found["results"][entry.task]
        metrics = {
            name: {"value": whole[f"{name},none"], "stderr": _number(whole.get(f"{name}_stderr,none"))}
            for name in METRICS
            if f"{name},none" in whole
        }
        if entry.metric not in metrics:
            raise UserError(
                f"suite={self.suite.name}: {entry.task}: has no {entry.metric}; it has {', '.join(metrics)}"
            )
        samples = {name: sorted(items, key=lambda one: one["doc_id"]) for name, items in found["samples"].items()}
        flat = [item for _, items in sorted(samples.items()) for item in items]
        shared = [name for name in METRICS if all(name in item for item in flat)]
        ids = [
            f"{name}/{item['doc_id']}/{item['doc_hash'][:8]}"
            for name, items in sorted(samples.items())
            for item in items
        ]
        return {
            "suite": self.suite.name,
            "task": entry.task,
            "num_fewshot": self.suite.shots(entry),
            "harness": self.version,
            "task_hashes": {name: _task_hash(items) for name, items in samples.items()},
            "task_versions": {name: found["versions"].get(name) for name in (entry.task, *samples)},
            "metrics": metrics,
            "items": {"ids": ids, **{name: [float(item[name]) for item in flat] for name in shared}},
        }


def _task_hash(samples: list[dict[str, Any]]) -> str:
    """As the harness's own tracker computes it: of every item, prompt and answer."""
    text = "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)
    return hashlib.sha256(text.encode()).hexdigest()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None  # the harness writes "N/A"


def _line(error: BaseException) -> str:
    """An error's first line, or its name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's and the libraries' own lines, of which there are many; in a terminal, with their bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if sys.stderr.isatty() else redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
