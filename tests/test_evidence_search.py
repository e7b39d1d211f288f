"""The search: stage by stage, on tuning seeds, the same trials for both arms, written down with where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cwd.errors import UserError
from cwd.evidence.artifact_files import Stage, load_artifact, load_ladder
from cwd.evidence.claims import overall
from cwd.evidence.report import document
from cwd.evidence.search import searches
from cwd.evidence.study import Study
from cwd.evidence.trials import trials, with_values
from cwd.evidence.tuning import tuned_file, tuned_name
from cwd.sweeps import CONFIGS, compose_config
from tests.evidence_helpers import noise, write_state

STAGES = (
    Stage(lr=(0.01, 0.02, 0.04), weight_decay=(0.1, 0.5)),
    Stage(warmup=(0.0, 0.1, 0.3)),
    Stage(betas=((0.9, 0.95), (0.9, 0.99), (0.95, 0.99)), trials=2),
    Stage(batch_size=(8, 16)),
)

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("laptop", tmp_path / "runs", 5)


@pytest.fixture
def staged(study: Study) -> Study:
    """A study whose 338m rung has a search of four stages, for AdamW alone."""
    rung = replace(study.ladder.sizes["338m"], search={"adamw": STAGES})
    others = {name: replace(one, search={}) for name, one in study.ladder.sizes.items()}
    study.ladder = replace(study.ladder, sizes={**others, "338m": rung})
    return study


def hill(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The best: a rate of 0.02 and a lambda of 0.5, for cautious decay 0.04 and 0.1; a warmup of 0.3, a batch of 8."""
    best = (0.04, 0.1) if where["arm"] == "cautious" else (0.02, 0.5)
    away = sum(abs(math.log(where[axis] / one)) for axis, one in zip(("lr", "lambda"), best, strict=True))
    away += {"warmup 0.3": 0.0, "warmup 0.1": 0.1, "batch_size 8": -0.1}.get(where.get("other", ""), 0.05)
    gain = 0.05 if where["arm"] == "cautious" else 0.0
    return {"loss": 2.0 + 0.1 * away - gain + 0.001 * noise(seed)}


# What a stage tries


def test_a_stage_is_the_product_of_its_axes_or_so_many_of_it() -> None:
    whole = trials(STAGES[0], "a")
    assert whole == [{"lr": lr, "weight_decay": wd} for lr in (0.01, 0.02, 0.04) for wd in (0.1, 0.5)]
    some = replace(STAGES[0], trials=4)
    assert len(trials(some, "a")) == 4
    assert trials(some, "a") == trials(some, "a")
    assert {str(trials(some, str(i))) for i in range(20)} != {str(trials(some, "a"))}
    for trial in trials(some, "b"):
        assert trial in whole


def test_a_trial_is_the_configuration_with_its_values() -> None:
    plain = asdict(compose_config(["scale=laptop", "training.batch_size=16", "training.steps=330"]))
    changed = with_values(plain, {"lr": 0.3, "weight_decay": 0.7, "warmup": 0.2, "betas": (0.8, 0.9), "batch_size": 32})
    words = ["optimizer.lr=0.3", "decay.weight_decay=0.7", "schedule.warmup=0.2", "optimizer.betas=[0.8,0.9]"]
    assert changed == asdict(compose_config(["scale=laptop", *words, "training.batch_size=32", "training.steps=165"]))
    with pytest.raises(UserError, match="adamw has no momentum"):
        with_values(plain, {"momentum": 0.9})


def test_both_arms_have_the_same_trials(staged: Study) -> None:
    points = staged.state("fair").points
    tried = {
        arm: [p.trial for p in points if p.coordinates["choice"] == "search" and p.coordinates["arm"] == arm]
        for arm in ("decoupled", "cautious")
    }
    assert tried["decoupled"] == tried["cautious"]
    assert len(tried["decoupled"]) == 6 + 3 + 2 + 2


# What is found


def test_each_stage_goes_around_the_best_of_those_before(staged: Study) -> None:
    for done in range(5):
        state = staged.state("tuning")
        known = [point for point in state.points if point.config]
        assert {p.coordinates["stage"] for p in known} == set(range(1, min(done + 1, 4) + 1))
        assert ("the stages of the search at 338m before" in state.needs) is (done < 3)
        write_state(staged, "tuning", hill)
        staged = study_again(staged)
    (search,) = searches(staged.state("tuning").points, staged.ladder)
    betas = trials(STAGES[2], "338m adamw 3")[0]["betas"]  # no loss depends on them
    assert search.values == {"lr": 0.02, "weight_decay": 0.5, "warmup": 0.3, "betas": betas, "batch_size": 8}
    assert search.at_edge == ["weight_decay", "warmup", "batch_size"]
    assert search.runs == (6 + 3 + 2 + 2) * 2
    last = [p.config for p in staged.state("tuning").points if p.coordinates["stage"] == 4]
    assert {(c["optimizer"]["lr"], c["schedule"]["warmup"], c["training"]["steps"]) for c in last if c} == {
        (0.02, 0.3, 330),
        (0.02, 0.3, 660),
    }


def study_again(study: Study) -> Study:
    """The same ladder over the runs folder as it is now."""
    again = Study(study.ladder.scale, study.folder.root, study.seeds)
    again.ladder = study.ladder
    return again


