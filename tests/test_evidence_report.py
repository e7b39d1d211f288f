"""Documents and their four texts and two images: the same content in each, marked where it is not evidence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats

from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.document import Document, Figure, Panel, Series, Table, as_tables
from cwd.evidence.export import export_records
from cwd.evidence.measures import TELEMETRY
from cwd.evidence.render import latex_text, to_json, to_latex, to_markdown, to_terminal, write_all
from cwd.evidence.report import document, ledger
from cwd.evidence.study import State, Study
from cwd.evidence.tables import where_of
from cwd.files import write_json
from cwd.runs import Record
from tests.evidence_helpers import noise, paired_losses, printed, words, write_state

pytestmark = pytest.mark.usefixtures("fast_disk")
FORMS = {
    "terminal": lambda doc: printed(lambda console: to_terminal(doc, console)),
    "markdown": to_markdown,
    "latex": to_latex,
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("laptop", tmp_path / "runs", 3)


def shown(state: State) -> str:
    return FORMS["terminal"](document(state))


def row(text: str, *parts: str) -> str:
    return next(words(line) for line in text.splitlines() if all(part in line for part in parts))


# The table


def test_the_table_shows_mean_spread_and_the_published_number(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.004))
    text, losses = shown(state), {}
    for path in study.folder.root.glob("*/summary.json"):
        config = json.loads((path.parent / "config.json").read_text())["config"]
        where = config["optimizer"]["name"], config["decay"]["mode"]
        losses.setdefault(where, []).append(json.loads(path.read_text())["loss"])
    lines = text.splitlines()
    for name, label, printed_there in (("adamw", "AdamW", "3.0136 3.0059"), ("muon", "Muon", "2.9896 2.9851")):
        cells = [f"{fmean(losses[name, a]):.4f} ± {stdev(losses[name, a]):.4f}" for a in ("decoupled", "cautious")]
        at = next(i for i, line in enumerate(lines) if words(line) == f"{label} {' '.join(cells)}")
        assert words(lines[at + 1]) == f"published {printed_there}"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_comparison(study: Study, form: str) -> None:
    state = write_state(study, "demo", paired_losses(-0.02))
    one = state.findings[1]
    assert one.estimate is not None
    text = FORMS[form](document(state)).replace("|", " ").replace("&", " ")
    interval = stats.t.interval(0.95, 2, one.estimate.mean, one.estimate.sd / 3**0.5)  # type: ignore[operator]
    expected = f"demo Lion 3 of 3 {one.estimate.mean:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"
    assert expected in row(text, "demo", "Lion", "3 of 3")
    assert "-0.0109" in row(text, "demo", "Lion", "3 of 3")
    assert one.verdict in row(text, "demo", "Lion", "3 of 3")


def test_json_has_everything_unrounded_and_the_keys_of_the_runs(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.02))
    data = json.loads(to_json(document(state)))
    assert data["evidence"] is True
    for one, found in zip(data["claims"], state.findings, strict=True):
        assert one["verdict"] == found.verdict
        assert one["values"] == {str(seed): value for seed, value in found.values.items()}
        for seed, keys in one["runs"].items():
            a, b = (json.loads((study.folder.root / key / "summary.json").read_text())["loss"] for key in keys)
            assert a - b == one["values"][seed]
    for cell in data["cells"]:
        for seed, key in cell["runs"].items():
            assert (
                cell["values"]["loss"][seed]
                == json.loads((study.folder.root / key / "summary.json").read_text())["loss"]
            )


# What must not be overlooked


@pytest.mark.parametrize("form", FORMS)
def test_smoke_is_marked_in_every_form_and_has_no_verdict(tmp_path: Path, form: str) -> None:
    state = write_state(Study("smoke", tmp_path / "runs", 3), "demo", paired_losses(-0.5))
    text = FORMS[form](document(state))
    assert "SMOKE, NO EVIDENCE" in text
    assert "supported" not in row(text, "demo", "Lion")
    assert json.loads(to_json(document(state)))["evidence"] is False


@pytest.mark.parametrize("form", FORMS)
def test_half_way_through_it_shows_what_it_has_marked_incomplete(study: Study, form: str) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        if where["optimizer"] == "muon" or (seed == 2 and where["optimizer"] == "lion"):
            return None
        return paired_losses(-0.02)(where, seed)

    text = FORMS[form](document(write_state(study, "demo", outcome)))
    assert "INCOMPLETE: of 18 runs, 8 missing" in text
    assert row(text, "Lion", "2 of 3").count("(2 of 3)") == 2
    numbers = re.findall(r"\d\.\d{4}", row(text, "Muon"))
    assert numbers == []  # no cell of ours without a run
    assert "incomplete" in row(text, "demo", "Muon")


def test_a_complete_artifact_carries_no_mark(study: Study) -> None:
    assert document(write_state(study, "demo", paired_losses(-0.02))).marks == ()


def test_runs_that_diverged_are_named_in_their_cell(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        gone = where["optimizer"] == "lion" and (where["arm"] == "cautious" or seed == 0)
        return {"diverged": True} if gone else paired_losses(-0.02)(where, seed)

    text = shown(write_state(study, "demo", outcome))
    assert "(2 of 3, 1 diverged)" in row(text, "Lion", "diverged")
    assert "- (3 diverged)" in row(text, "Lion", "diverged")
    assert "INCOMPLETE" not in text


def test_artifacts_that_cannot_be_run_yet_say_what_they_need_and_show_the_papers_numbers(study: Study) -> None:
    for name, needs, number in (("table5", "needs the run that they go on from, no runs yet", "0.5867"),):
        text = shown(study.state(name))
        assert needs in text
        assert number in text
        ours = [line for line in text.splitlines() if "±" in line]
        assert ours == []


def test_runs_on_other_data_are_counted_as_left_out(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.02))
    config = state.points[0].on(0)
    from cwd.config import identity_of

    Record.create(study.folder.root, identity_of(config), {"fingerprint": "b"}, config)
    assert "Left out: 1 runs of the same settings on other data." in shown(
        Study("laptop", study.folder.root, 3).state("demo")
    )


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_artifact_renders_without_any_run(tmp_path: Path, scale: str) -> None:
    study = Study(scale, tmp_path)
    for name in artifact_names():
        one = document(study.state(name))
        for form in FORMS.values():
            assert one.title in form(one).replace("\\", "")
        assert one.figures == []
        json.loads(to_json(one))


# The ledger


def test_the_ledger_has_a_line_for_each_claim_with_its_verdict(study: Study) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        return paired_losses(0.5 if where["optimizer"] == "lion" else -0.5)(where, seed)

    write_state(study, "table10", outcome)
    again = Study("laptop", study.folder.root, 3)
    states = [again.state(name) for name in ("table10", "table2", "table3")]
    text = FORMS["terminal"](ledger(states))
    assert "contradicted 6 supported, 3 contradicted" in row(text, "lower_loss ", "At the same lambda")
    assert "incomplete" in row(text, "images_accuracy")
    for state in states:
        for claim in state.artifact.claims:
            assert claim.id in text
    assert "(a control, not the paper's)" in text


def test_the_ledger_names_runs_that_one_table_resolves_and_another_does_not(study: Study) -> None:
    """Two comparisons are corrected less than 26."""
    for name in ("table7", "table10"):
        write_state(study, name, paired_losses(0.05, spread=0.01))
    again = Study("laptop", study.folder.root, 3)
    states = [again.state(name) for name in ("table7", "table10")]
    same = [one for state in states for one in state.findings if where_of(one) in ("cosine", "338m AdamW")]
    assert [one.verdict for one in same if one.claim.id in ("cosine_adds", "lower_loss")] == [
        "contradicted",
        "unresolved",
    ]
    (said,) = [line for line in ledger(states).remarks if "The same runs" in line]
    assert said.endswith("338m AdamW: contradicted in table7; unresolved in table10.")
    assert not any("The same runs" in line for line in ledger(states[:1]).remarks)


# Figures


def falling(where: Mapping[str, Any], seed: int) -> list[tuple[str, int, dict[str, Any]]]:
    shift = -0.1 if where["arm"] == "cautious" else 0.0
    return [
        ("eval", step, {"loss": 5 - step / 1000 + shift + noise(seed), "accuracy": 0.3}) for step in range(0, 331, 110)
    ]


def test_a_figures_lines_are_the_means_over_seeds(study: Study) -> None:
    one = document(write_state(study, "figure9", lambda where, seed: {"loss": 3.0}, falling))
    (figure,) = one.figures
    assert [series.label for series in figure.panels[0].series] == ["decoupled", "cautious"]
    mean = fmean(noise(seed) for seed in range(3))
    for series, shift in zip(figure.panels[0].series, (0.0, -0.1), strict=True):
        assert series.x == (110.0, 220.0, 330.0)  # the beginning is left out
        assert series.y == pytest.approx([5 - x / 1000 + shift + mean for x in series.x])


def test_the_band_shows_how_far_pairs_scatter_and_not_how_far_seeds_do(study: Study) -> None:
    """Here both arms of a seed have the same noise, of standard deviation 1, and differ by exactly 0.1."""
    (figure,) = document(write_state(study, "figure9", lambda where, seed: {"loss": 3.0}, falling)).figures
    for series in figure.panels[0].series:
        assert series.high is not None
        assert series.high == pytest.approx(series.y, abs=1e-9)


def test_the_band_of_two_lines_is_the_paired_standard_deviation_over_root_two(study: Study) -> None:
    """Morey's correction makes it so: sd(a - b) / sqrt(2)."""

    def lines(where: Mapping[str, Any], seed: int) -> list[tuple[str, int, dict[str, Any]]]:
        return [("eval", 600, {"loss": 5 + noise(seed) + 0.1 * noise(seed, where["arm"])})]

    (figure,) = document(write_state(study, "figure9", lambda where, seed: {"loss": 3.0}, lines)).figures
    gaps = [0.1 * (noise(seed, "decoupled") - noise(seed, "cautious")) for seed in range(3)]
    for series in figure.panels[0].series:
        assert series.high is not None
        assert series.high[0] - series.y[0] == pytest.approx(stdev(gaps) / 2**0.5)


