"""Causal language models of transformers that the study uses beside Simply: OLMo, Qwen3 and GPT-2.

Each is transformers' own class under its own name, so that what is saved loads anywhere; what is added is the loss by
chunks (cwd.models.loss) and, for OLMo, its own initialisation. A family's builder takes the fields of its schema
(cwd.schema), and `attn_implementation`. Ids of special tokens are left out: a data set's tokenizer has its own, and
transformers' defaults would keep gradients from a row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import transformers
from torch import nn
from transformers import GPT2Config, OlmoConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config
from transformers import initialization as init
from transformers.models.olmo.modeling_olmo import OlmoDecoderLayer

from cwd.models.loss import accepts_targets

NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


class _Drawn:
    """Weights are drawn once, when the model is whole, in the order of its modules: the same numbers whether it was
    built at once or on a meta device first.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        with init.no_init_weights():
            super().__init__(config)  # type: ignore[call-arg]
        self.init_weights()  # type: ignore[attr-defined]

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers would take care not to draw twice what is not its own, and leave out the second draw of
        the matrices that write to the residual stream.
        """
        return False

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.lm_head and self.config.tie_word_embeddings:  # type: ignore[attr-defined]
            return  # it is the table, which was drawn already
        super()._init_weights(module)  # type: ignore[misc]


class _OlmoModel(transformers.OlmoModel):
    """OLMo's decoder, initialised as by allenai/OLMo with `init_fn: mitchell` (the paper's Table 9).

    Normal of standard deviation 1 / sqrt(fan_in), cut at three of them; the two matrices of a layer that write to the
    residual stream are divided by sqrt(2 (layer + 1)) as well.
    """

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            _truncated_normal(module, 1.0 / math.sqrt(self.config.hidden_size))
        elif isinstance(module, nn.Linear):
            _truncated_normal(module, 1.0 / math.sqrt(module.in_features))
        elif isinstance(module, OlmoDecoderLayer):  # comes after its matrices: these two are drawn again
            depth = math.sqrt(2.0 * (module.self_attn.layer_idx + 1))
            for matrix in (module.self_attn.o_proj, module.mlp.down_proj):
                _truncated_normal(matrix, 1.0 / math.sqrt(matrix.in_features) / depth)
        else:
            super()._init_weights(module)


def _truncated_normal(module: nn.Linear | nn.Embedding, std: float) -> None:
    init.trunc_normal_(module.weight, mean=0.0, std=std, a=-3.0 * std, b=3.0 * std)


class OlmoForCausalLM(_Drawn, transformers.OlmoForCausalLM):
    """OLMo with OLMo's own initialisation, which transformers lacks."""

    def __init__(self, config: OlmoConfig) -> None:
        with init.no_init_weights():
            transformers.OlmoForCausalLM.__init__(self, config)
            self.model = _OlmoModel(config)
        self.init_weights()

    forward = accepts_targets(transformers.OlmoForCausalLM.forward)

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.lm_head and not self.config.tie_word_embeddings:
            _truncated_normal(module, 1.0 / math.sqrt(module.in_features))


class Qwen3ForCausalLM(_Drawn, transformers.Qwen3ForCausalLM):
    """Qwen3, initialised as by transformers: normal, standard deviation 0.02."""

    forward = accepts_targets(transformers.Qwen3ForCausalLM.forward)


class GPT2LMHeadModel(_Drawn, transformers.GPT2LMHeadModel):
    """GPT-2, initialised as by transformers: normal, 0.02, divided by sqrt(2 layers) where a matrix writes to the
    residual stream.
    """

    forward = accepts_targets(transformers.GPT2LMHeadModel.forward)


def _rotary(seq_len: int, theta: float) -> dict[str, Any]:
    """What configurations of models with rotary positions share."""
    angles = {"rope_type": "default", "rope_theta": theta}
    return {"max_position_embeddings": seq_len, "rope_parameters": angles, **NO_TOKENS}


def olmo(
    *,
    vocab_size: int,
    seq_len: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    mlp_ratio: int = 8,
    rope_theta: float = 10_000.0,
    tie_word_embeddings: bool = True,
    **attention: Any,
) -> OlmoForCausalLM:
    """SwiGLU, RoPE, no biases, LayerNorms without parameters. As in allenai/OLMo, `mlp_ratio` * hidden_size is the
    width of gate and up together.
    """
    config = OlmoConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=mlp_ratio * hidden_size // 2,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        tie_word_embeddings=tie_word_embeddings,
        **_rotary(seq_len, rope_theta),
        **attention,
    )
    return OlmoForCausalLM(config)


def qwen3(
    *,
    vocab_size: int,
    seq_len: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    intermediate_size: int,
    rope_theta: float = 1e6,
    rms_norm_eps: float = 1e-6,
    tie_word_embeddings: bool = True,
    **attention: Any,
) -> Qwen3ForCausalLM:
    """Grouped queries, normalised queries and keys, SwiGLU, RoPE, RMSNorm, no biases."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=rms_norm_eps,
        tie_word_embeddings=tie_word_embeddings,
        **_rotary(seq_len, rope_theta),
        **attention,
    )
    return Qwen3ForCausalLM(config)


def gpt2(
    *,
    vocab_size: int,
    seq_len: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    positions: int = 1024,
    dropout: float = 0.0,
    **attention: Any,
) -> GPT2LMHeadModel:
    """LayerNorm, GELU (tanh), a learned table of `positions`, biases everywhere, tied.

    Raises:
        ValueError: `seq_len` is more than `positions`.
    """
    if seq_len > positions:
        raise ValueError(f"seq_len={seq_len} must be at most positions={positions}")
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=hidden_size,
        n_layer=num_hidden_layers,
        n_head=num_attention_heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        **NO_TOKENS,
        **attention,
    )
    return GPT2LMHeadModel(config)


BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {"olmo": olmo, "qwen3": qwen3, "gpt2": gpt2}