def test_what_is_found_is_a_file_with_where_it_comes_from(staged: Study) -> None:
    for _ in range(5):
        write_state(staged, "tuning", hill)
        staged = study_again(staged)
    (search,) = searches(staged.state("tuning").points, staged.ladder)
    text = tuned_file(search)
    betas = trials(STAGES[2], "338m adamw 3")[0]["betas"]
    assert yaml.safe_load(text) == {
        "optimizer": {"lr": 0.02, "betas": list(betas)},
        "decay": {"weight_decay": 0.5},
        "schedule": {"warmup": 0.3},
    }
    assert "seeds 100, 101" in text
    assert "Rates 0.01, 0.02, 0.04; lambdas 0.1, 0.5" in text
    assert "Best batch_size: 8" in text
    assert "At the grid's edge: lambda, warmup, batch_size" in text


def test_the_file_is_that_of_the_size(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        away = abs(math.log(where["lr"] / 0.02)) + abs(math.log(where["lambda"] / 0.5))
        return {"loss": 2.0 + 0.1 * away + 0.001 * noise(seed)}

    found = {one.key[:2]: one for one in searches(write_state(study, "tuning", outcome).points, study.ladder)}
    assert set(found) == {(size, name) for size in ("338m", "986m") for name in ("adamw", "lion", "muon")}
    assert tuned_name(found["338m", "adamw"], study.ladder) == "laptop_adamw"
    assert tuned_name(found["986m", "adamw"], study.ladder) == "laptop_986m_adamw"
    for size in ("338m", "986m"):
        assert found[size, "adamw"].values == {"lr": 0.02, "weight_decay": 0.5}
    assert found["986m", "adamw"].at_edge == ["weight_decay"]


def test_a_search_that_is_not_done_finds_nothing(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        return None if where["lr"] == 0.02 and seed == 101 else {"loss": 2.0}

    state = write_state(study, "tuning", outcome)
    assert {one.key[1] for one in searches(state.points, study.ladder)} == {"lion", "muon"}


def test_a_trial_that_diverges_is_never_the_best(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return {"diverged": True} if where["lr"] >= 0.02 and seed == 100 else {"loss": 2.0}

    for one in searches(write_state(study, "tuning", outcome).points, study.ladder):
        assert one.values["lr"] < 0.02


# The fair protocol


def test_each_arm_is_compared_at_the_best_of_its_own_search(staged: Study) -> None:
    for _ in range(6):
        write_state(staged, "fair", hill)
        staged = study_again(staged)
    state = staged.state("fair")
    own = {p.coordinates["arm"]: p.config for p in state.points if p.coordinates["choice"] == "own" and p.config}
    assert own["decoupled"] is not None
    assert own["cautious"] is not None
    assert (own["decoupled"]["optimizer"]["lr"], own["decoupled"]["decay"]["weight_decay"]) == (0.02, 0.5)
    assert (own["cautious"]["optimizer"]["lr"], own["cautious"]["decay"]["weight_decay"]) == (0.04, 0.1)
    adamw = [one for one in state.findings if one.coordinates["optimizer"] == "adamw"]
    assert overall(adamw) == "unresolved"  # two lambdas were tried, and a wider search may favour decoupled decay
    for one in adamw:
        assert set(one.values) == set(range(5))
        assert one.estimate is not None
        assert one.estimate.mean < 0
        assert one.p is not None
        assert one.p < 0.05
        assert one.notes == ("own best of decoupled at the edge of its grid, widen it",)
    remarks = " ".join(document(state).remarks)
    assert "338m adamw cautious: rate 0.04, lambda 0.1" in remarks
    assert f"of {(6 + 3 + 2 + 2) * 2} runs on seeds 100, 101" in remarks


def test_the_papers_grids_are_those_of_appendix_f() -> None:
    stages = load_ladder("paper").sizes["338m"].search
    grids = {
        name: {axis: tried for stage in found for axis, tried in stage.axes.items()} for name, found in stages.items()
    }
    for found in grids.values():
        assert len(found["lr"]) == 24
        assert (min(found["lr"]), max(found["lr"])) == (1e-5, 1e-1)
        assert found["warmup"] == (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    first = (0.85, 0.9, 0.95)
    assert set(grids["adamw"]["betas"]) == {(a, b) for a in first for b in (0.95, 0.98, 0.99, 0.995, 0.999)}
    assert set(grids["lion"]["betas"]) == {(a, b) for a in first for b in (0.95, 0.98, 0.99)}


def test_the_tuned_values_are_what_the_committed_records_say() -> None:
    study = Study("laptop", CONFIGS.parent / "records" / "laptop")
    found = searches(study.state("tuning").points, study.ladder)
    assert len(found) == 6
    for search in found:
        written = CONFIGS / "tuned" / f"{tuned_name(search, study.ladder)}.yaml"
        assert written.read_text() == tuned_file(search)


def test_every_rung_with_a_search_is_in_a_tuning() -> None:
    tuned = {size for name in ("tuning", "tuning_images") for size in load_artifact(name).blocks[0].sizes}
    for scale in ("laptop", "paper"):
        assert {size for size, rung in load_ladder(scale).sizes.items() if rung.search} <= tuned
