"""Claims: their quantities recomputed from the raw files, and which verdict comes of what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cwd.errors import UserError
from cwd.evidence.artifact_files import load_artifact
from cwd.evidence.claims import Finding, overall
from cwd.evidence.study import State, Study
from tests.evidence_helpers import noise, paired_losses, write_state

OPTIMIZERS = ("adamw", "lion", "muon")

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("laptop", tmp_path / "runs", 5)


def of(state: State, claim: str) -> list[Finding]:
    return [one for one in state.findings if one.claim.id == claim]


def raw(root: Path) -> list[dict[str, Any]]:
    """Every record as its files have it, read without the project's own readers."""
    found = []
    for folder in sorted(root.iterdir()):
        if (folder / "summary.json").exists():
            lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
            about = json.loads((folder / "config.json").read_text())["config"]
            summary = json.loads((folder / "summary.json").read_text())
            found.append({"config": about, "summary": summary, "lines": [json.loads(line) for line in lines]})
    return found


def raw_losses(root: Path, optimizer: str, mode: str, **more: Any) -> list[float]:
    chosen = {}
    for run in raw(root):
        config = run["config"]
        facts = {"schedule": config["schedule"]["name"], "hidden": config["model"]["hidden_size"]}
        if (config["optimizer"]["name"], config["decay"]["mode"]) == (
            optimizer,
            mode,
        ) and more.items() <= facts.items():
            chosen[config["seed"]] = run["summary"]["loss"]
    return [chosen[seed] for seed in sorted(chosen)]


# Against scipy, from the raw files


def test_a_tables_statistics_are_scipys_from_the_raw_files(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.004, spread=0.003))
    found = of(state, "demo")
    assert [one.coordinates["optimizer"] for one in found] == list(OPTIMIZERS)
    p_values = []
    for one in found:
        a, b = (raw_losses(study.folder.root, one.coordinates["optimizer"], mode) for mode in ("cautious", "decoupled"))
        assert one.estimate is not None
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert one.estimate.mean == pytest.approx(np.mean(np.subtract(a, b)))
        assert (one.estimate.low, one.estimate.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
        assert one.effect_in_sd == pytest.approx(np.mean(np.subtract(a, b)) / np.std(np.subtract(a, b), ddof=1))
        p_values.append(float(test.pvalue))
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(np.sort(p_values) * [3, 2, 1])
    for rank, i in enumerate(order):
        assert found[i].p == pytest.approx(min(1.0, adjusted[rank]))
        expected = "unresolved" if adjusted[rank] > 0.05 else "supported"
        assert found[i].verdict == expected


def test_a_finding_names_the_runs_behind_each_value(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.004))
    for one in state.findings:
        for seed, keys in one.runs.items():
            a, b = (json.loads((study.folder.root / key / "summary.json").read_text())["loss"] for key in keys)
            assert one.values[seed] == pytest.approx(a - b)


@pytest.mark.parametrize(
    ("effect", "verdict"), [(-0.02, "supported"), (0.02, "contradicted"), (0.0, "unresolved"), (-0.0005, "unresolved")]
)
def test_the_verdict_follows_the_difference(study: Study, effect: float, verdict: str) -> None:
    state = write_state(study, "demo", paired_losses(effect))
    assert {one.verdict for one in state.findings} == {verdict}
    assert overall(state.findings) == verdict


def test_a_claim_about_several_cells_needs_all_of_them(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return paired_losses(0.02 if where["optimizer"] == "lion" else -0.02)(where, seed)

    state = write_state(study, "demo", outcome)
    assert [one.verdict for one in state.findings] == ["supported", "contradicted", "supported"]
    assert overall(state.findings) == "contradicted"
    assert overall([state.findings[0], state.findings[2]]) == "supported"


def test_the_seeds_needed_are_for_the_published_effect_at_the_measured_spread(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.001, spread=0.01))
    for one in state.findings:
        assert one.seeds_needed is not None
        assert one.estimate is not None
        assert one.estimate.sd is not None
        assert one.published is not None
        level = 0.05 / 3

        def reached(n: int, one: Finding = one, level: float = level) -> bool:
            shift = abs(one.published or 0) * math.sqrt(n) / (one.estimate.sd if one.estimate else 0)  # type: ignore[operator]
            return bool(stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, shift) >= 0.8)

        assert reached(one.seeds_needed)
        assert not reached(one.seeds_needed - 1)


# What stands between runs and a verdict


def test_missing_seeds_give_no_verdict(study: Study) -> None:
    full = paired_losses(-0.05)

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        return None if seed == 4 and where["optimizer"] == "muon" else full(where, seed)

    state = write_state(study, "demo", outcome)
    assert [one.verdict for one in state.findings] == ["supported", "supported", "incomplete"]
    muon = state.findings[2]
    assert (len(muon.values), muon.planned, muon.p) == (4, 5, None)
    assert overall(state.findings) == "incomplete"


