"""What several processes and one do alike: each case gives named tensors, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from cwd.optim import MODES, RULES, CautiousWeightDecay, RuleOptimizer
from tests.optim_helpers import gradient_of, make, normal

# Over two processes: uneven shards, shards without elements, tensors that cannot be divided, stacks of matrices.
SHAPES = ((5, 4), (1, 6), (7,), (), (3, 4, 5), (40, 31))
MATRICES = ((6, 4), (4, 6), (1, 5), (5, 5), (5, 5), (3, 4, 6), (1, 6, 3))
LAYOUTS = ("rows", "columns")
STEPS = range(1, 5)
Tensors = dict[str, Tensor]


class Alone:
    """One process: tensors stay what they are."""

    mesh: DeviceMesh | None = None

    def place(self, tensor: Tensor, layout: str) -> Tensor:
        return tensor

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()


class Divided(Alone):
    """One of several processes."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def placements(self, tensor: Tensor, layout: str) -> list[Placement]:
        last = max(0, tensor.ndim - 1)
        if tensor.ndim == 0:
            return [Replicate()] * self.mesh.ndim
        return {
            "rows": [Shard(0)],
            "columns": [Shard(last)],
            "middle": [Shard(min(1, last))],
            "replicas": [Replicate(), Shard(0)],
            "grid": [Shard(0), Shard(last)],
            "twice": [Shard(0), Shard(0)],
        }[layout]

    def place(self, tensor: Tensor, layout: str) -> Tensor:
        return distribute_tensor(tensor, self.mesh, self.placements(tensor, layout), src_data_rank=None)

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.detach().full_tensor().clone() if isinstance(tensor, DTensor) else tensor.detach().clone()


def trajectory(
    here: Alone,
    layout: str,
    optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    shapes=SHAPES,
    dtype=torch.float32,
    steps=STEPS,
) -> tuple[Tensors, torch.optim.Optimizer]:
    """Parameters after some steps."""
    whole = [0.3 * normal(*shape, seed=1 + i).to(dtype) for i, shape in enumerate(shapes)]
    params = [nn.Parameter(here.place(tensor, layout)) for tensor in whole]
    optimizer = optimizer_of(params)
    for step in steps:
        set_gradients(here, params, layout, step)
        optimizer.step()
    return {str(i): here.whole(p) for i, p in enumerate(params)}, optimizer


def set_gradients(here: Alone, params: list[nn.Parameter], layout: str, step: int) -> None:
    for i, p in enumerate(params):
        p.grad = here.place(gradient_of(torch.empty(p.shape, dtype=p.dtype), i, step), layout)


def shapes_of(rule: str):
    return MATRICES if rule == "muon" else SHAPES


def native(rule: str, mode: str, layout: str, **options: Any) -> Callable[[Alone], Tensors]:
    dtype = options.pop("dtype", torch.float32)

    def case(here: Alone) -> Tensors:
        return trajectory(here, layout, lambda params: make(rule, params, mode, **options), shapes_of(rule), dtype)[0]

    return case


def wrapped(mode: str, layout: str) -> Callable[[Alone], Tensors]:
    def optimizer(params):
        return CautiousWeightDecay(torch.optim.AdamW(params, lr=0.05, weight_decay=0.0), 0.7, mode)

    return lambda here: trajectory(here, layout, optimizer)[0]


def state_of(here: Alone) -> Tensors:
    """The whole of the state is as the parameters are: rounded by the same draws."""
    options = {"state_dtype": torch.bfloat16, "stochastic_rounding": True, "anchor": "initial"}
    params, optimizer = trajectory(here, "rows", lambda p: make("adamw", p, **options), dtype=torch.bfloat16)
    states = optimizer.state_dict()["state"]
    return params | {f"{i}.{name}": here.whole(value) for i, own in states.items() for name, value in own.items()}


