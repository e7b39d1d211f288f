"""Checkpoints that are whole or absent: a folder appears by one rename, after its content is on disk, and carries its
checksums.

    step-<step>/state.pt             numbers and, of a model that each process has whole, weights and optimizer state
    step-<step>/*.safetensors        of a divided model: those of each process, written by it
    step-<step>/checksum.json

Either kind is read by any number of processes, whether their model is divided or not. Nothing read is a pickle that
could run code.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from cwd.errors import UserError
from cwd.files import disk_errors, read_json, sha256_of, sync, write_json
from cwd.optim import RuleOptimizer
from cwd.training.parallel import largest, tied_names

KEEP = 2  # the newest and, should it turn out damaged, the one before


@dataclass(frozen=True)
class Content:
    """What one process writes of a checkpoint.

    Attributes:
        state: what lies in state.pt: tensors, numbers, text and containers of them; {} in processes that write none.
        parts: of a divided model this process's tensors, by name; {} of one that each process has whole.
    """

    state: dict[str, Any]
    parts: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        """Of the tensors, as they lie on this process."""
        tensors = (value for value in tree_leaves([self.state, self.parts]) if isinstance(value, Tensor))
        return sum((value.to_local() if isinstance(value, DTensor) else value).nbytes for value in tensors)


def take_content(
    state: dict[str, Any], model: nn.Module, optimizer: RuleOptimizer, accelerator: Accelerator
) -> Content:
    """`state`, the weights and the optimizer's state, where they lie: nothing is copied. All processes call it.

    Args:
        state: tensors, numbers, text and containers of them: what ``torch.load(weights_only=True)`` takes.
    """
    if isinstance(model, FSDPModule):
        weights, own = _state(model, optimizer)
        return Content({**state, "groups": own["param_groups"]}, _tensors(model, weights, own))
    if not accelerator.is_main_process:
        return Content({}, {})
    return Content({**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, {})


def write_checkpoint(
    root: Path,
    step: int,
    content: Content,
    main: bool = True,
    group: ProcessGroup | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> int:
    """Writes ``root/step-<step>/`` and removes all but the newest KEEP.

    Args:
        root: the run's checkpoints folder, made if absent.
        step: updates done.
        main: whether this is the main process.
        group: of a divided model the processes, all of which call this at the same step; on the CPU (gloo).
        confirm: called by the main process before anything there is changed; raises if it may not be.

    Returns:
        Its bytes on the disk; 0 in other processes.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are intact.
    """
    work = root / ".saving.tmp"
    if main:
        confirm()
        root.mkdir(exist_ok=True)  # not its parents: the disk that they were on may be gone
        _remove_unfinished(root)
        work.mkdir()
    try:
        with disk_errors(work):
            if group is not None:
                _write_parts(work, content.parts, group)
            if main:
                torch.save(content.state, work / "state.pt")
    except Exception:
        if main:
            shutil.rmtree(work, ignore_errors=True)  # so that there is room for a status that says what happened
        raise
    if not main:
        return 0
    confirm()
    return _publish(work, root, step)


def _write_parts(folder: Path, parts: dict[str, Tensor], group: ProcessGroup) -> None:
    """Every process writes its parts, once there is a folder, and goes on when all have."""
    torch.distributed.barrier(group)
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(parts, storage_writer=writer, process_group=group)
    rank = torch.distributed.get_rank()
    written = list(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))
    for path in written:
        sync(path)
    write_json(folder / f"{rank}.sha256.json", {path.name: sha256_of(path) for path in written})
    torch.distributed.barrier(group)


def _publish(work: Path, root: Path, step: int) -> int:
    final = root / f"step-{step:08d}"
    sync(work / "state.pt")
    named: dict[str, Any] = {}
    for path in work.glob("*.sha256.json"):
        named.setdefault("parts", {}).update(read_json(path))
        path.unlink()
    write_json(work / "checksum.json", {"step": step, "sha256": sha256_of(work / "state.pt"), **named})
    shutil.rmtree(final, ignore_errors=True)
    os.rename(work, final)
    sync(root)
    for old in _folders(root)[:-KEEP]:
        shutil.rmtree(old)
    return sum(path.stat().st_size for path in final.iterdir())


def load_checkpoint(
    root: Path,
    model: nn.Module,
    optimizer: RuleOptimizer,
    accelerator: Accelerator,
    say: Callable[[str], None],
    check: Callable[[dict[str, Any]], None],
) -> dict[str, Any] | None:
    """Loads the newest checkpoint that is whole, whoever wrote it, and returns its `state`; None if there is none.

    A damaged one is said, passed over and removed. All processes call it. `check` is called with the state before
    anything is changed, and may refuse.
    """
    found = _newest(root, say) if accelerator.is_main_process else None
    step = int(largest(accelerator, -1 if found is None else found)[0])
    if accelerator.is_main_process:
        _remove_damaged(root)
    if step < 0:
        return None
    folder = root / f"step-{step:08d}"
    state = _read_state(folder)
    check(state)
    if "groups" in state:
        _load_parts(folder, model, optimizer, state.pop("groups"))
    else:
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, state.pop("model"), options=whole)
        optimizer.load_state_dict(state.pop("optimizer"))
    accelerator.wait_for_everyone()  # nobody writes the next one while another still reads
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder}: state.pt holds more than tensors, numbers and text, and is not loaded; its checksum "
            "is right, so it was made so; remove the folder to go on from the checkpoint before"
        ) from error
    return cast(dict[str, Any], state)


def _load_parts(folder: Path, model: nn.Module, optimizer: RuleOptimizer, groups: list[dict[str, Any]]) -> None:
    weights, own = _state(model, optimizer)
    alone = not isinstance(model, FSDPModule)  # then every process reads everything
    reader = dcp.HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
        dcp.load(_tensors(model, weights, own), storage_reader=reader, no_dist=alone)  # in place
    own["param_groups"] = groups
    set_state_dict(model, optimizer, model_state_dict=cast(Any, weights), optim_state_dict=own)


def _state(model: nn.Module, optimizer: RuleOptimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and state by the names of parameters, as they lie on this process. An optimizer without state gets it,
    from a step of rate 0.
    """
    return cast(tuple[dict[str, Tensor], Any], get_state_dict(model, optimizer))


