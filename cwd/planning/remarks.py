"""The assumptions behind a plan, in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from cwd.evidence.tables import NAMES
from cwd.planning.demand import THEORY
from cwd.planning.devices import USABLE
from cwd.planning.evaluating import LENGTH
from cwd.planning.forecast import REASON, UTILISATION
from cwd.planning.numbers import token_data
from cwd.planning.plan import Kind, Plan
from cwd.planning.shapes import ImageShape, TunedShape
from cwd.planning.words import HOUR, byte_unit, bytes_in, duration, hours_of

PAPER_HOURS = 20_000  # H100 hours for all experiments, as the paper states (published.yaml, paper.compute)
FLOPS = (
    "FLOPs: of language models 6 x the parameters that multiply + 12 x layers x length x width of attention for each "
    "token, causal not halved, a third of it in evaluations; of image classifiers and fine-tunings what torch counts "
    "in a pass of the model. Optimizer, data and what is computed again are not counted."
)
MEMORY_MODEL = (
    "Memory: float32 weights, gradients and state; EMA, the averaged weights; activations of the model's own code, "
    "traced without memory, eager kernels; copies: weights in bfloat16, masks, gradients being born; sharing: what "
    "several devices add; step: the optimizer's. The peak is not the sum, as not all of it is there at once."
)
SEEDS = (
    "Seeds: paired t tests at 0.05 over the comparisons of the table, noncentral t, at the spread of runs that are "
    "done; a spread at small scale is not that of the paper's. They resolve: the least effect that the planned seeds "
    "find in 4 of 5 studies."
)


def remarks_of(plan: Plan) -> Iterable[str]:
    """Every assumption."""
    device, request = plan.request.device, plan.request
    waiting = f"{hours_of(plan.whole.waiting.seconds / HOUR)} {hours_name(plan)}"
    yield (
        "Runs: shared, those that another artifact asks for too; waiting, at most so many more once each arm's best "
        f"lambda is chosen ({waiting}). Each run once: what two lines share is counted once."
    )
    yield from _time_remarks(plan)
    yield from _evaluation_remarks(plan)
    yield FLOPS
    yield (
        f"Device: {device.source}; {device.flops / 1e12:g} TFLOPS; of {device.memory / 1e9:.4g} GB {USABLE:.0%} is "
        "planned with, the rest is the context's, the libraries' and the allocator's."
    )
    if plan.kinds:
        yield from _memory_remarks(plan)
    if plan.strengths:
        yield SEEDS
    if not request.names and request.scale == "paper" and not device.is_cpu:
        yield _against_the_paper(plan)


def _time_remarks(plan: Plan) -> Iterable[str]:
    device, forecaster, price = plan.request.device, plan.forecaster, plan.request.price
    how = "each core trains runs of its own" if device.is_cpu else "every run takes all devices, one after another"
    between, source = forecaster.between
    if plan.whole.time.sources:
        yield f"Time: {how}; seconds from {plan.whole.time}; {between:.1f} s between two runs, {source}."
    for unit, reason in REASON.items():
        if any(f"of {unit}, assumed" in name for name in plan.whole.time.sources):
            yield (
                f"MFU {UTILISATION[unit]:g} of {unit}, the part of the peak that training reaches: nothing was "
                f"measured on such a device; {reason}. --mfu says another."
            )
    if plan.whole.time.unknown:
        yield f"Of {plan.whole.time.unknown} runs nothing says how long they take."
    if price is None:
        yield "Cost: PRICE=2.50, for one device and hour, adds a column."
    else:
        yield f"Cost: at {price:g} for one device and hour; idle time and disk are not counted."


def _evaluation_remarks(plan: Plan) -> Iterable[str]:
    """What is done with the trained models, which is in no time above."""
    for one in plan.evaluations:
        if not one.runs:
            continue
        cost = "nothing here says how long they take"
        if one.seconds is not None:
            cost = f"those done took {duration(one.seconds)} each"
        elif one.flops is not None:
            part, _ = plan.forecaster.utilisation("tokens")
            hours = one.flops / (plan.request.device.flops * part) / HOUR
            cost = (
                f"{one.sequences:,} answers each, as if all were {LENGTH:,} tokens long: at most {hours_of(hours)} "
                f"{hours_name(plan)} for all"
            )
        yield f"Evaluations, not counted above: {one.artifact}, {one.runs} runs on suite {one.suite}; {cost}."


def _memory_remarks(plan: Plan) -> Iterable[str]:
    yield MEMORY_MODEL
    told = [(kind.size, _shape_remark(kind)) for kind in plan.kinds]
    for remark in dict.fromkeys(remark for _, remark in told):
        yield f"{', '.join(dict.fromkeys(size for size, one in told if one == remark))}: {remark}"
    if not plan.request.device.is_cpu:
        yield (
            "Micro-batch (machine.micro_batch_size): the largest that fits, with the simplest sharding that fits: "
            "none (a copy on each device), over a node's devices (hybrid), over all (full)."
        )
    yield from _refusals(plan)
    for kind in plan.kinds:
        if not kind.layout.fits:
            found = " or ".join(kind.remedies) or "no option here; it needs larger or more devices"
            yield f"{kind.size}, {name_of(kind.optimizer)}: does not fit; what helps: {found}."
    size = token_data(plan.kinds)
    tokens = f"{bytes_in(size, byte_unit([size]))} {byte_unit([size])}"
    file = f"; a token file from which no run sees a token twice takes {tokens}" if size else ""
    yield (
        "Disk: float32 weights of every run, averaged ones too, for good; checkpoints while it goes on (two, and one "
        f"being written){file}."
    )


def _refusals(plan: Plan) -> Iterable[str]:
    """What was wished for and cannot be, once for each kind of model."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for kind in plan.kinds:
        for option in kind.refused:
            found.setdefault((option, kind.layout.shape.what), {})[kind.size] = None
    for (option, what), sizes in found.items():
        instead = "not divided: a copy on each device" if option == "--sharding" else "planned without it"
        yield f"{option}: the trainer has none for {what} ({', '.join(sizes)}); {instead}."


