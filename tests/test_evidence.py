"""Evidence: the paper's numbers, paired statistics, which runs make a cell, and what the tables say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from cwd.errors import UserError
from cwd.evidence.grid import Cell, check_paired, find_cells
from cwd.evidence.listing import find, print_difference, print_run, print_runs, select
from cwd.evidence.published import published, table10_difference
from cwd.evidence.statistics import PairedDifference, paired_difference
from cwd.evidence.tables import print_comparison
from cwd.files import write_json
from cwd.runs import MetricsLog, Record
from tests.conftest import changed, identity_of

Write = Callable[..., Record]


def printed(show: Callable[[Console], None]) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show(console)
        return console.export_text()


# Published numbers, typed in again from the paper

TABLE10 = {
    ("338m", "adamw", "loss"): (3.0059, 3.0136),
    ("2b", "lion", "loss"): (2.4961, 2.5012),
    ("986m", "muon", "accuracy"): (0.4589, 0.4575),
    ("2b", "muon", "loss"): (2.4703, 2.4803),
}


@pytest.mark.parametrize(("cell", "values"), TABLE10.items(), ids=str)
def test_table_10_is_as_printed(cell: tuple[str, str, str], values: tuple[float, float]) -> None:
    size, optimizer, metric = cell
    row = published()["table10"]["rows"][size][optimizer][metric]
    assert (row["cautious"], row["decoupled"]) == values
    assert table10_difference(size, optimizer, metric) == pytest.approx(values[0] - values[1])


def test_table_10_has_three_sizes_and_three_optimizers_and_cautious_is_always_better() -> None:
    rows = published()["table10"]["rows"]
    assert set(rows) == {"338m", "986m", "2b"}
    for size, row in rows.items():
        assert set(row) == {"adamw", "lion", "muon"}
        for optimizer in row:
            loss, accuracy = (table10_difference(size, optimizer, metric) for metric in ("loss", "accuracy"))
            assert loss is not None
            assert accuracy is not None
            assert loss < 0 < accuracy


def test_what_the_paper_does_not_have_is_none() -> None:
    assert table10_difference("338m", "sgd") is None
    assert table10_difference("111m", "adamw") is None


def test_the_tables_agree_where_they_share_a_cell() -> None:
    rows = published()
    both = rows["table10"]["rows"]["338m"]["adamw"]["loss"]
    assert rows["table6"]["rows"]["adamw"] == rows["table7"]["rows"]["adamw"]["cosine"] == both["decoupled"]
    assert rows["table6"]["rows"]["adam_cautious"] == both["cautious"]


# Statistics


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize(
    ("a", "b"),
    [([3.01, 3.05, 2.98], [3.02, 3.04, 3.01]), ([1.0, 2.0], [1.5, 1.5]), ([0.1, 0.2, 0.4, 0.3], [1.1, 1.3, 1.2, 1.0])],
)
def test_the_interval_is_scipys(a: list[float], b: list[float], confidence: float) -> None:
    ours, test = paired_difference(a, b, confidence), stats.ttest_rel(a, b)
    theirs = test.confidence_interval(confidence)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert ours.mean == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert ours.n == len(a)
    assert ours.clear_of_zero == (test.pvalue < 1 - confidence)


def test_one_pair_has_no_interval() -> None:
    assert paired_difference([2.0], [1.5]) == PairedDifference(0.5, None, None, None, 1)
    assert not paired_difference([2.0], [1.5]).clear_of_zero


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], []), ([1.0, 2.0], [1.0])])
def test_no_pairs_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_difference(a, b)


# Cells


def test_a_cell_is_the_run_of_exactly_its_identity(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    mine = write_run({"seed": 1}, loss=2.0)
    write_run({"seed": 1, "optimizer.lr": 0.0031}, loss=1.0)
    write_run({"seed": 1, "telemetry.every": 49}, loss=1.0)
    one, other = (identity_of(changed(laptop, {"seed": seed})) for seed in (1, 2))
    found, missing = find_cells([one, other], tmp_path / "runs")
    assert found.record is not None
    assert (found.record.key, found.state, found.loss) == (mine.key, "done", 2.0)
    assert (missing.record, missing.state, missing.loss) == (None, "missing", None)


def test_a_cell_is_found_from_another_machine(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    mine = write_run({"machine.threads": 7, "machine.device": "cuda", "tracker.name": "wandb"}, loss=2.0)
    (cell,) = find_cells([identity_of(laptop)], tmp_path / "runs")
    assert cell.record is not None
    assert cell.record.key == mine.key


def test_data_is_not_mixed(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    """The data that most of the runs have is the table's; on a tie it is always the same one."""
    for seed, data in ((0, "old"), (1, "new"), (2, "new"), (2, "old"), (1, "newest")):
        write_run({"seed": seed}, loss=float(len(data)), data=data)
    identities = [identity_of(changed(laptop, {"seed": seed})) for seed in (0, 1, 2)]
    for order in (identities, identities[::-1]):
        cells = {cell.identity["seed"]: cell for cell in find_cells(order, tmp_path / "runs")}
        used = {c.record.description["data"]["fingerprint"] for c in cells.values() if c.record}
        assert len(used) == 1
        assert sum(cell.record is None for cell in cells.values()) == 1


