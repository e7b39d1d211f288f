"""CautiousWeightDecay: against the native optimizers, and as a torch.optim.Optimizer among torch's and others'."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial

import lion_pytorch
import pytest
import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import state_dict as distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from cwd.optim import MODES, SGD, AdamW, Lion
from cwd.optim import wrapper as wrapper_module
from cwd.optim.decay import PER_TENSOR, words_of
from cwd.optim.wrapper import CautiousWeightDecay

EXACT = {"rtol": 0, "atol": 0}
UNIT = 2.0**-24  # the unit roundoff of float32
# 20 steps of values of order 1, each rounded a few times here and there; then a margin for Adam's quotients
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-13}, torch.float32: {"rtol": 0, "atol": 20 * 8 * UNIT}}
SHAPES = ((6, 4), (7,), (), (3, 2, 5))
BETAS = (0.9, 0.95)

fused_adamw = partial(torch.optim.AdamW, betas=BETAS, weight_decay=0.0, fused=True)
plain_adamw = partial(torch.optim.AdamW, betas=BETAS, weight_decay=0.0, foreach=False)
plain_sgd = partial(torch.optim.SGD, momentum=0.9)
each_mode = pytest.mark.parametrize("mode", MODES)


def normal(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(dtype=torch.float64, shapes=SHAPES) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(0.3 * normal(*s, seed=1 + i, dtype=dtype)) for i, s in enumerate(shapes)]


def train(optimizer, params, steps) -> list[torch.Tensor]:
    """Steps with random gradients; those of the first elements are 0: there u is 0."""
    for step in steps:
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=1000 * step + i).to(p.dtype)
            if p.numel() > 1:
                p.grad.view(-1)[0] = 0.0
        optimizer.step()
    return values(params)


def values(params) -> list[torch.Tensor]:
    return [p.detach().clone() for p in params]


def wrapped(params, mode="cautious", inner=plain_adamw, *, lr=0.05, weight_decay=0.7, seed=0) -> CautiousWeightDecay:
    return CautiousWeightDecay(inner(params, lr=lr), weight_decay, mode, seed=seed)


def moved(u, x, mode="cautious", dtype=torch.float32, weight_decay=0.5) -> list[float]:
    """x after a wrapped step of SGD with lr 1/2 and gradient u."""
    p = torch.nn.Parameter(torch.tensor(x, dtype=dtype))
    p.grad = torch.tensor(u, dtype=dtype)
    CautiousWeightDecay(torch.optim.SGD([p], lr=0.5), weight_decay, mode).step()
    return p.tolist()


# ---- the same as native ----------------------------------------------------------------------------------------------

# name: (inner optimizer, the native one)
PAIRS = {
    "adamw fused": (fused_adamw, partial(AdamW, betas=BETAS)),
    "adamw foreach": (partial(fused_adamw, fused=False, foreach=True), partial(AdamW, betas=BETAS)),
    "adamw single": (plain_adamw, partial(AdamW, betas=BETAS)),
    "adamw tensor lr": (
        lambda params, lr: fused_adamw(params, lr=torch.tensor(lr, dtype=torch.float64)),
        partial(AdamW, betas=BETAS),
    ),
    "sgd one-element lr": (
        lambda params, lr: plain_sgd(params, lr=torch.tensor([lr], dtype=torch.float64)),
        partial(SGD, momentum=0.9, dampening=0.0),
    ),
    "adamw maximize": (partial(plain_adamw, maximize=True), partial(AdamW, betas=BETAS, maximize=True)),
    "sgd": (plain_sgd, partial(SGD, momentum=0.9, dampening=0.0)),
    "lion": (partial(lion_pytorch.Lion, weight_decay=0.0), Lion),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_mode
@pytest.mark.parametrize("name", PAIRS)
def test_twenty_steps_are_the_native_optimizers(name, mode, dtype):
    inner, native = PAIRS[name]
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = wrapped(ours, mode, inner, seed=5)
    reference = native(theirs, lr=0.05, weight_decay=0.7, decay=mode, seed=5)
    assert_close(train(optimizer, ours, range(20)), train(reference, theirs, range(20)), **TOLERANCE[dtype])


def test_a_mode_sees_x_before_the_step_u_at_its_size_and_g(monkeypatch):
    seen = []
    monkeypatch.setitem(MODES, "cautious", lambda *arguments: seen.append([t.clone() for t in arguments[:3]]) or 1.0)
    for lr, u in ((0.25, [3.0, -2.0]), (0.0, [0.0, 0.0]), (torch.tensor(0.0), [0.0, 0.0])):
        p = torch.tensor([4.0, 1.0])  # no Parameter, and needs no gradient, but has one
        p.grad = torch.tensor([3.0, -2.0])
        seen.clear()
        CautiousWeightDecay(torch.optim.SGD([p], lr=lr), 0.5).step()
        assert [t.tolist() for t in seen[0]] == [[4.0, 1.0], u, [3.0, -2.0]]
    assert p.tolist() == [4.0, 1.0]


@each_mode
def test_pieces_and_wholes_are_the_same(mode, monkeypatch):
    whole, split = parameters(torch.float32), parameters(torch.float32)
    expected = train(wrapped(whole, mode), whole, range(5))
    monkeypatch.setattr(wrapper_module, "PIECE", 4)  # 24 = 6 pieces; 7 and 30 do not divide
    assert_close(train(wrapped(split, mode), split, range(5)), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("u", "x", "after"),
    [(0.0, 4.0, 3.0), (-0.0, -4.0, -3.0), (2.0, 4.0, 2.0), (2.0, -4.0, -5.0), (2.0, 0.0, -1.0), (0.0, 0.0, 0.0)],
)
def test_a_zero_update_decays_and_an_opposed_one_does_not(u, x, after, dtype):
    assert moved([u], [x], dtype=dtype) == [after]


def test_coordinates_whose_product_underflows_do_not_decay():
    tiny = 2.0**-100
    assert moved([tiny, -tiny], [-tiny, tiny]) == [-1.5 * tiny, 1.5 * tiny]


def test_the_limitation_an_update_that_leaves_no_trace_in_x_decays():
    assert moved([-(2.0**-24)], [1.0]) == [0.75]  # lr * u is a quarter of a unit in the last place
    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.tensor([-(2.0**-24)])
    SGD([p], lr=0.5, momentum=0.0, weight_decay=0.5).step()
    assert p.tolist() == [1.0]  # the native one sees u


@each_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_from_the_two_values_of_x(dtype, mode):
    params, bare = parameters(dtype), parameters(dtype)
    optimizer, alone = wrapped(params, mode, plain_sgd, seed=5), plain_sgd(bare, lr=0.05)
    for step in range(1, 8):
        before = values(params)
        train(alone, bare, [step])  # from the same x, so that it shows x after the inner step
        train(optimizer, params, [step])
        for number, (p, q, x) in enumerate(zip(params, bare, before, strict=True)):
            wide = x.float()
            u = (wide - q.detach().float()) / 0.05
            factor = MODES[mode](wide, u, p.grad.float(), words_of((5, step, number)))
            expected = q.detach().float() - factor * wide * (0.05 * 0.7)
            assert_close(p.detach(), expected.to(dtype), **EXACT)
            q.data.copy_(p.detach())


def test_strided_complex_zero_dimensional_and_empty_parameters():
    base = 0.3 * normal(6, 4, dtype=torch.float32)
    column_major, contiguous = torch.nn.Parameter(base.t().contiguous().t()), torch.nn.Parameter(base.clone())
    assert not column_major.is_contiguous()
    results = [train(wrapped([p], "cautious", plain_sgd), [p], range(5)) for p in (column_major, contiguous)]
    assert_close(*results, **EXACT)
    z = torch.nn.Parameter(torch.tensor([4 - 4j]))
    z.grad = torch.tensor([2 + 2j])
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    empty.grad = torch.zeros(0, 3)
    CautiousWeightDecay(torch.optim.SGD([z, empty], lr=0.5), 0.5).step()
    assert z.tolist() == [2 - 5j]  # the real part agrees and decays, the imaginary one is opposed


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(function) -> int:
    """The most bytes that the CPU allocator had out at once while `function` ran, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


