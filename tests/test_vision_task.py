"""Image classification through the trainer: against timm's own code, with any number of workers, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import auto_augment, create_transform
from timm.data.mixup import Mixup, mixup_target
from timm.loss import BinaryCrossEntropy
from torch.optim.swa_utils import AveragedModel

from cwd import schema
from cwd.data.images import ImageData
from cwd.errors import UserError
from cwd.runs import read_metrics
from cwd.sweeps import compose_config
from cwd.training import mixing
from cwd.training.image_loader import EVALUATION, Samples, Stream, augmentation, centre_crop, seeded
from cwd.training.image_sources import load_images
from cwd.training.tasks import Share
from cwd.training.tasks.vision import VisionTask
from cwd.training.trainer import Trainer
from tests.training_helpers import in_child, outcome, smoke_config, train
from tests.vision_helpers import SMALL, TINY, encoded, picture, write_folders

HARD = (
    *("recipe.crop_scale=[0.3,1.0]", "recipe.flip=0.5", "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.erase=0.5"),
    *("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.smoothing=0.1", "recipe.drop_path=0.3", "recipe.ema=0.5"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images") / "photos", 8)


def words(photos: Path, *more: str) -> list[str]:
    return [*SMALL, *TINY, "dataset=image_folder", f"dataset.root={photos}", *more]


def task_of(folder: Path, *overrides: str) -> VisionTask:
    config = smoke_config(folder, *overrides)
    size = config.training.batch_size
    return VisionTask(config, load_images(config), Share(0, size, size, 0, 1), print)


# What is done to images


def test_mixing_is_timms_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's Mixup on each pair by itself, given the share and the rectangle."""
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([1, 0, 2, 2, 4, 3])
    keep = torch.tensor([0.7, 0.7, 1 - 60 / 256, 1 - 60 / 256, 1.0, 1.0])
    cut = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [3, 4, 13, 10], [3, 4, 13, 10], [0, 0, 0, 0], [0, 0, 0, 0]])
    mixed, shares = mixing.mix(images, keep, cut), mixing.targets(labels, keep, 5, 0.1)
    for i in (0, 2, 4):
        theirs = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=5)
        monkeypatch.setattr(theirs, "_params_per_batch", lambda drawn=(float(keep[i]), i == 2): drawn)
        monkeypatch.setattr("timm.data.mixup.rand_bbox", lambda shape, lam, count=None: (3, 13, 4, 10))
        x, y = theirs(images[i : i + 2].clone(), labels[i : i + 2])
        torch.testing.assert_close(mixed[i : i + 2], x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(shares[i : i + 2], y, rtol=1e-6, atol=1e-6)
    plain = mixing.targets(labels, torch.ones(6), 5, 0.1)
    torch.testing.assert_close(plain, mixup_target(labels, 5, 1.0, 0.1), rtol=1e-6, atol=1e-6)


def test_the_binary_loss_is_timms() -> None:
    torch.manual_seed(0)
    logits, shares = torch.randn(4, 5), torch.rand(4, 5)
    expected = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)(logits, shares)
    torch.testing.assert_close(mixing.soft_loss(logits, shares, "binary"), expected)


def test_erasing_fills_the_rectangle_with_normal_noise_that_the_row_alone_decides() -> None:
    images, seeds = torch.full((3, 3, 40, 40), 9.0), torch.tensor([5, 6, 7])
    rectangles = torch.tensor([[2, 3, 30, 20], [0, 0, 0, 0], [0, 0, 40, 40]])
    erased = mixing.erase(images.clone(), rectangles, seeds)
    assert (erased[0, :, 2:32, 3:23] != 9).all()
    assert (erased[0] != 9).sum() == 3 * 30 * 20
    assert torch.equal(erased[1], images[1])
    assert abs(erased[2].mean()) < 5 / 4800**0.5
    assert abs(erased[2].var() - 1) < 5 * (2 / 4800) ** 0.5
    alone = mixing.erase(images[2:].clone(), rectangles[2:], seeds[2:])
    assert torch.equal(alone[0], erased[2])


