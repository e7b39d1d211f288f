"""The report page in a real browser, without a network."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.page.serve import make_server
from tests.browser_helpers import BACKGROUND, DESK, NEEDS_BROWSER, PHONE, Opened, until, visible_claims
from tests.report_helpers import HOSTILE, Report

pytestmark = NEEDS_BROWSER
OPENING = 2.0  # seconds of the page's own main thread


def test_it_opens_offline_in_two_seconds_and_complains_of_nothing(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
        session = opened.page.context.new_cdp_session(opened.page)
        session.send("Performance.enable")
        opened.page.reload(wait_until="load")
        told = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        wall = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        print(f"opened in {wall:.2f} s, {told['ThreadTime']:.2f} s of them work")
        assert told["ThreadTime"] < OPENING  # of the processor, as other processes' work is not the page's
        assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.asked)
        assert opened.complaints == []


def test_every_artifact_can_be_reached_and_every_chart_is_drawn(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
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


def test_the_ledger_is_sorted_and_filtered_by_the_keyboard_too(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
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


def test_a_chart_answers_the_pointer_and_hides_a_line(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
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


def test_a_runs_address_opens_it_and_its_text_runs_nothing(browser: Any, report_file: Path, report: Report) -> None:
    with Opened(browser, f"{report_file.as_uri()}#run-{report.diverged}") as opened:
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
def test_both_themes_and_a_phones_width(browser: Any, report_file: Path, theme: str) -> None:
    with Opened(browser, report_file.as_uri(), viewport=PHONE, color_scheme=theme) as opened:
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
        "steps": 330, "loss": 2.5, "note": "alive 2 s ago", "traceback": None,
        "curves": {"train_loss": [[10, 50], [3.0, 2.5]]},
    }  # fmt: skip
    failed = {**run, "key": "cd" * 8, "state": "failed", "note": "no memory", "traceback": HOSTILE, "curves": {}}
    now = {
        "wanted": 18, "finished": 4, "worked": 4.15, "changed": False, "counts": "18 runs: 4 done, 1 running, 13 to do",
        "notes": ["time left: about 10 min 00 s"], "runs": [run, failed], "unlisted": 0,
    }  # fmt: skip
    server = make_server(lambda: report.html, lambda: now, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with Opened(browser, f"http://127.0.0.1:{server.server_port}/", offline=False) as opened:
            page = opened.page
            until(page, "document.getElementById('live-text').textContent.startsWith('18 runs: 4 done')")
            assert "about 10 min" in page.locator("#live-notes").text_content()
            assert page.evaluate("document.getElementById('live-bar').position") == pytest.approx(4.15 / 18)
            page.locator("#live-curves .main-svg").first.wait_for(state="attached")
            assert "no memory" in page.locator("#live-runs").text_content()
            assert HOSTILE in page.locator("#live-runs pre").text_content()
            page.locator("#live-runs summary").click()
            now.update(counts="18 runs: 5 done, 1 running, 12 to do", changed=True, runs=[{**run, "step": 60}, failed])
            until(page, "document.getElementById('live-text').textContent.startsWith('18 runs: 5 done')")
            assert page.locator("#live-runs tbody tr").count() == 2
            assert "60 of 330" in page.locator("#live-runs").text_content()
            assert page.locator("#live-runs details[open]").count() == 1  # what was opened stays
            assert page.locator("#live-again").is_visible()
            assert page.evaluate("window.hacked") is None
            assert opened.complaints == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