BIG = ((1024, 1024), (512, 1024), (1024, 1024))
TENSOR, MODEL, PIECE = 4 * 2**20, 4 * 2**19 * 5, 4 * wrapper_module.PIECE  # bytes


def test_the_measure_of_memory_sees_what_is_kept_and_what_is_dropped():
    assert peak_bytes(lambda: [torch.empty(2**20) for _ in range(3)]) >= 3 * TENSOR
    assert TENSOR <= peak_bytes(lambda: [torch.empty(2**20) is None for _ in range(3)]) < 2 * TENSOR


@each_mode
def test_a_step_costs_one_copy_of_the_parameters_once_and_small_temporaries(mode):
    params = parameters(torch.float32, BIG)
    optimizer = wrapped(params, mode, partial(torch.optim.SGD, foreach=False))
    for i, p in enumerate(params):
        p.grad = normal(*p.shape, seed=i, dtype=torch.float32)
    # u, a sign or two and a bool mask; for a tensor as a whole also float64 copies, or 64-bit words of the draws
    temporaries = {"none": 0, "random": 9 * TENSOR, "inner_product": 6 * TENSOR, "scaled": 4 * TENSOR}
    bound = temporaries.get(mode, 5 * PIECE) + 2**12
    assert peak_bytes(optimizer.step) <= (0 if mode == "none" else MODEL) + bound
    kept = [x.data_ptr() for x in optimizer._copies.values()]
    assert peak_bytes(optimizer.step) <= bound
    assert [x.data_ptr() for x in optimizer._copies.values()] == kept
    assert sum(x.nbytes for x in optimizer._copies.values()) == (0 if mode == "none" else MODEL)
    if mode not in PER_TENSOR:
        assert bound < TENSOR  # so a temporary of one large tensor would have been seen


