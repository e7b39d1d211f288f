"""The plan: which runs, how long, what it costs, and what is said when it cannot be."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cwd.errors import UserError
from cwd.evidence.render import to_json, to_latex, to_markdown, to_terminal
from cwd.evidence.study import Study
from cwd.planning.demand import demands_of, together
from cwd.planning.devices import USABLE, find_device
from cwd.planning.forecast import UTILISATION, Forecaster, Past, total
from cwd.planning.layout import Wishes, lay_out, remedies
from cwd.planning.page import duration, page
from cwd.planning.plan import Request, make_plan
from cwd.planning.strength import strengths
from cwd.planning.work import work_of
from cwd.sweeps import compose_config
from tests.evidence_helpers import noise, paired_losses, printed, words, write_state

HERE = socket.gethostname()


def quiet(text: str) -> None:
    pass


def config(width: int, optimizer: str = "adamw", mode: str = "cautious", seed: int = 0) -> dict[str, Any]:
    return {
        "model": {"hidden_size": width},
        "training": {"steps": 100},
        "evaluation": {"every": 50},
        "telemetry": {"every": 0},
        "dataset": {"tokenizer": "bytes", "vocab_size": None},
        "optimizer": {"name": optimizer},
        "decay": {"mode": mode},
        "seed": seed,
    }


def past(about: dict[str, Any], seconds: float, start: float = 0.0, processes: int = 1) -> Past:
    return Past(about, seconds, "cpu", processes, (HERE, 1), start, start + seconds + 0.5, None)


def test_runs_like_them_are_asked_first_and_the_closest_of_them() -> None:
    known = [past(config(8), 10.0), past(config(8, seed=1), 12.0), past(config(8, "muon"), 30.0)]
    forecaster = Forecaster(known, [(config(8), 99.0)])
    for about, seconds in ((config(8, seed=9), 11.0), (config(8, "muon", "random"), 30.0), (config(8, "lion"), 12.0)):
        found = forecaster.duration(about)
        assert found is not None
        assert (found.seconds, found.source) == (seconds, "runs like them")


def test_other_sizes_take_the_ladders_seconds_times_what_this_machine_takes_of_them() -> None:
    ladder = [(config(8), 10.0), (config(16), 40.0)]
    alone, beside = Forecaster([], ladder).duration(config(16)), Forecaster([past(config(8), 15.0)], ladder)
    assert alone is not None
    assert (alone.seconds, alone.source) == (40.0, "the ladder's seconds")
    found = beside.duration(config(16))
    assert found is not None
    assert found.seconds == pytest.approx(60.0)
    assert "x 1.50, measured on other sizes" in found.source


def test_speed_is_carried_over_by_operations_and_else_assumed() -> None:
    def flops(about: Mapping[str, Any]) -> float:
        return 1e12 * about["model"]["hidden_size"]

    measured = Forecaster([past(config(8), 4.0, processes=2)], flops=flops, peak=10e12).duration(config(64))
    assert measured is not None
    assert measured.seconds == pytest.approx(64.0)  # 8e12 in 8 device seconds
    assert measured.source == "MFU 0.1, of 1 runs here"
    assumed = Forecaster([], flops=flops, peak=10e12).duration(config(64))
    assert assumed is not None
    assert assumed.seconds == pytest.approx(6.4 / UTILISATION["tokens"])
    images = {**config(64), "training": {"seq_len": None}, "dataset": {"name": "digits"}}
    slower = Forecaster([past(config(8), 4.0)], flops=flops, peak=10e12).duration(images)  # text says nothing of them
    assert slower is not None
    assert slower.seconds == pytest.approx(6.4 / UTILISATION["images"])
    given = Forecaster([past(config(64), 4.0)], flops=flops, peak=10e12, utilisation=0.5).duration(config(64))
    assert given is not None
    assert given.seconds == pytest.approx(12.8)
    assert Forecaster([]).duration(config(64)) is None
    assert total(Forecaster([]), [config(64)]).unknown == 1


def test_the_forecast_of_a_sweep_is_within_a_fifth_of_what_it_takes() -> None:
    """A worker's runs, each 2% noisy, with two seconds between them and one long pause; the first half forecasts."""
    runs, now = [], 0.0
    for i in range(40):
        about = config(8 if i % 2 else 16, ("adamw", "lion", "muon")[i % 3], seed=i)
        seconds = (10.0 if i % 2 else 25.0) * (1.4 if i % 3 == 2 else 1.0) * (1 + 0.02 * noise(i))
        runs.append(past(about, seconds, now))
        now += seconds + (3600.0 if i == 10 else 2.0)
    forecaster = Forecaster(runs[:20])
    assert forecaster.between == (pytest.approx(2.0), "of 18 runs here")
    predicted = total(forecaster, [one.config for one in runs[20:]])
    happened = now - runs[20].started
    assert predicted.seconds == pytest.approx(happened, rel=0.2)
    assert predicted.sources == {"runs like them": 20}