def gradients_that_lie_elsewhere(here: Alone) -> Tensors:
    """Partial gradients, which are to be added up, and replicated ones."""
    whole = [normal(*shape, seed=i).float() for i, shape in enumerate(((5, 4), (1, 6), (7,)))]
    params = [nn.Parameter(here.place(tensor, "rows")) for tensor in whole]
    optimizer = make("adamw", params)
    for step in STEPS:
        for i, p in enumerate(params):
            p.grad = gradient_of(whole[i], i, step)
            if here.mesh is not None:
                half = p.grad / 2
                kind, local = (Partial(), half) if step % 2 else (Replicate(), p.grad)
                p.grad = DTensor.from_local(local, here.mesh, [kind])
        optimizer.step()
    return {str(i): here.whole(p) for i, p in enumerate(params)}


def measures(rule: str) -> Callable[[Alone], Tensors]:
    def case(here: Alone) -> Tensors:
        seen: dict[str, Tensor] = {}
        optimizer: RuleOptimizer

        def watched(params):
            nonlocal optimizer
            optimizer = make(rule, params, "random")
            optimizer.measure = True
            optimizer.register_step_post_hook(lambda *_: seen.update(measured(optimizer)))
            return optimizer

        return trajectory(here, "rows", watched, shapes_of(rule))[0] | seen

    return case


def measured(optimizer: RuleOptimizer) -> Tensors:
    taken = optimizer.take_measures()
    rows = {"overall": taken["overall"], **taken["tensors"]}
    return {f"measures {name}": torch.tensor(list(row.values())) for name, row in rows.items()}


def observed(here: Alone) -> Tensors:
    """u as an observer sees it: the part here."""
    seen: Tensors = {}

    def watched(params):
        optimizer = make("muon", params)
        by_name = dict(zip((f"group0.{i}" for i in range(len(params))), params, strict=True))

        def see(o):
            p, u = by_name[o.name], o.u.clone()
            u = DTensor.from_local(u, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()) if here.mesh else u
            seen[f"u {o.name}"] = here.whole(u)

        optimizer.observer = see
        return optimizer

    return trajectory(here, "rows", watched, MATRICES)[0] | seen


def loaded_whole(rule: str) -> Callable[[Alone], Tensors]:
    """A state dict of whole tensors goes on in parameters that are divided."""

    def case(here: Alone) -> Tensors:
        shapes = shapes_of(rule)
        before, saved = trajectory(Alone(), "rows", lambda params: make(rule, params), shapes)
        params = [nn.Parameter(here.place(tensor.clone(), "rows")) for tensor in before.values()]
        optimizer = make(rule, params)
        optimizer.load_state_dict(saved.state_dict())
        for step in range(5, 8):
            set_gradients(here, params, "rows", step)
            optimizer.step()
        return {str(i): here.whole(p) for i, p in enumerate(params)}

    return case


# --- modules: forward and backward --------------------------------------------------------------------------------