def test_the_copies_follow_parameters_that_change_shape_dtype_strides_or_decay(monkeypatch):
    monkeypatch.setattr(wrapper_module, "PIECE", 2)
    params = parameters(torch.float32, (*SHAPES, SHAPES[3]))
    strided, plain = normal(5, 2, 3).transpose(0, 2).float(), normal(3, 2, 5).float()
    params[3].data = strided.clone()
    optimizer = wrapped(params)
    train(optimizer, params, [1])
    params[0].data, params[1].data = normal(2, 3), params[1].data.double()
    params[3].data, params[4].data = plain, strided
    optimizer.state.clear()
    train(optimizer, params, [2])
    assert [(x.shape, x.dtype) for x in optimizer._copies.values()] == [(p.shape, p.dtype) for p in params]
    optimizer.param_groups[0]["cwd_weight_decay"] = 0.0
    train(optimizer, params, [4])
    assert optimizer._copies == {}


# ---- an optimizer among torch's tools --------------------------------------------------------------------------------


def test_it_is_an_optimizer_with_the_inner_ones_own_groups_and_state():
    params = parameters()
    inner = plain_adamw(params, lr=0.05)
    optimizer = CautiousWeightDecay(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(optimizer, params, [1])
    for _ in range(2):
        assert optimizer.param_groups is inner.param_groups
        assert optimizer.state is inner.state
        assert optimizer.defaults is inner.defaults
        optimizer.load_state_dict(optimizer.state_dict())  # after which torch's are new objects
    optimizer.param_groups = groups = [dict(group) for group in inner.param_groups]
    assert inner.param_groups is groups


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.3, anneal_epochs=5),
}


