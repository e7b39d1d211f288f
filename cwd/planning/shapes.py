"""What decides the tensors of a forward and backward pass: of text, of images, of fine-tuning.

A shape builds its model and says what the trainer's loss does with it, on any device and on fake tensors too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cwd import schema
from cwd.models import build
from cwd.models.loss import CHUNK

Items = tuple[tuple[str, Any], ...]  # a mapping as sorted items, so that it can be part of a key
# transformers cannot look at fake positions, and would take rows for packed ones, with a mask of their own.
PACKING = "transformers.masking_utils.find_packed_sequence_indices"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides the tensors of a pass.

    Attributes:
        bf16: matrix products in bfloat16.
        fused: attention that never holds the scores of all pairs of positions.
        checkpointing: activations of each layer are computed again in the backward pass.
        chunked_loss: the logits are never there as a whole.
        held: the parameters whose gradients lie in memory before the pass begins.
    """

    bf16: bool = False
    fused: bool = False
    checkpointing: bool = False
    chunked_loss: bool = False
    held: frozenset[str] = frozenset()

    unit: ClassVar[str] = "tokens"  # what is counted
    rows: ClassVar[str] = "sequences"  # what a batch consists of
    what: ClassVar[str] = "language models"

    @property
    def options(self) -> frozenset[str]:
        """Which of sharding, checkpointing and chunked_loss the trainer has for it."""
        return frozenset()

    @property
    def together(self) -> int:
        """Rows that a micro-batch must not part."""
        return 1

    @property
    def units(self) -> int:
        """Tokens or images in a row."""
        return 1

    def build(self) -> nn.Module:
        """The model, on the device and in the mode that are set."""
        raise NotImplementedError

    def loss(self, model: nn.Module, rows: int) -> Tensor:
        """The loss of a micro-batch of zeros, 0-D."""
        raise NotImplementedError

    def beside(self) -> tuple[int, int]:
        """(bytes, bytes of a row) that the trainer's loss holds and :meth:`loss` does not."""
        return 0, 0


@dataclass(frozen=True)
class TextShape(Shape):
    """A language model, from the configuration's section ``model``."""

    model: Items
    vocab_size: int
    seq_len: int

    @property
    def options(self) -> frozenset[str]:
        """All of them."""
        return frozenset({"sharding", "checkpointing", "chunked_loss"})

    @property
    def units(self) -> int:
        """Tokens."""
        return self.seq_len

    def build(self) -> PreTrainedModel:
        """As the trainer builds it, but for the kernel of fused attention."""
        shape = dict(self.model)
        family = shape.pop("family")
        if self.fused and family == "simply":  # a fused kernel caps the scores inside; what it keeps is the same
            shape |= {"attn_softcap": None, "attn_implementation": "sdpa"}
        return build(family, vocab_size=self.vocab_size, seq_len=self.seq_len, **shape)

    def loss(self, model: nn.Module, rows: int) -> Tensor:
        """Next-token cross-entropy."""
        ids = torch.zeros(rows, self.seq_len, dtype=torch.int64)
        # A chunk's logits at a time take as much as the logits of so many positions.
        keep = max(1, min(CHUNK // self.vocab_size // rows, self.seq_len)) if self.chunked_loss else 0
        with patch(PACKING, return_value=None), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = model(input_ids=ids, use_cache=False, **({"logits_to_keep": keep} if keep else {})).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, -keep:].flatten())

    def beside(self) -> tuple[int, int]:
        """Of a loss by chunks: its own sum of the head's gradient, and the gradients of the head's inputs before and
        after they are scaled.
        """
        if not self.chunked_loss:
            return 0, 0
        with torch.device("meta"):
            head = self.build().get_output_embeddings()
        return 4 * head.weight.numel(), 2 * self.seq_len * head.weight.shape[1] * (2 if self.bf16 else 4)