class Network(nn.Module):
    """In float64, so that the order in which gradients are added does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(torch.tanh(self.first(x))))


def network() -> Network:
    made = Network().double()
    for i, p in enumerate(made.parameters()):
        p.data = 0.4 * normal(*p.shape, seed=i)
    return made


def optimizer_of(module: nn.Module, mode: str = "cautious") -> RuleOptimizer:
    named = list(module.named_parameters())
    matrices = {"params": [(name, p) for name, p in named if p.ndim == 2], "rule": "muon"}
    others = {"params": [(name, p) for name, p in named if p.ndim != 2], "rule": "adamw", "anchor": "initial"}
    return RuleOptimizer([matrices, others], {"rule": "adamw", "lr": 0.05, "weight_decay": 0.7, "decay": mode})


def train(here: Alone, module: nn.Module, optimizer: RuleOptimizer, steps, share: bool = True) -> Tensors:
    """`share`: along the first dimension of the mesh, each process sees its part of the batch."""
    for step in steps:
        x, y = normal(8, 6, seed=100 + step), normal(8, 3, seed=200 + step)
        if here.mesh is not None and share:
            x, y = (t.chunk(here.mesh.size(0))[here.mesh.get_local_rank(0)] for t in (x, y))
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return {name: here.whole(p) for name, p in module.named_parameters()}


def fully_sharded(here: Alone) -> Network:
    module = network()
    if here.mesh is not None:
        fully_shard(module, mesh=here.mesh)
    return module


def tensor_parallel(here: Alone, module: Network | None = None) -> Network:
    module = module or network()
    if here.mesh is not None:
        first, second = ColwiseParallel(output_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())
        parallelize_module(module, here.mesh, {"first": first, "second": second})  # the norm's stay plain tensors
    return module


def trained(build: Callable[[Alone], Network], mode: str, share: bool) -> Callable[[Alone], Tensors]:
    def case(here: Alone) -> Tensors:
        module = build(here)
        return train(here, module, optimizer_of(module, mode), STEPS, share)

    return case


def replaced(here: Alone) -> Tensors:
    """Parameters that fully_shard replaces after the optimizer was made, as accelerate's prepare does it."""
    module = network()
    optimizer, before = optimizer_of(module), dict(module.named_parameters())
    if here.mesh is not None:
        fully_shard(module, mesh=here.mesh)
    new = {before[name]: p for name, p in module.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    return train(here, module, optimizer, STEPS)


def save(here: Alone, folder: Path) -> None:
    """Trains for some steps and saves a checkpoint."""
    module = fully_sharded(here)
    optimizer = optimizer_of(module, "random")
    train(here, module, optimizer, STEPS)
    model, state = get_state_dict(module, optimizer)
    checkpoint.save({"model": model, "optimizer": state}, checkpoint_id=folder, no_dist=here.mesh is None)


def go_on(here: Alone, folder: Path) -> Tensors:
    """Loads a checkpoint, whoever saved it, and trains on."""
    module = fully_sharded(here)
    optimizer = optimizer_of(module, "random")
    model, state = get_state_dict(module, optimizer)
    checkpoint.load({"model": model, "optimizer": state}, checkpoint_id=folder, no_dist=here.mesh is None)
    set_state_dict(module, optimizer, model_state_dict=model, optim_state_dict=state)
    return train(here, module, optimizer, range(5, 9))


# --- the cases ----------------------------------------------------------------------------------------------------


def cases() -> dict[str, Callable[[Alone], Tensors]]:
    """What two processes and one do alike."""
    found = {
        f"{rule} {mode} {layout}": native(rule, mode, layout) for rule in RULES for mode in MODES for layout in LAYOUTS
    }
    found |= {f"wrapper {mode} {layout}": wrapped(mode, layout) for mode in MODES for layout in LAYOUTS}
    found |= {f"fully_shard {mode}": trained(fully_sharded, mode, True) for mode in ("cautious", "random", "spd")}
    found |= {
        f"tensor parallel {mode}": trained(tensor_parallel, mode, False) for mode in ("cautious", "random", "spd")
    }
    found |= {f"measures {rule}": measures(rule) for rule in ("adamw", "muon")}
    found |= {f"whole state {rule}": loaded_whole(rule) for rule in RULES}
    found["muon middle"] = native("muon", "random", "middle")
    found["muon bfloat16"] = native("muon", "cautious", "rows", ns_dtype=torch.bfloat16)
    found["complex random"] = native("sgd", "random", "columns", dtype=torch.complex64)
    found["compiled"] = native("adamw", "cautious", "rows", compile=True)
    found["bfloat16, rounded by chance"] = native(
        "lion", "random", "columns", dtype=torch.bfloat16, stochastic_rounding=True, state_dtype=torch.bfloat16
    )
    return found | {
        "state": state_of,
        "gradients that lie elsewhere": gradients_that_lie_elsewhere,
        "observed": observed,
        "replaced": replaced,
    }


def mesh_cases() -> dict[str, Callable[[Alone], Tensors]]:
    """What a mesh of two by two processes and one do alike."""
    settings = [("adamw", "cautious"), ("adamw", "random"), ("sgd", "spd"), ("muon", "cautious"), ("muon", "scaled")]
    found = {
        f"{rule} {mode} {layout}": native(rule, mode, layout)
        for rule, mode in settings
        for layout in ("replicas", "grid", "twice")
    }
    return found | {f"fully_shard over tensor parallel {mode}": trained(both, mode, True) for mode in ("random", "spd")}


def both(here: Alone) -> Network:
    """fully_shard over one mesh dimension of what tensor parallel divided over the other."""
    module = network()
    if here.mesh is not None:
        across, within = here.mesh["across"], here.mesh["within"]
        tensor_parallel(Divided(within), module)
        fully_shard(module, mesh=across)
    return module
