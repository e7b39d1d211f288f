"""How much arithmetic a token costs."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def multiplying_parameters(model: nn.Module) -> int:
    """Elements of the matrices that a token is multiplied by: an embedding that is only looked up does not count, an
    output tied to it does; nor do norms and biases.
    """
    matrices = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2
    }
    return sum(matrices.values())


def flops_per_token(model: PreTrainedModel, seq_len: int) -> int:
    """Floating-point operations to train on one token: 6 * parameters that multiply + 12 * layers * seq_len * width of
    attention (Chowdhery et al. 2022, PaLM, appendix B).

    A multiplication and an addition are two operations; the backward pass costs twice the forward, so an evaluation
    takes a third of it. Attention is not halved for causality. The optimizer's step is not counted, nor activations
    that are computed again.

    Args:
        model: on any device, meta included.
        seq_len: tokens in a sequence.
    """
    config = model.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 6 * multiplying_parameters(model) + 12 * config.num_hidden_layers * seq_len * width
