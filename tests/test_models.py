"""The Simply Transformer: sizes, initialisation, a float64 reference, caches, checkpoints, mixed precision."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from cwd.errors import UserError
from cwd.models import SimplyConfig, SimplyForCausalLM, build
from cwd.models.simply import apply_rope, rope_angles
from cwd.models.zoo import ParameterCount, count_parameters

VOCAB = 61
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 6, "ffn_factor": 4}

# (D, L, head_dim): parameters with all biases, without feed-forward biases, without the output bias.
C4_MODELS = {
    (2048, 18, 256): (2_321_380_352, 2_320_753_664, 2_321_279_488),
    (1536, 12, 256): (985_891_840, 985_578_496, 985_790_976),
    (1024, 8, 128): (338_440_704, 338_301_440, 338_339_840),
    (512, 8, 64): (110_550_528, 110_480_896, 110_449_664),
    (256, 8, 32): (40_645_632, 40_610_816, 40_544_768),
    (128, 4, 16): (14_857_408, 14_848_704, 14_756_544),
}


def tiny(seed: int = 0, **fields) -> SimplyForCausalLM:
    torch.manual_seed(seed)
    return build("simply", vocab_size=VOCAB, seq_len=32, **{**TINY, **fields}).eval()


def tokens(rows: int = 3, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def stir(model: SimplyForCausalLM, seed: int = 2) -> SimplyForCausalLM:
    """Move every parameter off its initial value, so that scales and biases count and both soft-caps bend."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 3.0 if name == "final_norm.scale" else 0.6 if "q_proj" in name or "k_proj" in name else 0.3
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "totals"), C4_MODELS.items(), ids=str)
def test_parameter_totals_of_the_c4_models(shape, totals):
    width, layers, head_dim = shape
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 8, "head_dim": head_dim}
    for total, switch in zip(totals, ({}, {"ffn_bias": False}, {"output_bias": False}), strict=True):
        with torch.device("meta"):
            model = build("simply", vocab_size=100_864, seq_len=2048, **fields, **switch)
        embedding = 100_864 * width
        assert count_parameters(model) == ParameterCount(total, embedding, total - embedding)


def test_untied_output_matrix_counts_as_non_embedding():
    tied, untied = count_parameters(tiny()), count_parameters(tiny(tie_word_embeddings=False))
    assert untied.embedding == tied.embedding == VOCAB * 24
    assert untied.non_embedding == tied.non_embedding + VOCAB * 24


def test_parameter_names():
    layer = "attn_pre_norm.scale attn.per_dim_scale attn.q_proj.weight attn.k_proj.weight attn.v_proj.weight "
    layer += "attn.o_proj.weight attn_post_norm.scale ffn_pre_norm.scale ffn.up.weight ffn.up.bias ffn.gate.weight "
    layer += "ffn.gate.bias ffn.down.weight ffn.down.bias ffn_post_norm.scale"
    expected = {"embed.weight", "final_norm.scale", "lm_head.bias"}
    expected |= {f"layers.{index}.{name}" for index in range(2) for name in layer.split()}
    assert {name for name, _ in tiny().named_parameters()} == expected


# ---- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plus_one", [True, False])
def test_initial_distribution(plus_one):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 32,
        "norm_scale_plus_one": plus_one,
    }
    model = build("simply", vocab_size=2000, seq_len=32, **shape)
    for name, parameter in model.named_parameters():
        if name == "embed.weight":
            assert parameter.std().item() == pytest.approx(96**-0.5, rel=0.01)
            assert parameter.abs().max() > 4 * 96**-0.5  # not truncated
        elif parameter.ndim == 2:
            bound = math.sqrt(6 / sum(parameter.shape))  # fan_in + fan_out of this one matrix
            assert 0.99 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert abs(parameter.mean().item()) < 0.03 * bound
        else:
            neutral = 1.0 if "norm" in name and not plus_one else 0.0
            assert torch.equal(parameter, torch.full_like(parameter, neutral)), name


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_depend_on_the_seed_alone(tied):
    """Two builds agree, and so does one that passes through the meta device, bit for bit; another seed differs."""
    direct, again, other = (tiny(seed, tie_word_embeddings=tied).state_dict() for seed in (5, 5, 6))
    with torch.device("meta"):
        late = tiny(tie_word_embeddings=tied)
    late.to_empty(device="cpu")
    late.tie_weights()
    torch.manual_seed(5)
    late.init_weights()
    assert (late.lm_head.weight is late.embed.weight) == tied
    for name, value in direct.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, late.state_dict()[name]), name
    assert not torch.equal(direct["embed.weight"], other["embed.weight"])