def test_the_most_common_data_wins(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run({"seed": seed}, loss=2.0, data="b")
    write_run({"seed": 0}, loss=1.0, data="a")
    cells = find_cells([identity_of(changed(laptop, {"seed": seed})) for seed in (0, 1, 2)], tmp_path / "runs")
    assert [cell.loss for cell in cells] == [2.0, 2.0, 2.0]


def test_runs_of_another_format_do_not_count(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    record = write_run({}, loss=2.0)
    write_json(record.folder / "config.json", {**record.description, "format": 0})
    assert find_cells([identity_of(laptop)], tmp_path / "runs")[0].state == "missing"


def test_a_run_that_is_not_done_has_no_loss(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> None:
    for state in ("interrupted", "diverged", "failed"):
        write_run({}).set_status(state, 5)
        (cell,) = find_cells([identity_of(laptop)], tmp_path / "runs")
        assert (cell.state, cell.loss) == (state, None)


def test_only_runs_of_the_same_weights_and_batches_are_a_pair(write_run: Write) -> None:
    def cell(mode: str, **how: Any) -> Cell:
        return Cell({}, write_run({"decay.mode": mode}, **how))

    a, b = cell("decoupled", loss=2.0), cell("cautious", loss=1.9)
    check_paired(a, b)
    other = cell("random", loss=1.8, pairing="other")
    assert other.record is not None
    for bad in (other, cell("none"), Cell({}, None)):
        with pytest.raises(UserError, match="not a pair"):
            check_paired(a, bad)
    with pytest.raises(UserError, match=other.record.key):
        check_paired(other, a)
    with pytest.raises(UserError, match="not a pair"):
        check_paired(Cell({}, None), Cell({}, None))


# The comparison

LOSSES = {  # decoupled, cautious
    "adamw": [(2.00, 1.99), (2.02, 1.98), (2.04, 2.03)],
    "lion": [(2.10, 2.13), (2.12, 2.13), (2.14, 2.18)],
    "muon": [(1.90, 1.91), (1.92, 1.90), (1.94, 1.94)],
}


@pytest.fixture
def demo(write_run: Write, laptop: dict[str, Any], tmp_path: Path) -> Callable[..., list[Cell]]:
    """The cells of three optimizers, two arms and three seeds, without the seeds in `missing` of the cautious arm."""

    def cells(missing: tuple[int, ...] = (), **fixed: Any) -> list[Cell]:
        identities = []
        for optimizer, pairs in LOSSES.items():
            for seed, losses in enumerate(pairs):
                for mode, loss in zip(("decoupled", "cautious"), losses, strict=True):
                    values = {"optimizer.name": optimizer, "seed": seed, "decay.mode": mode, **fixed}
                    identities.append(identity_of(changed(laptop, values)))
                    if mode == "decoupled" or seed not in missing:
                        write_run(values, loss=loss)
        return find_cells(identities, tmp_path / "runs")

    return cells


def comparison(cells: list[Cell]) -> str:
    return printed(lambda console: print_comparison(cells, "decoupled", "cautious", console))


def row(text: str, name: str) -> str:
    return words(next(line for line in text.splitlines() if name in line and "│" in line).replace("│", " "))


def words(line: str) -> str:
    return " ".join(line.split())


def test_the_comparison_shows_means_difference_interval_and_the_published_difference(
    demo: Callable[..., list[Cell]],
) -> None:
    text = comparison(demo())
    for name, optimizer, theirs in (("AdamW", "adamw", -0.0077), ("Lion", "lion", -0.0109), ("Muon", "muon", -0.0045)):
        base, ours = zip(*LOSSES[optimizer], strict=True)
        interval = stats.ttest_rel(ours, base).confidence_interval(0.95)
        means = f"{sum(base) / 3:.4f} {sum(ours) / 3:.4f} {sum(ours) / 3 - sum(base) / 3:+.4f}"
        assert row(text, name) == f"{name} 0.5 3 {means} [{interval.low:+.4f}, {interval.high:+.4f}] {theirs}"
    assert "Incomplete" not in text
    assert "smoke" not in text


def test_the_comparison_says_that_small_scale_is_not_the_papers(demo: Callable[..., list[Cell]]) -> None:
    text = " ".join(comparison(demo()).split())
    assert "Small scale is not the paper's scale: here a model 32 wide and 2 layers deep sees 1.2M tokens" in text
    assert "338M parameters" in text


def test_what_is_missing_is_said_and_does_not_count(demo: Callable[..., list[Cell]]) -> None:
    cells = demo(missing=(1, 2))
    record = cells[0].record
    assert record is not None
    text = comparison(cells)
    assert "Incomplete: of 18 runs, 6 missing." in text
    assert row(text, "AdamW") == "AdamW 0.5 1 2.0000 1.9900 -0.0100 one pair: none -0.0077"


def test_no_pair_at_all_shows_no_number_of_ours(demo: Callable[..., list[Cell]]) -> None:
    text = comparison(demo(missing=(0, 1, 2)))
    assert row(text, "Lion") == "Lion 0.5 0 - - - - -0.0109"


def test_an_optimizer_that_the_paper_lacks_has_no_published_difference(write_run: Write) -> None:
    cells = []
    for mode, loss in (("decoupled", 2.0), ("cautious", 1.9)):
        record = write_run({"optimizer.name": "sgd", "decay.mode": mode}, loss=loss)
        cells.append(Cell(record.description["identity"], record))
    assert row(comparison(cells), "SGD") == "SGD 0.5 1 2.0000 1.9000 -0.1000 one pair: none -"


def test_smoke_results_are_marked(demo: Callable[..., list[Cell]]) -> None:
    assert "This is smoke scale: it proves that the plumbing works, and nothing else." in comparison(
        demo(scale="smoke")
    )


def test_runs_that_differ_in_more_than_arm_and_seed_are_not_mixed(demo: Callable[..., list[Cell]]) -> None:
    with pytest.raises(UserError, match=r"optimizer=adamw: one row cannot mix .*decay\.weight_decay: 0\.5, 0\.7"):
        comparison([*demo(), *demo(**{"decay.weight_decay": 0.7})])


def test_a_table_of_runs_that_are_no_pairs_is_refused(write_run: Write, demo: Callable[..., list[Cell]]) -> None:
    cells = demo()
    write_run({"optimizer.name": "adamw", "seed": 0, "decay.mode": "cautious"}, loss=1.0, pairing="other")
    with pytest.raises(UserError, match="not a pair"):
        comparison(cells)


# Listing


def test_filters_select_by_any_key_and_by_state(write_run: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    lion = write_run({"optimizer.name": "lion", "optimizer.lr": 0.001, "decay.mode": "cautious"}, loss=2.0)
    adamw = write_run({"optimizer.name": "adamw", "tracker.group": "mine"})

    def keys(*filters: str) -> set[str]:
        return {record.key for record in select(runs, filters)}

    assert keys() == {lion.key, adamw.key}
    assert keys("optimizer=lion") == keys("optimizer.name=lion") == keys("state=done") == {lion.key}
    assert keys("optimizer.lr=0.001") == keys("optimizer.lr=1e-3") == keys("tracker.group=null") == {lion.key}
    assert keys("state=new", "tracker.group=mine") == {adamw.key}
    assert keys("optimizer=lion", "state=new") == keys("optimizer=sgd") == set()


@pytest.mark.parametrize(
    ("filters", "parts"),
    [
        (["optimzer=lion"], ["optimzer: no run has such a key", "nearest: 'optimizer'"]),
        (["optimizer=sgd", "decay.mod=none"], ["decay.mod: no run", "nearest: 'decay.mode'"]),
        (["lion"], ["lion: a filter is written key=value"]),
    ],
)
def test_a_bad_filter_is_one_line(write_run: Write, tmp_path: Path, filters: list[str], parts: list[str]) -> None:
    write_run({})
    with pytest.raises(UserError) as caught:
        select(tmp_path / "runs", filters)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_listing_has_a_line_for_each_run(write_run: Write, tmp_path: Path) -> None:
    done = write_run({"optimizer.name": "lion", "optimizer.lr": 0.001, "decay.mode": "cautious", "seed": 3}, loss=2.5)
    begun = write_run({"decay.mode": "none"})
    begun.set_status("interrupted", 40)
    lines = printed(lambda console: print_runs(select(tmp_path / "runs", []), console)).splitlines()
    assert words(lines[0]) == "run scale optimizer decay lr lambda seed state step loss accuracy"
    assert {words(line) for line in lines[1:]} == {
        f"{done.key[:8]} laptop lion cautious 0.001 0.5 3 done 600 2.5000 0.2500",
        f"{begun.key[:8]} laptop adamw none 0.003 0.5 0 interrupted 40 - -",
    }
    assert printed(lambda console: print_runs([], console)).strip() == "no runs"


def test_a_run_is_found_by_the_first_digits_of_its_key(write_run: Write, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    records = [write_run({"seed": seed}) for seed in range(3)]
    assert find(runs, records[1].key[:12]).key == records[1].key
    with pytest.raises(UserError, match="3 runs begin with it"):
        find(runs, "")
    with pytest.raises(UserError, match="xyz: no run begins with it"):
        find(runs, "xyz")


def test_a_run_is_shown_with_result_configuration_and_evaluations(write_run: Write) -> None:
    record = write_run({}, loss=2.5)
    log = MetricsLog(record.metrics_file)
    log.write("eval", 0, loss=5.5, accuracy=0.125)
    log.write("eval", 600, loss=2.5, accuracy=0.25)
    log.close()
    lines = [line.split() for line in printed(lambda console: print_run(record, console)).splitlines()]
    assert lines[0] == ["run", record.key, "done", "step", "600", str(record.folder)]
    for line in (["loss", "2.5"], ["optimizer.lr", "0.003"], ["0", "5.5000", "0.1250"], ["600", "2.5000", "0.2500"]):
        assert line in lines


def test_a_failed_run_is_shown_with_why(write_run: Write) -> None:
    record = write_run({})
    record.set_status("failed", 3, message="the disk is full [/tmp]")
    assert "the disk is full [/tmp]" in printed(lambda console: print_run(record, console))


def test_two_runs_are_compared_by_what_differs(write_run: Write) -> None:
    a = write_run({"decay.mode": "decoupled"}, loss=2.0)
    b = write_run({"decay.mode": "cautious"}, loss=1.5)
    text = printed(lambda console: print_difference(a, b, console))
    lines = [line.split() for line in text.splitlines()]
    assert ["decay.mode", "decoupled", "cautious"] in lines
    assert ["loss", "2.0", "1.5"] in lines
    assert "optimizer.lr" not in text
    assert "loss: -0.5000 (a pair)" in text
    c = write_run({"decay.mode": "cautious", "seed": 1}, loss=1.5)
    assert "not a pair" in printed(lambda console: print_difference(a, c, console))
    new = write_run({"seed": 2})
    assert "loss:" not in printed(lambda console: print_difference(a, new, console))
