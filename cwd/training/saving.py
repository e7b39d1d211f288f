"""When training waits for a checkpoint to be written, and when a thread writes it while training goes on.

In the background (machine.checkpoint_background) training waits for a copy in host memory alone. One thread then writes
the copy, as it would be written otherwise: the same checksums, the same order, the same rename at the end. There is
never more than one copy, so another checkpoint waits for the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from cwd.optim import RuleOptimizer
from cwd.training.checkpoint import Content, take_content, write_checkpoint

LARGE = 64 << 20  # bytes of a state that is worth a thread on a CPU (scripts/benchmark.py checkpoint)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk, and what it took.

    Attributes:
        step: updates done.
        size: bytes on the disk; 0 in processes other than the main one.
        waited: seconds that training stood still.
        behind: seconds that the thread worked while training went on.
        computing: of those, seconds of a processor core.
    """

    step: int
    size: int
    waited: float
    behind: float
    computing: float


class Saver:
    """Writes the checkpoints of a run, one at a time. All processes have one, and call it at the same steps.

    Args:
        root: the run's checkpoints folder.
        background: whether the thread writes them; None: where it pays, on an accelerator or from LARGE bytes on.
        confirm: called by the main process before anything is changed there; raises if it may not be.
    """

    def __init__(
        self,
        root: Path,
        model: nn.Module,
        optimizer: RuleOptimizer,
        accelerator: Accelerator,
        background: bool | None,
        confirm: Callable[[], None],
    ) -> None:
        self._root, self._confirm, self._background = root, confirm, background
        self._what = model, optimizer, accelerator
        self._main, self._device = accelerator.is_main_process, accelerator.device
        # What the thread says to those of other processes must not mix with what training says to them.
        divided = isinstance(model, FSDPModule)
        self._group = cast(ProcessGroup, torch.distributed.new_group(backend="gloo")) if divided else None
        self._thread = ThreadPoolExecutor(1, "checkpoint", self._begin_thread)
        self._stager: Any = None
        self._writing: tuple[int, float, Future[tuple[int, float, float]]] | None = None
        self._saved: list[Saved] = []

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing[2].done()

    def save(self, step: int, state: dict[str, Any], at_once: bool = False) -> None:
        """Saves, or copies what is to be saved and begins to, after what was begun before is done.

        Args:
            step: updates done.
            state: what goes into the checkpoint beside weights and optimizer state.
            at_once: return when it is on the disk.

        Raises:
            OSError: the disk is full or not writable, now or for the checkpoint before; older ones are intact.
        """
        self.wait()
        began = time.monotonic()
        content = take_content(state, *self._what)
        if at_once or not self._pays(content):
            size = self._write(step, content)[0]
            self._saved.append(Saved(step, size, time.monotonic() - began, 0.0, 0.0))
            return
        future = self._thread.submit(self._write, step, self._copy(content))
        self._writing = step, time.monotonic() - began, future

    def take_saved(self) -> list[Saved]:
        """The checkpoints that came to the disk since the last time. Raises what the thread met: see :meth:`save`."""
        if not self.busy:
            self.wait()
        saved, self._saved = self._saved, []
        return saved

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises what the thread met: see :meth:`save`."""
        if self._writing is None:
            return
        began, (step, waited, future) = time.monotonic(), self._writing
        self._writing = None
        size, behind, computing = future.result()
        waited += time.monotonic() - began
        self._saved.append(Saved(step, size, waited, behind, computing))

    def close(self) -> None:
        """Waits, whatever comes of it, and frees the copy."""
        self._thread.shutdown()
        if self._stager is not None:
            self._stager.close()
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)

    def _pays(self, content: Content) -> bool:
        if self._background is not None:
            return self._background
        return self._device.type != "cpu" or content.bytes >= LARGE

    def _copy(self, content: Content) -> Content:
        """A copy in host memory, pinned if it comes from a GPU, in which tensors share memory as they did. Its memory
        is kept, and used again for the next.
        """
        if self._stager is None:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions  # torch 2.9

            gpu = self._device.type == "cuda"
            self._stager = DefaultStager(StagingOptions(gpu, False, False, gpu))
        copied = self._stager.stage({"state": content.state, "parts": content.parts})
        return Content(copied["state"], copied["parts"])

    def _write(self, step: int, content: Content) -> tuple[int, float, float]:
        """Bytes on the disk, and seconds by the clock and of this thread's processor core."""
        began, busy = time.monotonic(), time.thread_time()
        size = write_checkpoint(self._root, step, content, self._main, self._group, self._confirm)
        return size, time.monotonic() - began, time.thread_time() - busy

    def _begin_thread(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a new thread would open the first GPU
