"""OLMo, Qwen3 and GPT-2: sizes, initialisation, what is saved, and what each optimizer rule gets."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cwd.config import model_shape
from cwd.errors import UserError
from cwd.models import build
from cwd.models.zoo import count_parameters
from cwd.sweeps import CONFIGS, compose_config
from cwd.training.optimizer import build_optimizer
from tests.test_models_loss import FAMILIES

HUB = [name for name in FAMILIES if name != "simply"]


def gpt2_parameters(width: int, layers: int) -> int:
    """Tables of 50,257 ids and 1,024 positions; each layer 12 D^2 + 13 D; the last norm."""
    return (50_257 + 1024) * width + layers * (12 * width**2 + 13 * width) + 2 * width


TOTALS = {
    # table + layers * (q, k, v, o + gate, up, down of width 8 D / 2), no norms' parameters
    "olmo_1b": (1_176_764_416, 50_304 * 2048 + 16 * (4 * 2048**2 + 3 * 2048 * 8192)),
    # table + layers * (q, o of 16 heads, k, v of 8, two norms of a head, feed-forward, two norms) + last norm
    "qwen3_600m": (
        596_049_920,
        151_936 * 1024 + 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 2 * 128 + 3 * 1024 * 3072 + 2 * 1024) + 1024,
    ),
    "gpt2": (124_439_808, gpt2_parameters(768, 12)),
    "gpt2_medium": (354_823_168, gpt2_parameters(1024, 24)),
    "gpt2_large": (774_030_080, gpt2_parameters(1280, 36)),
    "gpt2_xl": (1_557_611_200, gpt2_parameters(1600, 48)),
    "simply_2b": (2_321_380_352,) * 2,
    "simply_986m": (985_891_840,) * 2,
    "simply_338m": (338_440_704,) * 2,
    "simply_111m": (110_550_528,) * 2,
    "simply_41m": (40_645_632,) * 2,
    "simply_15m": (14_857_408,) * 2,
}


def on_meta(name: str, *overrides: str) -> tuple[PreTrainedModel, object]:
    """The model of configs/model/`name`.yaml without its weights, and the configuration."""
    config = compose_config([f"model={name}", "scale=smoke", "tracker=none", *overrides])
    ids = config.model.embedding_size or 100_864
    with torch.device("meta"):
        return build(config.model.family, vocab_size=ids, seq_len=1024, **model_shape(config.model)), config


def tiny(family: str, seed: int = 0, vocab_size: int = 300, **shape: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    fields = {"num_hidden_layers": 2, **FAMILIES[family], **shape}
    return build(family, vocab_size=vocab_size, seq_len=16, **fields).eval()


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOTALS)
def test_parameter_totals(name):
    published, formula = TOTALS[name]
    assert published == formula
    assert count_parameters(on_meta(name)[0]).total == published
    assert f"{published:,} parameters" in (CONFIGS / "model" / f"{name}.yaml").read_text().splitlines()[0]


def test_the_page_names_every_model_with_its_count():
    page = (CONFIGS.parent / "docs" / "models.md").read_text()
    for name, (total, _) in TOTALS.items():
        assert f"| `{name}` | {total:,} |" in page
    for path in (CONFIGS / "model").glob("*.yaml"):
        laptop = path.stem.startswith("simply_") and path.stem not in TOTALS
        assert laptop or "hidden_size" not in path.read_text() or path.stem in TOTALS, path.stem


def test_olmo_has_no_parameters_but_matrices():
    assert {parameter.ndim for parameter in tiny("olmo").parameters()} == {2}


def test_a_table_may_have_more_rows_than_there_are_ids():
    model = tiny("gpt2", vocab_size=300, embedding_size=320)
    assert model.get_input_embeddings().weight.shape == (320, 16)
    assert model(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits.shape == (1, 2, 320)
    with pytest.raises(UserError, match=r"model.embedding_size=299: the data's tokenizer has 300 ids"):
        tiny("olmo", vocab_size=300, embedding_size=299)


@pytest.mark.parametrize("name", ["simply_986m", "olmo_1b", "qwen3_600m", "gpt2_xl"])
def test_shrink_divides_every_width_and_keeps_layers_heads_and_names(name):
    (whole, _), (small, config) = on_meta(name), on_meta(name, "model.shrink=16", "model.embedding_size=304")
    assert [n for n, _ in whole.named_parameters()] == [n for n, _ in small.named_parameters()]
    for (key, wide), narrow in zip(whole.named_parameters(), small.parameters(), strict=True):
        for before, after in zip(wide.shape, narrow.shape, strict=True):
            kept = {
                wide.shape[0] if "emb" in key or "wte" in key or "lm_head" in key else 0,
                1024 if "wpe" in key else 0,
            }
            assert after * 16 == before or before in kept, key
    assert small.config.num_attention_heads == config.model.num_attention_heads


def test_a_width_that_shrink_does_not_divide_is_refused():
    with pytest.raises(UserError, match="shrink=3 must divide hidden_size=16"):
        tiny("gpt2", shrink=3)


def test_an_unknown_field_is_named():
    with pytest.raises(UserError, match=r"model qwen3: unknown field 'ffn_factor'.*allowed: .*head_dim, hidden_size"):
        tiny("qwen3", ffn_factor=2)
    with pytest.raises(UserError, match="seq_len=16 must be at most positions=8"):
        tiny("gpt2", positions=8)


# ---- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HUB)
def test_initial_weights_depend_on_the_seed_alone(family):
    """Two builds agree, and so does one that passes through the meta device, bit for bit; another seed differs."""
    direct, again, other = (tiny(family, seed).state_dict() for seed in (5, 5, 6))
    with torch.device("meta"):
        late = tiny(family)
    late.to_empty(device="cpu")
    late.tie_weights()
    torch.manual_seed(5)
    late.init_weights()
    assert late.lm_head.weight is late.get_input_embeddings().weight
    for name, value in direct.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, late.state_dict()[name]), name
    assert not torch.equal(direct["lm_head.weight"], other["lm_head.weight"])
    ids = torch.arange(12)[None]
    assert torch.equal(late.eval()(input_ids=ids).logits, tiny(family, 5)(input_ids=ids).logits)  # buffers too


@pytest.mark.parametrize("tied", [True, False])
def test_olmo_is_initialised_as_mitchell(tied):
    model = tiny("olmo", vocab_size=2000, hidden_size=128, num_hidden_layers=3, tie_word_embeddings=tied)
    cut = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))  # of a cut normal
    for name, weight in model.named_parameters():
        fan_in = 512 if "down_proj" in name else 128
        std = fan_in**-0.5
        if "o_proj" in name or "down_proj" in name:
            std /= math.sqrt(2 * (int(name.split(".")[2]) + 1))
        assert weight.std().item() == pytest.approx(cut * std, rel=0.03), name
        assert 2.5 * std < weight.abs().max() <= 3 * std * (1 + 1e-6), name
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_the_others_are_initialised_as_by_transformers(family):
    wide = {"hidden_size": 128, "num_hidden_layers": 8}
    for name, parameter in tiny(family, vocab_size=2000, **wide).named_parameters():
        if parameter.ndim == 2:
            std = 0.02 / 4 if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if "bias" in name else 1.0)), name


# ---- what the model is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HUB)
def test_what_is_saved_loads_as_transformers_own_class_and_computes_the_same(family, tmp_path):
    model, ids = tiny(family), torch.arange(24).view(2, 12)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__module__.startswith("transformers.")
    assert type(loaded).__name__ == type(model).__name__
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    answers = [m.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (model, loaded)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("family", HUB)
def test_every_id_that_is_read_gets_a_gradient(family):
    """transformers' padding id would not."""
    model = tiny(family).train()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # the input's part alone
    ids = torch.arange(12)[None]
    model(input_ids=ids, targets=ids, use_cache=False)[0].backward()
    gradient = model.get_input_embeddings().weight.grad.abs().sum(dim=1)
    assert (gradient[:12] > 0).all()
    assert (gradient[12:] == 0).all()


