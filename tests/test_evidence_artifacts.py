"""Artifacts as data: every file is right, composes at every scale, shares its runs, and fits into the time it has."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cwd.config import identity, identity_of
from cwd.errors import UserError
from cwd.evidence import artifact_files
from cwd.evidence.artifact_files import SCALES, artifact_names, load_artifact, load_ladder
from cwd.evidence.artifacts import at_multiple, expand, text_of
from cwd.evidence.published import published
from cwd.evidence.study import Study, all_missing
from cwd.sweeps import CONFIGS, compose_config, compose_sweep, write_cells
from tests.conftest import Ended

NAMES = artifact_names()
PAPER = [*(f"table{i}" for i in range(1, 11)), *(f"figure{i}" for i in range(1, 14)), "theorem1"]
OWN = {("figure1", None, o, a): {"multiple": 3.0} for o in ("adamw", "lion", "muon") for a in ("decoupled", "cautious")}


def test_there_is_one_for_each_table_and_figure_of_the_paper() -> None:
    assert NAMES[: len(PAPER)] == PAPER
    assert set(NAMES) - set(PAPER) >= {"demo", "tuning", "tuning_images", "fair", "appendix_c"}


def test_no_two_claims_share_a_name_and_there_are_about_twenty() -> None:
    claims = [claim for name in PAPER for claim in load_artifact(name).claims]
    assert [name for name, count in Counter(claim.id for claim in claims).items() if count > 1] == []
    assert len(claims) >= 20
    assert all(claim.says and claim.means for claim in claims)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_grid_composes_or_says_what_it_needs(name: str, scale: str) -> None:
    artifact, ladder = load_artifact(name), load_ladder(scale)
    points = expand(artifact, ladder, None, OWN)
    assert bool(points) == bool(artifact.blocks)
    for point in points:
        assert (point.config is None) == (point.needs is not None)
        if point.config is not None:
            assert point.config["scale"] == scale
            assert point.config["decay"]["mode"] == point.coordinates["arm"] or point.coordinates["multiple"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_and_layout_fits_its_grid(name: str, tmp_path: Path) -> None:
    """Each claim finds what it compares, and each published value that it names is there."""
    for scale in ("smoke", "laptop", "paper"):
        state = Study(scale, tmp_path).state(name)
        assert {one.claim.id for one in state.findings} == {claim.id for claim in state.artifact.claims}
        for one in state.findings:
            if one.claim.published and one.claim.test == "difference" and one.coordinates.get("size") != "111m":
                assert one.published is not None, (one.claim.id, one.coordinates)


def test_the_published_effect_is_the_difference_of_the_printed_numbers(tmp_path: Path) -> None:
    state = Study("laptop", tmp_path).state("table10")
    rows = published()["table10"]["rows"]
    for one in state.findings:
        if one.claim.test == "average":
            sizes = {"lower_loss_average": rows, "lower_loss_own_lambda_average": ("338m", "986m")}[one.claim.id]
            cells = [rows[size][name]["loss"] for size in sizes for name in ("adamw", "lion", "muon")]
            assert one.published == pytest.approx(fmean(cell["cautious"] - cell["decoupled"] for cell in cells))
            continue
        cell = rows[one.coordinates["size"]][one.coordinates["optimizer"]][one.claim.metric]
        assert one.published == pytest.approx(cell["cautious"] - cell["decoupled"])


def test_a_block_is_the_runs_that_the_command_line_would_make() -> None:
    artifact, ladder = load_artifact("table7"), load_ladder("laptop")
    ours = [identity_of(point.on(2)) for point in expand(artifact, ladder, None, {})]
    words = ["scale=laptop", "tracker=none", "model=simply_30k", "training.steps=330", "optimizer=adamw", "seed=2"]
    theirs = compose_sweep([*words, "decay=decoupled,cautious", "schedule=cosine,wsd"])
    assert sorted(map(str, ours)) == sorted(str(identity(config)) for config in theirs)


def test_the_demo_is_the_experiment_of_that_name() -> None:
    points = expand(load_artifact("demo"), load_ladder("laptop"), None, {})
    ours = [identity_of(point.on(seed)) for point in points for seed in point.seeds]
    theirs = [identity(config) for config in compose_sweep(["experiment=demo"])]
    assert sorted(map(str, ours)) == sorted(map(str, theirs))


def test_no_decay_is_one_run_for_all_arms_and_all_artifacts() -> None:
    ladder = load_ladder("laptop")
    grid = expand(load_artifact("figure1"), ladder, None, {})
    zeros = [identity_of(p.on(0)) for p in grid if p.config and p.coordinates.get("multiple") == 0]
    none = [p for p in expand(load_artifact("table2"), ladder, None, {}) if p.coordinates["arm"] == "none"]
    assert len(zeros) == 6
    assert all(identity_of(point.on(0)) in zeros for point in none)


def test_a_multiple_scales_lambda_and_nothing_else() -> None:
    config = expand(load_artifact("demo"), load_ladder("laptop"), None, {})[0].config
    assert config is not None
    before = config["decay"]["weight_decay"]
    other = at_multiple(config, 3)
    assert other["decay"] == {**config["decay"], "weight_decay": pytest.approx(3 * before)}
    assert {**other, "decay": None} == {**config, "decay": None}
    assert at_multiple(config, 1) == config


# What all of it costs, and what is shared


@pytest.mark.parametrize(("scale", "minutes"), [("smoke", 10), ("laptop", 200)])
def test_all_artifacts_together_fit_into_the_time_they_have(scale: str, minutes: float, tmp_path: Path) -> None:
    """On two cores, with own lambdas that are shared with no other run: the most that it can be."""
    study = Study(scale, tmp_path)
    runs = all_missing([study.state(name) for name in NAMES])
    ladder = study.ladder
    own = expand(load_artifact("table10"), ladder, None, {key: {"multiple": 2.345} for key in OWN})
    extra = sum((p.core_seconds or 0) * len(p.seeds) for p in own if p.coordinates["choice"] == "own")
    assert (sum(cost for _, cost in runs) + extra) / 2 / 60 < minutes


def test_artifacts_share_their_runs(tmp_path: Path) -> None:
    study = Study("laptop", tmp_path)
    states = [study.state(name) for name in NAMES if name != "tuning_images"]  # which shares with none
    together, apart = len(all_missing(states)), sum(len(state.missing) for state in states)
    assert together < 0.55 * apart
    curves = [study.state(name) for name in ("figure4", "figure8", "figure9", "figure10")]
    table = study.state("table10")
    assert len(all_missing([*curves, table])) == len(table.missing)
    seeds = [config["seed"] for config, _ in table.missing]
    assert sum(seed < 100 for seed in seeds) == 3 * 3 * 2 * 5
    assert sum(seed >= 100 for seed in seeds) == 3 * (2 * 4 + 1) * 2  # what the own lambdas are chosen from


def test_seeds_are_the_ladders_or_what_is_asked_for_and_tuning_seeds_are_others(tmp_path: Path) -> None:
    for seeds, count in ((None, 5), (7, 7)):
        points = Study("laptop", tmp_path, seeds).state("figure1").points
        for point in points:
            assert point.seeds == tuple(range(count))
            assert not set(point.seeds) & set(point.tuning_seeds)
    with pytest.raises(UserError, match="at least 1"):
        Study("laptop", tmp_path, 0)


# Cells as files: any set of runs is one sweep


def test_a_cells_file_is_the_run(tmp_path: Path, train_py: Any) -> None:
    """train.py, given the files, would train exactly the runs that were written."""
    states = [Study("smoke", tmp_path / "runs").state(name) for name in ("table7", "figure1", "table2")]
    runs = [config for config, _ in all_missing(states)][::7]
    names = write_cells(runs, tmp_path / "cells")
    ended: Ended = train_py("--multirun", "--config-dir", str(tmp_path / "cells"), f"experiment={','.join(names)}")
    assert ended.status == 0, ended.err
    assert [identity(config) for config in ended.configs] == [identity_of(config) for config in runs]
    assert {config.tracker.name for config in ended.configs} == {"none"}


def test_the_same_run_is_the_same_file(tmp_path: Path) -> None:
    run = all_missing([Study("smoke", tmp_path / "runs").state("demo")])[0][0]
    assert write_cells([run, run], tmp_path) == write_cells([run], tmp_path) * 2
    assert len(list((tmp_path / "experiment").iterdir())) == 1


def test_a_hash_that_looks_like_a_number_names_a_cell(
    tmp_path: Path, train_py: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = all_missing([Study("smoke", tmp_path / "runs").state("demo")])[0][0]
    with monkeypatch.context() as patch:
        digest = SimpleNamespace(hexdigest=lambda: "12345678901234e5")
        patch.setattr("cwd.sweeps.hashlib.sha256", lambda content: digest)
        (name,) = write_cells([run], tmp_path)
    ended: Ended = train_py("--multirun", "--config-dir", str(tmp_path), f"experiment={name}")
    assert ended.status == 0, ended.err
    assert [identity(config) for config in ended.configs] == [identity_of(run)]


# Mistakes in the files


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Loads table2 with changes at the top, or in its first claim."""

    def load(claim: dict[str, Any] | None = None, **top: Any) -> Any:
        data = yaml.safe_load((CONFIGS / "artifact" / "table2.yaml").read_text())
        data["claims"][0].update(claim or {})
        (tmp_path / "artifact").mkdir(exist_ok=True)
        (tmp_path / "artifact" / "table2.yaml").write_text(yaml.safe_dump({**data, **top}))
        monkeypatch.setattr(artifact_files, "CONFIGS", tmp_path)
        return load_artifact("table2")

    return load


