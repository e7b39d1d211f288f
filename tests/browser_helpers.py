"""A page that is open in a real browser, without a network, for the tests of the report."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = [
    pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome on the PATH"),
    pytest.mark.timeout(900),
]
PATIENCE = 120_000  # milliseconds, for a machine that does other things
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def launched() -> Iterator[Any]:
    """A browser, closed in the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    with playwright.sync_playwright() as tools:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = tools.chromium.launch(executable_path=BROWSER, args=arguments, timeout=PATIENCE)
        yield found
        found.close()


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
