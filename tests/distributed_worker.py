"""One of several processes that run :mod:`tests.distributed_cases`.

``python -m tests.distributed_worker RANK SIZE FOLDER PART``: the first process writes what the cases of the part gave,
each one its own facts: what was sent, who did what, what is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.debug import CommDebugMode

from cwd.optim import MODES, RULES, sharded_muon
from tests.distributed_cases import Alone, Divided, cases, go_on, mesh_cases, save, shapes_of, trajectory
from tests.optim_helpers import make


def messages(here: Alone, rule: str, mode: str) -> dict[str, int]:
    """The collectives of a step, by name."""
    counts: list[CommDebugMode] = []

    def watched(params):
        optimizer = make(rule, params, mode)
        optimizer.register_step_pre_hook(lambda *_: counts.append(CommDebugMode().__enter__()))
        optimizer.register_step_post_hook(lambda *_: counts[-1].__exit__(None, None, None))
        return optimizer

    trajectory(here, "rows", watched, shapes_of(rule))
    found = [{str(name): count for name, count in one.get_comm_counts().items() if count} for one in counts]
    assert all(one == found[0] for one in found), found
    return found[0]


def work(here: Alone) -> dict[str, Any]:
    """How many matrices this process orthogonalises in a step, and the bytes of an element that travels."""
    done, sizes = [], set()
    function, send = sharded_muon.orthogonalized, dist.all_to_all_single
    sharded_muon.orthogonalized = lambda m, hyper: (done.append(tuple(m.shape)), function(m, hyper))[1]
    dist.all_to_all_single = lambda out, *args, **kwargs: (sizes.add(out.element_size()), send(out, *args, **kwargs))[1]
    try:
        options = {"ns_dtype": torch.bfloat16}
        trajectory(
            here, "middle", lambda params: make("muon", params, **options), ((8, 8),) * 4 + ((4, 8, 4),), steps=[1]
        )
    finally:
        sharded_muon.orthogonalized, dist.all_to_all_single = function, send
    return {"matrices": sorted(done), "bytes": sorted(sizes)}


def refusals(here: Alone) -> dict[str, str]:
    mesh, found = here.mesh, {}

    def attempt(name: str, function: Callable[[], Any]) -> None:
        try:
            function()
            found[name] = "taken"
        except ValueError as error:
            found[name] = str(error)

    partial = DTensor.from_local(torch.ones(2, 2), mesh, [Partial()])
    attempt("partial", lambda: make("adamw", [partial]))
    rows = 1 if dist.get_rank() == 0 else 3
    uneven = DTensor.from_local(torch.ones(rows, 2), mesh, [Shard(0)], shape=torch.Size((4, 2)), stride=(2, 1))
    attempt("uneven", lambda: make("adamw", [uneven]))
    divided, alone = nn.Parameter(here.place(torch.ones(4, 2), "rows")), nn.Parameter(torch.ones(4, 2))
    states = []
    for p in (divided, alone):
        p.grad = torch.ones_like(p)
        states.append(make("adamw", [p]))
        states[-1].step()
    attempt("divided state", lambda: states[1].load_state_dict(states[0].state_dict()))
    local = states[1].state_dict()
    local["state"][0] = {name: value[:2] if value.ndim else value for name, value in local["state"][0].items()}
    attempt("a part of the state", lambda: states[0].load_state_dict(local))
    return found


def main(rank: int, size: int, folder: Path, part: str) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{part}", rank=rank, world_size=size, timeout=wait)
    facts: dict[str, Any] = {}
    if part == "two":
        here = Divided(init_device_mesh("cpu", (2,)))
        results = {name: case(here) for name, case in cases().items()}
        facts["messages"] = {f"{r} {m}": messages(here, r, m) for r in RULES for m in MODES}
        facts["work"], facts["refusals"] = work(here), refusals(here)
        results["from one"] = go_on(here, folder / "one")
        save(here, folder / "both")
    else:
        here = Divided(init_device_mesh("cpu", (2, 2), mesh_dim_names=("across", "within")))
        results = {name: case(here) for name, case in mesh_cases().items()}
    if rank == 0:
        torch.save(results, folder / f"{part}.pt")
    (folder / f"{part}{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