def test_the_evaluation_sees_timms_normalised_centre_crop() -> None:
    recipe, image = schema.Recipe(crop_fraction=0.875), picture(3, (50, 70))
    ours = mixing.normalise(centre_crop(recipe, 32)(image)[None])[0]
    theirs = create_transform(32, crop_pct=0.875, interpolation="bicubic")(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Which batches


def batches(folder: Path, steps: int, *overrides: str) -> list[dict[str, torch.Tensor]]:
    task = task_of(folder, *overrides)
    return [task.load(task.batch(step)) for step in range(steps)]


@pytest.mark.parametrize("name", ["PosterizeIncreasing", "Posterize", "PosterizeOriginal"])
def test_the_randomly_drawn_operations_take_every_level(name: str) -> None:
    """Pillow from 13 on refuses to keep no bit, which is timm's highest level."""
    image, config = picture(3), dict[str, float]()
    for level in range(11):
        bits = auto_augment.LEVEL_TO_ARG[name](level, config)[0]
        seen = np.asarray(auto_augment.AugmentOp(name, 1.0, level, config)(image))
        np.testing.assert_array_equal(seen, np.asarray(image, dtype=int) // 2 ** (8 - bits) * 2 ** (8 - bits))


def test_the_recipes_of_imagenet_augment_whatever_is_drawn() -> None:
    recipe = compose_config(["task=vision", "recipe=deit", "recipe.rand_augment=rand-m10-n4-inc1"]).recipe
    augment = augmentation(recipe, 16)
    for seed in range(100):  # 400 operations of 15 kinds at the highest level
        with seeded(seed):
            assert augment(picture(seed)).shape == (3, 16, 16)


def test_two_workers_and_four_and_none_give_the_same_batches(tmp_path: Path, photos: Path) -> None:
    found = [batches(tmp_path, 3, *words(photos, *HARD, f"machine.workers={count}")) for count in (0, 2, 4)]
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(found[0][0]["images"], found[0][1]["images"])


def test_a_batch_depends_on_its_step_alone(tmp_path: Path, photos: Path) -> None:
    """As a resumed run asks for it: without those before, and whatever the global generators are."""
    overrides = words(photos, *HARD)
    before = batches(tmp_path, 3, *overrides)[2]
    torch.manual_seed(123)
    np.random.seed(4)
    state = torch.get_rng_state()
    task = task_of(tmp_path, *overrides)
    after = task.load(task.batch(2))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())  # and leaves them as they are


def test_parts_of_a_batch_make_up_the_batch(tmp_path: Path, photos: Path) -> None:
    """As two processes, or micro-batches, load it; and the mean of their losses is the batch's."""
    config = smoke_config(tmp_path, *words(photos, *HARD, "recipe.drop_path=0"))
    data = load_images(config)
    whole = VisionTask(config, data, Share(0, 8, 8, 0, 1), print)
    parts = [VisionTask(config, data, Share(4 * i, 4, 2, i, 2), print) for i in range(2)]
    torch.manual_seed(0)
    model = whole.build_model()
    expected, found = whole.load(whole.batch(1)), []
    for part in parts:
        for start in (0, 2):
            rows = {name: rows[start + part._share.first :][:2] for name, rows in part.batch(1).items()}
            found.append(part.load(rows))
    for name in expected:
        assert torch.equal(torch.cat([one[name] for one in found]), expected[name])
    losses = torch.stack([whole.loss(model, one) for one in found])
    torch.testing.assert_close(losses.mean(), whole.loss(model, expected), rtol=1e-5, atol=1e-6)


# Images that cannot be read


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    root = write_folders(tmp_path / "broken", 4)
    for split in ("train", "val"):
        file = root / split / "bee" / "2.jpg"
        file.write_bytes(file.read_bytes()[:-80])
    (root / "train" / "cat" / "1.jpg").write_bytes(encoded(picture(1, mode="CMYK")))
    return root


def test_a_broken_image_ends_the_run_in_one_line(tmp_path: Path, broken: Path) -> None:
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"val/bee/2.jpg: cannot be read .*dataset.corrupt=skip") as caught:
            train(tmp_path, *words(broken, f"machine.workers={workers}"))
        assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_counted_and_left_out(
    tmp_path: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, *words(broken, "dataset.corrupt=skip", "training.steps=3"))
    assert result.summary is not None
    assert result.summary["unreadable"] == 2
    said = capsys.readouterr().out
    assert said.count("val/bee/2.jpg: cannot be read") == 1
    assert said.count("train/bee/2.jpg: cannot be read") == 1
    task = task_of(tmp_path, *words(broken, "dataset.corrupt=skip"))
    rows = task.load(task.evaluation_batch(0, 12))
    assert rows["labels"].tolist() == [0] * 4 + [1, 1, -1, 1] + [2] * 4
    torch.manual_seed(0)
    model = task.build_model().eval()
    measured = task.measure(model, rows)
    readable = rows["labels"] >= 0
    logits = model(mixing.normalise(rows["images"]))[readable]
    hits = (logits.argmax(1) == rows["labels"][readable]).sum()
    assert measured["count"] == 11
    assert measured["top1"] == 100 * hits
    assert measured["top5"] == 1100  # of three classes, all are among the best five