def train_with_schedule(optimizer, schedule, params) -> list[float]:
    rates = []
    for step in range(1, 9):
        train(optimizer, params, [step])
        schedule.step(*([1.0] if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("on", ["wrapper", "inner"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_on_either_object_set_the_rate_of_update_and_decay(schedule, on):
    ours, theirs = parameters(), parameters()
    optimizer, native = wrapped(ours), AdamW(theirs, lr=0.05, betas=BETAS, weight_decay=0.7)
    make = SCHEDULES[schedule]
    rates = train_with_schedule(optimizer, make(optimizer if on == "wrapper" else optimizer.optimizer), ours)
    assert train_with_schedule(native, make(native), theirs) == rates
    assert len(set(rates)) > 3
    assert_close(values(ours), values(theirs), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("on", ["wrapper", "inner"])
def test_a_schedule_stepped_by_a_hook_comes_after_the_decay(on, lr):
    ours, theirs = parameters(), parameters()
    optimizer = wrapped(ours, inner=fused_adamw, lr=copy.deepcopy(lr))
    native = AdamW(theirs, lr=0.05, betas=BETAS, weight_decay=0.7)
    target = optimizer if on == "wrapper" else optimizer.optimizer
    for each, hooked in ((target, target), (native, native)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(each, 0.5)
        hooked.register_step_post_hook(lambda *_, schedule=schedule: schedule.step())
    assert_close(train(optimizer, ours, range(6)), train(native, theirs, range(6)), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("tensor", [False, True])
@each_mode
def test_a_rate_of_zero_changes_nothing(mode, tensor):
    params = parameters(torch.float32)
    before = values(params)
    lr = torch.tensor(0.0) if tensor else 0.0
    assert_close(train(wrapped(params, mode, fused_adamw, lr=lr), params, range(3)), before, **EXACT)


def loss_of(model, batch: int) -> torch.Tensor:
    return model(normal(8, 6, seed=batch, dtype=torch.float32)).square().mean()


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


def test_accelerate_trains_the_same():
    plain, prepared = network(), network()
    optimizer = wrapped(plain.parameters(), "random", fused_adamw)
    accelerator = Accelerator(cpu=True)
    theirs, accelerated = accelerator.prepare(prepared, wrapped(prepared.parameters(), "random", fused_adamw))
    for batch in range(6):
        loss_of(plain, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        accelerator.backward(loss_of(theirs, batch))
        accelerated.step()
        accelerated.zero_grad()
    assert_close(values(prepared.parameters()), values(plain.parameters()), **EXACT)
    assert accelerated.param_groups[0]["cwd_step"] == 6
    with pytest.raises(ValueError, match="wrap the bare optimizer"):
        CautiousWeightDecay(accelerator.prepare(plain_adamw(prepared.parameters())))


@pytest.mark.parametrize("inner", [plain_adamw, fused_adamw], ids=["single", "fused"])
def test_a_grad_scaler_skips_steps_with_infinite_gradients_whole(inner):
    scaled, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, alone = wrapped(scaled, inner=inner), wrapped(plain, inner=inner)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(1, 7):
        before, state = values(scaled), copy.deepcopy(optimizer.state_dict())
        scale = scaler.scale(torch.ones(()))
        for i, (p, q) in enumerate(zip(scaled, plain, strict=True)):
            g = normal(*p.shape, seed=100 * step + i, dtype=torch.float32)
            p.grad, q.grad = g * scale, g.clone()
        if step % 3 == 0:
            scaled[1].grad[2] = math.inf
            scaler.step(optimizer)
            assert_close(values(scaled), before, **EXACT)
            assert str(optimizer.state_dict()) == str(state)
        else:
            scaler.step(optimizer)
            alone.step()
        scaler.update()
    assert scaler.get_scale() == 2.0**6
    assert_close(values(scaled), values(plain), **EXACT)  # powers of 2: unscaled without rounding
    assert optimizer.param_groups[0]["cwd_step"] == 4


def test_a_closure_runs_once_with_gradients_on_and_its_loss_comes_back():
    p, calls = torch.nn.Parameter(torch.tensor([3.0])), []
    optimizer = CautiousWeightDecay(torch.optim.SGD([p], lr=0.25), 0.5)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert calls == [True]
    assert p.item() == 3.0 - 0.25 * (6.0 + 0.5 * 3.0)  # the gradient came with the closure, and the decay with it
    assert optimizer.step() is None


def test_lbfgs_works_with_a_closure_and_needs_it():
    p = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
    q = torch.nn.Parameter(p.detach().clone())
    optimizer = CautiousWeightDecay(torch.optim.LBFGS([p], lr=0.5, max_iter=3), 0.5)
    bare = torch.optim.LBFGS([q], lr=0.5, max_iter=3)

    def closure(o, x):
        o.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss

    bare.step(lambda: closure(bare, q))
    assert optimizer.step(lambda: closure(optimizer, p)).item() == 25.0
    assert_close(p.detach(), q.detach() - 0.5 * 0.5 * torch.tensor([3.0, -4.0]))  # it moved towards 0: both agree
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()


def test_step_hooks_of_both_fire_once_each_with_their_own_optimizer():
    params, calls = parameters(), []
    optimizer = wrapped(params)
    for name, one in (("outer", optimizer), ("inner", optimizer.optimizer)):
        one.register_step_pre_hook(lambda o, *_, name=name: calls.append((name, "pre", o)))
        one.register_step_post_hook(lambda o, *_, name=name: calls.append((name, "post", o)))
    train(optimizer, params, [1])
    inner = optimizer.optimizer
    assert [(name, when) for name, when, _ in calls] == [
        ("outer", "pre"), ("inner", "pre"), ("inner", "post"), ("outer", "post"),
    ]  # fmt: skip
    assert all(o is (optimizer if name == "outer" else inner) for name, _, o in calls)


def test_state_dict_hooks_registered_on_either_fire_once():
    calls = []
    original = wrapped(parameters())
    for optimizer in (original, copy.deepcopy(original)):
        calls.clear()
        for one in (optimizer, optimizer.optimizer):
            one.register_state_dict_pre_hook(lambda *_: calls.append("save"))
            one.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
        optimizer.load_state_dict(optimizer.state_dict())
        assert calls == ["save", "save", "load", "load"]


def test_zero_grad_attributes_and_repr():
    params = parameters()
    optimizer = wrapped(params[:1])
    optimizer.add_param_group({"params": params[1:2], "cwd_mode": "scaled", "cwd_weight_decay": 0.25})
    optimizer.add_param_group({"params": params[2:]})
    assert repr(optimizer) == "CautiousWeightDecay(AdamW, cautious 0.7, scaled 0.25)"
    train(optimizer, params, [1])
    optimizer.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.optimizer.train = lambda: "training"
    assert optimizer.train() == "training"
    assert not hasattr(optimizer, "eval")


# ---- state dicts and copies ------------------------------------------------------------------------------------------


def through_torch_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


PASSAGES = {
    "memory": lambda state: state,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch file": through_torch_file,
}
INNER = {"fused": fused_adamw, "sgd": plain_sgd, "lion": partial(lion_pytorch.Lion, weight_decay=0.0)}


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("inner", INNER)
def test_a_run_continued_from_its_state_dict_ends_bit_equal(inner, passage):
    params = parameters()
    optimizer = wrapped(params, "random", INNER[inner], seed=7)
    resumed = [torch.nn.Parameter(v) for v in train(optimizer, params, range(1, 6))]
    again = wrapped(resumed, "scaled", INNER[inner], seed=7, lr=9.0, weight_decay=9.0)
    again.load_state_dict(PASSAGES[passage](copy.deepcopy(optimizer.state_dict())))
    assert_close(train(again, resumed, range(6, 12)), train(optimizer, params, range(6, 12)), **EXACT)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, PASSAGES["pickle"]], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("inner", ["fused", "sgd"])
def test_a_copied_optimizer_goes_on_alone_and_bit_equal(inner, duplicate):
    params = parameters()
    optimizer = wrapped(params, "random", INNER[inner], seed=7)
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # which puts a function into the object
    train(optimizer, params, range(1, 6))
    twin = duplicate(optimizer)
    assert twin.optimizer is not optimizer.optimizer
    expected = train(optimizer, params, range(6, 12))
    assert_close(train(twin, twin.param_groups[0]["params"], range(6, 12)), expected, **EXACT)


def test_a_bare_state_dict_loads_and_leaves_the_decay_as_it_is():
    params, bare = parameters(), parameters()
    inner = plain_adamw(bare, lr=0.05)
    train(inner, bare, range(1, 4))
    for p, q in zip(params, bare, strict=True):
        p.data.copy_(q.detach())
    optimizer = wrapped(params, "scaled", lr=9.0)
    optimizer.load_state_dict(inner.state_dict())
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in ("lr", "cwd_mode", "cwd_weight_decay")} == {
        "lr": 0.05,
        "cwd_mode": "scaled",
        "cwd_weight_decay": 0.7,
    }
    native = AdamW(bare, betas=BETAS, decay="scaled")
    native.load_state_dict(inner.state_dict())
    native.param_groups[0]["weight_decay"] = 0.7
    assert_close(train(optimizer, params, range(4, 9)), train(native, bare, range(4, 9)), **TOLERANCE[torch.float64])


def test_the_bare_optimizer_loads_a_wrapped_state_dict():
    params = parameters()
    optimizer = wrapped(params, weight_decay=0.0)
    alone = [torch.nn.Parameter(v) for v in train(optimizer, params, range(1, 4))]
    inner = plain_adamw(alone, lr=9.0)
    inner.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_close(train(inner, alone, range(4, 8)), train(optimizer, params, range(4, 8)), **EXACT)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in PER_TENSOR])
def test_sharded_parameters_train_as_whole_ones(mode, one_process):
    results = []
    for sharded in (False, True):
        model = network()
        if sharded:
            fully_shard(model, mesh=one_process)
        optimizer = wrapped(model.parameters(), mode)
        for batch in range(3):
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.full_tensor() if sharded else p.detach() for p in model.parameters()])
    assert_close(*results, **EXACT)


def test_distributed_checkpoints_state_dict_carries_settings_and_count():
    model, again = network(), network()
    optimizer = wrapped(model.parameters(), "random", seed=7)
    for batch in range(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    again.load_state_dict(model.state_dict())
    fresh = wrapped(again.parameters(), "scaled", weight_decay=9.0, seed=7)
    saved = distributed.get_optimizer_state_dict(model, optimizer)
    distributed.set_optimizer_state_dict(again, fresh, copy.deepcopy(saved))
    for one, trained in ((model, optimizer), (again, fresh)):
        loss_of(one, 9).backward()
        trained.step()
    assert_close(values(again.parameters()), values(model.parameters()), **EXACT)
    assert fresh.param_groups[0]["cwd_step"] == 4


# ---- others' optimizers ----------------------------------------------------------------------------------------------


class Odd(torch.optim.Optimizer):
    """Signs of a list of past gradients; state that is no tensor, a group without defaults, gradients consumed."""

    def __init__(self, params, lr):
        self.steps_taken = 0
        super().__init__(params, {"lr": lr})

    def __getstate__(self):
        return {**super().__getstate__(), "steps_taken": self.steps_taken}

    def state_dict(self):
        return {**super().state_dict(), "steps_taken": self.steps_taken}

    def load_state_dict(self, state_dict):
        self.steps_taken = state_dict["steps_taken"]
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure=None, *, scale=1.0):
        self.steps_taken += 1
        for group in self.param_groups:
            for p in group["params"]:
                history = self.state[p].setdefault("history", [])
                if p.grad is not None:
                    history.append(p.grad.clone())
                    p.grad = None
                if history:
                    p.data = p - scale * group["lr"] * sum(history).sign()
        return self.steps_taken


def test_an_optimizer_with_odd_state_keyword_arguments_and_consumed_gradients():
    params = parameters()
    optimizer = wrapped(params, "cautious", Odd)
    expected, history = values(params), [0.0 for _ in params]
    for step in range(1, 6):
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=10 * step + i)
            history[i] = history[i] + p.grad
            u = 2.0 * history[i].sign()
            expected[i] = expected[i] - 0.05 * (u + 0.7 * (u.sign() * expected[i].sign() >= 0).double() * expected[i])
        assert optimizer.step(scale=2.0) == step
    assert_close(values(params), expected, **TOLERANCE[torch.float64])
    resumed = [torch.nn.Parameter(v) for v in values(params)]
    again = wrapped(resumed, "cautious", Odd)
    again.load_state_dict(through_torch_file(optimizer.state_dict()))
    assert again.steps_taken == 5
    assert_close(train(again, resumed, [6]), train(optimizer, params, [6]), **EXACT)


def test_gradient_mode_sees_a_gradient_that_the_inner_step_consumes():
    p = torch.nn.Parameter(torch.tensor([4.0, 4.0]))
    optimizer = CautiousWeightDecay(Odd([p], lr=0.5), 0.5, "gradient")
    p.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert p.tolist() == [2.5, 4.5]


# ---- groups, and parameters without gradient -------------------------------------------------------------------------


def test_groups_may_differ_in_mode_and_lambda_and_change_them_between_steps():
    settings = [("cautious", 0.7), ("scaled", 0.2), ("opposite", 0.0), ("decoupled", 0.4)]
    ours, theirs = parameters(), parameters()
    own = [
        {"params": [p], "cwd_mode": m, "cwd_weight_decay": d} for p, (m, d) in zip(ours[:3], settings[:3], strict=True)
    ]
    inner = plain_adamw([*own, {"params": ours[3:]}], lr=0.05)
    optimizer = CautiousWeightDecay(inner, 0.4, "decoupled")
    groups = [{"params": [p], "decay": m, "weight_decay": d} for p, (m, d) in zip(theirs, settings, strict=True)]
    native = AdamW(groups, lr=0.05, betas=BETAS)
    for steps in (range(1, 6), range(6, 10)):
        assert_close(train(optimizer, ours, steps), train(native, theirs, steps), **TOLERANCE[torch.float64])
        optimizer.param_groups[2]["cwd_weight_decay"] = native.param_groups[2]["weight_decay"] = 0.9
        optimizer.param_groups[0]["cwd_mode"] = native.param_groups[0]["decay"] = "gradient"


@pytest.mark.parametrize("on", ["wrapper", "inner"])
@pytest.mark.parametrize("mode", ["cautious", "random"])
def test_a_group_added_later_decays_as_the_others(mode, on):
    ours, theirs = parameters(), parameters()
    optimizer = wrapped(ours[:2], mode)
    native = AdamW(theirs[:2], lr=0.05, betas=BETAS, weight_decay=0.7, decay=mode)
    train(optimizer, ours[:2], range(1, 4))
    train(native, theirs[:2], range(1, 4))
    (optimizer if on == "wrapper" else optimizer.optimizer).add_param_group({"params": ours[2:]})
    native.add_param_group({"params": theirs[2:]})
    assert_close(train(optimizer, ours, range(4, 9)), train(native, theirs, range(4, 9)), **TOLERANCE[torch.float64])


@each_mode
def test_a_parameter_without_gradient_is_left_alone(mode):
    params = parameters()
    optimizer = wrapped(params, mode)
    train(optimizer, params, [1])
    params[1].requires_grad_(False)
    before = values(params)
    optimizer.zero_grad()
    train(optimizer, params[2:], [2])
    assert_close(values(params[:2]), before[:2], **EXACT)
    assert not any(torch.equal(p, x) for p, x in zip(params[2:], before[2:], strict=True))


def test_a_parameter_without_gradient_that_the_inner_optimizer_moves_decays():
    moving, still = torch.nn.Parameter(torch.tensor([4.0, -4.0])), torch.nn.Parameter(torch.tensor([4.0]))
    optimizer = CautiousWeightDecay(Odd([moving, still], lr=0.5), 0.5)
    moving.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    assert moving.tolist() == [2.5, -4.5]
    optimizer.step()  # no gradient now, but Odd goes on
    assert moving.tolist() == [2.5 - 0.5 - 0.625, -5.0]
    assert still.tolist() == [4.0]


# ---- refusals --------------------------------------------------------------------------------------------------------


def adamw(**kwargs) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], **{"weight_decay": 0.0, **kwargs})


