"""README.md and docs/: pages are followed as they stand, by a reader with a copy of the tree; no command is stale."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from cwd.evidence.artifact_files import artifact_names
from cwd.optim import MODES
from cwd.runs import read_metrics
from cwd.sweeps import compose_sweep
from tests.conftest import ROOT
from tests.page_helpers import PAGES, Reader, all_commands, blocks_of, commands_of

LISTED: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "tests" / "docs_commands.yaml").read_text())
STEPS = {page.name: page for page in PAGES if any(block.language == "sh" for block in blocks_of(page))}


class Run(dict[str, Any]):
    """A finished run's summary, with its folder and its configuration."""

    def __init__(self, folder: Path) -> None:
        super().__init__(json.loads((folder / "summary.json").read_text()))
        self.folder, self.config = folder, json.loads((folder / "config.json").read_text())["config"]

    def curve(self, name: str) -> list[float]:
        """A telemetry curve over all tensors."""
        return [line["overall"][name] for line in read_metrics(self.folder / "metrics.jsonl", "telemetry")]

    def losses(self) -> list[float]:
        """At each evaluation."""
        return [line["loss"] for line in read_metrics(self.folder / "metrics.jsonl", "eval")]


def runs_of(reader: Reader) -> list[Run]:
    return [Run(path.parent) for path in sorted((reader.folder / "runs").glob("*/summary.json"))]


def optimizer_page(reader: Reader, printed: str) -> None:
    runs = {run.config["decay"]["mode"]: run for run in runs_of(reader)}
    assert set(runs) == set(MODES)
    for run in runs.values():
        assert run.config["optimizer"]["name"] == "adamax"
        assert run.losses()[-1] < run.losses()[0] - 1  # it trains
    assert len({run["loss"] for run in runs.values()}) == len(MODES)  # and each mode is another
    assert len(re.findall(r"^\w{8} .* adamax .* done ", printed, re.MULTILINE)) == len(MODES)


def mode_page(reader: Reader, printed: str) -> None:
    runs = {run.config["optimizer"]["name"]: run for run in runs_of(reader)}
    assert set(runs) == {"adamw", "lion", "muon", "sgd"}
    assert {run.config["decay"]["mode"] for run in runs.values()} == {"below_rms"}
    assert all(run.losses()[-1] < run.losses()[0] for run in runs.values())


def model_page(reader: Reader, printed: str) -> None:
    runs = {run.config["model"]["family"]: run for run in runs_of(reader)}
    assert set(runs) == {"simply", "llama"}
    assert runs["simply"].config["model"]["num_hidden_layers"] == 6
    model = AutoModelForCausalLM.from_pretrained(runs["llama"].folder / "model")
    assert type(model) is LlamaForCausalLM
    width, layers, ids = 32, 4, model.config.vocab_size
    by_hand = 2 * ids * width + layers * (4 * width**2 + 3 * width * 96 + 2 * width) + width
    assert sum(p.numel() for p in model.parameters()) == runs["llama"]["parameters"] == by_hand
    assert runs["llama"].losses()[-1] < runs["llama"].losses()[0] - 1


def dataset_page(reader: Reader, printed: str) -> None:
    lines, table = sorted(runs_of(reader), key=lambda run: run.config["dataset"]["name"], reverse=True)
    assert (lines.config["dataset"]["name"], table.config["dataset"]["name"]) == ("text", "csv")
    assert lines.losses() == table.losses()  # the same reviews, by two ways


def claim_page(reader: Reader, printed: str) -> None:
    found = json.loads((reader.folder / "results" / "smoke" / "weights.json").read_text())
    runs = {(r.config["optimizer"]["name"], r.config["decay"]["mode"], r.config["seed"]): r for r in runs_of(reader)}
    assert found["unfinished"] == 0
    assert len(found["claims"]) == 6
    for claim in found["claims"]:
        assert claim["verdict"] == "smoke"
        optimizer = claim["where"]["optimizer"]
        for seed, value in claim["values"].items():
            a, b = (runs[optimizer, mode, int(seed)] for mode in ("cautious", "decoupled"))
            if claim["claim"] == "larger_weights":
                assert value == pytest.approx(a.curve("rms_x")[-1] - b.curve("rms_x")[-1], abs=1e-12)
            else:
                late = [v for v, step in zip(a.curve("mask_ratio"), telemetry_steps(a), strict=True) if step >= 16]
                assert value == pytest.approx(fmean(late), abs=1e-12)
    records = printed.rpartition("weights: Root mean square")[2]  # what the last command shows
    assert len(re.findall(r"^ *weights +(larger_weights|most_agree) +smoke ", printed, re.MULTILINE)) == 2
    assert re.search(r"larger_weights +AdamW +\d of 5 +\+0\.\d+", records)


def telemetry_steps(run: Run) -> list[int]:
    return [line["step"] for line in read_metrics(run.folder / "metrics.jsonl", "telemetry")]


