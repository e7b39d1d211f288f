"""The report page for everybody: colours, keyboard, screen readers, and paper."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser_helpers import BACKGROUND, NEEDS_BROWSER, Opened, until, visible_claims

pytestmark = NEEDS_BROWSER

# Every text that is seen, with its colour and the ground behind it; then what is seen of controls.
COLOURS = """() => {
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  const add = (kind, colour, back, node) => { found[`${kind}|${colour}|${back}`] ??= node.outerHTML.slice(0, 120); };
  for (const node of document.body.querySelectorAll("*")) {
    if (!node.checkVisibility() || node.closest("svg, script, option")) continue;
    const style = getComputedStyle(node);
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (text) add("text", style.color, ground(node), node);
    if (node.matches("input, select")) add("control", style.borderTopColor, ground(node.parentElement), node);
  }
  for (const node of document.querySelectorAll("svg.forest :is(circle, line, path)")) {
    const style = getComputedStyle(node);
    add("mark", node.matches("circle") ? style.fill : style.stroke, ground(node), node);
  }
  const page = document.body;
  for (const { colour } of Object.values(DATA.colours.lines)) add("line", seen(colour), ground(page), page);
  return found;
}"""


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio of two colours, as the browser writes them."""

    def luminance(colour: str) -> float:
        channels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_stands_out_from_its_ground(browser: Any, report_file: Path, theme: str) -> None:
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)  # a known pair
    with Opened(browser, report_file.as_uri(), color_scheme=theme) as opened:
        page = opened.page
        page.add_style_tag(content="section.artifact { content-visibility: visible !important; }")
        page.evaluate("document.getElementById('all-comparisons').click()")
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        found = page.evaluate(COLOURS)
        assert {key.split("|")[0] for key in found} == {"text", "control", "mark", "line"}
        for key, node in found.items():
            kind, colour, ground = key.split("|")
            assert contrast(colour, ground) >= (4.5 if kind == "text" else 3.0), (theme, key, node)
        page.keyboard.press("Tab")
        focus = page.evaluate("getComputedStyle(document.activeElement).outlineColor")
        assert contrast(focus, page.evaluate(BACKGROUND)) >= 3.0


# What has the focus: its tag, what it is called, and its outline.
FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at);
  return [at.tagName, at.id || at.name || at.textContent.trim(), style.outlineStyle, parseFloat(style.outlineWidth)];
})()"""


def test_it_is_used_by_the_keyboard_alone(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUS)[1] == "Skip to the ledger"
        page.keyboard.press("Enter")
        stops = []
        for _ in range(40):
            page.keyboard.press("Tab")
            stops.append(page.evaluate(FOCUS))
        assert all(style != "none" and width >= 2 for *_, style, width in stops), stops
        names = [name for _, name, *_ in stops]
        order = [names.index(name) for name in ("optimizer", "verdict", "text", "all-comparisons", "claim", "measured")]
        assert order == sorted(order)
        claim = page.locator("#claim-laptop-table10-lower_loss")
        verdict = claim.get_attribute("data-verdict")
        page.locator("form[data-table=claims] select[name=verdict]").focus()
        page.keyboard.type(verdict)
        page.keyboard.press("Tab")
        told = page.get_by_role("form", name="Filter the claims").get_by_role("status").text_content()
        assert told == f"{len(visible_claims(page))} of {page.locator('#claims tbody').count()} claims"
        assert page.locator(f'[data-pick="{verdict}"]').get_attribute("aria-pressed") == "true"
        opens = claim.locator(".opens")
        opens.focus()
        page.keyboard.press("Space")
        assert opens.get_attribute("aria-expanded") == "true"
        summary = claim.locator("tr.comparison details.behind summary", has_text="runs").first
        summary.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        link = page.evaluate(FOCUS)[1]
        page.keyboard.press("Enter")
        page.locator("#run[open]").wait_for()
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
        page.keyboard.press("Escape")
        page.locator("#run[open]").wait_for(state="detached")
        assert page.evaluate(FOCUS)[1] == link


def test_a_screen_reader_gets_landmarks_headings_and_a_name_for_everything(browser: Any, report_file: Path) -> None:
    with Opened(browser, report_file.as_uri()) as opened:
        page = opened.page
        page.add_style_tag(content="section.artifact { content-visibility: visible !important; }")
        opened.chart("laptop-figure9")
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        found = [
            (one["role"]["value"], one.get("name", {}).get("value", ""), one) for one in nodes if not one["ignored"]
        ]
        roles = [role for role, *_ in found]
        for landmark in ("banner", "navigation", "main"):
            assert roles.count(landmark) == 1, landmark
        needy = ("button", "link", "combobox", "searchbox", "region", "table", "image", "form", "dialog")
        assert {"button", "link", "combobox", "searchbox", "region", "table", "image", "form"} <= set(roles)
        unnamed = [(role, one["backendDOMNodeId"]) for role, name, one in found if role in needy and not name.strip()]
        assert unnamed == []
        levels = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4')].filter(h => h.checkVisibility()).map(h => +h.tagName[1])"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
        chart = next(name for role, name, _ in found if role == "image" and "cautious" in name)
        assert "the numbers are in the tables below" in chart


def test_nothing_moves_for_those_who_do_not_want_it(browser: Any, report_file: Path) -> None:
    for wish, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        with Opened(browser, report_file.as_uri(), reduced_motion=wish) as opened:
            assert opened.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour


# What reaches beyond the 703 pixels that A4 leaves between its margins.
WIDE = """[...document.querySelectorAll('main table, main svg, main p, main pre, main li')]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > 704)
  .map((one) => one.outerHTML.slice(0, 200))"""


def test_on_paper_everything_is_opened_white_and_inside_the_page(browser: Any, report_file: Path) -> None:
    """From the dark theme."""
    with Opened(browser, report_file.as_uri(), viewport={"width": 703, "height": 1000}, color_scheme="dark") as opened:
        page = opened.page
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        until(page, "!document.querySelector('[data-drawn]:not(:has(.main-svg))')")
        assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
        ink = page.evaluate("getComputedStyle(document.querySelector('.chart .xtick text')).fill")
        assert contrast(ink, "rgb(255, 255, 255)") > 4.5
        assert page.evaluate(WIDE) == []
        for what, shown in (("nav", 0), ("form", 0), ("details.remarks li", 1), (".comparison", 1), ("#live", 0)):
            assert (page.locator(f"{what} >> visible=true").count() > 0) == bool(shown), what
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        page.emulate_media(media="screen", color_scheme="dark")
        assert page.evaluate(BACKGROUND) == "rgb(20, 23, 26)"
        assert page.locator("details.remarks[open]").count() == 0
        assert opened.complaints == []
