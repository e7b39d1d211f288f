"""Configuration: every file composes, every value is checked, and what is wrong is said in one line."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cwd import config, schema
from cwd.cli import GROUPS, explain
from cwd.config import SELECTORS, VARIANTS, Config, identity, identity_of, validate
from cwd.errors import UserError
from cwd.optim import directions
from cwd.optim.decay import MODES
from cwd.runs import run_key
from cwd.sweeps import CONFIGS, _compose, compose_config, compose_sweep
from tests.conftest import Ended

EVIDENCE = ("artifact", "ladder", "suite")  # read by cwd.evidence and cwd.evaluation, not by Hydra
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in EVIDENCE)
IDS = [str(path.relative_to(CONFIGS)) for path in FILES]
COMPANIONS = {
    "dataset/text": ["dataset.files=[notes.txt]"],
    "dataset/instructions": ["task=finetune", "model.source=x"],
    "model/pretrained": ["task=finetune", "model.source=x"],
    "dataset/digits": ["task=vision"],
    "dataset/image_folder": ["task=vision", "dataset.root=photos"],
    "dataset/imagenet": ["task=vision"],
}
SMALL = ["tracker=none", "scale=smoke"]


def options(group: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


def classifiers() -> set[str]:
    return {path.stem for path in (CONFIGS / "model").glob("*.yaml") if "family: timm" in path.read_text()}


def choices(section: type, name: str) -> set[str]:
    return set(next(item for item in fields(section) if item.name == name).metadata["of"])


def refused(*overrides: str) -> str:
    """The one line that a bad configuration is answered with."""
    with pytest.raises((UserError, HydraException)) as caught:
        compose_config(overrides)
    return explain(caught.value)


# Files


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_file_composes_and_is_valid(path: Path) -> None:
    option = str(path.relative_to(CONFIGS).with_suffix(""))
    group, _, name = option.rpartition("/")
    if group == "experiment":
        assert all(isinstance(config, Config) for config in compose_sweep([f"experiment={name}"]))
    elif group == "hydra/launcher":
        assert _compose([f"{group}={name}"], hydra=True).hydra.launcher._target_
    elif name.startswith("finetune_"):
        words = ["task=finetune", f"scale={name.partition('_')[2]}", "model.source=x"]
        assert compose_config(words).dataset.name == "instructions"
    elif option == "task/finetune":
        assert compose_config(["task=finetune", "model.source=x"]).model.family == "pretrained"
    elif group == "tuned":
        first, _, optimizer = name.rpartition("_")  # a scale, a size of it, or a classifier
        scale = first.partition("_")[0]
        found = [f"scale={scale}"] if scale in options("scale") else ["task=vision", f"model={first}"]
        chosen = [] if first in options("scale") | classifiers() else [f"tuned={name}"]
        config = compose_config([*found, f"optimizer={optimizer}", *chosen])
        raw = yaml.safe_load(path.read_text())
        assert config.optimizer.lr == float(raw["optimizer"]["lr"])
        assert config.decay.weight_decay == float(raw["decay"]["weight_decay"])
    elif group == "groups":
        task, _, optimizer = name.partition("_")
        raw = yaml.safe_load(path.read_text())["optimizer"]["groups"]
        assert [
            asdict(one) for one in compose_config([f"task={task}", f"optimizer={optimizer}"]).optimizer.groups
        ] == raw
    elif group == "recipe" or (group == "model" and "family: timm" in path.read_text()):
        assert compose_config(["task=vision", f"{group}={name}"])
    else:
        assert compose_config([*([f"{group}={name}"] if group else []), *COMPANIONS.get(option, [])])


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_file_begins_with_what_it_is(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 10


def test_an_experiment_is_the_product_of_its_sweep() -> None:
    configs = compose_sweep(["experiment=demo"])
    cells = [(c.seed, c.optimizer.name, c.decay.mode) for c in configs]
    assert set(cells) == set(itertools.product((0, 1, 2), ("adamw", "lion", "muon"), ("decoupled", "cautious")))
    assert len(cells) == 18
    assert {c.scale for c in configs} == {"laptop"}


def test_an_override_replaces_an_axis_of_the_sweep() -> None:
    configs = compose_sweep(["experiment=demo", "seed=7", "decay=cautious,random", "optimizer=adamw", "scale=smoke"])
    assert [(c.seed, c.decay.mode, c.scale) for c in configs] == [(7, "cautious", "smoke"), (7, "random", "smoke")]


@pytest.mark.parametrize("group", VARIANTS)
def test_every_schema_has_a_file_and_conversely(group: str) -> None:
    files = [yaml.safe_load(path.read_text()) for path in (CONFIGS / group).glob("*.yaml")]
    assert {values[SELECTORS[group]] for values in files} == set(VARIANTS[group])
    for name, variant in VARIANTS[group].items():
        assert choices(variant, SELECTORS[group]) == {name}


def test_choices_are_the_files() -> None:
    assert options("tracker") == choices(schema.Tracker, "name")
    assert options("scale") <= choices(Config, "scale")
    images = {name.removeprefix("vision_") for name in options("groups")}  # optimizers with groups for images
    assert options("tuned") >= {
        *(f"{scale}_{name}" for scale in ("smoke", "laptop") for name in options("optimizer")),
        *(f"{model}_{name}" for model in classifiers() for name in images),
        *(f"finetune_{scale}" for scale in options("scale")),
    }


def test_choices_are_those_of_the_optimizers() -> None:
    assert set(VARIANTS["optimizer"]) == set(directions.RULES)
    assert set(schema.MODES) == set(MODES)
    assert choices(schema.Muon, "adjust_lr_fn") == set(directions.MUON_SCALES)


def test_groups_are_the_folders() -> None:
    folders = {str(path.parent.relative_to(CONFIGS)) for path in FILES} - {"."}
    assert set(GROUPS) == folders


SECTIONS = {"decay": schema.Decay, "tracker": schema.Tracker}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in {*SECTIONS, *VARIANTS}], ids=lambda p: p.stem)
def test_a_file_gives_every_value_of_its_schema(path: Path) -> None:
    group, values = path.parent.name, yaml.safe_load(path.read_text())
    assert_complete(values, SECTIONS.get(group) or VARIANTS[group][values[SELECTORS[group]]])


def test_scales_and_the_top_give_every_value_of_their_schemas() -> None:
    for path in (CONFIGS / "scale").glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        for name, section in (
            ("training", schema.Training),
            ("evaluation", schema.Evaluation),
            ("telemetry", schema.Telemetry),
        ):
            assert_complete(values[name], section)
    assert_complete(yaml.safe_load((CONFIGS / "recipe" / "plain.yaml").read_text())["recipe"], schema.Recipe)
    top = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    assert_complete(top["machine"], schema.Machine)
    assert "seed" in top


def assert_complete(values: dict[str, Any], section: type) -> None:
    later = {item.name for item in fields(section) if item.metadata.get("later")}
    assert set(values) | later == {item.name for item in fields(section)}
    if section is schema.Muon:
        assert_complete(values["adamw"], schema.AdamHyper)
    for group in values.get("groups", []):
        assert_complete(group, schema.Group)


def test_snapshot_of_the_composed_configuration() -> None:
    raw = OmegaConf.to_container(_compose([]), resolve=True)
    assert isinstance(raw, dict)
    assert {name: sorted(value) if isinstance(value, dict) else value for name, value in raw.items()} == {
        "scale": "laptop",
        "seed": 0,
        "model": [
            *("activation", "attn_softcap", "embedding_size", "family", "ffn_bias", "ffn_factor", "head_dim"),
            *("hidden_size", "logit_softcap", "norm_scale_plus_one", "num_attention_heads", "num_hidden_layers"),
            *("output_bias", "per_dim_scale", "shrink"),
        ],
        "dataset": ["name", "tokenizer", "validation_fraction", "vocab_size"],
        "optimizer": ["betas", "eps", "groups", "lr", "name"],
        "decay": ["mode", "normalized", "schedule", "towards", "weight_decay"],
        "schedule": ["end_factor", "name", "warmup"],
        "training": ["batch_size", "clip_norm", "precision", "seq_len", "steps"],
        "evaluation": ["every", "sequences"],
        "telemetry": ["every"],
        "tracker": ["group", "label", "name", "project", "tags"],
        "machine": [
            *("activation_checkpointing", "attention", "channels_last", "checkpoint_background"),
            *("checkpoint_seconds", "compile", "data", "device", "log_every", "micro_batch_size", "processes"),
            *("profile", "progress", "runs", "shard_size", "sharding", "threads", "workers"),
        ],
    }  # fmt: skip


# Identity

WHOLE = {
    "muon, text, wsd": ["optimizer=muon", "dataset=text", "dataset.files=[a]", "schedule=wsd"],
    "adamw, python, cosine": ["optimizer=adamw"],
    "lion, python, constant": ["optimizer=lion", "schedule=constant"],
    "sgd": ["optimizer=sgd"],
    "vision, imagenet": ["task=vision", "dataset=imagenet", "model=vit_s16"],
    "vision, digits": ["task=vision", "optimizer=muon"],
}


def test_identity_leaves_out_the_tracker_and_the_machine_and_nothing_else() -> None:
    assert set(identity(compose_config([]))) == {item.name for item in fields(Config)} - {
        "tracker",
        "machine",
        "recipe",
    }


@pytest.mark.parametrize("overrides", WHOLE.values(), ids=WHOLE)
def test_identity_changes_with_every_other_value(overrides: list[str]) -> None:
    config = compose_config(overrides)
    before, seen = copy.deepcopy(identity(config)), 0
    for key, owner, item in leaves(config):
        value = getattr(owner, item.name)
        setattr(owner, item.name, other(value, str(item.type)))
        assert (identity(config) == before) == (
            key.split(".")[0] in ("tracker", "machine") or key in ("dataset.files", "dataset.root")
        ), key
        setattr(owner, item.name, value)
        seen += 1
    assert identity(config) == before
    assert seen > 40


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted key, the object that holds the value, its field) of every value."""
    for item in fields(node):
        value, key = getattr(node, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for i, element in enumerate(value):
                yield from leaves(element, f"{key}.{i}.")
        else:
            yield key, node, item


def other(value: Any, kind: str) -> Any:
    if value is None:
        return "x" if "str" in kind else 2
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, *(value[:1] or ["x"])]
    return value + ("x" if isinstance(value, str) else 1)


