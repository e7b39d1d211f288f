"""Image classification with timm's models, transforms and recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwd import schema
from cwd.data.image_batches import Draws, evaluation_index, image_rows
from cwd.data.images import ImageData
from cwd.errors import UserError
from cwd.models.classifiers import build_classifier, save_classifier
from cwd.training import mixing
from cwd.training.image_loader import EVALUATION, Key, Samples, Stream
from cwd.training.tasks import Batch, Share, chunks


class VisionTask:
    """Classification of images.

    A batch is a few numbers for each row (cwd.data.image_batches); :meth:`load` reads the images that they stand for,
    ahead of time where there are workers.

    Args:
        share: which rows of a batch this process has, and how many at once.
        warn: is told of images that cannot be read.
    """

    unit = "images"
    metrics: tuple[str, ...] = ("loss", "top1", "top5")

    def __init__(self, config: schema.Config, data: ImageData, share: Share, warn: Callable[[str], None]) -> None:
        assert isinstance(config.model, schema.Timm)
        if config.machine.sharding != "none":
            raise UserError(
                f"machine.sharding={config.machine.sharding}: image classifiers are not divided; allowed is none"
            )
        self._config, self._model, self._recipe, self._data = config, config.model, config.recipe, data
        self._share, self._warn = share, warn
        recipe = self._recipe
        if (recipe.mixup or recipe.cutmix) and (share.rows % 2 or share.at_once % 2):
            raise UserError(
                f"training.batch_size={config.training.batch_size}: gives each of {share.processes} processes "
                f"{share.rows} images, {share.at_once} at once; both must be even, as recipe.mixup and recipe.cutmix "
                "mix images in pairs"
            )
        self._draws = Draws(self._model.image_size, recipe.erase, recipe.mixup, recipe.cutmix, recipe.repeats)
        self._evaluation = evaluation_index(len(data.validation.labels), config.evaluation.images)
        samples = Samples(data, recipe, self._model.image_size)
        self._training, self._evaluating = (Stream(samples, config.machine.workers) for _ in range(2))
        self._step = 0
        self._unreadable: set[str] = set()

    def build_model(self) -> nn.Module:
        """The configured model with an output for each class."""
        classes = len(self._data.classes)
        return build_classifier(
            self._model.name, classes=classes, drop_path=self._recipe.drop_path, **self._shape(self._model)
        )

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """As :func:`cwd.models.classifiers.save_classifier`; the model is never divided."""
        shape = self._shape(self._model)
        if shape["stem_width"] is not None:
            shape["stem_type"] = "deep"
        size = shape.pop("image_size")
        if hasattr(model, "patch_embed"):
            shape["img_size"] = size
        save_classifier(model, folder, **{key: value for key, value in shape.items() if value is not None})

    def describe(self, model: nn.Module) -> list[str]:
        """Lines on model, data and length."""
        counts, training = self._data.description["images"], self._config.training
        total = sum(parameter.numel() for parameter in model.parameters())
        epochs = training.steps * training.batch_size / counts["train"]
        return [
            f"model  {self._model.name}: {total:,} parameters, images of {self._model.image_size} pixels",
            f"data   {self._data.name}: {counts['train']:,} images of {len(self._data.classes)} classes to train on, "
            f"{len(self._evaluation):,} of {counts['validation']:,} held out to evaluate on",
            f"steps  {training.steps:,} of {training.batch_size} images, {epochs:.1f} epochs, "
            f"{self._config.scale} scale",
        ]

    def batch(self, step: int) -> Batch:
        """What :func:`cwd.data.image_batches.image_rows` gives, as tensors."""
        self._step = step
        return {name: torch.from_numpy(rows) for name, rows in self._rows(step).items()}

    def load(self, batch: Batch) -> Batch:
        """The rows with their ``images`` (B, 3, H, W) uint8 and ``labels`` (B,) int64 instead of their numbers.

        Raises:
            UserError: an image cannot be read and dataset.corrupt is fatal.
        """
        keys = _keys(batch)
        stream, plan = (
            (self._evaluating, self._evaluation_plan) if "seed" not in batch else (self._training, self._training_plan)
        )
        loaded = stream.take(keys, plan)
        self._tell(loaded.problems)
        rest = {name: tensor for name, tensor in batch.items() if name != "index"}
        return {**rest, "images": loaded.images, "labels": loaded.labels}

    def units(self, batch: Batch) -> int:
        """Images."""
        return len(batch["index"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the recipe, in float32."""
        recipe, keep = self._recipe, batch["keep"]
        images = mixing.normalise(batch["images"])
        if recipe.erase:
            images = mixing.erase(images, batch["erase"], batch["seed"])
        if recipe.mixup or recipe.cutmix:
            images = mixing.mix(images, keep, batch["cut"])
        shares = mixing.targets(batch["labels"], keep, len(self._data.classes), recipe.smoothing)
        return mixing.soft_loss(model(self._ordered(images)), shares, recipe.loss)

    def evaluation_rows(self) -> int:
        """Images in the evaluation set."""
        return len(self._evaluation)

    def evaluation_batch(self, start: int, stop: int) -> Batch:
        """As :meth:`batch`, of the evaluation set's rows [start, stop): ``index`` alone."""
        return {"index": torch.from_numpy(self._evaluation[start:stop])}

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums of the cross-entropy (nats), and of top-1 and top-5 accuracy in percent, over the images that could be
        read. With fewer than five classes the top-5 is among all of them.
        """
        logits = model(self._ordered(mixing.normalise(batch["images"]))).float()
        readable = batch["labels"] >= 0
        logits, labels = logits[readable], batch["labels"][readable]
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none").double().sum(),
            "top1": 100 * best[:, 0].double().sum(),
            "top5": 100 * best.double().sum(),
            "count": torch.tensor(float(len(labels)), dtype=torch.float64, device=labels.device),
        }

    def summary(self) -> dict[str, Any]:
        """How many images this process could not read since it started, if there are any."""
        return {"unreadable": len(self._unreadable)} if self._unreadable else {}

    def _shape(self, model: schema.Timm) -> dict[str, Any]:
        return {key: value for key, value in vars(model).items() if key not in ("family", "name")}

    def _ordered(self, images: Tensor) -> Tensor:
        """In the memory order that is configured; the weights stay as the optimizer wants them, contiguous."""
        channels_last = self._config.machine.channels_last
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def _rows(self, step: int) -> Any:
        count, size = len(self._data.train.labels), self._config.training.batch_size
        return image_rows(count, self._draws, seed=self._config.seed, step=step, batch_size=size)

    def _training_plan(self) -> Iterator[list[Key]]:
        """What this process will load from the current step on."""
        for step in range(self._step, self._config.training.steps):
            rows = self._rows(step)
            for start, stop in chunks(self._share.rows, self._share.at_once):
                here = slice(self._share.first + start, self._share.first + stop)
                yield list(zip(rows["index"][here].tolist(), rows["seed"][here].tolist(), strict=True))

    def _evaluation_plan(self) -> Iterator[list[Key]]:
        for start, stop in self._share.of(chunks(len(self._evaluation), self._share.at_once)):
            yield [(index, EVALUATION) for index in self._evaluation[start:stop].tolist()]

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            if self._config.dataset.corrupt == "fatal":  # type: ignore[attr-defined]
                raise UserError(f"{problem}; mend or remove it, or go on without it: dataset.corrupt=skip")
            if problem not in self._unreadable:
                self._unreadable.add(problem)
                self._warn(f"{problem}: left out, {len(self._unreadable)} so far")


def _keys(batch: Batch) -> list[Key]:
    index = batch["index"].tolist()
    return list(zip(index, batch["seed"].tolist() if "seed" in batch else [EVALUATION] * len(index), strict=True))