def test_comparisons_that_are_missing_count_in_holms_family(study: Study) -> None:
    """Else a verdict could be taken back when the rest of the table comes in."""

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        return paired_losses(-0.004, 0.003)(where, seed) if where["optimizer"] == "adamw" else None

    one = write_state(study, "demo", outcome).findings[0]
    root = study.folder.root
    p = stats.ttest_rel(raw_losses(root, "adamw", "cautious"), raw_losses(root, "adamw", "decoupled")).pvalue
    assert one.p == pytest.approx(min(1.0, 3 * float(p)))


def test_smoke_runs_are_never_verdicts(tmp_path: Path) -> None:
    state = write_state(Study("smoke", tmp_path / "runs", 5), "demo", paired_losses(-0.5))
    assert {one.verdict for one in state.findings} == {"smoke"}
    assert {(one.p, one.seeds_needed) for one in state.findings} == {(None, None)}


def test_a_run_that_diverged_leaves_its_comparison_unresolved(study: Study) -> None:
    full = paired_losses(-0.05)

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        gone = seed == 2 and where["optimizer"] == "lion" and where["arm"] == "cautious"
        return {"diverged": True} if gone else full(where, seed)

    lion = write_state(study, "demo", outcome).findings[1]
    assert (lion.verdict, lion.notes) == ("unresolved", ("seed 2: diverged: cautious",))
    assert len(lion.values) == 4


def test_arms_that_are_no_pair_are_refused(study: Study) -> None:
    full = paired_losses(-0.05)

    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        other = {"pairing": {"weights": "other", "batches": "other"}} if where["arm"] == "cautious" else {}
        return {**full(where, seed), **other}

    with pytest.raises(UserError, match="not a pair"):
        write_state(study, "demo", outcome)


def test_what_cannot_be_run_yet_has_no_verdict_and_no_numbers(study: Study) -> None:
    state = study.state("table5")
    assert {one.verdict for one in state.findings} == {"not run"}
    assert all("needs " in one.notes[0] for one in state.findings)
    assert not any(one.values or one.estimate for one in state.findings)


def test_a_comparison_that_would_mix_settings_is_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the schedule among its coordinates, a comparison of table7 has two configurations in each arm."""
    artifact = load_artifact("table7")
    claim = next(one for one in artifact.claims if one.id == "wsd_adds")
    vars(claim).update(each=(), where={})
    monkeypatch.setattr("cwd.evidence.study.load_artifact", lambda name: artifact)
    with pytest.raises(
        UserError, match="table7: claim wsd_adds: each comparison needs one configuration of either arm"
    ):
        study.state("table7")
    vars(claim).update(a={"arm": "cautious", "schedule": "wsd"}, b={"arm": "decoupled"})
    with pytest.raises(UserError, match="each comparison needs"):
        study.state("table7")
    vars(claim).update(b={"arm": "decoupled", "schedule": "cosine"})
    study.state("table7")  # both are named, so this is what is compared


# The other quantities


def test_the_average_is_that_of_each_seeds_differences(study: Study) -> None:
    """Single cells are too few to resolve what all of them together do."""
    state = write_state(study, "table10", paired_losses(-0.01, spread=0.004))
    (one,) = of(state, "lower_loss_average")
    cells = of(state, "lower_loss")
    assert len(cells) == 9
    for seed in range(5):
        assert one.values[seed] == pytest.approx(np.mean([cell.values[seed] for cell in cells]))
    losses = {
        mode: np.array([raw_losses(study.folder.root, o, mode, hidden=h) for o in OPTIMIZERS for h in (24, 32, 48)])
        for mode in ("cautious", "decoupled")
    }
    interval = stats.ttest_rel(losses["cautious"].mean(0), losses["decoupled"].mean(0)).confidence_interval()
    assert one.estimate is not None
    assert (one.estimate.low, one.estimate.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert one.verdict == "supported"
    assert {cell.verdict for cell in cells} != {"supported"}
    assert all(len(keys) == 18 for keys in one.runs.values())


def test_the_slope_of_the_gap_is_that_of_least_squares(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        gap = {"111m": 0.004, "338m": 0.006, "986m": 0.011, "2b": 0.012}[where["size"]]
        return paired_losses(-gap, spread=0.0005)(where, seed)

    (one,) = of(write_state(study, "figure6", outcome), "gap_lasts")
    for seed, value in one.values.items():
        sizes, gaps = [], []
        for hidden, steps in ((16, 150), (24, 330), (32, 580), (48, 1300)):
            pair = {}
            for run in raw(study.folder.root):
                config = run["config"]
                if (config["model"]["hidden_size"], config["training"]["steps"], config["seed"]) == (
                    hidden,
                    steps,
                    seed,
                ):
                    pair[config["decay"]["mode"]] = run["summary"]
            sizes.append(math.log2(pair["cautious"]["parameters"]))
            gaps.append(pair["decoupled"]["loss"] - pair["cautious"]["loss"])
        assert value == pytest.approx(stats.linregress(sizes, gaps).slope)
    assert one.verdict == "supported"
    published = stats.linregress(np.log2([338.44, 985.89, 2321.38]), [0.0077, 0.0089, 0.0092]).slope
    assert one.published == pytest.approx(published)


def test_a_gap_that_shrinks_contradicts(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        gap = {"111m": 0.05, "338m": 0.04, "986m": 0.02, "2b": 0.01}[where["size"]]
        return paired_losses(-gap, spread=0.0005)(where, seed)

    state = write_state(study, "figure6", outcome)
    assert overall(of(state, "gap_lasts")) == "contradicted"
    assert overall(of(state, "gap_exists")) == "supported"


def curves(where: Mapping[str, Any], seed: int) -> list[tuple[str, int, dict[str, Any]]]:
    """Telemetry whose norms are in the paper's order, and a mask ratio that falls from a half."""
    level = {"decoupled": 0.08, "cautious": 0.12, "none": 0.16}[where["arm"]]
    lines: list[tuple[str, int, dict[str, Any]]] = []
    steps = {"986m": 580, "qwen_600m": 330}[where["size"]]  # of configs/ladder/laptop.yaml
    for step in (1, *range(10, steps + 1, 10)):
        one = dict.fromkeys(("mask_ratio", "rms_u", "rms_g"), 0.3)
        one["strict_ratio"] = 0.5 - 0.1 * step / steps + 0.001 * noise(seed, step)
        one["rms_x"] = level * (1 + step / steps) * math.exp(0.01 * noise(seed, where["arm"], step))
        tensors = {"layers.0.attn.q_proj.weight": one, "layers.0.ffn.up.weight": {**one, "rms_x": one["rms_x"] * 2}}
        lines.append(("telemetry", step, {"overall": one, "tensors": tensors}))
    return lines