def test_building_draws_no_random_number_beside_the_weights():
    torch.manual_seed(0)
    tiny_state = tiny(seed=3).state_dict()
    after = torch.rand(())
    torch.manual_seed(3)
    for name, value in tiny_state.items():
        if name == "embed.weight":
            torch.empty_like(value).normal_()
        elif name != "lm_head.weight" and value.ndim == 2:
            torch.empty_like(value).uniform_()
    assert torch.equal(torch.rand(()), after)


def test_initialising_again_leaves_trained_weights():
    model = stir(tiny())
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_query_scale_starts_at_one_over_root_head_dim(head_dim):
    scale = tiny(head_dim=head_dim).layers[0].attn.query_scale()
    assert scale.shape == (head_dim,)
    assert_close(scale, torch.full((head_dim,), head_dim**-0.5), rtol=1.2e-7, atol=0)
    assert tiny(head_dim=head_dim, per_dim_scale=False).layers[0].attn.query_scale() == head_dim**-0.5


def test_initial_loss_is_log_vocab_plus_one_half():
    """Logits start with variance 1, which costs half a nat, and never leave (-30, 30)."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    model = build("simply", vocab_size=4096, seq_len=64, **shape)
    ids = torch.randint(4096, (8, 64))
    with torch.no_grad():
        targets = torch.randint(4096, (8, 64))  # not the inputs: the tied table makes those less likely than chance
        output = model(ids, labels=targets)
        assert output.loss.item() == pytest.approx(math.log(4096) + 0.5, abs=0.1)
        model.final_norm.scale.add_(1000)
        logits = model(ids).logits
    assert 29.9 < logits.abs().max() <= 30


# ---- the forward pass against the specification ----------------------------------------------------------------------


def test_rope_is_a_complex_rotation_of_half_split_pairs():
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 900, 901, 0, 1]])
    got = apply_rope(x, rope_angles(positions, 10, 10_000.0))
    wide = x.double()
    turn = torch.tensor([10_000 ** (-2 * i / 10) for i in range(5)], dtype=torch.float64)
    phase = torch.exp(1j * positions[:, None, :, None] * turn)
    turned = torch.complex(wide[..., :5], wide[..., 5:]) * phase
    assert_close(got.double(), torch.cat((turned.real, turned.imag), dim=-1), rtol=0, atol=2e-4)
    assert_close(got[0].double(), torch.cat((turned.real, turned.imag), dim=-1)[0], rtol=0, atol=2e-6)


def reference_logits(p: dict[str, torch.Tensor], ids: torch.Tensor, c: SimplyConfig) -> torch.Tensor:
    """The whole model in float64, one sequence, head and query at a time, from the published description."""

    def norm(x, name):
        weight = p[f"{name}.scale"] + (1 if c.norm_scale_plus_one else 0)
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.rms_norm_eps) * weight

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    def capped(x, cap):
        return x if cap is None else cap * torch.tanh(x / cap)

    def rotate(x):  # (T, K), as multiplication by e^(i * angle)
        half = c.head_dim // 2
        rate = torch.tensor([c.rope_theta ** (-2 * i / c.head_dim) for i in range(half)], dtype=torch.float64)
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * torch.arange(len(x))[:, None] * rate)
        return torch.cat((turned.real, turned.imag), dim=-1)

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{part}_proj").split(c.head_dim, dim=-1) for part in "qkv")
        per_dim = torch.log1p(torch.exp(p[f"{name}.per_dim_scale"])) / math.log(2) if c.per_dim_scale else 1.0
        heads = []
        for head in range(c.num_attention_heads):
            query, key = rotate(q[head]) * per_dim / math.sqrt(c.head_dim), rotate(k[head])
            rows = []
            for t in range(len(x)):
                scores = capped(key[: t + 1] @ query[t], c.attn_softcap)
                rows.append(torch.softmax(scores, dim=0) @ v[head][: t + 1])
            heads.append(torch.stack(rows))
        return linear(torch.cat(heads, dim=-1), f"{name}.o_proj")

    def ffn(x, name):
        gate = linear(x, f"{name}.gate")
        if c.activation == "silu":
            act = gate / (1 + torch.exp(-gate))
        else:
            act = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        return linear(act * linear(x, f"{name}.up"), f"{name}.down")

    def one(row):
        x = p["embed.weight"][row] * math.sqrt(c.hidden_size)
        for index in range(c.num_hidden_layers):
            at = f"layers.{index}"
            x = x + norm(attention(norm(x, f"{at}.attn_pre_norm"), f"{at}.attn"), f"{at}.attn_post_norm")
            x = x + norm(ffn(norm(x, f"{at}.ffn_pre_norm"), f"{at}.ffn"), f"{at}.ffn_post_norm")
        output = norm(x, "final_norm") @ p["embed.weight"].T + p.get("lm_head.bias", 0.0)
        return capped(output, c.logit_softcap)

    return torch.stack([one(row) for row in ids])


VARIANTS = {
    "paper's code": {},
    "silu": {"activation": "silu"},
    "no ffn bias": {"ffn_bias": False},
    "no output bias": {"output_bias": False},
    "plain norm scale": {"norm_scale_plus_one": False},
    "plain query scale": {"per_dim_scale": False},
    "no attention cap": {"attn_softcap": None},
    "no logit cap": {"logit_softcap": None},
    "sdpa": {"attn_softcap": None, "attn_implementation": "sdpa"},
    "other caps, theta, eps": {"attn_softcap": 5, "logit_softcap": 3.0, "rope_theta": 100, "rms_norm_eps": 0.1},
    "one head, ffn factor 1": {"num_attention_heads": 1, "head_dim": 2, "ffn_factor": 1},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_logits_and_gradients_match_a_float64_reference(fields):
    model, ids = stir(tiny(**fields)), tokens()
    wide = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    expected = reference_logits(wide, ids, model.config)
    logits = model(ids).logits
    assert logits.shape == (3, 11, VOCAB)
    assert logits.dtype == torch.float32
    assert_close(logits.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (expected * weights).sum().backward()
    (logits * weights.float()).sum().backward()
    for name, parameter in model.named_parameters():
        want = wide[name].grad
        assert_close(
            parameter.grad.double(),
            want,
            rtol=0,
            atol=2e-5 * want.abs().max().item(),
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_loss_compares_each_label_with_the_logits_before_it():
    model, ids = stir(tiny()), tokens()
    labels = ids.clone()
    labels[0, 4] = -100
    output = model(ids, labels=labels)
    log_p = torch.log_softmax(output.logits[:, :-1], dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    kept = labels[:, 1:] != -100
    assert_close(output.loss, -log_p[kept].mean())


def test_a_later_token_leaves_earlier_logits_unchanged():
    model, ids = stir(tiny()), tokens()
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % VOCAB
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(dim=-1).all()


def test_packed_sequences_do_not_see_one_another():
    model, ids = stir(tiny()), tokens(rows=2, length=12)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]).expand(2, -1)
    packed = model(ids, position_ids=positions).logits
    apart = torch.cat((model(ids[:, :5]).logits, model(ids[:, 5:]).logits), dim=1)
    assert_close(packed, apart, rtol=0, atol=1e-4)


def test_left_padding_changes_nothing():
    """Without position_ids too: a trained query scale makes attention depend on absolute positions."""
    model, ids = stir(tiny()), tokens(rows=1, length=7)
    padded = torch.cat((torch.full((1, 4), 9), ids), dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 7])
    assert_close(model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits, rtol=0, atol=1e-4)
    other = torch.cat((torch.full((1, 4), 20), ids), dim=1)
    shifted = model(other, attention_mask=mask).logits[:, 4:]
    assert torch.equal(shifted, model(padded, attention_mask=mask).logits[:, 4:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention has no backward on the CPU")
def test_flex_attention_equals_eager():
    ids, padding = tokens(2, 40).cuda(), torch.ones(2, 40, dtype=torch.int64, device="cuda")
    padding[0, :5] = 0
    results = []
    for implementation in ("eager", "flex_attention"):
        model = stir(tiny(head_dim=16, attn_implementation=implementation)).cuda()
        logits = model(ids, attention_mask=padding).logits[padding.bool()]
        logits.square().mean().backward()
        results.append((logits, *(parameter.grad for parameter in model.parameters())))
    for eager, flex in zip(*results, strict=True):
        assert_close(flex, eager, rtol=0, atol=1e-3 * eager.abs().max().item())


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, saving, ids = stir(tiny()).train(), stir(tiny()).train(), tokens()
    saving.activation_checkpointing_enable()
    for model in (plain, saving):
        model(ids, labels=ids).loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


# ---- mixed precision -------------------------------------------------------------------------------------------------


def test_norm_multiplies_after_the_cast():
    norm = stir(tiny()).bfloat16().final_norm
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    unit = x.float() / torch.sqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert_close(norm(x), unit.bfloat16() * (1 + norm.scale), rtol=2**-8, atol=0)
    assert norm(x).dtype == torch.bfloat16


@pytest.mark.parametrize("cast_weights", [True, False], ids=["bf16 model", "autocast"])
def test_bfloat16_runs_close_to_float32(cast_weights):
    model, ids = tiny(), tokens()
    exact = model(ids).logits
    streams: list[torch.dtype] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: streams.append(output.dtype))
    if cast_weights:
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast_weights):
        output = model(ids, labels=ids)
    output.loss.backward()
    assert streams == [torch.bfloat16] * 2  # the residual stream itself, not only the products
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert 0 < (output.logits - exact).abs().max() < 0.15
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype, name
        assert parameter.grad.isfinite().all(), name


def test_embedding_factor_is_rounded_to_the_activation_dtype():
    model = tiny(hidden_size=2048, num_hidden_layers=1, ffn_factor=1)
    ids = torch.arange(3)[None]
    assert_close(model._embed_tokens(ids)[0], model.embed.weight[:3] * math.sqrt(2048), rtol=1e-6, atol=0)
    model.bfloat16()
    assert torch.equal(model._embed_tokens(ids)[0], model.embed.weight[:3] * 45.25)


# ---- generation and checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_greedy_generation_is_the_same_with_and_without_cache(rows):
    model, ids = stir(tiny()), tokens(rows=rows)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **settings)
    plain = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    assert cached.shape == (rows, 23)
    assert torch.equal(cached, plain)
    greedy = ids
    for _ in range(12):
        greedy = torch.cat((greedy, model(greedy).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(cached, greedy)


def test_greedy_generation_of_a_left_padded_batch_equals_each_row_alone():
    model = stir(tiny())
    rows = [tokens(1, length, seed=length) for length in (3, 5, 8)]
    batch = torch.cat([torch.nn.functional.pad(row, (8 - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(8) >= 8 - row.shape[1]).long() for row in rows])
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    together = model.generate(batch, attention_mask=mask, **settings)[:, 8:]
    for index, row in enumerate(rows):
        alone = model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, row.shape[1] :]
        assert torch.equal(together[index], alone)


def test_cached_steps_give_the_logits_of_the_whole_sequence():
    model, ids = stir(tiny()), tokens()
    whole, past, steps = model(ids).logits, None, []
    for chunk in ids.split([4, 1, 3, 1, 2], dim=1):
        output = model(chunk, past_key_values=past, use_cache=True)  # positions go on from the cache
        past = output.past_key_values
        steps.append(output.logits)
    assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-4)
    assert torch.equal(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_are_bit_exact(tmp_path, tied):
    model, ids = stir(tiny(activation="silu", logit_softcap=None, tie_word_embeddings=tied)), tokens()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is SimplyForCausalLM
    assert type(AutoConfig.from_pretrained(tmp_path)) is SimplyConfig
    assert (loaded.lm_head.weight is loaded.embed.weight) == tied
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert loaded.config.logit_softcap is None
    assert loaded.config.activation == "silu"


def test_copies_run_on_their_own():
    model, ids = stir(tiny()), tokens()
    twin = copy.deepcopy(model)
    assert twin.lm_head.weight is twin.embed.weight
    assert twin.embed.weight is not model.embed.weight
    assert torch.equal(twin(ids).logits, model(ids).logits)
    assert isinstance(model(ids, return_dict=False), tuple)


# ---- bad values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", "64"),
        ("num_hidden_layers", 1.5),
        ("num_attention_heads", True),
        ("head_dim", 7),
        ("ffn_factor", -1),
        ("max_position_embeddings", 0),
        ("activation", "gelu"),
        ("activation", ["silu"]),
        ("ffn_bias", "no"),
        ("output_bias", 1),
        ("norm_scale_plus_one", None),
        ("per_dim_scale", 0),
        ("logit_softcap", 0.0),
        ("attn_softcap", -50),
        ("attn_softcap", float("nan")),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", 0),
        ("bos_token_id", 100_864),
    ],
)
def test_a_bad_config_value_is_named_in_one_line(field, value):
    with pytest.raises(ValueError) as caught:
        SimplyConfig(**{field: value})
    message = str(caught.value)
    assert f"{field}={value!r} must be" in message
    assert "\n" not in message


def test_sdpa_is_refused_where_it_would_drop_the_soft_cap():
    with pytest.raises(ValueError, match="attn_softcap"):
        SimplyForCausalLM(SimplyConfig(vocab_size=VOCAB, **TINY, attn_implementation="sdpa"))
    assert tiny(attn_softcap=None).config._attn_implementation == "eager"


def test_build_names_the_nearest_family_and_field():
    with pytest.raises(UserError, match=r"'simpley' .nearest: 'simply'."):
        build("simpley", vocab_size=VOCAB, seq_len=8)
    with pytest.raises(UserError, match=r"'hiden_size' .nearest: 'hidden_size'."):
        build("simply", vocab_size=VOCAB, seq_len=8, hiden_size=8)
    with pytest.raises(UserError, match="head_dim=3 must be even"):
        build("simply", vocab_size=VOCAB, seq_len=8, head_dim=3)
    assert build("simply", vocab_size=VOCAB, seq_len=8, **TINY).config.max_position_embeddings == 8