def reproduce_page(reader: Reader, printed: str) -> None:
    found = json.loads((reader.folder / "results" / "smoke" / "table7.json").read_text())
    assert found["unfinished"] == 0
    assert not found["evidence"]
    assert {claim["verdict"] for claim in found["claims"]} == {"smoke"}
    assert len(runs_of(reader)) == 8
    assert printed.count("SMOKE, NO EVIDENCE") == 2
    assert re.search(r"^\d+ runs to do, about \d+ minutes", printed, re.MULTILINE)


def nothing_more(reader: Reader, printed: str) -> None:
    """Its commands end well."""


OUTCOMES: dict[str, Callable[[Reader, str], None]] = {
    "add_optimizer.md": optimizer_page,
    "add_decay_mode.md": mode_page,
    "add_model.md": model_page,
    "add_dataset.md": dataset_page,
    "add_claim.md": claim_page,
    "reproduce.md": reproduce_page,
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prepared text that all readers share."""
    return tmp_path_factory.mktemp("prepared")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", STEPS.values(), ids=list(STEPS))
def test_a_page_can_be_followed_as_it_stands(page: Path, tmp_path: Path, prepared: Path) -> None:
    reader = Reader(tmp_path, prepared)
    printed = reader.follow(page)
    OUTCOMES.get(page.name, nothing_more)(reader, printed)


def test_each_page_that_adds_something_is_followed() -> None:
    assert {*OUTCOMES} <= {*STEPS}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_table10_at_smoke_scale(tmp_path: Path, prepared: Path) -> None:
    reader = Reader(tmp_path, prepared)
    reader.run("make table10 SCALE=smoke")
    found = json.loads((tmp_path / "results" / "smoke" / "table10.json").read_text())
    assert (found["unfinished"], found["needs"]) == (0, [])
    assert {claim["verdict"] for claim in found["claims"]} == {"smoke"}


# Every command


def shown() -> list[tuple[str, str]]:
    """(page, command) of every page."""
    return [(str(page.relative_to(ROOT)), command) for page in PAGES for command in all_commands(page)]


def test_every_command_is_run_or_is_listed_with_a_reason() -> None:
    followed = {
        command
        for page in STEPS.values()
        for b in blocks_of(page)
        if b.language == "sh"
        for command in commands_of(b.text)
    }
    used = set()
    for page, command in shown():
        patterns = [(place, glob) for place in ("*", page) for glob in LISTED.get(place, {}) if matches(command, glob)]
        used.update(patterns)
        assert command in followed or patterns, f"{page}: {command}: mark its block sh, or say why it is not run"
    assert used == {(place, glob) for place, globs in LISTED.items() for glob in globs}  # none is stale


def matches(command: str, glob: str) -> bool:
    return command == glob or fnmatchcase(command, glob)


TRAIN = re.compile(r"(?:^|\s)train\.py( .*)?$")
TRAINED = sorted({found[1] or "" for _, command in shown() if (found := TRAIN.search(command))})
PLACEHOLDERS = {"model=NAME": "model=gpt2", "...": "seed=0"}
ADDED = ("adamax", "below_rms", "simply_deep", "llama_60k", "reviews", "dataset=csv", "lionn")  # by a page, or wrong


@pytest.mark.parametrize("words", [text for text in TRAINED if not any(name in text for name in ADDED)])
def test_the_words_of_every_training_command_are_right(words: str) -> None:
    flags = ("-m", "--help", "--cfg", "job")
    overrides = [PLACEHOLDERS.get(word, word) for word in shlex.split(words) if word not in flags]
    assert compose_sweep([word for word in overrides if not word.startswith(("hydra/", "hydra."))])


SCRIPTS = ("artifact", "report", "plan", "theory")  # those that argparse reads


class Parsed(Exception):
    """The arguments were taken."""


def expanded() -> list[str]:
    """The commands of the pages, and what make would do for them."""
    commands = dict.fromkeys(command.removeprefix("$ ") for _, command in shown())
    found = [command for command in commands if not command.startswith("make ")]
    for command in commands:
        if command.startswith("make "):
            done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            found += done.stdout.replace("\\\n", "").splitlines()
    return found


def test_every_make_target_is_there_and_every_script_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = argparse.ArgumentParser.parse_args, []

    def parse(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> None:
        seen.append(real(self, *arguments, **options))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for command in expanded():
        script = re.search(r"python (scripts/(\w+)\.py)(.*)$", command)
        if not script or script[2] not in SCRIPTS:
            continue
        monkeypatch.setattr(sys, "argv", [script[1], *shlex.split(script[3])])
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script[1]), run_name="__main__")
        names = getattr(seen[-1], "artifact", None) or []
        assert {*names} <= {*artifact_names(), "all", "weights"}, command
    assert len(seen) > 10


# Links and code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, link


def test_the_code_in_the_readme_runs() -> None:
    code = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "python"]
    assert code
    for text in code:
        model = torch.nn.Linear(4, 2)
        names: dict[str, Any] = {"model": model, "torch": torch}
        exec(compile(text, "README.md", "exec"), names)
        model(torch.ones(3, 4)).sum().backward()
        before = model.weight.detach().clone()
        names["optimizer"].step()
        assert not torch.equal(model.weight, before)