def _shape_remark(kind: Kind) -> str:
    """What of the pass is not kept."""
    shape = kind.layout.shape
    if isinstance(shape, ImageShape):
        order = "channels last" if shape.channels_last else "channels first (machine.channels_last)"
        return f"images of {dict(shape.model)['image_size']} pixels, {order}; activations are kept."
    if isinstance(shape, TunedShape):
        how = "low-rank adapters: what is frozen has no gradient and no state" if shape.adapter else "all weights"
        return f"{how}; every token of a row taken for an answer, so at most; activations are kept."
    activations = "computed again in the backward pass" if shape.checkpointing else "kept, without --checkpointing"
    logits = "never there as a whole" if shape.chunked_loss else "there as a whole, without --chunked-loss"
    scores = "never there as a whole (fused attention)" if shape.fused else "there as a whole (attention is not fused)"
    return f"activations of the layers are {activations}; logits are {logits}; scores are {scores}."


def _against_the_paper(plan: Plan) -> str:
    hours, once = plan.whole.time.seconds / HOUR, plan.all_one_seed.seconds / HOUR
    absent = [need for need in plan.whole.needs if need != THEORY and not need.startswith("the tuning of")]
    left_out = f" (not those that need {'; '.join(absent)})" if absent else ""
    return (
        f"The paper states about {PAPER_HOURS:,} H100 hours for all its experiments. The runs here that can be planned"
        f"{left_out} take {once:,.0f} hours of this device on one seed each; with {plan.seeds} seeds, less what is "
        f"done, {hours:,.0f}."
    )


def devices_of(plan: Plan) -> str:
    """ "8 H100", "2 cores"."""
    device = plan.request.device
    return f"{device.count} {'cores' if device.is_cpu else device.name.upper()}"


def hours_name(plan: Plan) -> str:
    """What a device's hours are called."""
    return "core-hours" if plan.request.device.is_cpu else "GPU-hours"


def name_of(optimizer: str) -> str:
    """As it is written."""
    return NAMES.get(optimizer, optimizer)
