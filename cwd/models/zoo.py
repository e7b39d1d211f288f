"""Models by family name, `build("simply", vocab_size=..., seq_len=..., hidden_size=...)`, and parameter counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from cwd.errors import UserError, nearest
from cwd.models.hub import BUILDERS
from cwd.models.simply import SimplyConfig, SimplyForCausalLM


def _simply(*, vocab_size: int, seq_len: int, **shape: Any) -> PreTrainedModel:
    return SimplyForCausalLM(SimplyConfig(vocab_size=vocab_size, max_position_embeddings=seq_len, **shape))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"simply": _simply, **BUILDERS}
WIDTHS = ("hidden_size", "head_dim", "intermediate_size")  # what `shrink` divides, where a family has it


def build(
    family: str, *, vocab_size: int, seq_len: int, embedding_size: int | None = None, shrink: int = 1, **shape: Any
) -> PreTrainedModel:
    """A freshly initialised model; its weights depend on torch's random seed and on nothing else.

    Args:
        family: a key of `FAMILIES`.
        vocab_size: ids of the data's tokenizer.
        seq_len: the length trained on.
        embedding_size: rows of the embedding table; None for `vocab_size`. Rows above it belong to no id.
        shrink: divides the widths, for a model of the same depth, heads and names that any machine can train.
        shape: fields of the family, such as `hidden_size=128, num_hidden_layers=4`; `attn_implementation`.

    Raises:
        UserError: an unknown family or field, a value out of range, more ids than rows; one line.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown model family {family!r}{nearest(family, FAMILIES)}; allowed: {', '.join(FAMILIES)}")
    _check_fields(family, shape)
    rows = embedding_size or vocab_size
    if rows < vocab_size:
        raise UserError(
            f"model.embedding_size={rows}: the data's tokenizer has {vocab_size:,} ids; give at least as many rows, "
            "or null for as many as there are ids"
        )
    try:
        return FAMILIES[family](vocab_size=rows, seq_len=seq_len, **_shrunk(shape, shrink))
    except ValueError as error:
        raise UserError(f"model {family}: {error}") from error


def _check_fields(family: str, shape: Mapping[str, Any]) -> None:
    """Refuses unknown fields: PreTrainedConfig would keep a misspelt one, and the model have the default shape."""
    if family == "simply":
        own = {field.name for field in fields(SimplyConfig) if field.name in SimplyConfig.__annotations__}
    else:
        own = set(signature(FAMILIES[family]).parameters) - {"seq_len", "attention"}
    allowed = own - {"vocab_size", "max_position_embeddings"} | {"attn_implementation"}
    for name in shape:
        if name not in allowed:
            choices = ", ".join(sorted(allowed))
            raise UserError(f"model {family}: unknown field {name!r}{nearest(name, allowed)}; allowed: {choices}")


def _shrunk(shape: Mapping[str, Any], by: int) -> dict[str, Any]:
    wide = {name: value for name, value in shape.items() if name in WIDTHS and value is not None}
    for name, value in wide.items():
        if value % by:
            raise ValueError(f"shrink={by} must divide {name}={value}")
    return {**shape, **{name: value // by for name, value in wide.items()}}


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