def test_the_image_after_a_broken_one_takes_its_place(tmp_path: Path, broken: Path) -> None:
    data: ImageData = load_images(smoke_config(tmp_path, *words(broken)))
    samples = Samples(data, schema.Recipe(), 16)
    _, image, label, problem = samples[(6, 99)]
    _, after, same, _ = samples[(7, 99)]
    assert torch.equal(image, after)
    assert label == same == 1
    assert "train/bee/2.jpg" in problem


# Runs


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().double().clone() for name, tensor in model.state_dict().items()}


def test_the_average_of_the_weights_follows_its_recursion(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the weights after each update, in float64; the first is copied; a ResNet's statistics are averaged too."""
    seen: list[dict[str, torch.Tensor]] = []
    real = AveragedModel.update_parameters

    def watched(average: AveragedModel, model: torch.nn.Module) -> None:
        seen.append(weights_of(model))
        real(average, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", watched)
    overrides = words(photos, "recipe.ema=0.7", "model=resnet_56k", "model.patch_size=null", "training.steps=5")
    result = train(tmp_path, *overrides)
    expected = seen[0]
    for now in seen[1:]:
        expected = {name: 0.7 * old + 0.3 * now[name] for name, old in expected.items()}
    saved = timm.create_model(f"local-dir:{result.record.folder / 'model_ema'}", pretrained=True)
    for name, tensor in saved.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    last = timm.create_model(f"local-dir:{result.record.folder / 'model'}", pretrained=True)
    assert all(torch.equal(tensor.double(), seen[-1][name]) for name, tensor in last.state_dict().items())
    task = task_of(tmp_path, *overrides)
    rows = task.load(task.evaluation_batch(0, task.evaluation_rows()))
    for model, prefix in ((last, ""), (saved, "ema_")):
        with torch.no_grad():
            measured = task.measure(model.eval(), rows)
        assert result.summary is not None
        assert result.summary[f"{prefix}loss"] == pytest.approx(float(measured["loss"] / measured["count"]), rel=1e-5)


def dies_at(moment: str) -> Callable[[], None]:
    """What makes a process die by kill -9 in its fourth update, or in an evaluation after it."""

    def kill(*unused: Any, **also: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare() -> None:
        if moment == "evaluation":
            real_measure, calls = VisionTask.measure, []
            VisionTask.measure = lambda self, *rest: (  # type: ignore[method-assign]
                calls.append(1),
                kill() if len(calls) == 5 else None,
                real_measure(self, *rest),
            )[2]
        else:
            real = Trainer._accumulate
            Trainer._accumulate = lambda self, batch: (  # type: ignore[method-assign]
                real(self, batch) if self.step < 3 else kill()
            )

    return prepare


@pytest.mark.parametrize(("moment", "model"), [("update", "vit"), ("evaluation", "resnet")])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, photos: Path, moment: str, model: str) -> None:
    """With two workers and the average of the weights, against a run left alone without workers."""
    shape = [] if model == "vit" else ["model=resnet_56k", "model.patch_size=null"]
    overrides = words(photos, *HARD, *shape, "optimizer=muon", "training.steps=6", "machine.checkpoint_seconds=0")
    alone = outcome(train(tmp_path / "alone", *overrides).record)

    def action() -> None:
        dies_at(moment)()
        train(tmp_path / "killed", *overrides, "machine.workers=2")

    assert in_child(action) == -signal.SIGKILL
    resumed = train(tmp_path / "killed", *overrides, "machine.workers=2")
    assert {line["kind"] for line in read_metrics(resumed.record.metrics_file)} >= {"train", "eval"}
    after = outcome(resumed.record)
    assert after["weights"] == alone["weights"]
    assert after["summary"] == alone["summary"]
    assert after["metrics"] == alone["metrics"]
    average = [
        tmp_path / name / "runs" / resumed.record.key / "model_ema" / "model.safetensors"
        for name in ("alone", "killed")
    ]
    assert average[0].read_bytes() == average[1].read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(tmp_path: Path, photos: Path, number: int) -> None:
    """As schedulers send it, to every process of a job: to the workers too, which go on until they are not needed."""
    overrides = words(photos, "training.steps=6", "machine.workers=2", "machine.checkpoint_seconds=600")

    def action() -> None:
        os.setpgid(0, 0)
        real, send = Trainer._accumulate, ["kill", f"-{number}", "--", f"-{os.getpid()}"]

        def signalled(trainer: Trainer, batch: Any) -> torch.Tensor:
            if trainer.step == 3:
                subprocess.run(send, check=True, start_new_session=True)  # by another process, as a scheduler is one
                time.sleep(0.5)
            return real(trainer, batch)

        Trainer._accumulate = signalled  # type: ignore[method-assign]
        train(tmp_path, *overrides)

    assert in_child(action) == 128 + number
    status = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/status.json")]
    assert [(one["state"], one["step"]) for one in status] == [("interrupted", 4)]
    assert train(tmp_path, *overrides).state == "done"


def test_a_worker_ends_when_its_parent_says_so(tmp_path: Path, photos: Path) -> None:
    """DataLoader ends by SIGTERM what does not end by itself."""
    data = load_images(smoke_config(tmp_path, *words(photos)))
    stream = Stream(Samples(data, schema.Recipe(), 16), 1)
    stream.take([(0, EVALUATION)], lambda: iter(()))
    [worker] = stream._upcoming._workers  # type: ignore[attr-defined]
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_both_arms_share_weights_and_batches(tmp_path: Path, photos: Path) -> None:
    pairs = [
        train(tmp_path, *words(photos, *HARD, f"decay={arm}", "optimizer=lion")).summary
        for arm in ("cautious", "decoupled")
    ]
    assert pairs[0] is not None
    assert pairs[1] is not None
    assert pairs[0]["pairing"] == pairs[1]["pairing"]
    assert pairs[0]["loss"] != pairs[1]["loss"]
    assert pairs[0]["images"] == 4 * 8


def test_images_are_mixed_in_whole_pairs_or_not_at_all(tmp_path: Path, photos: Path) -> None:
    config = smoke_config(tmp_path, *words(photos, "training.batch_size=24", "recipe.mixup=0.8"))
    VisionTask(config, load_images(config), Share(6, 6, 6, 1, 4), print)
    with pytest.raises(UserError, match=r"training\.batch_size=24: gives each of 8 processes 3 images"):
        VisionTask(config, load_images(config), Share(3, 3, 3, 1, 8), print)


def test_precision_and_memory_order_are_switches(tmp_path: Path, photos: Path) -> None:
    resnet = ["model=resnet_56k", "model.patch_size=null"]
    pairs = [(resnet, ["machine.channels_last=true"], 1e-3), ([], ["training.precision=bf16"], 0.1)]
    for i, (shape, switch, tolerance) in enumerate(pairs):
        plain = train(tmp_path / f"plain{i}", *words(photos, *shape)).summary
        other = train(tmp_path / f"other{i}", *words(photos, *shape, *switch)).summary
        assert plain is not None
        assert other is not None
        assert other["loss"] == pytest.approx(plain["loss"], rel=tolerance)
        assert other["loss"] != plain["loss"]


def test_a_stream_begins_anew_only_where_it_is_asked_for_other_rows(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_images(smoke_config(tmp_path, *words(photos)))
    stream = Stream(Samples(data, schema.Recipe(), 16), 0)
    rows = [[(0, EVALUATION), (1, EVALUATION)], [(2, EVALUATION)], [(8, EVALUATION)]]
    begun = []

    def plan() -> Iterator[list[tuple[int, int]]]:
        begun.append(1)
        return iter(rows)

    first, _, third = (stream.take(keys, plan) for keys in rows)
    assert len(begun) == 1
    assert third.labels.tolist() == [data.validation.labels[8]]
    assert torch.equal(stream.take(rows[0], plan).images, first.images)
    assert len(begun) == 2
    real, steps = VisionTask._training_plan, []
    monkeypatch.setattr(VisionTask, "_training_plan", lambda task: steps.append(task._step) or real(task))
    train(tmp_path, *words(photos))
    assert steps == [0]