def second_group(**kwargs) -> torch.optim.Optimizer:
    optimizer = adamw()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **kwargs})
    return optimizer


def differently(key: str, value) -> torch.optim.Optimizer:
    optimizer = adamw()
    optimizer.param_groups[0][key] = value
    return optimizer


NAN, INF = math.nan, math.inf
# (what makes the arguments, what the message must hold)
REFUSED = [
    (lambda: (adamw(weight_decay=0.1),), ["AdamW, group 0", "weight_decay=0.1", "twice", "set weight_decay=0"]),
    (lambda: (second_group(weight_decay=0.3),), ["AdamW, group 1", "weight_decay=0.3", "twice"]),
    (lambda: (adamw(weight_decay=torch.tensor(0.5)),), ["weight_decay=0.5", "twice"]),
    (lambda: (torch.optim.ASGD([torch.nn.Parameter(torch.ones(3))]),), ["ASGD", "lambd=0.0001", "twice"]),
    *((lambda key=key: (differently(key, 0.1),), [f"{key}=0.1", "twice"]) for key in ("wd", "weight_decay_rate")),
    *((lambda v=v: (adamw(), v), ["weight_decay=", f"{v}", ">= 0"]) for v in (-0.1, NAN, INF)),
    (lambda: (adamw(), 0.1, "coutious"), ["mode='coutious'", *MODES]),
    (lambda: (second_group(cwd_mode="no"),), ["group 1", "mode='no'", *MODES]),
    (lambda: (second_group(cwd_weight_decay=-1.0),), ["group 1", "weight_decay=-1.0", ">= 0"]),
    (lambda: (differently("cwd_weight_decay", 0.0), NAN), ["weight_decay=nan"]),  # for groups to come
    *((lambda v=v: (differently("lr", v),), ["lr=", f"{v}", ">= 0"]) for v in (-0.1, NAN, INF)),
    (lambda: (differently("lr", None),), ["group 0", "no lr"]),
    (lambda: (adamw(differentiable=True),), ["differentiable=True", "not supported"]),
    (lambda: (CautiousWeightDecay(adamw()),), ["wrapped", "already"]),
    (lambda: (CautiousWeightDecay(adamw()).optimizer,), ["AdamW", "wrapped", "already"]),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_what_cannot_be_wrapped_is_refused_with_what_and_why(make, words):
    arguments = make()
    before = copy.deepcopy(arguments[0].state_dict())
    with pytest.raises(ValueError) as error:
        CautiousWeightDecay(*arguments)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert str(arguments[0].state_dict()) == str(before)


@pytest.mark.parametrize("nonsense", [None, 3, torch.optim.AdamW, torch.nn.Linear(2, 2), "adamw"])
def test_what_is_no_optimizer_is_refused(nonsense):
    with pytest.raises(TypeError, match=r"instance of torch\.optim\.Optimizer"):
        CautiousWeightDecay(nonsense)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"weight_decay": 0.1}, "group 1: weight_decay=0.1"),
        ({"cwd_mode": "no"}, "group 1: mode='no'"),
        ({"cwd_weight_decay": NAN}, "group 1: weight_decay=nan"),
        ({"lr": -1.0}, "group 1: lr=-1.0"),
    ],
)
def test_a_bad_group_leaves_the_optimizer_as_it_was(bad, words):
    params = parameters()
    optimizer = wrapped(params[:1])
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": params[1:], **bad})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": params[1:]})
    train(optimizer, params, [1])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("weight_decay", 0.1, "weight_decay=0.1: decay would act twice"),
        ("cwd_mode", "no", "mode='no': allowed"),
        ("cwd_weight_decay", -1.0, "weight_decay=-1.0: a finite"),
        ("lr", NAN, "lr=nan: a finite"),
    ],
)
def test_what_is_turned_on_later_is_refused_at_the_step_and_in_a_state_dict_before_anything_changes(key, value, words):
    params = parameters()
    optimizer = wrapped(params)
    train(optimizer, params, [1])
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(state)
    bad["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(bad)
    assert str(optimizer.state_dict()) == str(state)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    assert_close(values(params), before, **EXACT)
    optimizer.param_groups[0][key] = state["param_groups"][0][key]
    assert str(optimizer.state_dict()) == str(state)


def test_sparse_gradients_are_refused_before_anything_changes():
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    with pytest.raises(ValueError, match="parameter 0: sparse"):
        CautiousWeightDecay(torch.optim.SparseAdam(embedding.parameters())).step()
    assert torch.equal(embedding.weight, before)


def test_averaged_models_and_their_batch_statistics_follow():
    model = network()
    optimizer, average = wrapped(model.parameters()), torch.optim.swa_utils.AveragedModel(model)
    seen = []
    for batch in range(3):
        loss_of(model, batch).backward()
        optimizer.step()
        average.update_parameters(model)
        seen.append(values(model.parameters()))
    mean = [torch.stack(tensors).mean(0) for tensors in zip(*seen, strict=True)]
    assert_close(values(average.module.parameters()), mean)