@pytest.mark.parametrize(
    ("claim", "top", "parts"),
    [
        ({}, {"titel": "x"}, ["table2.yaml", "titel: no such key (nearest: 'title')"]),
        ({}, {"kind": "tabel"}, ["table2.yaml: kind=tabel", "nearest: 'table'"]),
        ({}, {"blocks": 3}, ["table2.yaml: blocks: must be a list, not 3"]),
        ({"tset": "x"}, {}, ["table2.yaml: claims[0]: tset: no such key", "nearest: 'test'"]),
        ({"expect": "lower"}, {}, ["claims[0]: expect=lower: not allowed"]),
        ({"expect": "within"}, {}, ["claim mask_cautious", "within takes 2"]),
        ({"bound": ["x"]}, {}, ["bound[0]: must be a number, not x"]),
        ({"test": "check"}, {}, ["test=check needs check and field"]),
        ({"check": "lyap", "field": "x"}, {"checks": ["lyapunov"]}, ["check=lyap: none of checks: lyapunov"]),
        ({"b": {}}, {}, ["test=difference needs a and b"]),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    broken: Any, claim: dict[str, Any], top: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        broken(claim, **top)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_an_override_that_does_not_fit_is_refused(broken: Any) -> None:
    artifact = broken(blocks=[{"sizes": ["338m"], "overrides": ["optimizer.betas=5"]}])
    with pytest.raises(Exception, match="optimizer"):
        expand(artifact, load_ladder_of_the_project(), None, {})


def load_ladder_of_the_project() -> Any:
    return artifact_files.read_yaml(CONFIGS / "ladder" / "laptop.yaml", artifact_files.Ladder, scale="laptop")


def test_a_size_that_no_ladder_has_is_named(broken: Any) -> None:
    artifact = broken(blocks=[{"sizes": ["339m"]}])
    with pytest.raises(UserError, match="size 339m: the laptop ladder has none"):
        expand(artifact, load_ladder_of_the_project(), None, {})


def test_coordinates_are_text_as_written() -> None:
    assert [text_of(value) for value in (0.15, 3.0, "adamw", 1e-3, None)] == ["0.15", "3", "adamw", "0.001", "None"]


def test_composed_scales_are_the_ladders(tmp_path: Path) -> None:
    for scale in SCALES:
        assert compose_config([f"scale={scale}"]).scale == load_ladder(scale).scale == scale