def _tensors(model: nn.Module, weights: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Tensor]:
    """All of these tensors under one name each: of tied weights the first."""
    tied = tied_names(model)
    tensors = {f"model.{name}": value for name, value in weights.items() if name not in tied}
    for name, entry in state["state"].items():
        tensors |= {f"optimizer.{name}.{field}": value for field, value in entry.items()}
    return tensors


def remove_checkpoints(root: Path) -> None:
    """Removes them all, as a finished run needs none."""
    shutil.rmtree(root, ignore_errors=True)


def _newest(root: Path, say: Callable[[str], None]) -> int | None:
    """The step of the newest checkpoint that is whole."""
    folders = _folders(root)
    for folder in reversed(folders):
        if _is_whole(folder):
            return int(folder.name.removeprefix("step-"))
        say(f"checkpoint {folder}: damaged, {'trying the one before' if folder != folders[0] else 'none is left'}")
    return None


def _remove_damaged(root: Path) -> None:
    """Removes the checkpoints that cannot be read, which would otherwise count among the newest."""
    for folder in _folders(root):
        if not _is_whole(folder):
            shutil.rmtree(folder)


def _is_whole(folder: Path) -> bool:
    checksum = read_json(folder / "checksum.json")
    if not isinstance(checksum, dict):
        return False
    expected = {"state.pt": checksum.get("sha256"), **checksum.get("parts", {})}
    if {path.name for path in folder.glob("*.safetensors")} - expected.keys():
        return False  # what is not ours would be read with the rest
    try:
        return all(sha256 == sha256_of(folder / name) for name, sha256 in expected.items())
    except OSError:
        return False


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def _remove_unfinished(root: Path) -> None:
    for left in root.glob(".*.tmp"):
        shutil.rmtree(left)
