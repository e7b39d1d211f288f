"""Parameter groups: which tensor gets which rule, decay and learning rate."""

from __future__ import annotations

import pytest
import torch

from cwd.optim import AdamW, GroupPattern, RuleOptimizer, assign_groups, describe_groups

BASE = {"lr": 0.1, "weight_decay": 0.5, "decay": "cautious"}
MUON_LIST = [
    GroupPattern(["embed.*", "head.*"], "adamw", lr_multiple=0.5, hyper={"betas": (0.8, 0.9)}),
    GroupPattern(["*norm*", "*bias"], "adamw", decay=False),
    GroupPattern(["*"], "muon", hyper={"ns_steps": 3}),
]
NAMES = [
    "embed.weight",
    "layers.0.norm.weight",
    "layers.0.up.weight",
    "layers.0.up.bias",
    "layers.1.up.weight",
    "head.weight",
]


def named(names=NAMES):
    return [(name, torch.nn.Parameter(torch.ones(2, 3))) for name in names]


def names_in(groups):
    return [[name for name, _ in group["params"]] for group in groups]


def test_the_first_pattern_that_matches_wins():
    patterns = [GroupPattern(["a.*"], "sgd"), GroupPattern(["*.weight"], "lion"), GroupPattern(["*"], "adamw")]
    groups = assign_groups(named(["a.weight", "b.weight", "b.bias", "a.bias"]), patterns, **BASE)
    assert names_in(groups) == [["a.weight", "a.bias"], ["b.weight"], ["b.bias"]]


def test_the_order_of_patterns_decides_not_how_narrow_they_are():
    patterns = [GroupPattern(["*"], "adamw"), GroupPattern(["a.weight"], "sgd")]
    assert names_in(assign_groups(named(["a.weight"]), patterns, **BASE)) == [["a.weight"], []]


def test_each_parameter_is_in_one_group_as_the_same_tensor_in_the_order_given():
    pairs = named()
    groups = assign_groups(pairs, MUON_LIST, **BASE)
    assert names_in(groups) == [
        ["embed.weight", "head.weight"],
        ["layers.0.norm.weight", "layers.0.up.bias"],
        ["layers.0.up.weight", "layers.1.up.weight"],
    ]
    tensors = dict(pairs)
    assert all(tensor is tensors[name] for group in groups for name, tensor in group["params"])


@pytest.mark.parametrize(
    ("glob", "matched"),
    [
        ("a.b", ["a.b"]),
        ("a*", ["a.b", "a.b.c", "a1b"]),
        ("*.b", ["a.b", "A.b"]),
        ("a.?", ["a.b"]),
        ("[aA].b", ["a.b", "A.b"]),
        ("a", []),
        ("b", []),
    ],
)
def test_globs_match_whole_names_with_their_case(glob, matched):
    groups = assign_groups(
        named(["a.b", "a.b.c", "a1b", "A.b"]), [GroupPattern([glob], "sgd"), GroupPattern(["*"], "sgd")], **BASE
    )
    assert names_in(groups)[0] == matched


def test_a_parameter_that_no_pattern_matches_is_named():
    with pytest.raises(ValueError, match=r"layers\.0\.up\.weight"):
        assign_groups(named(), MUON_LIST[:2], **BASE)


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"embed\.weight.*twice"):
        assign_groups(named(["embed.weight", "embed.weight"]), MUON_LIST, **BASE)


def test_one_string_in_place_of_a_list_of_globs_is_refused():
    with pytest.raises(ValueError, match=r"match='\*norm\*'"):
        GroupPattern("*norm*", "adamw")


@pytest.mark.parametrize("names", [NAMES, ["unmatched"]], ids=["matched", "unmatched"])
def test_a_frozen_parameter_is_left_out(names):
    pairs = named(names)
    pairs[0][1].requires_grad_(False)
    groups = assign_groups(pairs, [GroupPattern([name], "adamw") for name in NAMES], **BASE)
    assert [name for group in names_in(groups) for name in group] == names[1:]


