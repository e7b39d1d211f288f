"""What decides whether a run is compiled."""

import shutil

import pytest
import torch

from cwd.sweeps import compose_config
from cwd.training import compiling
from cwd.training.compiling import to_compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
A_HUNDRED_STEPS = [
    "model=simply_230k",
    "training.steps=100",
    "training.batch_size=32",
    "training.seq_len=128",
]  # 409,600 tokens


@pytest.fixture(autouse=True)
def a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_a_long_run_is_compiled_and_a_short_one_is_not(monkeypatch):
    config = compose_config(A_HUNDRED_STEPS)
    monkeypatch.setattr(compiling, "WORTH", {"cpu": 409_600 * 10**6})
    assert not to_compile(config, 10**6, CPU)
    assert to_compile(config, 10**6 + 1, CPU)


def test_a_gpu_asks_for_more_than_a_cpu():
    long = compose_config([*A_HUNDRED_STEPS[:1], "training.steps=100000", *A_HUNDRED_STEPS[2:]])
    assert to_compile(long, 1_400_000, CPU)
    assert not to_compile(long, 1_400_000, CUDA)


def test_what_the_user_says_counts():
    assert to_compile(compose_config([*A_HUNDRED_STEPS, "machine.compile=true"]), 1, CPU)
    assert not to_compile(compose_config([*A_HUNDRED_STEPS, "machine.compile=false"]), 10**15, CPU)


def test_without_a_compiler_or_a_count_of_the_arithmetic_nothing_is_compiled(monkeypatch):
    config = compose_config(A_HUNDRED_STEPS)
    assert not to_compile(config, None, CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not to_compile(config, 10**15, CPU)
    assert to_compile(config, 10**15, CUDA)  # Triton needs none


@pytest.mark.parametrize(
    ("scale", "longest"), [("laptop", "simply_130k"), ("laptop", "simply_4m"), ("smoke", "simply_4m")]
)
def test_no_run_of_a_small_scale_is_compiled(scale, longest):
    """Their numbers stay what they are, bit for bit, and half a minute of compiling would be most of their time."""
    config = compose_config(
        [f"scale={scale}", f"model={longest}", "training.steps=1300"][: 3 if "130k" in longest else 2]
    )
    parameters = {"simply_130k": 200_000, "simply_4m": 5_000_000}[longest]
    assert not to_compile(config, 6 * parameters, CPU)
