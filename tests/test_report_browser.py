"""The report page in a real browser, without a network."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.page.serve import make_server
from tests.report_helpers import HOSTILE, Report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome on the PATH"),
    pytest.mark.timeout(900),
]
PATIENCE = 120_000  # milliseconds, for a machine that does other things
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
OPENING = 2.0  # seconds of the page's own main thread
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = tools.chromium.launch(executable_path=BROWSER, args=arguments, timeout=PATIENCE)
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.html)
    return path


class Opened:
    """A page that is open without a network, and everything it complained about or asked for."""

    def __init__(self, browser: Any, address: str, offline: bool = True, **options: Any) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **options})
        context.set_default_timeout(PATIENCE)
        context.set_offline(offline)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None,
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address, wait_until="load")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.page.context.close()

    def chart(self, section: str) -> Any:
        """The section's first chart, drawn."""
        box = self.page.locator(f"#{section} .chart").first
        box.scroll_into_view_if_needed()
        plot = box.locator(".nsewdrag").first
        plot.wait_for(state="attached")
        plot.scroll_into_view_if_needed()
        return plot


def until(page: Any, expression: str) -> None:
    """Waits until it holds. Playwright's own wait evaluates text inside the page, which the page forbids."""
    give_up = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < give_up, expression
        page.wait_for_timeout(50)


def visible_claims(page: Any) -> list[str]:
    return page.evaluate("[...document.getElementById('claims').tBodies].filter(b => !b.hidden).map(b => b.id)")


def test_it_opens_offline_in_two_seconds_and_complains_of_nothing(browser: Any, file: Path) -> None:
    with Opened(browser, file.as_uri()) as opened:
        session = opened.page.context.new_cdp_session(opened.page)
        session.send("Performance.enable")
        opened.page.reload(wait_until="load")
        told = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        wall = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        print(f"opened in {wall:.2f} s, {told['ThreadTime']:.2f} s of them work")
        assert told["ThreadTime"] < OPENING  # of the processor, as other processes' work is not the page's
        assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.asked)
        assert opened.complaints == []


def test_every_artifact_can_be_reached_and_every_chart_is_drawn(browser: Any, file: Path) -> None:
    with Opened(browser, file.as_uri()) as opened:
        page = opened.page
        for name in artifact_names():
            page.locator(f'nav a[href="#laptop-{name}"]').click()
            top = page.evaluate(f"document.getElementById('laptop-{name}').getBoundingClientRect().top")
            assert -20 < top < DESK["height"] / 2, name
        charts = page.locator("[data-chart]")
        assert charts.count() > 2
        for i in range(charts.count()):
            charts.nth(i).scroll_into_view_if_needed()
            charts.nth(i).locator(".main-svg").first.wait_for(state="attached")
        page.wait_for_timeout(300)
        assert opened.complaints == []
        assert page.evaluate("document.querySelectorAll('script').length") == 4  # three, and the library once started


def test_the_ledger_is_sorted_and_filtered_by_the_keyboard_too(browser: Any, file: Path) -> None:
    with Opened(browser, file.as_uri()) as opened:
        page = opened.page
        whole = visible_claims(page)
        button = page.locator("#claims th[data-sort=measured] button")
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator("#claims th[data-sort=measured]").get_attribute("aria-sort") == "ascending"
        key = "[...document.getElementById('claims').tBodies].map(b => claimKey(b, 'measured', {}))"
        up = page.evaluate(key.format(1))
        there = [value for value in up if value is not None]
        assert there == sorted(there)
        assert up[len(there) :] == [None] * (len(up) - len(there))  # what was not measured comes last
        page.keyboard.press("Enter")
        down = [value for value in page.evaluate(key.format(-1)) if value is not None]
        assert down == sorted(down, reverse=True)
        page.select_option("form[data-table=claims] select[name=verdict]", "incomplete")
        kept = visible_claims(page)
        assert 0 < len(kept) < len(whole)
        shown = page.locator("#claims tbody:not([hidden])").evaluate_all("bodies => bodies.map(b => b.dataset.verdict)")
        assert set(shown) == {"incomplete"}
        assert page.locator("form[data-table=claims] output").text_content() == f"{len(kept)} of {len(whole)} claims"
        page.select_option("form[data-table=claims] select[name=verdict]", "")
        page.select_option("form[data-table=claims] select[name=optimizer]", "muon")
        rows = page.locator("#claims tr.comparison:visible").evaluate_all("rows => rows.map(r => r.dataset.optimizer)")
        assert rows
        assert all("muon" in one.split() for one in rows)
        page.select_option("form[data-table=claims] select[name=optimizer]", "")
        page.fill("form[data-table=claims] input[name=text]", "Lyapunov function never")
        assert visible_claims(page) == ["claim-laptop-table1-lyapunov_monotone"]
        assert opened.complaints == []