def test_qwen_and_olmo_see_only_what_came_before_and_where():
    for family in HUB:
        model, ids = tiny(family), torch.arange(12)[None]
        changed = ids.clone()
        changed[:, 6] = 50
        before, after = model(input_ids=ids).logits, model(input_ids=changed).logits
        assert torch.equal(before[:, :6], after[:, :6])
        assert (before[:, 6:] != after[:, 6:]).any(dim=-1).all()


# ---- who gets which rule ---------------------------------------------------------------------------------------------


def rules(name: str, *overrides: str, optimizer: str = "muon") -> dict[str, tuple[str, float, str]]:
    """(rule, lambda, schedule of lambda) of every tensor of a model."""
    model, config = on_meta(name, f"optimizer={optimizer}", *overrides)
    groups = build_optimizer(config, model)[0].param_groups  # type: ignore[arg-type]
    return {
        key: (group["rule"], group["weight_decay"], group.get("decay_schedule") or "constant")
        for group in groups
        for key in group["param_names"]
    }


ADAMW = {
    "olmo_1b": ("embed_tokens",),
    "qwen3_600m": ("embed_tokens", "norm"),
    "gpt2": ("wte", "wpe", "ln_", "bias"),
    "simply_338m": ("embed", "norm", "bias", "per_dim_scale"),
}


