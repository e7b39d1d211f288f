"""Floating-point operations of training a Transformer."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def flops_per_token(model: PreTrainedModel, seq_len: int) -> float:
    """Operations of a forward and backward pass for each token: 6 N + 12 L T A, the standard formula (PaLM, arXiv
    2204.02311, appendix B).

    N counts the weights that tokens are multiplied by: all linear layers, the output matrix with them, tied to the
    embedding or not; not the look-up in the embedding. L layers, T = `seq_len`, A = heads * head_dim: scores and their
    products with the values, both counted over all pairs of tokens, though half of them are masked. A multiplication
    and the addition after it are two operations; what elementwise functions, norms, the optimizer and recomputed
    activations cost is left out.

    Args:
        model: on any device, meta included; its config names layers, heads and their size as transformers does.
        seq_len: tokens in a sequence.
    """
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 6.0 * weights + 12.0 * config.num_hidden_layers * seq_len * config.num_attention_heads * head_dim