def test_a_chart_answers_the_pointer_and_hides_a_line(browser: Any, file: Path) -> None:
    with Opened(browser, file.as_uri()) as opened:
        plot = opened.chart("laptop-figure9")
        box = plot.bounding_box()
        page, (x, y) = opened.page, (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(x - 3, y)
        page.mouse.move(x, y)
        hover = page.locator("#laptop-figure9 .hoverlayer text").first
        hover.wait_for(state="attached")
        told = " ".join(page.locator("#laptop-figure9 .hoverlayer text").all_text_contents())
        assert "cautious" in told
        assert "decoupled" in told
        assert "step" in told
        assert "undefined" not in told
        assert "%{" not in told
        ask = "document.querySelector('#laptop-figure9 .js-plotly-plot')._fullLayout.xaxis.range"
        before = page.evaluate(ask)
        page.mouse.down()
        page.mouse.move(x + box["width"] / 4, y + 2, steps=4)
        page.mouse.up()
        until(page, f"({ask})[1] - ({ask})[0] < 0.6 * ({before[1]} - {before[0]})")
        lines = "document.querySelector('#laptop-figure9 .js-plotly-plot').data.map(one => one.name).filter(Boolean)"
        assert page.evaluate(lines) == ["decoupled", "cautious"]
        page.locator("#laptop-figure9 .legend button", has_text="decoupled").click()
        until(page, f"({lines}).length === 1")
        assert opened.complaints == []


def test_a_runs_address_opens_it_and_its_text_runs_nothing(browser: Any, file: Path, report: Report) -> None:
    with Opened(browser, f"{file.as_uri()}#run-{report.diverged}") as opened:
        page = opened.page
        page.locator("#run[open]").wait_for()
        assert page.locator("#run .mark").text_content() == HOSTILE
        assert HOSTILE in page.locator("#run pre").first.text_content()
        headings = page.locator("#run summary").all_text_contents()
        assert "Configuration" in headings
        assert any(one.startswith("Environment") for one in headings)
        assert page.evaluate("window.hacked") is None
        page.locator("#run .main-svg").first.wait_for(state="attached")
        page.keyboard.press("Escape")
        page.locator("#run[open]").wait_for(state="detached")
        page.locator("#laptop-table10 details.cells summary").click()
        page.locator("#laptop-table10 details.cells a.run").first.click()
        page.locator("#run[open]").wait_for()
        assert opened.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_and_a_phones_width(browser: Any, file: Path, theme: str) -> None:
    with Opened(browser, file.as_uri(), viewport=PHONE, color_scheme=theme) as opened:
        page = opened.page
        dark = page.evaluate(BACKGROUND) == "rgb(20, 23, 26)"
        assert dark == (theme == "dark")
        page.evaluate("document.getElementById('all-comparisons').click()")
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        charts = page.locator("[data-chart]")
        for i in range(charts.count()):
            charts.nth(i).scroll_into_view_if_needed()
        until(page, "!document.querySelector('[data-drawn]:not(:has(.main-svg))')")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for _ in range(2):
            page.locator("#theme").click()  # auto, light, dark
        assert page.evaluate(BACKGROUND) == "rgb(20, 23, 26)"
        page.reload()
        assert page.evaluate(BACKGROUND) == "rgb(20, 23, 26)"  # remembered
        assert opened.complaints == []


def test_served_it_follows_a_sweep(browser: Any, report: Report) -> None:
    run = {
        "key": "ab" * 8, "label": HOSTILE, "arm": "cautious", "optimizer": "lion", "state": "running", "step": 50,
        "steps": 330, "loss": 2.5, "message": None, "traceback": None, "curves": {"train_loss": [[10, 50], [3.0, 2.5]]},
    }  # fmt: skip
    failed = {**run, "key": "cd" * 8, "state": "failed", "message": "no memory", "traceback": HOSTILE, "curves": {}}
    now = {
        "wanted": 18, "waiting": 0, "finished": 4, "changed": False, "counts": {"done": 4, "running": 1, "missing": 13},
        "running": 1, "work_left": 600.0, "seconds_left": 600.0, "source": "runs like them", "unknown": 0,
        "runs": [run, failed],
    }  # fmt: skip
    server = make_server(lambda: report.html, lambda: now, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with Opened(browser, f"http://127.0.0.1:{server.server_port}/", offline=False) as opened:
            page = opened.page
            until(page, "document.getElementById('live-text').textContent.startsWith('4 of 18 runs')")
            assert "About 10 min left with 1 at a time" in page.locator("#live-text").text_content()
            page.locator("#live-curves .main-svg").first.wait_for(state="attached")
            assert "no memory" in page.locator("#live-runs").text_content()
            assert HOSTILE in page.locator("#live-runs pre").text_content()
            now.update(finished=5)
            until(page, "document.getElementById('live-text').textContent.startsWith('5 of 18 runs')")
            assert page.evaluate("window.hacked") is None
            assert opened.complaints == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