@dataclass(frozen=True)
class ImageShape(Shape):
    """An image classifier of timm, from the sections ``model`` and ``recipe``. Attention in it is fused by itself."""

    model: Items
    classes: int
    drop_path: float = 0.0
    kind: str = "cross_entropy"  # of loss
    mixed: bool = False  # mixup or CutMix, within pairs of rows
    channels_last: bool = False

    unit: ClassVar[str] = "images"
    rows: ClassVar[str] = "images"
    what: ClassVar[str] = "image classifiers"

    @property
    def together(self) -> int:
        """Pairs, where images are mixed."""
        return 2 if self.mixed else 1

    def build(self) -> nn.Module:
        """As the trainer builds it."""
        from cwd.models.classifiers import build_classifier  # timm is for images only

        return build_classifier(classes=self.classes, drop_path=self.drop_path, **dict(self.model))

    def loss(self, model: nn.Module, rows: int) -> Tensor:
        """What cwd.training.tasks.vision does to the images that were read; rectangles are erased in place."""
        from cwd.training import mixing

        size = dict(self.model)["image_size"]
        labels, keep, cut = (
            torch.zeros(rows, dtype=torch.int64),
            torch.ones(rows),
            torch.zeros(rows, 4, dtype=torch.int64),
        )
        images = mixing.normalise(torch.zeros(rows, 3, size, size, dtype=torch.uint8))
        if self.mixed:
            images = mixing.mix(images, keep, cut)
        shares = mixing.targets(labels, keep, self.classes, 0.0)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = model(images)
        return mixing.soft_loss(logits, shares, self.kind)


@dataclass(frozen=True)
class TunedShape(Shape):
    """A trained language model that goes on, whole or by adapters.

    Attributes:
        model: the section of the run that it comes from, or a ``config.json`` of the hub, with its ``model_type``.
        adapter: the configuration's section; None: all weights are trained.
    """

    model: Items
    vocab_size: int
    seq_len: int
    adapter: Items | None = None

    what: ClassVar[str] = "fine-tuned models"

    @property
    def options(self) -> frozenset[str]:
        """Adapters are not divided; nothing is computed again, and the logits are there as a whole."""
        return frozenset() if self.adapter else frozenset({"sharding"})

    @property
    def units(self) -> int:
        """Tokens."""
        return self.seq_len

    def build(self) -> nn.Module:
        """As the trainer loads it, without the weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        from cwd.training.tasks.finetune import with_lora

        about = dict(self.model)
        if "family" in about:
            model = TextShape(self.model, self.vocab_size, self.seq_len).build()
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**about))
        return model if self.adapter is None else with_lora(model, _options(dict(self.adapter)))

    def loss(self, model: nn.Module, rows: int) -> Tensor:
        """As cwd.training.tasks.finetune, with every token an answer: so at most what it takes."""
        ids = torch.zeros(rows, self.seq_len, dtype=torch.int64)
        places = torch.arange(self.seq_len).expand(rows, -1)
        row, column = torch.zeros(2, rows * (self.seq_len - 1), dtype=torch.int64)
        with patch(PACKING, return_value=None), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, :-1]
        logits, labels = logits[row, column].float(), ids[row, column]
        losses = F.cross_entropy(logits, labels, reduction="none")
        _ = logits.argmax(-1) == labels  # whether the most likely token is right
        return losses.sum() / float(rows * self.seq_len)


def _options(adapter: dict[str, Any]) -> schema.Pretrained:
    return schema.Pretrained(**{**adapter, "targets": list(adapter["targets"])})


def items_of(section: Mapping[str, Any], without: tuple[str, ...] = ()) -> Items:
    """The section as a part of a shape."""
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in section.items() if k not in without))


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Computes the activations of each layer again in the backward pass, instead of keeping them."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def takes_targets(model: nn.Module) -> bool:
    """Whether its forward computes the loss itself, by chunks of tokens."""
    return "targets" in signature(model.forward, follow_wrapped=False).parameters
