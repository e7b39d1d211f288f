"""The package as a user gets it: the wheel, beside torch alone, typed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

PACKAGED = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cwd").rglob("*.py")}
IMPORT_LIMIT = 0.050  # seconds of a processor that `import cwd.optim` may add to `import torch`


def run(*command: str | Path) -> str:
    """What a command prints; in the root folder, so that nothing is found there but what -I and the command allow."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, as building leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "cwd", folder / "source" / "cwd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source")
    [built] = folder.glob("*.whl")
    return built


def distributions(requirement: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Adds to `found` the distribution that a requirement names, and all that it requires on this machine."""
    wanted = Requirement(requirement)
    found[wanted.name] = importlib.metadata.distribution(wanted.name)
    for line in found[wanted.name].requires or []:
        needed = Requirement(line)
        holds = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *wanted.extras))
        if holds and (needed.name not in found or needed.extras):
            distributions(line, found)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds torch, what torch requires, and the wheel.

    torch is linked, not copied. pip has no index to ask, so it installs only if what the wheel requires is there.
    """
    environment = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    found: dict[str, importlib.metadata.Distribution] = {}
    distributions("torch", found)
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel)
    return python


def test_the_wheel_holds_every_module_the_type_marker_and_the_licence(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= PACKAGED
    assert "cwd/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


STEPS = """
import importlib.util, json, sys, torch
before = set(sys.modules)
from cwd.optim import AdamW, CautiousWeightDecay, Lion, Muon, SGD
new = {name.partition(".")[0] for name in set(sys.modules) - before}
import cwd

def after(make):
    p = torch.nn.Parameter(torch.tensor([[4.0, -4.0]]))
    p.grad = torch.tensor([[2.0, 2.0]])
    make([p]).step()
    return p.tolist()[0]

print(json.dumps({
    "file": cwd.__file__,
    "foreign": sorted(new - set(sys.stdlib_module_names)),
    "numpy": importlib.util.find_spec("numpy") is not None,
    "sgd": after(lambda p: SGD(p, lr=0.5, momentum=0.0, weight_decay=0.5)),
    "lion": after(lambda p: Lion(p, lr=0.5, weight_decay=0.5)),
    "adamw": after(lambda p: AdamW(p, lr=0.5, weight_decay=0.5, eps=0.0)),
    "muon": after(lambda p: Muon(p, lr=0.0, weight_decay=0.5)),
    "wrapper": after(lambda p: CautiousWeightDecay(torch.optim.SGD(p, lr=0.5), 0.5)),
}))
"""


def test_it_installs_and_steps_beside_torch_alone_and_imports_nothing_else(bare: Path):
    seen = json.loads(run(bare, "-I", "-c", STEPS))
    assert Path(seen["file"]).is_relative_to(bare.parent.parent)
    assert set(seen["foreign"]) <= {"cwd", "torch"}
    assert not seen["numpy"]  # nor anything else of this project's environment
    # x - lr * (u + lambda * x) where u and x agree, x - lr * u where not; u is the gradient, or its sign
    assert seen["sgd"] == seen["wrapper"] == [4 - 0.5 * (2 + 0.5 * 4), -4 - 0.5 * 2]
    assert seen["lion"] == [4 - 0.5 * (1 + 0.5 * 4), -4 - 0.5 * 1]
    assert seen["adamw"] == pytest.approx(seen["lion"], rel=1e-6)
    assert seen["muon"] == [4, -4]


IMPORT = """
import time, torch
start = time.process_time()  # the processor's: on the wall's clock, other processes' work counts too
import cwd.optim
print(time.process_time() - start)
"""


@pytest.mark.slow
def test_importing_the_optimizers_adds_little_time_to_importing_torch(bare: Path):
    assert statistics.median(float(run(bare, "-I", "-c", IMPORT)) for _ in range(5)) < IMPORT_LIMIT


RIGHT = """
import torch
from cwd.optim import AdamW, CautiousWeightDecay, Lion, Muon, SGD, assign_groups, describe_groups, GroupPattern

model = torch.nn.Linear(3, 2)
optimizers: list[torch.optim.Optimizer] = [
    AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, decay="cautious"),
    Lion([{"params": [model.weight], "decay": "scaled"}, {"params": [model.bias], "weight_decay": 0.0}]),
    SGD(model.named_parameters(), momentum=0.9, dampening=0.0),
    CautiousWeightDecay(torch.optim.NAdam(model.parameters()), weight_decay=0.1, mode="cautious"),
]
patterns = [GroupPattern(["*bias"], "adamw", decay=False), GroupPattern(["*"], "muon")]
groups = assign_groups(model.named_parameters(), patterns, lr=1e-3, weight_decay=0.1, decay="cautious")
lines: list[str] = describe_groups(groups)
optimizers.append(Muon(groups))
for optimizer in optimizers:
    optimizer.step()
    state: dict[str, object] = optimizer.state_dict()
"""
WRONG = {
    'AdamW(parameters, lr="x")': 'Argument "lr" to "AdamW" has incompatible type "str"; expected "float"',
    "Lion(parameters, betas=0.9)": 'Argument "betas" to "Lion" has incompatible type "float"',
    "SGD(parameters, decay=0.1)": 'Argument "decay" to "SGD" has incompatible type "float"; expected "str"',
    "Muon(parameters, beta=0.9)": 'Unexpected keyword argument "beta" for "Muon"',
    'CautiousWeightDecay("adamw")': 'incompatible type "str"; expected "Optimizer"',
}


def type_check(source: str, python: Path, folder: Path) -> tuple[str, int]:
    from mypy import api

    file = folder / "snippet.py"
    file.write_text(source)
    # Nothing but the snippet's own errors; torch's files are read for their types all the same.
    options = ["--strict", "--python-executable", str(python), "--config-file=", "--cache-dir", str(folder / "cache")]
    out, err, status = api.run([*options, str(file)])
    assert not err
    return out, status


@pytest.mark.slow
def test_the_type_checker_passes_a_users_code_and_finds_what_is_wrong_in_it(bare, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # so that the installed package is found, not this repository
    monkeypatch.chdir(tmp_path)
    assert type_check(RIGHT, bare, tmp_path) == ("Success: no issues found in 1 source file\n", 0)
    wrong = "import torch\nfrom cwd.optim import *\nparameters = torch.nn.Linear(3, 2).parameters()\n"
    out, status = type_check(wrong + "\n".join(WRONG), bare, tmp_path)
    assert status == 1
    assert out.count("error:") == len(WRONG)
    for message in WRONG.values():
        assert message in out
