"""Models by family name, `build("simply", vocab_size=..., seq_len=..., hidden_size=...)`, and parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from cwd.errors import UserError, nearest
from cwd.models.simply import SimplyConfig, SimplyForCausalLM


def _simply(vocab_size: int, seq_len: int, **shape: Any) -> PreTrainedModel:
    # PreTrainedConfig would keep a misspelt field as an extra attribute, and the model would have the default shape.
    own = {field.name for field in fields(SimplyConfig) if field.name in SimplyConfig.__annotations__}
    allowed = own - {"vocab_size", "max_position_embeddings"} | {"attn_implementation"}
    for name in shape:
        if name not in allowed:
            choices = ", ".join(sorted(allowed))
            raise UserError(f"model simply: unknown field {name!r}{nearest(name, allowed)}; allowed: {choices}")
    return SimplyForCausalLM(SimplyConfig(vocab_size=vocab_size, max_position_embeddings=seq_len, **shape))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"simply": _simply}


def build(family: str, *, vocab_size: int, seq_len: int, **shape: Any) -> PreTrainedModel:
    """A freshly initialised model; its weights depend on torch's random seed and on nothing else.

    Args:
        family: a key of `FAMILIES`.
        vocab_size: rows of the embedding table.
        seq_len: the length trained on.
        shape: fields of the family's config, such as `hidden_size=128, num_hidden_layers=4`.

    Raises:
        UserError: an unknown family or field, or a value out of range; one line.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown model family {family!r}{nearest(family, FAMILIES)}; allowed: {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family](vocab_size=vocab_size, seq_len=seq_len, **shape)
    except ValueError as error:
        raise UserError(f"model {family}: {error}") from error


class ParameterCount(NamedTuple):
    """Numbers of parameters; `total = embedding + non_embedding`."""

    total: int
    embedding: int
    non_embedding: int


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count the parameters of `model`, on any device, meta included.

    A tied tensor counts once. `embedding` is the embedding table, without output bias or untied output matrix.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(parameter.numel() for parameter in model.get_input_embeddings().parameters())
    return ParameterCount(total, embedding, total - embedding)