@pytest.mark.parametrize("name", ADAMW)
def test_under_muon_tables_norms_and_biases_go_to_adamw_and_decay(name):
    for key, (rule, decay, _) in rules(name).items():
        assert rule == ("adamw" if any(part in key for part in ADAMW[name]) else "muon"), key
        assert decay == 0.1


@pytest.mark.parametrize("name", ADAMW)
def test_a_pretrained_model_of_any_family_keeps_the_same_from_muon(name):
    model, _ = on_meta(name)
    words = ["task=finetune", "model.source=it", "model.adapter=none", "optimizer=muon"]
    groups = build_optimizer(compose_config(words), model)[0].param_groups
    for key, rule in ((key, group["rule"]) for group in groups for key in group["param_names"]):
        assert rule == ("adamw" if any(part in key for part in ADAMW[name]) else "muon"), key


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("name", ADAMW)
def test_other_rules_take_every_tensor_and_all_decay(name, optimizer):
    found = rules(name, optimizer=optimizer)
    assert {rule for rule, _, _ in found.values()} == {optimizer}
    assert 0 not in {decay for _, decay, _ in found.values()}
    assert set(found) == {key for key, _ in on_meta(name)[0].named_parameters()}


@pytest.mark.parametrize("name", ADAMW)
def test_the_corrected_schedule_is_for_the_matrices_of_the_layers(name):
    for key, (rule, _, schedule) in rules(name, "decay.schedule=corrected").items():
        assert (schedule == "corrected") == (rule == "muon"), key


@pytest.mark.parametrize(
    ("name", "percent"),
    [("2b", 13.0), ("986m", 15.3), ("338m", 69.4), ("111m", 53.1), ("41m", 36.1), ("15m", 12.4)],
)
def test_with_the_threshold_muon_has_as_much_as_in_the_papers_code(name, percent):
    """Shares of all parameters, from google-deepmind/simply's routing by shape."""
    model, _ = on_meta(f"simply_{name}")
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    found = rules(f"simply_{name}", "optimizer.dim_threshold=10000")
    share = sum(sizes[key] for key, (rule, _, _) in found.items() if rule == "muon") / sum(sizes.values())
    assert 100 * share == pytest.approx(percent, abs=0.05)
    assert {decay for _, decay, _ in found.values()} == {0.1}
