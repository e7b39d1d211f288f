"""Plans of image classifiers: operations against counts by hand, memory against the allocator's record."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

from cwd.evidence.render import to_markdown
from cwd.planning import check
from cwd.planning.check import flops_row, memory_row
from cwd.planning.devices import find_device
from cwd.planning.layout import Wishes, lay_out
from cwd.planning.memory import Setting, memory_of
from cwd.planning.page import page
from cwd.planning.plan import Request, make_plan
from cwd.planning.shapes import ImageShape
from cwd.planning.work import image_shape, work_of
from cwd.sweeps import compose_config
from cwd.training.image_sources import load_images
from cwd.training.tasks import Share
from cwd.training.tasks.vision import VisionTask

SMALL = ["scale=laptop", "task=vision"]
PAPER = ["scale=paper", "task=vision", "dataset=imagenet"]


def config(*words: str) -> dict[str, Any]:
    return asdict(compose_config(words))


def test_operations_of_a_vit_are_those_counted_by_hand() -> None:
    about = config(*SMALL, "model=vit_23k")  # 12 pixels in patches of 3: 16 and the class token; 24 wide, 3 layers
    tokens, width, layers, classes = 17, 24, 3, 10
    patches = 2 * 16 * (3 * 3 * 3) * width
    matrices = 2 * tokens * (3 * width * width + width * width + 2 * 4 * width * width)
    attention = 2 * 2 * tokens * tokens * width
    forward = patches + layers * (matrices + attention) + 2 * width * classes
    work = work_of(about, {}, on_cpu=True)
    assert work.forward == forward
    held_out = (1797 - 1000) * 8
    assert (work.seen, work.evaluated) == (1500 * 64, 4 * held_out)  # evaluated at 0, 500, 1,000 and 1,500
    backward = 2 * forward - patches  # nobody asks for the gradient of the pixels
    assert work.flops == 1500 * 64 * (forward + backward) + 4 * held_out * forward


def test_resnet50_at_full_size_has_the_published_operations_and_parameters() -> None:
    work = work_of(config(*PAPER, "model=resnet50", "recipe=rsb_a2"), {}, on_cpu=False)
    assert work.parameters == 25_557_032
    assert work.forward / 2 == pytest.approx(4.09e9, rel=0.005)  # torchvision: 4.09 GMACs
    assert work.seen == 187_671 * 2_048  # three augmentations of an image are three images
    assert work.evaluated == 31 * 50_000
    assert not work.averaged


def test_an_average_of_the_weights_is_kept_and_evaluated_too() -> None:
    plain, averaged = (work_of(config(*SMALL, f"recipe.ema={ema}"), {}, on_cpu=True) for ema in ("null", "0.99"))
    assert averaged.evaluated == 2 * plain.evaluated
    assert averaged.weights == 2 * plain.weights
    setting = Setting(micro_batch=4, on_cpu=True)
    without = memory_of(plain.shape, plain.held, setting)
    with_average = memory_of(averaged.shape, averaged.held, setting, averaged=averaged.averaged)
    assert with_average.average == without.weights
    assert with_average.peak - without.peak == without.weights


def test_muons_state_is_by_kernel_and_adamw_has_the_rest() -> None:
    words = [*SMALL, "model=resnet_56k", "optimizer=muon"]
    work = work_of(config(*words), {}, on_cpu=True)
    model = timm.create_model(
        "resnet50", num_classes=10, layers=[1, 1, 1, 1], channels=[8, 16, 24, 32], stem_width=8, stem_type="deep"
    )
    kernels = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith("conv1")
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    found = memory_of(work.shape, work.held, Setting(micro_batch=2, on_cpu=True))
    assert (found.weights, found.gradients, found.state) == (4 * total, 4 * total, 4 * kernels + 8 * (total - kernels))


def test_the_peak_is_what_the_allocator_records() -> None:
    about = config(*SMALL, "model=vit_23k", "optimizer=lion")
    shape = replace(image_shape(about, 10), mixed=True)
    setting = Setting(micro_batch=16, on_cpu=True)
    predicted, measured = memory_row(shape, about["optimizer"], "cautious", setting, averaged=True)
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bf16", [False, True])
def test_the_peak_of_a_resnet_is_too(optimizer: str, bf16: bool) -> None:
    """With as many images as it takes for activations to be most of it, as at full size."""
    about = config(*SMALL, "model=resnet_56k", f"optimizer={optimizer}")
    shape = replace(image_shape(about, 10), bf16=bf16, channels_last=True)
    setting = Setting(micro_batch=256, on_cpu=True)
    predicted, measured = memory_row(shape, about["optimizer"], "cautious", setting)
    assert predicted == pytest.approx(measured, rel=0.05)


def test_the_trainers_own_loss_on_real_images_takes_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, "model=resnet_56k", "recipe.mixup=0.8", "recipe.cutmix=1.0", "dataset.views=1"]
    made = compose_config(words)
    task = VisionTask(made, load_images(made), Share(0, 32, 32, 0, 1), print)
    batch = task.load({name: rows[:32] for name, rows in task.batch(0).items()})
    monkeypatch.setattr(check, "_loss", lambda model, shape, count: task.loss(model, batch))
    about = asdict(made)
    shape = image_shape(about, 10)
    assert shape.mixed
    predicted, measured = memory_row(shape, about["optimizer"], "cautious", Setting(micro_batch=32, on_cpu=True))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_operations_on_fake_tensors_are_those_on_real_ones() -> None:
    counted, real = flops_row(image_shape(config(*SMALL, "model=resnet_56k"), 10))
    assert counted == real


def test_images_that_are_mixed_stay_in_pairs() -> None:
    about = config(*SMALL, "training.batch_size=12", "recipe.mixup=0.8")
    work = work_of(about, {}, on_cpu=False)
    device = find_device("h100", 2)  # six images on each
    assert lay_out([work], device, Wishes()).setting.micro_batch == 6
    tight = replace(device, memory=1.0)  # nothing fits: the smallest is shown
    assert lay_out([work], tight, Wishes()).setting.micro_batch == 2


def test_what_the_trainer_has_not_for_images_is_one_line_and_a_copy_on_each_device(tmp_path: Path) -> None:
    wishes = Wishes(sharding="full", checkpointing=True)
    plan = make_plan(Request(("table3",), "laptop", tmp_path, find_device("h100", 2), wishes=wishes), lambda text: None)
    assert {kind.layout.setting.sharding for kind in plan.kinds} == {"none"}
    assert not any(kind.layout.shape.checkpointing for kind in plan.kinds)
    assert all(kind.layout.memory.sharing == kind.layout.memory.gradients > 0 for kind in plan.kinds)
    assert isinstance(plan.kinds[0].layout.shape, ImageShape)
    text = to_markdown(page(plan))
    sizes = "vit_s16, resnet50, vit_b16"
    assert (
        f"--sharding: the trainer has none for image classifiers ({sizes}); not divided: a copy on each device" in text
    )
    assert f"--checkpointing: the trainer has none for image classifiers ({sizes}); planned without it" in text
    assert "images a run" in text
    assert "only language models" not in text
    assert plan.whole.time.unknown == 0
    assert len(plan.whole.demand.missing) == 90  # three models, three optimizers, two arms, five seeds
