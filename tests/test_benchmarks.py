"""The benchmarks measure what they say: memory, time by turns; and their door refuses what is not there."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cwd.benchmarks import memory, optimizers, peers, report
from cwd.benchmarks.contenders import Contender, contenders
from cwd.benchmarks.ours import CLASSES
from cwd.benchmarks.timing import Turn, ratio_of_neighbours, time_by_turns
from cwd.errors import UserError
from cwd.optim import RULES
from tests.test_cli import command

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")

TENSORS = [(256, 256)] * 3 + [(100,)]
WHOLE, LARGEST = 4 * (3 * 256 * 256 + 100), 4 * 256 * 256  # bytes


class Idle(torch.optim.Optimizer):
    """Does nothing but what a test adds."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self):
        pass


class ClonesAll(Idle):
    def step(self):
        kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
        assert kept


class ClonesOneByOne(Idle):
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.detach().clone()


class Hoards(Idle):
    """Keeps a copy between steps, which is not in its state."""

    def step(self):
        self.copies = [p.detach().clone() for p in self.param_groups[0]["params"]]


class HasState(Idle):
    def step(self):
        for p in self.param_groups[0]["params"]:
            if not self.state[p]:
                self.state[p]["buffer"] = torch.zeros_like(p)


@needs_compiler
def test_the_meter_sees_what_compiled_code_allocates():
    @torch.compile
    def plus_one(x):
        return x + 1

    class Compiled(Idle):
        def step(self):
            plus_one(self.param_groups[0]["params"][0].detach())

    assert memory.peak_of_step(Compiled, TENSORS) == LARGEST