def test_every_kind_of_value_has_words() -> None:
    """An error names what is allowed by the field's type."""
    sections = [schema.Group, schema.AdamHyper, schema.Decay, schema.Training, schema.Evaluation]
    sections += [
        schema.Telemetry,
        schema.Tracker,
        schema.Machine,
        *(v for group in VARIANTS.values() for v in group.values()),
    ]
    kinds = {str(item.type).partition(" | ")[0] for section in sections for item in fields(section)}
    assert kinds - {"AdamHyper"} <= set(config.KINDS)


# What is refused

GROUP = "optimizer.groups=[{match:['*'],rule:adamw,%s}]"
BAD = {
    # (overrides) -> what the line must hold
    ("optimizer.lrr=1",): ["optimizer.lrr", "no such key", "nearest: 'lr'", "name, lr, groups"],
    ("machine.devise=cpu",): ["machine.devise", "nearest: 'device'", "runs, data, device"],
    ("optimizr=lion",): ["optimizr", "nearest: 'optimizer'", "model, dataset, optimizer"],
    ("+foo=1",): ["foo", "no such key", "allowed here are scale, seed"],
    ("optimizer=lion", "+optimizer.eps=1"): ["optimizer.eps", "optimizer=lion are name, lr, groups, betas"],
    ("decay.mode=cautios",): ["decay.mode=cautios", "nearest: 'cautious'", "cautious, decoupled, gradient"],
    ("decay.mode=null",): ["decay.mode=null", "allowed are cautious, decoupled"],
    ("machine.device=gpu",): ["machine.device=gpu", "nearest: 'cpu'", "auto, cpu, cuda"],
    ("optimizer=muon", "optimizer.adjust_lr_fn=orignal"): ["adjust_lr_fn=orignal", "nearest: 'original'"],
    ("optimizer=lio",): ["optimizer=lio", "nearest: 'lion'", "adamw, lion, muon, sgd"],
    ("model=simply_300k",): ["model=simply_300k", "nearest: 'simply_30k'", "simply_338m"],
    ("hydra/launcher=slrm",): ["hydra/launcher=slrm", "nearest: 'slurm'", "local"],
    ("scale=lap",): ["scale=lap", "nearest: 'laptop'", "smoke"],
    ("experiment=dem",): ["experiment=dem", "nearest: 'demo'"],
    ("dataset.name=texts",): ["dataset.name=texts", "nearest: 'text'", "python_source"],
    ("optimizer.lr=-1",): ["optimizer.lr=-1", "finite numbers above 0"],
    ("optimizer.lr=0",): ["optimizer.lr=0", "finite numbers above 0"],
    ("optimizer.lr=nan",): ["optimizer.lr=nan", "finite numbers above 0"],
    ("optimizer.lr=inf",): ["optimizer.lr=inf", "finite numbers above 0"],
    ("optimizer.lr=1e400",): ["optimizer.lr=inf", "finite numbers above 0"],
    ("optimizer.lr=abc",): ["optimizer.lr=abc", "finite numbers above 0"],
    ("optimizer.lr=true",): ["optimizer.lr=True", "finite numbers above 0"],
    ("optimizer.lr=null",): ["optimizer.lr=null", "finite numbers above 0"],
    ("decay.weight_decay=-0.1",): ["decay.weight_decay=-0.1", "finite numbers from 0"],
    ("machine.checkpoint_seconds=nan",): ["machine.checkpoint_seconds=nan", "finite numbers from 0"],
    ("dataset.validation_fraction=0.6",): ["dataset.validation_fraction=0.6", "above 0 to 0.5"],
    ("seed=1.5",): ["seed=1.5", "whole numbers from 0 to 2147483647"],
    ("seed=true",): ["seed=True", "whole numbers"],
    ("seed=null",): ["seed=null", "whole numbers"],
    ("seed=3000000000",): ["seed=3000000000", "to 2147483647"],
    ("training.steps=1e3",): ["training.steps=1000.0", "whole numbers from 1"],
    ("training.steps=0",): ["training.steps=0", "whole numbers from 1"],
    ("machine.threads=0",): ["machine.threads=0", "whole numbers from 1, or null"],
    ("model.ffn_bias=maybe",): ["model.ffn_bias=maybe", "true and false"],
    ("machine.runs=",): ["machine.runs=", "text, not empty"],
    ("machine.runs=null",): ["machine.runs=null", "text, not empty"],
    ("optimizer.betas=[0.9]",): ["optimizer.betas=[0.9]", "lists of two finite numbers from 0 below 1"],
    ("optimizer.betas=[0.9,0.9,0.9]",): ["optimizer.betas=[0.9, 0.9, 0.9]", "lists of two"],
    ("optimizer.betas=[0.9,1.0]",): ["optimizer.betas=[0.9, 1.0]", "from 0 below 1"],
    ("optimizer.betas=[0.9,nan]",): ["optimizer.betas=[0.9, nan]", "finite"],
    ("optimizer.betas=[0.9,null]",): ["optimizer.betas[1]=null", "lists of two"],
    ("optimizer.betas=0.9",): ["optimizer.betas=0.9", "lists of two"],
    ("optimizer=muon", "optimizer.adamw.betas=[0.9]"): ["optimizer.adamw.betas=[0.9]", "lists of two"],
    ("model.head_dim=null", "model.num_attention_heads=5"): ["num_attention_heads=5", "hidden_size=24", "1, 2, 3, 4"],
    ("model.head_dim=15",): ["model.head_dim=15", "even"],
    ("model.head_dim=null", "model.num_attention_heads=24"): ["model.head_dim=1", "even"],
    ("model.shrink=5",): ["model.shrink=5", "every width", "1, 2, 3, 6"],
    ("model.shrink=0",): ["model.shrink=0", "whole numbers from 1"],
    ("model=qwen3_600m", "model.num_key_value_heads=3"): ["num_key_value_heads=3", "num_attention_heads=16", "1, 2, 4"],
    ("model=gpt2", "training.seq_len=1025"): ["training.seq_len=1025", "model.positions=1024"],
    ("model=olmo_1b", "model.num_attention_heads=3"): ["num_attention_heads=3", "hidden_size=2048", "1, 2, 4"],
    ("machine.attention=flash",): ["machine.attention=flash", "auto, eager, sdpa, flex_attention"],
    ("machine.micro_batch_size=3",): ["machine.micro_batch_size=3", "training.batch_size=4", "1, 2, 4"],
    ("schedule=wsd", "schedule.warmup=0.9"): ["schedule.decay_fraction=0.2", "schedule.warmup=0.9", "at most 0.1"],
    ("schedule=constant", "schedule.end_factor=0.1"): ["schedule.end_factor=0.1", "from 1 to 1"],
    ("dataset.tokenizer=bpe",): ["dataset.vocab_size=null", "dataset.tokenizer=bpe"],
    ("dataset.vocab_size=1000",): ["dataset.vocab_size=1000", "dataset.tokenizer=bytes"],
    ("dataset=text",): ["dataset.files=[]", "at least one", "dataset.files=[notes.txt]"],
    ("dataset=text", "dataset.files=a.txt"): ["dataset.files=a.txt", "lists of text, as in [a, b]"],
    ("optimizer.groups=[]",): ["optimizer.groups", 'the last group must match "*"'],
    ("optimizer.groups=[{match:['e.*'],rule:adamw}]",): ["optimizer.groups", 'the last group must match "*"'],
    ("optimizer.groups=[{match:['*'],rule:lion}]",): ["optimizer.groups[0].rule=lion", "allowed are adamw"],
    ("optimizer=muon", "optimizer.groups=[{match:['*'],rule:sgd}]"): ["groups[0].rule=sgd", "allowed are muon, adamw"],
    ("optimizer.groups=[{match:['*']}]",): ["optimizer.groups[0].rule", "a value is needed"],
    ("optimizer.groups=[{match:'*',rule:adamw}]",): ["optimizer.groups.match", "lists of text"],
    (GROUP % "lr_multipel:2",): ["optimizer.groups.lr_multipel", "nearest: 'lr_multiple'", "match, rule, decay"],
    (GROUP % "lr_multiple:0",): ["optimizer.groups[0].lr_multiple=0", "above 0"],
    ("optimizer.groups={a:1}",): ["optimizer.groups={a:1}", "does not fit"],
    ("~optimizer.lr",): ["optimizer.lr", "a value is needed"],
    ("seed=${nothing.here}",): ["seed", "nothing.here"],
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "parts"), BAD.items(), ids=" ".join)
def test_a_bad_value_is_one_line_with_key_value_and_what_is_allowed(
    overrides: tuple[str, ...], parts: list[str]
) -> None:
    line = refused(*SMALL[: None if "scale" not in overrides[0] else 1], *overrides)
    assert "\n" not in line
    for part in parts:
        assert part in line