def test_runs_that_two_tables_share_are_counted_once(tmp_path: Path) -> None:
    study = Study("paper", tmp_path)
    demands = demands_of([study.state("table6"), study.state("table7")])
    assert [(one.artifact, len(one.runs), len(one.shared)) for one in demands] == [("table6", 12, 6), ("table7", 12, 6)]
    whole = together(demands)
    assert (len(whole.runs), len(whole.missing)) == (18, 18)


def test_done_runs_are_not_to_do_and_those_that_wait_are_counted_apart(tmp_path: Path) -> None:
    study = Study("laptop", tmp_path)
    write_state(study, "table7", paired_losses(-0.01))
    states = [Study("laptop", tmp_path).state(name) for name in ("table7", "table10")]
    table7, *table10 = demands_of(states)
    assert (len(table7.runs), len(table7.missing)) == (20, 0)
    assert {one.size: len(one.waiting) for one in table10} == {"338m": 30, "986m": 30, "2b": 0}
    assert all("the tuning of figure1" in one.needs[0] for one in table10[:2])


def request(
    runs: Path, *names: str, scale: str = "laptop", gpu: str = "cpu", gpus: int | None = 2, **more: Any
) -> Request:
    return Request(names, scale, runs, find_device(gpu, gpus), **more)


def test_time_on_cores_comes_from_the_ladder_and_its_runs_share_the_cores(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path, "table7"), quiet)
    seconds = 20 * (15 + 1.5)  # 20 runs of the 338m rung, and what is assumed between two of them
    assert plan.whole.time.seconds == pytest.approx(seconds)
    text = printed(lambda console: to_terminal(page(plan), console))
    assert duration(seconds / 2) in text
    assert "the ladder's seconds (20)" in words(text)


def test_on_gpus_it_says_hours_cost_memory_and_what_fits(tmp_path: Path) -> None:
    wanted = request(tmp_path, "table7", gpu="h100", gpus=4, price=2.5, utilisation=0.5)
    plan = make_plan(wanted, quiet)
    assert plan.whole.time.seconds == pytest.approx(plan.whole.flops / (989.4e12 * 0.5) + 20 * 1.5 * 4)
    (kind,) = plan.kinds
    assert kind.layout.fits
    assert (kind.layout.setting.sharding, kind.layout.setting.micro_batch) == ("none", 4)  # 16 sequences on 4 devices
    data = json.loads(to_json(page(plan)))
    assert data["each_run_once"]["missing"] == 20
    assert data["memory"][0]["peak"] == kind.layout.memory.peak
    document = page(plan)
    assert "GPU-hours" in to_markdown(document)
    assert "\\toprule" in to_latex(document)
    assert "MFU 0.5, given" in to_markdown(document)


def test_the_simplest_layout_that_fits_is_taken_and_what_helps_is_found() -> None:
    words = ["scale=laptop", "model=simply_15m", "training.seq_len=16"]  # more weights than activations
    work = work_of(asdict(compose_config(words)), {}, on_cpu=False)
    device = replace(find_device("h100", 8), per_node=2)
    peaks = {}
    for sharding in ("none", "hybrid", "full"):
        one = lay_out([work], device, Wishes(sharding=sharding, micro_batch=1))
        assert one.fits
        peaks[sharding] = one.memory.peak
        found = lay_out([work], replace(device, memory=1.001 * one.memory.peak / USABLE), Wishes(micro_batch=1))
        assert (found.setting.sharding, found.fits) == (sharding, True)
    assert peaks["none"] > peaks["hybrid"] > peaks["full"]
    tight = replace(device, memory=0.9 * peaks["hybrid"] / USABLE)
    assert not lay_out([work], tight, Wishes(sharding="hybrid")).fits
    assert "--sharding full" in remedies([work], tight, Wishes(sharding="hybrid"))


