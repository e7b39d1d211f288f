"""One model on several processes: a copy on each (DDP), or every copy divided over some of them (FSDP2).

machine.sharding: none, each process has all of the model; full, each has its part of every tensor; hybrid, groups of
machine.shard_size processes have a copy each, in parts. Division is torch's fully_shard, on CPU and GPU alike:
accelerate's own FSDP2 is left out on a CPU without a word. Every process draws the whole model, as one process would,
and keeps its part: so the weights are the same, to the bit, however many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from cwd import schema
from cwd.errors import UserError
from cwd.training.precision import MIXED, KeepDouble
from cwd.training.tasks import Share

COLLECTIVE = timedelta(minutes=30)  # a collective may wait for a process that saves; a dead one is noticed sooner


def open_accelerator(config: schema.Config, processes: int) -> Accelerator:
    """Devices and the process group of this start.

    Raises:
        UserError: no such device; accelerate sees another number of processes than `processes`.
    """
    device, precision = config.machine.device, config.training.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device=cuda: torch sees no CUDA device here; allowed are auto and cpu")
    # Without cpu=True and without a GPU, accelerate would run each of several processes alone.
    on_cpu = device == "cpu" or (processes > 1 and not torch.cuda.is_available())
    if processes > 1 and not is_initialized():
        _check_devices(on_cpu)
        backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"  # what is small goes over the CPU, and stops no GPU
        torch.distributed.init_process_group(backend, timeout=COLLECTIVE)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=MIXED[precision])
    if accelerator.num_processes != processes:
        raise UserError(f"{processes} processes were started, but accelerate works with {accelerator.num_processes}")
    return accelerator


def _check_devices(on_cpu: bool) -> None:
    place, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not on_cpu and place >= devices:
        raise UserError(f"process {place + 1} of this machine has no GPU, there are {devices}; start {devices} here")
    if not on_cpu:
        torch.cuda.set_device(place)


def distribute(model: nn.Module, config: schema.Config, accelerator: Accelerator, compiled: bool) -> nn.Module:
    """The model as it is trained: prepared by accelerate (DDP), or divided in place; compiled if asked.

    Raises:
        UserError: machine.shard_size does not divide the processes.
    """
    machine = config.machine
    if machine.sharding == "none":
        return accelerator.prepare(torch.compile(model) if compiled else model)
    mesh = _mesh(machine, accelerator)
    # Activations follow autocast, as they do undivided: what is cast to bfloat16 here are the weights alone.
    narrow = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32, "cast_forward_inputs": False}
    policy = MixedPrecisionPolicy(**narrow if config.training.precision == "bf16" else {})  # type: ignore[arg-type]
    for layer in repeated_layers(model):
        if compiled:
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def _mesh(machine: schema.Machine, accelerator: Accelerator) -> DeviceMesh:
    count, kind = accelerator.num_processes, accelerator.device.type
    if machine.sharding == "full":
        return init_device_mesh(kind, (count,), mesh_dim_names=("shard",))
    size = machine.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count % size:
        raise UserError(f"machine.shard_size={size}: does not divide the {count} processes")
    return init_device_mesh(kind, (count // size, size), mesh_dim_names=("replicate", "shard"))


def repeated_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's outermost lists of modules, which is what a Transformer's blocks are: each is gathered
    when it computes, and let go of after.
    """
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            yield from repeated_layers(child)


def computing(accelerator: Accelerator, model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Where forward passes happen: in float64 nothing is narrowed; a divided model, which accelerate has not prepared,
    gets its autocast here.
    """
    if precision == "fp64":
        return KeepDouble()
    return accelerator.autocast() if isinstance(model, FSDPModule) else nullcontext()


def share_of(config: schema.Config, accelerator: Accelerator) -> Share:
    """Which rows of a batch this process has. Raises UserError: the batch cannot be shared evenly."""
    size, processes = config.training.batch_size, accelerator.num_processes
    if size % processes:
        raise UserError(f"training.batch_size={size}: cannot be shared evenly by {processes} processes")
    share = size // processes
    micro = config.machine.micro_batch_size or share
    if share % micro:
        raise UserError(
            f"machine.micro_batch_size={micro}: does not divide the {share} sequences that each of {processes} "
            "processes has"
        )
    return Share(accelerator.process_index * share, share, micro, accelerator.process_index, processes)


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Around the forward and backward pass of a micro-batch, `last` of its update: sends no more than it must.

    A divided model adds up its parts of the gradients after each micro-batch, as whole ones would not fit; between
    copies of it, and in DDP, they are added up after the last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
        model.set_is_last_backward(last)
        yield
    else:
        with nullcontext() if last else accelerator.no_sync(model):
            yield


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be divided, on every process; all must ask. ``item()`` would give a part of it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model; of a divided one whole tensors on the CPU of the main process, without those that are
    tied to another, and {} on the other processes.
    """
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=whole))
    return {name: value for name, value in weights.items() if name not in tied_names(model)}


def tied_names(model: nn.Module) -> set[str]:
    """Names of parameters that are there under another name already."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()


def largest(accelerator: Accelerator, *values: float) -> list[float]:
    """The largest of each value over the processes, by way of the CPU, so that no GPU is waited for."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.tolist()