def test_lambda_zero_is_on_every_arms_line(study: Study) -> None:
    state = write_state(
        study, "figure1", lambda where, seed: {"loss": 3.0 + where["lambda"] + (where["arm"] == "none")}
    )
    (figure,) = document(state).figures
    assert [panel.title for panel in figure.panels] == ["AdamW", "Lion", "Muon"]
    for panel in figure.panels:
        assert [series.label for series in panel.series] == ["decoupled", "cautious"]
        for series in panel.series:
            assert series.x[0] == 0
            assert series.y[0] == pytest.approx(4.0)
            assert series.y[1:] == pytest.approx([3 + x for x in series.x[1:]])


def test_a_long_curve_is_shown_by_some_of_its_points_with_both_ends() -> None:
    xs = tuple(float(x) for x in range(100))
    panel = Panel("p", "step", "loss", (Series("a", xs, xs), Series("b", xs[:50], xs[:50])))
    (table,) = as_tables(Figure("f", (panel,)))
    assert table.columns == ("step", "a", "b")
    assert len(table.rows) <= 10
    assert (table.rows[0], table.rows[-1]) == (("0", "0.0000", "0.0000"), ("99", "99.0000", "-"))


def test_what_is_written_is_whole_and_the_same_each_time(study: Study, tmp_path: Path) -> None:
    one = document(write_state(study, "figure9", lambda where, seed: {"loss": 3.0}, falling))
    paths = write_all(one, tmp_path / "out")
    assert {path.suffix for path in paths} == {".md", ".tex", ".json", ".png", ".pdf"}
    first = {path: path.read_bytes() for path in paths}
    assert first[tmp_path / "out" / "figure9.png"].startswith(b"\x89PNG")
    assert first[tmp_path / "out" / "figure9.pdf"].startswith(b"%PDF")
    assert "![" in (tmp_path / "out" / "figure9.md").read_text()
    shutil.rmtree(tmp_path / "out")
    assert {path: path.read_bytes() for path in write_all(one, tmp_path / "out")} == first


