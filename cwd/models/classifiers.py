"""Image classifiers: timm's, by name, and smaller ones of the same kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models import group_parameters, save_for_hf
from torch import nn

from cwd.errors import UserError, nearest

SQUARE = ("vit_", "deit")  # models whose weights depend on the size of the image


def build_classifier(
    name: str, *, classes: int, image_size: int = 224, drop_path: float = 0.0, **shape: Any
) -> nn.Module:
    """A freshly initialised classifier of RGB images; its weights depend on torch's random seed alone.

    Args:
        name: in timm's registry, such as vit_small_patch16_224 or resnet50.
        classes: outputs of the head.
        image_size: pixels of a side.
        drop_path: probability that a block is left out in training, at the last block; it grows linearly from 0.
        shape: sizes in place of the model's own: of a ViT patch_size, embed_dim, depth, num_heads; of a ResNet layers,
            channels, and stem_width, which makes the stem three small convolutions. None: the model's own.

    Raises:
        UserError: timm has no such model, or it does not take these sizes.
    """
    if not timm.is_model(name):
        raise UserError(
            f"model.name={name}: timm {timm.__version__} has no such model{nearest(name, timm.list_models())}"
        )
    given = {key: value for key, value in shape.items() if value is not None}
    if name.startswith(SQUARE):
        given["img_size"] = image_size
    if "stem_width" in given:
        given["stem_type"] = "deep"
    if "layers" in given and len(given["layers"]) != len(given.get("channels", given["layers"])):
        raise UserError(f"model.channels={given['channels']}: one number for each of model.layers={given['layers']}")
    try:
        return timm.create_model(name, num_classes=classes, drop_path_rate=drop_path, **given)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        sizes = ", ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"model.name={name}: timm cannot make it with {sizes} ({error})") from error


def layer_multiples(model: nn.Module, decay: float) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by: 1 at the head, and in each layer `decay` times
    that of the next one (Bao et al. 2021, BEiT, arXiv 2106.08254). The layers are those that timm divides a model into.
    """
    matcher = model.group_matcher(coarse=False)  # type: ignore[operator]  # every model of timm has it
    layers: dict[str, int] = group_parameters(model, matcher, reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def save_classifier(model: nn.Module, folder: Path, **arguments: Any) -> None:
    """Weights (safetensors) and configuration, as ``timm.create_model("local-dir:FOLDER")`` takes them.

    Args:
        arguments: what the model was built with beside its name and classes.
    """
    save_for_hf(model, str(folder), model_args=arguments or None, safe_serialization=True)