ARGUMENTS = {
    ("seed=0,1",): ["seed=0,1", "several values", "add -m"],
    ("optimizer=adamw,lion",): ["optimizer=adamw,lion", "add -m"],
    ("seed=range(3)",): ["seed=range(3)", "add -m"],
    ("=3",): ["=3", "the key is missing"],
    ("foo",): ["foo", "key=value"],
    ("seed=[1",): ["seed=[1", "key=value"],
    ("foo=1",): ["foo", "no such key or group", "model, dataset"],
    ("optimizer=null",): ["optimizer=null", "a choice is needed"],
    ("optimizer=1",): ["optimizer=1", "a choice is needed"],
    ("~decay",): ["~decay", "a choice is needed"],
    ("--resolve",): ["--resolve", "--cfg"],
    ("--config-dir", "/nonexistent"): ["/nonexistent", "not found"],
    ("optimizer._target_=os.system",): ["_target_ is not allowed"],
    ("+optimizer._target_=os.system",): ["_target_ is not allowed"],
    ("++optimizer._target_=os.system",): ["_target_ is not allowed"],
    ("~hydra.sweeper._target_",): ["_target_ is not allowed"],
    ("hydra.sweeper._target_=os.system",): ["_target_ is not allowed"],
    ("-m", "hydra.launcher._target_=os.system"): ["_target_ is not allowed"],
    ("+x={_target_:os.system}",): ["_target_ is not allowed"],
    ("+x={_target_ : os.system}",): ["_target_ is not allowed"],
    ("+x={\\_target_:os.system}",): ["_target_ is not allowed"],
    ("+x={a:{b:[1,{_target_:os.system}]}}",): ["_target_ is not allowed"],
    ("-m", "x=1,{_target_:os.system}"): ["_target_ is not allowed"],
    ("-m", "x=choice({_target_:os.system},1)"): ["_target_ is not allowed"],
    ("+hydra.callbacks.x={_target_:os.system}",): ["_target_ is not allowed"],
    ("hydra.sweeper.params={optimizer._target_:os.system}",): ["_target_ is not allowed"],
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "parts"), ARGUMENTS.items(), ids=" ".join)
def test_a_bad_argument_is_one_line_and_exit_status_2(
    train_py: Callable[..., Ended], arguments: tuple[str, ...], parts: list[str]
) -> None:
    ended = train_py(*arguments)
    assert (ended.status, ended.configs, ended.out) == (2, [], "")
    assert ended.err.startswith("train.py: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err


def test_a_file_may_be_named_as_one_likes(train_py: Callable[..., Ended]) -> None:
    ended = train_py("dataset=text", "dataset.files=[_target_.txt]")
    assert ended.status == 0
    assert [config.dataset.files for config in ended.configs] == [["_target_.txt"]]  # type: ignore[attr-defined]


def test_several_values_with_m_are_several_runs(train_py: Callable[..., Ended]) -> None:
    ended = train_py("-m", "seed=3,4", "tracker=none")
    assert [config.seed for config in ended.configs] == [3, 4]


@pytest.mark.parametrize("key", ["tracker.project", "dataset.name", "machine.runs", "seed", "dataset.tokenizer"])
@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "x${oc.env:SECRET}", "${oc.decode:'${oc.env:SECRET}'}"])
def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    """It would be written into the run's record."""
    monkeypatch.setenv("SECRET", "hunter2")
    raw = _compose(SMALL)
    OmegaConf.update(raw, key, value)
    with pytest.raises(UserError, match=r"may name another key") as caught:
        validate(raw)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith(f"{key}={value}")


