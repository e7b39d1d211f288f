"""The report page as a file: everything is in it, nothing is fetched, no text becomes code, no number is its own."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import itertools
import json
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd.errors import UserError
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.document import Document, Table
from cwd.evidence.page.charts import simplified
from cwd.evidence.page.page import embedded, report_page
from cwd.evidence.page.runs import POINTS, thin
from cwd.evidence.page.serve import make_server
from cwd.evidence.report import document, ledger
from cwd.evidence.study import Study
from cwd.planning.forecast import BETWEEN
from cwd.runs import Record
from cwd.sweeping.progress import LATELY, Progress
from cwd.training.progress import duration
from tests.conftest import ROOT
from tests.evidence_helpers import paired_losses, words, write_record
from tests.report_helpers import HOSTILE, Node, Report, parse

MEGABYTES = 6.0  # of a page with few runs: the library is 4.8


@pytest.fixture(scope="module")
def root(report: Report) -> Node:
    return parse(report.html)


@pytest.fixture(scope="module")
def data(root: Node) -> dict[str, Any]:
    return json.loads(root.by_id("data").text)


def cells_of(node: Node) -> list[list[str]]:
    rows = node.all("tr")
    return [[words(cell.text) for cell in row if cell.tag in ("td", "th")] for row in rows]


# Everything is there


def test_every_artifact_has_its_section_and_its_place_in_the_contents(root: Node) -> None:
    (nav,) = root.all("nav")
    linked = {one.attributes["href"] for one in nav.all("a")}
    for name in artifact_names():
        assert root.by_id(f"laptop-{name}").tag == "section"
        assert f"#laptop-{name}" in linked
    ids = [one.attributes["id"] for one in root if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert {target.removeprefix("#") for target in linked} <= set(ids)


def test_the_ledger_has_every_claim_and_comparison_of_the_documents(report: Report, root: Node) -> None:
    claims = {(body.attributes["data-artifact"], body.attributes["id"]) for body in root.by_id("claims").all("tbody")}
    (table,) = (part for part in ledger(list(report.states.values())).parts if isinstance(part, Table))
    assert len(claims) == len(table.rows)
    for artifact, claim, verdict, _, says in table.rows:
        body = root.by_id(f"claim-laptop-{artifact}-{claim}")
        assert body.attributes["data-verdict"] == verdict
        assert says.removesuffix(" (a control, not the paper's)") in body.text
        findings = [one for one in report.states[artifact].findings if one.claim.id == claim]
        rows = body.all("tr", class_="comparison") or body.all("tr")
        assert len(rows) == len(findings)


def test_the_ledgers_numbers_are_the_documents(report: Report, root: Node) -> None:
    measured = 0
    for name, state in report.states.items():
        if not state.artifact.ledger:
            continue
        data = document(state).data
        for claim in state.artifact.claims:
            body = root.by_id(f"claim-laptop-{name}-{claim.id}")
            rows = body.all("tr", class_="comparison") or body.all("tr")
            found = [one for one in data["claims"] if one["claim"] == claim.id]
            for row, one in zip(rows, found, strict=True):
                text = words(row.text)
                assert one["verdict"] in text
                if one["published"] is not None:
                    assert float(row.attributes["data-published"]) == one["published"]
                    assert f"{one['published']:+.4f}" in text
                if one["estimate"] is not None and one["verdict"] != "smoke":
                    measured += 1
                    assert float(row.attributes["data-measured"]) == one["estimate"]["mean"]
                    assert f"{one['estimate']['mean']:+.4f}" in text
                    assert f"{len(one['values'])} of {one['seeds']}" in text
                    for seed, value in one["values"].items():
                        assert f"seed {seed}: {value:+.5f}" in text
                    keys = [key for keys in one["runs"].values() for key in keys]
                    assert [link.attributes["href"] for link in row.all("a", class_="run")] == [
                        f"#run-{k}" for k in keys
                    ]
    assert measured > 10


def test_the_tables_are_the_documents_with_the_published_rows_marked(report: Report, root: Node) -> None:
    for name, state in report.states.items():
        shown = [cells_of(one) for one in root.by_id(f"laptop-{name}").all("table")]
        for part in document(state).parts:
            if isinstance(part, Table):
                rows = [list(map(words, row)) for row in (part.columns, *part.rows)]
                plain = [[[cell.lstrip("✓✗?…○~ ") for cell in row] for row in table] for table in shown]
                bare = [[cell.lstrip("✓✗?…○~ ") for cell in row] for row in rows]
                assert bare in plain
    printed = root.by_id("laptop-table10").all("tr", class_="published")
    assert "3.0136" in printed[0].text


@pytest.mark.parametrize(("name", "number"), [("figure9", 0), ("figure2", 1)])
def test_the_charts_draw_the_documents_series(report: Report, data: dict[str, Any], name: str, number: int) -> None:
    (figure,) = document(report.states[name]).figures
    chart = data["charts"][f"laptop-{name}-figure{number}"]
    drawn = [panel for panel in figure.panels if panel.series]
    for panel, one in zip(chart["panels"], drawn, strict=True):
        for line, series in zip(panel["lines"], one.series, strict=True):
            assert line["label"] == series.label
            for column in ("x", "y", "low", "high"):
                values = getattr(series, column)
                assert line[column] == (None if values is None else pytest.approx(list(values), rel=5e-6))


def test_a_path_is_drawn_with_few_of_its_points_and_none_lies_off_the_line() -> None:
    """A spiral with straight pieces; distances to the line by sampling it finely."""
    turns = np.linspace(0, 6 * np.pi, 600)
    spiral = np.exp(-0.1 * turns)[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
    straight = np.linspace([4.0, -1.0], spiral[0], 200)
    path = [(float(x), float(y)) for x, y in np.concatenate([straight, spiral[1:]])]
    tolerance = 0.01
    kept = simplified(path, tolerance)
    assert kept == [point for point in path if point in set(kept)]  # in order, and nothing invented
    assert (kept[0], kept[-1]) == (path[0], path[-1])
    assert len(kept) < len(path) / 8
    line = np.concatenate([np.linspace(a, b, 400) for a, b in itertools.pairwise(kept)])
    off = [np.hypot(*(line - point).T).min() for point in path]
    assert max(off) < tolerance * 1.05
    assert len(simplified(path, 0.1)) < len(kept) < len(simplified(path, 0.001))
    assert simplified(path[:1], tolerance) == path[:1]


def test_the_differences_are_the_findings_seed_by_seed(report: Report, data: dict[str, Any]) -> None:
    drawn = data["charts"]["laptop-table10-differences"]["claims"]
    found = [one for one in report.states["table10"].findings if one.claim.id == drawn[0]["claim"] and one.estimate]
    assert drawn[0]["claim"] == "lower_loss"
    for row, one in zip(drawn[0]["rows"], found, strict=True):
        assert one.estimate is not None
        assert [row[name] for name in ("mean", "low", "high")] == [
            one.estimate.mean,
            one.estimate.low,
            one.estimate.high,
        ]
        assert (row["values"], row["published"]) == ([list(pair) for pair in one.values.items()], one.published)
        assert row["runs"] == [list(keys) for keys in one.runs.values()]


def test_every_run_can_be_followed_down_to_its_config_environment_and_curves(
    report: Report, root: Node, data: dict[str, Any]
) -> None:
    keys = {path.parent.name for path in report.runs.glob("*/config.json")}
    assert set(data["runs"]) == keys
    linked = {one.attributes["href"].removeprefix("#run-") for one in root.all("a", class_="run")}
    assert linked <= keys
    for key in keys:
        record, run = Record(report.runs / key), data["runs"][key]
        base = {name: [value] for name, value in data["base"].items()}
        own = dict(data["differences"][number] for number in run["config"])
        config = {name: found[0] for name, found in {**base, **own}.items() if found}
        if "theory" in record.config:
            assert config == {"theory.check": "figure2", "theory.format": 1}
            continue
        assert config["seed"] == record.config["seed"]
        assert config["optimizer.lr"] == record.config["optimizer"]["lr"]
        assert config["model.hidden_size"] == record.config["model"]["hidden_size"]
        assert run["summary"].get("loss") == (record.summary or {}).get("loss")
        for steps, values in run["curves"].values():
            assert 1 < len(values) <= POINTS
            assert len(data["steps"][steps]) == len(values)
    (started, number), *_ = data["runs"][report.diverged]["environments"]
    assert started
    assert data["environments"][number]["torch"] == "2"


def test_thinned_curves_keep_both_ends_and_invent_nothing() -> None:
    points = [(step, step**0.5) for step in range(1000)]
    kept = thin(points, 60)
    assert len(kept) == 60
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert thin(points[:60], 60) == points[:60]


# One file, safe to open


def test_nothing_is_fetched_and_there_is_one_library(report: Report, root: Node) -> None:
    fetched = [
        value
        for one in root
        for name, value in one.attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster") and not value.startswith(("#", "data:"))
    ]
    assert fetched == []
    (style,) = root.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    scripts = [one for one in root.all("script") if "plotly.js v" in one.text[:200]]
    assert [one.attributes["id"] for one in scripts] == ["plotly"]
    assert len(report.html.encode()) < MEGABYTES * 1e6


def test_the_browser_is_told_to_run_the_pages_own_scripts_alone(root: Node) -> None:
    policy = next(one.attributes["content"] for one in root.all("meta") if "http-equiv" in one.attributes)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    runnable = [one.text for one in root.all("script") if one.attributes.get("type") != "application/json"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in runnable}
    assert set(rules["script-src"].split()) == hashes


def test_hostile_text_stays_text(report: Report, root: Node, data: dict[str, Any]) -> None:
    assert len(root.all("script")) == 3
    assert root.all("img") == []
    assert not [one for one in root for name in one.attributes if name.startswith("on")]
    run = data["runs"][report.diverged]
    assert run["message"] == HOSTILE
    assert run["traceback"].endswith(HOSTILE)
    assert data["environments"][run["environments"][0][1]]["host"] == HOSTILE
    assert json.loads(embedded({"a": HOSTILE, "b": float("nan")})) == {"a": HOSTILE, "b": None}


def test_titles_and_remarks_are_escaped_too(report: Report) -> None:
    """Through the template, not the data."""
    state = report.states["demo"]
    spoiled = dataclasses.replace(state, artifact=dataclasses.replace(state.artifact, title=HOSTILE, paper=HOSTILE))
    root = parse(report_page([spoiled], title=HOSTILE))
    assert len(root.all("script")) == 3
    assert root.all("img") == []
    assert HOSTILE in root.by_id("laptop-demo-title").text


# For everybody


def test_tables_have_captions_and_headers_have_scopes(root: Node) -> None:
    for table in root.all("table"):
        assert words(table.all("caption")[0].text)
        assert all(header.attributes.get("scope") in ("col", "row") for header in table.all("th"))
    for chart in root.all("div", class_="chart"):
        assert words(chart.attributes["aria-label"])
    (html,) = root.all("html")
    assert html.attributes["lang"] == "en"
    assert len(root.all("h1")) == 1


def test_incomplete_artifacts_and_smoke_are_marked(report: Report, root: Node, tmp_path: Path) -> None:
    for name, state in report.states.items():
        marks = [words(one.text) for one in root.by_id(f"laptop-{name}").all("p", class_="mark")]
        assert marks == list(map(words, document(state).marks))
    assert any("INCOMPLETE" in one.text for one in root.by_id("laptop-table10").all("p", class_="mark"))
    smoke = parse(report_page([Study("smoke", tmp_path / "runs", 3).state("table2")]))
    assert "SMOKE, NO EVIDENCE" in smoke.by_id("ledger").text
    assert "SMOKE, NO EVIDENCE" in smoke.by_id("smoke-table2").text


def test_the_pages_files_are_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cwd"]
    packed = {path for pattern in patterns for path in (ROOT / "cwd").glob(pattern)}
    parts = {path for path in (ROOT / "cwd" / "evidence" / "page").iterdir() if path.suffix in (".html", ".css", ".js")}
    assert len(parts) > 5
    assert parts <= packed


# While a sweep runs


@contextmanager
def served(page: str, progress: dict[str, Any]) -> Iterator[int]:
    server = make_server(lambda: page, lambda: progress, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_server_answers_two_addresses_to_this_machine_and_nothing_else() -> None:
    with served("<p>page</p>", {"left": float("inf")}) as port:
        assert ask(port, "/") == (200, b"<p>page</p>")
        assert ask(port, "/progress.json") == (200, b'{"left": null}')
        assert ask(port, "/", host=f"localhost:{port}")[0] == 200
        for path in ("/../etc/passwd", "/%2e%2e/etc/passwd", "/cwd", "/progress.json/..", "/?", "/index.html"):
            assert ask(port, path)[0] == 404
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
            assert ask(port, "/", host=host)[0] == 403
            assert ask(port, "/progress.json", host=host)[0] == 403
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert ask(port, "/", method)[0] == 501
        with pytest.raises(UserError, match=f"port {port}: cannot be had"):
            make_server(str, dict, port)


@pytest.mark.usefixtures("fast_disk")
def test_progress_has_every_wanted_run_and_what_is_left(tmp_path: Path) -> None:
    """Two of 18 runs are done, one is half way, one failed, which is not waited for: it runs again only when asked. No
    earlier run says how long they take, the ladder does.
    """
    runs = tmp_path / "runs"
    state = Study("laptop", runs, 3).state("demo")
    point = state.points[0]
    for seed in (0, 1):
        write_record(runs, point, seed, paired_losses(0.0)(point.coordinates, seed), None)
    for seed, state_name in ((2, "running"), (3, "failed")):
        where = point if seed == 2 else state.points[1]
        write_record(runs, where, seed % 3, {"diverged": True}, None)
        record = next(Record(path) for path in runs.iterdir() if Record(path).status["state"] == "diverged")
        half = where.on(0)["training"]["steps"] // 2
        more = {"message": "no memory", "traceback": "Traceback: boom"} if state_name == "failed" else {}
        record.set_status(state_name, half, **more)
        if seed == 2:
            going = record
    progress = Progress([Study("laptop", runs, 3).state("demo")], runs)
    with going.lock():
        found = progress.snapshot()
    assert found["counts"] == "18 runs: 2 done, 1 running, 1 failed, 14 to do"
    assert (found["wanted"], found["finished"], found["worked"], found["changed"]) == (18, 2, 3.0, False)
    assert point.core_seconds is not None
    left = point.core_seconds * (14 + 0.5) + 14 * BETWEEN
    assert found["notes"] == [f"time left: about {duration(left)}, one run at a time, from the ladder's seconds"]
    going_on, failed = found["runs"]
    assert (going_on["state"], going_on["traceback"]) == ("running", None)
    assert going_on["note"].startswith("last sign of life")
    assert (failed["state"], failed["traceback"]) == ("failed", "Traceback: boom")
    assert failed["note"].startswith("no memory")
    stopped = progress.snapshot()
    assert stopped["counts"] == "18 runs: 2 done, 1 stopped, 1 failed, 14 to do"
    for _ in range(LATELY):
        stopped = progress.snapshot()
    assert stopped["notes"][0].endswith("; nothing runs now")
    write_record(runs, state.points[2], 0, paired_losses(0.0)(state.points[2].coordinates, 0), None)
    assert progress.snapshot()["changed"]


def test_a_document_knows_its_published_rows() -> None:
    table = Table("t", ("size", "loss"), (("a", "1.0"), ("  published", "2.0")), 1)
    assert [table.is_published(row) for row in table.rows] == [False, True]
    assert Document("d", "t", parts=(table,)).figures == []
