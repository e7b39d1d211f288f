"""The optimizers on DTensors: several processes end where one does.

One pair of processes runs all cases of :mod:`tests.distributed_cases`, which are then run here as one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, RULES
from tests.conftest import ROOT
from tests.distributed_cases import Alone, cases, go_on, mesh_cases, network, optimizer_of, save, train
from tests.optim_helpers import EXACT, UNIT

ELEMENTWISE = ("none", "decoupled", "cautious", "gradient", "opposite")
ROUNDING = {"rtol": 16 * UNIT, "atol": 16 * UNIT}


def launch(folder: Path, size: int, part: str) -> dict[str, Any]:
    """What `size` processes made of a part of the cases: results, and the facts of each process."""
    command = [sys.executable, "-m", "tests.distributed_worker"]
    places = [[str(rank), str(size), str(folder), part] for rank in range(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = [(folder / f"{part}{rank}.log").open("w+") for rank in range(size)]
    running = [
        subprocess.Popen([*command, *place], cwd=ROOT, env=environment, stdout=out, stderr=out)
        for place, out in zip(places, log, strict=True)
    ]
    try:
        ended = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert not any(ended), "".join((folder / f"{part}{rank}.log").read_text()[-3000:] for rank in range(size))
    facts = [json.loads((folder / f"{part}{rank}.json").read_text()) for rank in range(size)]
    return {"results": torch.load(folder / f"{part}.pt", weights_only=True), "facts": facts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def two(folder) -> dict[str, Any]:
    save(Alone(), folder / "one")
    return launch(folder, 2, "two")


@pytest.fixture(scope="module")
def four(folder) -> dict[str, Any]:
    return launch(folder, 4, "four")


@pytest.mark.parametrize("name", cases())
def test_two_processes_do_what_one_does(two, name):
    exact = name.split()[0] in ("adamw", "lion", "sgd", "wrapper", "state", "bfloat16,") and "spd" not in name
    assert_close(two["results"][name], cases()[name](Alone()), **(EXACT if exact else ROUNDING))


@pytest.mark.slow
@pytest.mark.parametrize("name", mesh_cases())
def test_a_mesh_of_four_processes_does_what_one_does(four, name):
    exact = name.split()[0] == "adamw"
    assert_close(four["results"][name], mesh_cases()[name](Alone()), **(EXACT if exact else ROUNDING))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_sends_no_more_than_it_must(two, rule, mode):
    """Nothing for elementwise rules and modes; for modes with sums one all-reduce for all tensors; for Muon the
    matrices there and back.
    """
    expected = {} if mode in ELEMENTWISE else {"c10d.allreduce_": 1}
    if rule == "muon":
        expected["c10d.alltoall_base_"] = 2
    for facts in two["facts"]:
        assert facts["messages"][f"{rule} {mode}"] == expected


def test_each_matrix_is_orthogonalised_once_and_the_work_is_shared_and_travels_in_the_dtype_of_the_iteration(two):
    shares = [facts["work"]["matrices"] for facts in two["facts"]]
    assert sorted(map(tuple, shares[0] + shares[1])) == sorted([(8, 8)] * 4 + [(8, 4)] * 4)
    assert shares[0] == shares[1]
    assert [facts["work"]["bytes"] for facts in two["facts"]] == [[2], [2]]


def test_what_is_not_supported_is_refused_with_what_is(two):
    for facts in two["facts"]:
        said = facts["refusals"]
        assert "allowed are Shard and Replicate" in said["partial"]
        assert "(2, 2) is what the placements" in said["uneven"]
        assert "torch.distributed.checkpoint" in said["divided state"]
        assert "(2, 2)" in said["a part of the state"]
        assert "(4, 2)" in said["a part of the state"]


def test_a_checkpoint_of_two_processes_goes_on_in_one(two, folder):
    assert_close(go_on(Alone(), folder / "both"), straight(), **ROUNDING)


def test_a_checkpoint_of_one_process_goes_on_in_two(two):
    assert_close(two["results"]["from one"], straight(), **ROUNDING)


def straight() -> dict[str, torch.Tensor]:
    """One process that nothing stops."""
    module = network()
    return train(Alone(), module, optimizer_of(module, "random"), range(1, 9))


def test_the_library_does_not_load_torch_distributeds_tensors():
    code = "import sys, cwd.optim; sys.exit('torch.distributed.tensor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