def test_a_value_may_name_another() -> None:
    assert compose_config([*SMALL, "seed=${training.steps}"]).seed == 20


def test_a_resolver_inside_a_list_is_refused() -> None:
    assert "files[1]=${oc.env:HOME}" in refused("dataset=text", "dataset.files=[a,'${oc.env:HOME}']")


# Identity


KEYS = {
    (
        *("optimizer=adamw", "optimizer.lr=1e-2", "decay.weight_decay=0.1", "model=simply_30k", "training.steps=330"),
        *("evaluation.every=110", "evaluation.sequences=512", "telemetry.every=30"),
    ): "cbfcaa7979bb3815",
    (
        *("scale=paper", "optimizer=muon", "optimizer.lr=1e-3", "decay.weight_decay=0.3", "schedule=wsd", "seed=3"),
        "model=simply_986m",
    ): "567ccb1374899288",
    (
        *("optimizer=lion", "optimizer.lr=1e-3", "decay.weight_decay=0.5", "model=simply_338m"),
        *("dataset=text", "dataset.files=[a.txt]"),
    ): "04cc2113788ab92f",
}


@pytest.mark.parametrize("words", KEYS)
def test_recorded_runs_keep_their_keys(words: tuple[str, ...]) -> None:
    """These keys were those of the first settings: a new one is declared with cwd.schema.later."""
    assert run_key(identity(compose_config(list(words))), "data") == KEYS[words]


def test_a_later_setting_counts_once_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Fuller(schema.Training):
        rope: bool = schema.later(False)
        extras: schema.AdamHyper = schema.later(schema.AdamHyper)

    plain = asdict(compose_config(["scale=smoke"]))
    before = identity_of(plain)
    monkeypatch.setattr(Config.__dataclass_fields__["training"], "default_factory", Fuller)
    for value, same in ((False, True), (True, False)):
        config = {**plain, "training": {**plain["training"], "rope": value, "extras": asdict(schema.AdamHyper())}}
        assert (identity_of(config) == before) is same
    extras = {**asdict(schema.AdamHyper()), "eps": 1.0}
    assert identity_of({**plain, "training": {**plain["training"], "extras": extras}}) != before
