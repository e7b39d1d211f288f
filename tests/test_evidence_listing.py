"""Runs in the terminal: listed, filtered, shown and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cwd.errors import UserError
from cwd.evidence.listing import find, print_difference, print_run, print_runs, select
from cwd.runs import MetricsLog, Record
from tests.evidence_helpers import printed, words

Write = Callable[..., Record]


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
    one = {"checkpoints": 2, "checkpoint_seconds": 0.5, "checkpoint_bytes": 2_500_000}  # of an earlier version
    log.write("speed", 300, **one)
    log.write("speed", 600, **one, checkpoint_background_seconds=1.25)
    log.close()
    lines = [line.split() for line in printed(lambda console: print_run(record, console)).splitlines()]
    said = "checkpoints: 4 written, training waited 1.00 s, a thread wrote 1.25 s meanwhile, 2.50 MB each"
    assert said.split() in lines
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


def test_checks_of_the_theory_are_listed_and_compared(write_run: Write, tmp_path: Path) -> None:
    """They have no loss, no optimizer and no seed."""
    checks = []
    for name, gap in (("figure2", 0.5), ("figure3", 0.25)):
        identity = {"theory": {"format": 1, "check": name, "settings": {"lr": 0.1}}}
        record = Record.create(tmp_path / "runs", identity, {"fingerprint": "none"}, identity)
        record.finish({"end": {"gap": gap}, "seconds": 1.0}, 0)
        checks.append(record)
    listed = [line.split() for line in printed(lambda console: print_runs(checks, console)).splitlines()]
    assert [line[1:3] for line in listed[1:]] == [["theory", "figure2"], ["theory", "figure3"]]
    lines = [line.split() for line in printed(lambda console: print_difference(*checks, console)).splitlines()]
    assert ["theory.check", "figure2", "figure3"] in lines
    assert ["end.gap", "0.5", "0.25"] in lines
    trained = write_run({}, loss=2.0)
    assert "loss:" not in printed(lambda console: print_difference(trained, checks[0], console))
