"""The "Simply" decoder-only Transformer that Cautious Weight Decay was trained on (arXiv 2510.12402, section 4).

Written from google-deepmind/simply v0.2.0, the last public release before the paper. What sets it apart from Llama:

- sandwich norms: `x = x + post_norm(branch(pre_norm(x)))`, each RMSNorm holding `s` and multiplying by `1 + s`;
- a learned per-dimension query scale in place of `1 / sqrt(head_dim)`. It comes after RoPE and treats the two halves of
  a pair unlike, so that, once trained, attention depends on absolute positions: padding must not shift them;
- soft-caps `c * tanh(z / c)` on the attention scores (50) and on the logits (30);
- GEGLU with biases (the paper's text says SwiGLU: `activation="silu"`), F = 8 D;
- embedding tied to the output, multiplied by sqrt(D) on the way in only, and an output bias.

Shapes: B sequences, T queries, S keys, D hidden_size, H heads, K head_dim, F = ffn_factor * D, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from cwd.models.loss import TokenLosses, linear_cross_entropy, softcap

# 1 / softplus(0) = 1 / ln 2, with the digits of google-deepmind/simply.
INVERSE_SOFTPLUS_ZERO = 1.442695041

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu}
Rope = tuple[Tensor, Tensor]  # cosine and sine


class SimplyConfig(PreTrainedConfig):
    """Shape and switches of a Simply Transformer; the defaults are the smallest C4 model (14,857,408 parameters).

    Args:
        head_dim: K, even. num_attention_heads * head_dim need not equal hidden_size (in the 986M model it does not).
        ffn_factor: feed-forward width / hidden_size.
        activation: "gelu_tanh" (GEGLU, what the code runs) or "silu" (SwiGLU, what the paper's text says).
        ffn_bias: biases on the three feed-forward matrices (on in v0.2.0, off in the C4 configs since v0.3.1).
        output_bias: a bias of size V on the logits.
        norm_scale_plus_one: norms multiply by `1 + s`, s = 0 at first; False: by `s`, s = 1 at first. Weight decay
            pulls the factor towards 1 in the one case and towards 0 in the other.
        per_dim_scale: learned query scale, softplus of a vector of size K per layer; False: plain `1 / sqrt(K)`.
        logit_softcap, attn_softcap: c of `c * tanh(z / c)` on the logits and on the attention scores; None for none.
        max_position_embeddings: the length trained on; a record only, as no tensor depends on it.

    Raises:
        ValueError: one line with the field, its value and what is allowed.
    """

    model_type = "simply"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    vocab_size: int = 100_864
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    head_dim: int = 16
    ffn_factor: int = 8
    activation: str = "gelu_tanh"
    ffn_bias: bool = True
    output_bias: bool = True
    norm_scale_plus_one: bool = True
    per_dim_scale: bool = True
    logit_softcap: float | None = 30.0
    attn_softcap: float | None = 50.0
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    bos_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "ffn_factor")
        for name in (*sizes, "max_position_embeddings"):
            self._require(name, lambda v: type(v) is int and v >= 1, "an integer of at least 1")
        self._require("head_dim", lambda v: v % 2 == 0, "even, as rotary embedding pairs dimension i with i + K/2")
        self._require("activation", lambda v: v in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
        for name in ("ffn_bias", "output_bias", "norm_scale_plus_one", "per_dim_scale", "tie_word_embeddings"):
            self._require(name, lambda v: type(v) is bool, "true or false")
        for name in ("rope_theta", "rms_norm_eps"):
            self._require(name, _is_positive, "a number above 0")
        for name in ("logit_softcap", "attn_softcap"):
            self._require(name, lambda v: v is None or _is_positive(v), "a number above 0, or null for no soft-cap")
        self._require("bos_token_id", lambda v: v is None or v in range(self.vocab_size), "null or below vocab_size")

    def _require(self, name: str, allowed: Callable[[Any], bool], what: str) -> None:
        value = getattr(self, name)
        if not allowed(value):
            raise ValueError(f"SimplyConfig: {name}={value!r} must be {what}")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def default_positions(x: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
    """Positions (B or 1, T) of the tokens `x` (B, T, D) counted from the first that is not padding."""
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -x.shape[1] :]
    start = 0 if past_key_values is None else past_key_values.get_seq_length()
    return torch.arange(start, start + x.shape[1], device=x.device)[None]


def rope_angles(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Cosine and sine, float32 (B, 1, T, K/2), of `position / theta^(2i/K)` for integer `positions` (B, T).

    Computed in each forward, which costs little, so that the model has no buffer to lose on its way off a meta device.
    """
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None, :, None].float() * theta ** (-half / head_dim)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) of `x` (B, H, T, K) by its angle, in float32; the result has the dtype of `x`."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float | None, **kw: Any
) -> tuple[Tensor, Tensor]:
    """Soft-capped attention in the form of transformers' attention interface.

    From a scaled `query` (B, H, T, K), `key` and `value` (B, H, S, K), and `mask` (B or 1, 1, T, S), 0 where allowed
    and hugely negative elsewhere, to (B, T, H, K) in the dtype of `value` and the probabilities (B, H, T, S). Scores,
    soft-cap and softmax are float32 whatever the dtype of the activations.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap)
    # The cap's own multiplication rides on the mask's addition: B * H * T * S elements are worth one pass less.
    scores = torch.add(mask, scores, alpha=1.0 if softcap is None else softcap)
    probabilities = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


class SimplyRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)` in float32, cast back to the dtype of `x`, then times `1 + scale` (or `scale`)."""

    def __init__(self, config: SimplyConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.offset = 1.0 if config.norm_scale_plus_one else 0.0
        self.scale = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * (self.offset + self.scale.to(x.dtype))


class SimplyAttention(nn.Module):
    """Causal self-attention with RoPE, a learned query scale and soft-capped scores; no biases, no grouped queries."""

    def __init__(self, config: SimplyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        outer, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(outer, inner, bias=False)
        self.k_proj = nn.Linear(outer, inner, bias=False)
        self.v_proj = nn.Linear(outer, inner, bias=False)
        self.o_proj = nn.Linear(inner, outer, bias=False)
        self.per_dim_scale = nn.Parameter(torch.empty(config.head_dim)) if config.per_dim_scale else None

    def query_scale(self) -> Tensor | float:
        """What queries are multiplied by: `softplus(p) / (ln 2 * sqrt(K))`, float32 (K,); `1 / sqrt(K)` where p = 0."""
        plain = self.config.head_dim**-0.5
        if self.per_dim_scale is None:
            return plain
        return INVERSE_SOFTPLUS_ZERO * plain * F.softplus(self.per_dim_scale.float())

    def forward(self, x: Tensor, mask: Tensor | None, rope: Rope, past_key_values: Cache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), with the mask and the rotary angles that all layers share."""
        heads = (*x.shape[:2], self.config.num_attention_heads, self.config.head_dim)
        q, k, v = (project(x).view(heads).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj))
        scale = self.query_scale()
        q = apply_rope(q, rope) * (scale.to(q.dtype) if isinstance(scale, Tensor) else scale)
        k = apply_rope(k, rope)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out, _ = attend(self, q, k, v, mask, scaling=1.0, softcap=self.config.attn_softcap)
        return self.o_proj(out.flatten(2))


class SimplyFFN(nn.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(self, config: SimplyConfig) -> None:
        super().__init__()
        width = config.ffn_factor * config.hidden_size
        self.up = nn.Linear(config.hidden_size, width, bias=config.ffn_bias)
        self.gate = nn.Linear(config.hidden_size, width, bias=config.ffn_bias)
        self.down = nn.Linear(width, config.hidden_size, bias=config.ffn_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class SimplyLayer(GradientCheckpointingLayer):
    """One block: attention, then feed-forward, each between a pre-norm and a post-norm inside its residual branch."""

    def __init__(self, config: SimplyConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn_pre_norm = SimplyRMSNorm(config)
        self.attn = SimplyAttention(config, layer_idx)
        self.attn_post_norm = SimplyRMSNorm(config)
        self.ffn_pre_norm = SimplyRMSNorm(config)
        self.ffn = SimplyFFN(config)
        self.ffn_post_norm = SimplyRMSNorm(config)

    def forward(self, x: Tensor, mask: Tensor | None, rope: Rope, past_key_values: Cache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attn_post_norm(self.attn(self.attn_pre_norm(x), mask, rope, past_key_values))
        return x + self.ffn_post_norm(self.ffn(self.ffn_pre_norm(x)))


class SimplyForCausalLM(PreTrainedModel, GenerationMixin):
    """Simply Transformer with a language-model head (google-deepmind/simply v0.2.0; arXiv 2510.12402).

    Attention is eager unless the config says `attn_implementation="flex_attention"`, or "sdpa" without a soft-cap.
    Activations have the dtype of the weights, or of `torch.autocast` where that is on.
    """

    config_class = SimplyConfig
    supports_gradient_checkpointing = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _no_split_modules = ["SimplyLayer"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed.weight"}  # noqa: RUF012
    _input_embed_layer = "embed"

    def __init__(self, config: SimplyConfig) -> None:
        super().__init__(config)
        # torch's own initialisers would draw random numbers that the weights must not depend on.
        with init.no_init_weights():
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(SimplyLayer(config, index) for index in range(config.num_hidden_layers))
            self.final_norm = SimplyRMSNorm(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Eager by default. SDPA is refused with a soft-cap: it would have to leave the cap out."""
        if requested_attention == "sdpa" and self.config.attn_softcap is not None:
            raise ValueError("attn_implementation='sdpa' must be eager or flex_attention, as attn_softcap is not null")
        return super().get_correct_attn_implementation(requested_attention or "eager", is_init_check)

    def _init_weights(self, module: nn.Module) -> None:
        """Embedding Normal(0, 1/D); matrices Uniform(+-sqrt(6 / (fan_in + fan_out))); everything else neutral."""
        if isinstance(module, SimplyRMSNorm):
            init.constant_(module.scale, 1.0 - module.offset)
        elif isinstance(module, SimplyAttention) and module.per_dim_scale is not None:
            init.zeros_(module.per_dim_scale)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, nn.Linear):
            if module.bias is not None:
                init.zeros_(module.bias)
            if module is not self.lm_head:
                init.xavier_uniform_(module.weight)
            elif not self.config.tie_word_embeddings:  # the tied table was drawn above; a second draw would replace it
                init.normal_(module.weight, std=self.config.hidden_size**-0.5)

    def _embed_tokens(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D) of unit variance. As in Simply, sqrt(D) is rounded to the dtype of the activations."""
        x = self.embed(input_ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # autocast alone leaves the residual stream float32
        return x * torch.full((), math.sqrt(self.config.hidden_size), dtype=x.dtype, device=x.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        targets: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | TokenLosses:
        """Next-token logits, float32 (B, T, V) after the soft-cap, and the mean cross-entropy where `labels` are given.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), 0 on padding. A prepared 4-D mask is taken as it is.
            position_ids: int64 (B, T), default 0, 1, ... from the first token that is not padding. Positions that start
                anew within a row, without an `attention_mask`, mark packed sequences: they do not see one another.
            past_key_values: keys and values of the tokens before; a new `DynamicCache` where `use_cache` is true.
            labels: int64 (B, T), unshifted: `labels[:, t]` is compared with the logits at t - 1. -100 is left out.
            logits_to_keep: compute logits for this many last positions only; 0 means all.
            targets: int64 (B, T), the tokens to predict at each position. Their losses come back in place of logits,
                which are never made for all positions at once.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self._embed_tokens(input_ids)
        # Without padding, packing or a past every row has the same mask: build it once for the batch, and the layers.
        rows = x[:1] if attention_mask is None and position_ids is None and past_key_values is None else x
        mask = create_causal_mask(self.config, rows, attention_mask, past_key_values, position_ids)
        positions = default_positions(x, attention_mask, past_key_values) if position_ids is None else position_ids
        rope = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.layers:
            x = layer(x, mask, rope, past_key_values=past_key_values)
        x = self.final_norm(x[:, -logits_to_keep:])
        if targets is not None:
            return linear_cross_entropy(x, self.lm_head, targets, self.config.logit_softcap)
        logits = softcap(self.lm_head(x), self.config.logit_softcap).float()
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
