"""The paper's numbers, and which runs make a cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwd.errors import UserError
from cwd.evidence.grid import Cell, check_paired, find_cells
from cwd.evidence.published import look_up, published
from cwd.runs import Record
from cwd.runs import record as record_module
from tests.conftest import changed, identity_of

Write = Callable[..., Record]

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


def test_table_10_has_three_sizes_and_three_optimizers_and_cautious_is_always_better() -> None:
    rows = published()["table10"]["rows"]
    assert set(rows) == {"338m", "986m", "2b"}
    for row in rows.values():
        assert set(row) == {"adamw", "lion", "muon"}
        for cell in row.values():
            assert cell["loss"]["cautious"] < cell["loss"]["decoupled"]
            assert cell["accuracy"]["cautious"] > cell["accuracy"]["decoupled"]


def test_a_published_value_is_found_by_coordinates_and_the_papers_names() -> None:
    where = {"size": "986m", "optimizer": "lion", "arm": "cautious", "schedule": "wsd"}
    assert look_up("table10.rows.{size}.{optimizer}.loss.{arm}", where, {}) == 2.7171
    names = {"lion-cautious": "adam_cautious"}
    assert look_up("table7.rows.{optimizer-arm}.{schedule}", where, names) == 3.0014
    assert look_up("table5.rows.tinyllama.{arm}.mmlu", where, {}) == 26.42  # without the +- beside it


@pytest.mark.parametrize("where", [{"size": "111m"}, {"optimizer": "sgd"}, {"arm": "random"}, {}])
def test_what_the_paper_does_not_have_is_none(where: dict[str, Any]) -> None:
    full = {"size": "338m", "optimizer": "adamw", "arm": "cautious", **where} if where else {}
    assert look_up("table10.rows.{size}.{optimizer}.loss.{arm}", full, {}) is None


def test_the_tables_agree_where_they_share_a_cell() -> None:
    rows = published()
    both = rows["table10"]["rows"]["338m"]["adamw"]["loss"]
    assert rows["table6"]["rows"]["adamw"] == rows["table7"]["rows"]["adamw"]["cosine"] == both["decoupled"]
    assert rows["table6"]["rows"]["adam_cautious"] == both["cautious"]


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


def test_runs_of_another_format_do_not_count(
    write_run: Write, laptop: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "FORMAT", 0)
    write_run({}, loss=2.0)
    monkeypatch.undo()
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