# Text that means something elsewhere


def test_what_latex_and_markdown_would_read_is_escaped() -> None:
    assert latex_text("50% of a_b & #1 {x} ± $") == r"50\% of a\_b \& \#1 \{x\} $\pm$ \$"
    one = Document("d", "t", parts=(Table("a|b", ("x*", "y"), (("a|b", "[bold]"),)),))
    assert r"| a\|b | [bold] |" in to_markdown(one)
    assert "[bold]" in FORMS["terminal"](one)


def test_a_markdown_table_has_as_many_cells_in_each_row(study: Study) -> None:
    text = to_markdown(document(write_state(study, "table2", paired_losses(-0.02))))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def telemetry(where: Mapping[str, Any], seed: int) -> list[tuple[str, int, dict[str, Any]]]:
    one = {name: 0.1 + 0.01 * noise(seed, where["arm"]) ** 2 for name in TELEMETRY}
    tensors = {f"layers.{i}.attn.{name}_proj.weight": one for i in (0, 1) for name in "qkvo"}
    rows = [("telemetry", step, {"overall": one, "tensors": tensors}) for step in range(0, 1301, 100)]
    return rows + [(kind, 1300, {"loss": 3.0, "grad_norm": 1.0}) for kind in ("train", "eval")]


def test_exported_records_give_the_same_documents_and_are_small(study: Study, tmp_path: Path) -> None:
    def outcome(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
        gone = seed == 1 and where["arm"] == "none"
        return {"diverged": True} if gone else {"loss": 3.0 + 0.01 * noise(seed, where["arm"], where["optimizer"])}

    names = ("figure11", "figure13", "table2")
    for name in names:
        write_state(study, name, outcome, telemetry)
    there = Study("laptop", study.folder.root, 3)
    keys = export_records([there.state(name) for name in names], tmp_path / "kept")
    kept = Study("laptop", tmp_path / "kept", 3)
    for name in names:
        assert to_json(document(kept.state(name))) == to_json(document(there.state(name)))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == keys
    files = {path.name for path in (tmp_path / "kept").glob("*/*")}
    assert files == {"config.json", "summary.json", "metrics.jsonl", "status.json"}
    with_tensors = [path for path in (tmp_path / "kept").glob("*/metrics.jsonl") if "q_proj" in path.read_text()]
    assert len(with_tensors) == 9  # figure13's three arms and three seeds; nothing else reads tensors


def test_a_damaged_record_is_a_missing_run(study: Study) -> None:
    state = write_state(study, "demo", paired_losses(-0.02))
    record = state.points[0].cells[1].record
    assert record is not None
    write_json(record.folder / "summary.json", {"loss": 0.1, "checksum": "wrong"})
    again = Study("laptop", study.folder.root, 3).state("demo")
    assert again.findings[0].verdict == "incomplete"
    assert again.missing[0][0]["seed"] == 1