def test_intermediate_norms_are_two_comparisons_over_the_end_of_the_run(study: Study) -> None:
    state = write_state(study, "figure11", lambda where, seed: {"loss": 3.0 + noise(seed, where["arm"])}, curves)
    (above,), (below,) = of(state, "norm_above_decoupled"), of(state, "norm_below_none")
    assert (above.verdict, below.verdict) == ("supported", "supported")
    logs = {}
    for run in raw(study.folder.root):
        tail = [line["overall"]["rms_x"] for line in run["lines"] if line["step"] >= 0.9 * 580]
        logs[run["config"]["decay"]["mode"], run["config"]["seed"]] = math.log(np.mean(tail))
    for seed in range(5):
        assert above.values[seed] == pytest.approx(logs["cautious", seed] - logs["decoupled", seed])
        assert below.values[seed] == pytest.approx(logs["cautious", seed] - logs["none", seed])


def test_tensors_that_a_pattern_matches_are_taken_by_their_geometric_mean(study: Study) -> None:
    state = write_state(study, "figure13", lambda where, seed: {"loss": 3.0}, curves)
    one = of(state, "tensor_norms_intermediate")[0]
    norms = {}
    for run in raw(study.folder.root):
        tail = [line["overall"]["rms_x"] * math.sqrt(2) for line in run["lines"] if line["step"] >= 0.9 * 580]
        norms[run["config"]["decay"]["mode"], run["config"]["seed"]] = np.mean(tail)
    expected = [math.log(norms["cautious", seed] / norms["decoupled", seed]) for seed in range(5)]
    assert list(one.values.values()) == pytest.approx(expected)


def test_the_mask_ratio_starts_at_a_half_and_falls(study: Study) -> None:
    state = write_state(study, "figure7", lambda where, seed: {"loss": 3.0}, curves)
    assert overall(of(state, "ratio_starts_at_half")) == "supported"
    falls = of(state, "ratio_falls")
    assert overall(falls) == "supported"
    for run in raw(study.folder.root):
        ratios = [(line["step"], line["overall"]["strict_ratio"]) for line in run["lines"]]
        fall = np.mean([value for step, value in ratios if 264 <= step <= 330]) - ratios[0][1]
        where = next(one for one in falls if one.coordinates["optimizer"] == run["config"]["optimizer"]["name"])
        assert where.values[run["config"]["seed"]] == pytest.approx(fall)


def test_a_record_without_what_a_claim_reads_leaves_it_unresolved(study: Study) -> None:
    state = write_state(study, "figure7", lambda where, seed: {"loss": 3.0})
    assert {one.verdict for one in state.findings} == {"unresolved"}
    assert "no strict_ratio@0 in the record" in state.findings[0].notes[0]