def test_the_spread_of_small_runs_says_what_seeds_at_the_papers_scale_resolve(tmp_path: Path) -> None:
    write_state(Study("laptop", tmp_path), "table7", paired_losses(-0.01, spread=0.002))
    here = Study("paper", tmp_path).state("table7")
    laptop = Study("laptop", tmp_path).state("table7")
    cosine, wsd = strengths(here, [laptop], 3)
    sd = {one.coordinates["schedule"]: one.estimate for one in laptop.findings}
    for one, name in ((cosine, "cosine"), (wsd, "wsd")):
        assert one.spread is not None
        assert sd[name] is not None
        assert (one.spread.scale, one.spread.pairs, one.spread.pooled) == ("laptop", 5, False)
        assert one.spread.sd == pytest.approx(sd[name].sd)
        assert one.needed is not None
        assert one.needed >= 3
        assert one.detectable is not None
        assert math.isfinite(one.detectable)
    assert strengths(here, [], 3)[0].spread is None
    smoke = replace(laptop, scale="smoke")
    assert strengths(here, [smoke], 3)[0].spread is None  # smoke runs are no evidence, of a spread neither


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"names": ("table11",)}, "table11: no such artifact (nearest: 'table1')"),
        ({"device": ("h10", 8)}, "GPU=h10: no such device (nearest: 'h100')"),
        (
            {"device": ("h100", 5)},
            "GPUS=5: does not divide the batch of 16 sequences of 338m; allowed are its divisors 1,",
        ),
        ({"wishes": Wishes(micro_batch=3), "device": ("h100", 2)}, "--micro-batch 3: does not divide a device's 8"),
        ({"wishes": Wishes(sharding="half"), "device": ("h100", 2)}, "--sharding half: allowed are none, hybrid, full"),
        ({"wishes": Wishes(sharding="full"), "device": ("h100", 1)}, "--sharding full: needs several devices"),
        ({"scale": "papr"}, "SCALE=papr: no such scale (nearest: 'paper')"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, about: dict[str, Any], said: str) -> None:
    def asked() -> None:
        device = find_device(*about.get("device", ("cpu", 2)))
        make_plan(replace(request(tmp_path, "table7"), **{**about, "device": device}), quiet)

    with pytest.raises(UserError) as caught:
        asked()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        ({"price": "cheap"}, "PRICE=cheap: a number from 0 is needed"),
        ({"price": "-1"}, "PRICE=-1: a number from 0 is needed"),
        ({"price": "nan"}, "PRICE=nan: a number from 0 is needed"),
        ({"gpus": "many"}, "GPUS=many: a whole number from 1 is needed"),
        ({"gpus": "0"}, "GPUS=0: a whole number from 1 is needed"),
        ({"mfu": "40"}, "--mfu=40: a number above 0, at most 1 is needed"),
        ({"mfu": "0"}, "--mfu=0: a number above 0, at most 1 is needed"),
        ({"vocab": ["gpt2"]}, "--vocab gpt2: is written TOKENIZER=N"),
    ],
)
def test_a_word_that_is_no_number_is_one_line(words_: dict[str, Any], said: str) -> None:
    from scripts.plan import request_of

    names = ("gpu", "gpus", "price", "seeds", "mfu", "sharding", "micro_batch")
    given: dict[str, Any] = {
        **dict.fromkeys(names),
        "artifact": [],
        "scale": "paper",
        "runs": Path("runs"),
        "vocab": [],
    }
    with pytest.raises(UserError) as caught:
        request_of(SimpleNamespace(**{**given, "checkpointing": False, "chunked_loss": False, **words_}))  # type: ignore[arg-type]
    assert str(caught.value) == said


def test_every_device_has_its_source() -> None:
    for name in ("h100", "h200", "a100-40", "a100-80", "l40s", "rtx4090", "b200", "cpu"):
        device = find_device(name, 2)
        assert device.source
        assert device.memory > 1e8
        assert device.flops > 1e10
        assert device.together == (1 if name == "cpu" else 2)


@pytest.mark.slow
def test_every_artifact_is_planned_at_the_papers_scale(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path, scale="paper", gpu="h100", gpus=64, price=2.5), quiet)
    text = to_markdown(page(plan))
    assert "20,000 H100 hours" in text
    assert len(plan.whole.demand.runs) < sum(len(line.demand.runs) for line in plan.lines)
    for name in ("table6", "table7", "table10", "figure1", "figure6"):
        (line,) = (one for one in plan.lines if one.demand.artifact == name)
        assert line.time.seconds > 0
    largest = max(plan.kinds, key=lambda kind: kind.works[0].parameters)
    assert largest.works[0].parameters == 2_321_380_352
    assert largest.layout.fits