def test_a_group_without_decay_has_lambda_zero_and_no_mode():
    groups = assign_groups(named(), MUON_LIST, **BASE)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]
    assert [group["decay"] for group in groups] == ["cautious", "none", "cautious"]


def test_lr_multiple_scales_the_rate_and_is_kept_and_leaves_lambda():
    groups = assign_groups(named(), MUON_LIST, **BASE)
    assert [group["lr"] for group in groups] == [0.05, 0.1, 0.1]
    assert [group["lr_multiple"] for group in groups] == [0.5, 1.0, 1.0]
    assert groups[0]["weight_decay"] == BASE["weight_decay"]


def test_rule_and_hyperparameters_reach_the_optimizer_and_defaults_fill_the_rest():
    groups = assign_groups(named(), MUON_LIST, **BASE)
    optimizer = RuleOptimizer(groups, {"rule": "muon", "lr": 9.0})
    embed, norm, hidden = optimizer.param_groups
    assert [group["rule"] for group in optimizer.param_groups] == ["adamw", "adamw", "muon"]
    assert embed["betas"] == (0.8, 0.9)
    assert norm["betas"] == (0.9, 0.95)
    assert (hidden["ns_steps"], hidden["momentum"]) == (3, 0.95)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.1]


@pytest.mark.parametrize("globs", ["-*", "*-", "-*-"])
def test_a_group_that_matches_nothing_stays_and_does_not_stop_the_optimizer(globs):
    patterns = [GroupPattern([glob], "adamw") for glob in globs]
    groups = assign_groups(named(), patterns, **BASE)
    assert [len(names) for names in names_in(groups)] == [len(NAMES) if glob == "*" else 0 for glob in globs]
    optimizer = AdamW(groups)
    weight = next(group["params"][0] for group in optimizer.param_groups if group["params"])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight < 1).all()
    again = AdamW(assign_groups(named(), patterns, **BASE))
    again.load_state_dict(optimizer.state_dict())
    assert [g.get("param_names") for g in again.param_groups] == [g.get("param_names") for g in optimizer.param_groups]


def test_names_reach_the_observer():
    optimizer, seen = RuleOptimizer(assign_groups(named(), MUON_LIST, **BASE), {"rule": "muon", "lr": 9.0}), []
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.observer = lambda observation: seen.append(observation.name)
    optimizer.step()
    assert sorted(seen) == sorted(NAMES)


def test_groups_of_a_module_follow_its_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    patterns = [GroupPattern(["0.weight"], "muon"), GroupPattern(["*"], "adamw", decay=False)]
    groups = assign_groups(module.named_parameters(), patterns, **BASE)
    assert names_in(groups) == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]


def test_a_description_has_a_line_for_each_group_with_rule_rate_decay_and_size():
    lines = describe_groups(assign_groups(named(), MUON_LIST, **BASE))
    expected = [
        ("adamw", "lr 0.05", "cautious 0.5", "2 tensors", "12 elements", "embed.weight", "head.weight"),
        ("adamw", "lr 0.1", "no decay", "2 tensors", "12 elements", "layers.*.norm.weight", "layers.*.up.bias"),
        ("muon", "lr 0.1", "cautious 0.5", "2 tensors", "12 elements", "layers.*.up.weight"),
    ]
    assert len(lines) == 3
    for line, words in zip(lines, expected, strict=True):
        assert [word for word in words if word not in line] == []


def test_a_description_names_every_parameter_once_with_layer_numbers_folded():
    names = [f"layers.{i}.{part}" for i in range(30) for part in ("up", "down", "norm2")] + ["head"]
    [line] = describe_groups(assign_groups(named(names), [GroupPattern(["*"], "adamw")], **BASE))
    assert line.endswith("  layers.*.up, layers.*.down, layers.*.norm2, head")


def test_a_description_says_so_when_a_group_is_empty():
    [line] = describe_groups(assign_groups([], [GroupPattern(["*"], "adamw")], **BASE))
    assert "0 tensors" in line
    assert line.endswith("(none)")
