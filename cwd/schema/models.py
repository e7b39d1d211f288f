"""Models."""

from __future__ import annotations

from dataclasses import dataclass, field

from cwd.schema.fields import choice, later, number


@dataclass
class Model:
    """What every model has; `family` picks the architecture."""

    family: str = "???"


@dataclass
class Language(Model):
    """What every language model has."""

    hidden_size: int = number(low=1)
    num_hidden_layers: int = number(low=1)
    num_attention_heads: int = number(low=1)
    embedding_size: int | None = later(None, number(low=1))  # rows of the table; none: as many as the data has ids
    shrink: int = later(1, number(low=1))  # divides the widths, to try a model of any size on a small machine


@dataclass
class Simply(Language):
    """The paper's Transformer; see cwd.models.simply for what each option means."""

    family: str = choice("simply", of=("simply",))
    head_dim: int | None = number(None, low=2)  # none: hidden_size / num_attention_heads
    ffn_factor: int = number(8, low=1)
    activation: str = choice("gelu_tanh", of=("gelu_tanh", "silu"))
    ffn_bias: bool = True
    output_bias: bool = True
    norm_scale_plus_one: bool = True
    per_dim_scale: bool = True
    logit_softcap: float | None = number(30.0, low=0, above=True)
    attn_softcap: float | None = number(50.0, low=0, above=True)


@dataclass
class Hub(Language):
    """A language model of transformers; see cwd.models.hub. Its own names say who is who in it, as globs."""

    beside_muon: list[str] = field(default_factory=list)  # with optimizer=muon these go to AdamW, before its groups
    normalized: list[str] = field(default_factory=list)  # beside decay.normalized


@dataclass
class Olmo(Hub):
    """OLMo (Table 9)."""

    family: str = choice("olmo", of=("olmo",))
    mlp_ratio: int = number(8, low=2)  # width of gate and up together / hidden_size
    rope_theta: float = number(10_000.0, low=0, above=True)
    tie_word_embeddings: bool = True


@dataclass
class Qwen3(Hub):
    """Qwen3 (Figure 7)."""

    family: str = choice("qwen3", of=("qwen3",))
    num_key_value_heads: int = number(low=1)
    head_dim: int = number(low=2)
    intermediate_size: int = number(low=1)
    rope_theta: float = number(1e6, low=0, above=True)
    rms_norm_eps: float = number(1e-6, low=0, above=True)
    tie_word_embeddings: bool = True


@dataclass
class GPT2(Hub):
    """GPT-2."""

    family: str = choice("gpt2", of=("gpt2",))
    positions: int = number(1024, low=1)  # rows of the position table
    dropout: float = number(0.0, low=0, high=1, below=True)


@dataclass
class Pretrained(Model):
    """A trained causal language model to go on from, whole or by low-rank adapters (LoRA, arXiv 2106.09685)."""

    family: str = choice("pretrained", of=("pretrained",))
    source: str = "???"  # a run's key, a folder, or a name on the hub
    adapter: str = choice("lora", of=("lora", "none"))
    rank: int = number(16, low=1)
    alpha: float = number(32.0, low=0, above=True)  # the adapter is scaled by alpha / rank
    dropout: float = number(0.0, low=0, high=1, below=True)
    targets: list[str] = field(default_factory=lambda: ["all-linear"])  # or names of modules
    # As of Hub, under the names that the usual families have.
    beside_muon: list[str] = later(["*embed*", "*wte.*", "*wpe.*", "*lm_head.*", "*norm*", "*.ln_*", "*.bias"])


@dataclass
class Timm(Model):
    """An image classifier of timm: `name` in its registry. The sizes make a smaller one of its kind; null: its own."""

    family: str = choice("timm", of=("timm",))
    name: str = "???"
    image_size: int = number(224, low=8)  # pixels, of a square
    patch_size: int | None = number(None, low=1)  # of a ViT, as the next three
    embed_dim: int | None = number(None, low=1)
    depth: int | None = number(None, low=1)
    num_heads: int | None = number(None, low=1)
    layers: list[int] | None = None  # of a ResNet, as the next two: blocks in each stage
    channels: list[int] | None = None  # of the stages
    stem_width: int | None = number(None, low=1)  # of a stem of three small convolutions


MODELS: dict[str, type[Model]] = {
    "simply": Simply,
    "olmo": Olmo,
    "qwen3": Qwen3,
    "gpt2": GPT2,
    "pretrained": Pretrained,
    "timm": Timm,
}
