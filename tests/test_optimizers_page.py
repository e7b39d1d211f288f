"""docs/optimizers.md says what the code says: rules, modes, options, defaults, and links that lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import lion_pytorch
import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, RULES, CautiousWeightDecay, Options
from cwd.optim.options import COMMON
from tests.conftest import ROOT
from tests.optim_helpers import CLASSES, DOUBLE, normal, train
from tests.recipe_helpers import PAGE, rows


def plain(cell: str) -> str:
    return cell.replace("`", "")


def signature(callable_: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(callable_).parameters.items()}


def documented(rule: str) -> dict[str, Any]:
    """A class's arguments and defaults as the page has them: the rule's own, and the common ones."""
    [row] = [row for row in rows("Rules", "rule") if plain(row["rule"]) == rule]
    call = ast.parse(f"f({plain(row['arguments and defaults'])})", mode="eval").body
    assert isinstance(call, ast.Call)
    own = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    common = {plain(row["option"]): plain(row["default"]) for row in rows("Options", "option", "default")}
    given = {name: ast.literal_eval(default) for name, default in common.items() if default and "Rules" not in default}
    return {"params": inspect.Parameter.empty, **given, **own}


@pytest.mark.parametrize("rule", CLASSES)
def test_each_class_has_the_documented_arguments_and_defaults(rule):
    real = signature(CLASSES[rule])
    del real["options"]
    options = {"seed": 0, "compile": None, "flat": False, **COMMON}
    assert set(Options.__annotations__) <= set(options)
    assert documented(rule) == {**{name: options[name] for name in Options.__annotations__}, **real}


@pytest.mark.parametrize("rule", CLASSES)
def test_every_argument_has_a_row_of_its_own(rule):
    common = {plain(row["option"]) for row in rows("Options", "option", "default")}
    own = {plain(row["option"]): row["for"].lower() for row in rows("Options", "option", "for")}
    special = {name for name in documented(rule) if name not in common}
    assert special <= set(own)
    for name in special - {"eps"}:  # which has two rows
        assert rule in own[name]


def test_the_wrapper_has_the_documented_arguments_and_defaults():
    table = {plain(row["option"]): plain(row["default"]) for row in rows("Any other optimizer", "option")}
    written = {name: ast.literal_eval(text) if text else inspect.Parameter.empty for name, text in table.items()}
    assert written == signature(CautiousWeightDecay)


def test_the_tables_have_every_rule_with_its_state_and_every_mode():
    states = {
        plain(row["rule"]): tuple(plain(row["state, each of x's shape"]).split(", ")) for row in rows("Rules", "rule")
    }
    assert states == {name: rule.buffers for name, rule in RULES.items()}
    assert {plain(row["`decay`"]) for row in rows("Modes", "`decay`")} == set(MODES)


@pytest.mark.parametrize("row", rows("Exactly", "here", "there"), ids=lambda row: row["here"].partition("(")[0][1:])
def test_what_the_page_calls_the_same_is_the_same(row):
    names = {**{cls.__name__: cls for cls in CLASSES.values()}, "torch": torch, "lion_pytorch": lion_pytorch}
    here, there = (re.findall(r"`([^`]+)`", row[side])[0] for side in ("here", "there"))
    results = []
    for expression in (here, there):
        params = [torch.nn.Parameter(normal(*shape, seed=9)) for shape in ((6, 4), (3, 5))]
        results.append(train(eval(expression, {**names, "p": params}), params, range(1, 11)))
    assert_close(*results, **DOUBLE)


def test_every_link_within_the_repository_leads_somewhere():
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    inside = [link.partition("#")[0] for link in links if not link.startswith(("#", "https://"))]
    assert inside
    assert all((ROOT / "docs" / link).exists() for link in inside)
    assert "(docs/optimizers.md)" in (ROOT / "README.md").read_text()