@pytest.mark.parametrize(
    ("cls", "expected"), [(Idle, 0), (ClonesAll, WHOLE), (ClonesOneByOne, LARGEST), (Hoards, 2 * WHOLE), (HasState, 0)]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's allocator rounds up")
def test_the_meter_sees_exactly_what_a_step_allocates(cls, expected):
    assert memory.peak_of_step(cls, TENSORS) == expected


def test_the_shapes_are_what_their_names_say():
    large, many = optimizers.SHAPES[optimizers.LARGE], optimizers.SHAPES[optimizers.MANY]
    assert (len(large), round(sum(map(np.prod, large)) / 1e6)) == (19, 38)
    assert (len(many), {np.prod(shape) for shape in many}) == (300, {10_000})


def test_memory_covers_every_rule():
    assert set(CLASSES) == set(RULES)


def test_turns_alternate_and_are_prepared_untimed():
    calls = []
    turns = [Turn(partial(calls.append, name), partial(calls.append, f"before {name}")) for name in "ab"]
    times = time_by_turns(turns, repeats=3, warmups=1)
    assert calls == ["before a", "a", "before b", "b"] * 4
    assert [len(found) for found in times] == [3, 3]


def test_a_ratio_is_that_of_neighbours():
    ours, theirs = [2.0, 20.0, 3.0], [1.0, 10.0, 1.0]  # the machine was ten times slower in the second round
    ratio = ratio_of_neighbours(ours, theirs)
    assert (ratio.ours, ratio.theirs, ratio.median) == (3.0, 1.0, 2.0)
    assert 2.0 <= ratio.low <= ratio.high <= 3.0


def test_the_door_refuses_a_benchmark_that_is_not_there(tmp_path: Path) -> None:
    done = command("scripts/benchmark.py", "optimisers", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "benchmark.py: optimisers: no such benchmark (nearest: 'optimizers'); "
        "allowed are trainer, optimizers, memory, peers, loss, sweep, data, images, checkpoint\n"
    )


def test_the_door_has_help(tmp_path: Path) -> None:
    out = command("scripts/benchmark.py", "--help", folder=tmp_path).stdout
    assert all(
        f"\n{name} " in out for name in ("trainer", "optimizers", "memory", "peers", "data", "images", "checkpoint")
    )


BAD = {
    "theads=1": "theads: no such option (nearest: 'threads'); allowed are ",
    "threads": "threads: an option is written key=value; allowed are ",
    "threads=0": "threads=0: a whole number above 0 is needed",
    "threads=two": "threads=two: a whole number above 0 is needed",
    "markdown=no/such/folder/a.md": "markdown=no/such/folder/a.md: its folder is not there",
}


@pytest.mark.parametrize("benchmark", [optimizers, memory, peers])
@pytest.mark.parametrize(("bad", "message"), BAD.items())
def test_a_bad_option_is_refused_before_anything_is_measured(benchmark, bad, message, capsys):
    with pytest.raises(UserError) as error:
        benchmark.main([bad])
    assert str(error.value).startswith(message)
    assert capsys.readouterr().out == ""


def test_a_name_in_a_list_must_be_there():
    assert report.read_names({"rules": "lion,sgd"}, "rules", RULES) == ["lion", "sgd"]
    assert report.read_names({"rules": ""}, "rules", RULES) == list(RULES)
    with pytest.raises(UserError, match=r"rules=lion,sdg: no 'sdg' \(nearest: 'sgd'\); allowed are adamw, lion"):
        report.read_names({"rules": "lion,sdg"}, "rules", RULES)


def test_a_section_is_replaced_and_the_others_stay(tmp_path, capsys):
    file = tmp_path / "benchmarks.md"
    for title, value in (("First", "1"), ("Second", "2"), ("First", "3")):
        table = report.Table("a table", ["name", "value"], ["A note."])
        table.add("row", value)
        report.publish("memory", title, ["threads=1", f"markdown={file}"], [table], str(file))
    text = file.read_text()
    assert [text.count(cell) for cell in ("| row | 1 |", "| row | 2 |", "| row | 3 |")] == [0, 1, 1]
    assert text.count("`python scripts/benchmark.py memory threads=1`") == 2
    assert str(tmp_path) not in text
    assert "a table" in capsys.readouterr().out


def test_what_is_not_installed_is_said(monkeypatch, capsys):
    absent = Contender("Absent", "sgd", Idle, package="no-such-distribution")
    monkeypatch.setattr(peers, "contenders", lambda: [absent])
    assert peers.agreement_table(["sgd"]).rows == [["Absent", "cautious", "not installed", *["-"] * 5]]
    assert peers.time_table(1, ["sgd"]).rows == [["Absent", "cautious", "not installed", "not installed"]]


def test_every_rule_has_ours_and_a_style_beside_it():
    found = contenders()
    for rule in RULES:
        names = [one.name for one in found if one.rule == rule]
        assert any(name.startswith("cwd.optim") for name in names)
        assert any(name.startswith("Python loop") for name in names)
    assert len({one.name for one in found}) == len(found)


def test_an_error_of_a_contender_is_its_result(monkeypatch, capsys):
    def broken(params, **hyper):
        raise RuntimeError("no")

    monkeypatch.setattr(peers, "contenders", lambda: [Contender("Broken", "sgd", broken)])
    monkeypatch.setattr(peers, "SHAPES", {"tiny": [(3, 3)]})
    assert peers.time_table(1, ["sgd"]).rows == [["Broken", "cautious", "fails: RuntimeError"]]
    assert set(peers.agreement_table(["sgd"]).rows[0][2:]) == {"fails: RuntimeError"}


@needs_compiler
def test_the_optimizers_benchmark_compares_every_row_and_writes_its_section(monkeypatch, tmp_path, capsys):
    tiny = {optimizers.LARGE: [(8, 4)] * 2 + [(4,)], optimizers.MANY: [(6, 6)] * 3}
    monkeypatch.setattr(optimizers, "SHAPES", tiny)
    monkeypatch.setattr(optimizers, "ELEMENTWISE", ("sgd",))
    monkeypatch.setattr(optimizers, "first_step_seconds", lambda rule, kwargs, threads: (2.0, 1.0))
    optimizers.main(["threads=1", "repeats=2", f"markdown={tmp_path / 'a.md'}"])
    text = (tmp_path / "a.md").read_text()
    for row in ("| SGD compiled |", "| SGD eager |", "| wrapper of torch AdamW fused |", "| Muon bfloat16 |"):
        assert text.count(row) >= 2
    assert "| SGD compiled | 2.0 | 1.0 | 0 |" in text  # no new graph in 1,000 steps


def test_the_memory_benchmark_takes_rules_and_modes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "WAYS", {"eager": {"compile": False}})
    monkeypatch.setattr(memory, "ways", lambda rule: {"eager": {"compile": False}})
    memory.main(["threads=1", "rules=sgd", "modes=none,cautious", f"markdown={tmp_path / 'a.md'}"])
    lines = [line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith(("| sgd", "| wrapper"))]
    assert [line.split("|")[1].strip() for line in lines] == [
        "sgd, none",
        "sgd, cautious",
        "wrapper of torch AdamW fused, none",
        "wrapper of torch AdamW fused, cautious",
    ]


@needs_compiler
@pytest.mark.slow
def test_a_warm_cache_makes_the_first_step_faster():
    cold, warm = optimizers.first_step_seconds("sgd", {"compile": True}, 1)
    assert 0 < warm < cold
