"""The engine: joins an update rule and a decay mode: x <- x - lr * (u + lambda_t * M(u, x - a, g) * (x - a))."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwd.optim.directions import RULES
from cwd.optim.eager import directions_of
from cwd.optim.measures import summarize
from cwd.optim.options import COMMON, check_group, check_names
from cwd.optim.plan import Measured, Plan
from cwd.optim.slots import Slot, add_up, computing_dtype, is_distributed
from cwd.optim.update import Now


class Observation(NamedTuple):
    """What one tensor's step looks like, shown to :attr:`RuleOptimizer.observer` before x changes.

    All tensors have the parameter's shape, of a DTensor that of the part here, in the dtype of the computation. Read
    them, don't keep them.
    """

    name: str
    x: Tensor
    u: Tensor
    g: Tensor


class RuleOptimizer(torch.optim.Optimizer):
    """Any update rule with any decay mode, per parameter group.

    Each group holds ``rule`` (a name in RULES), ``decay`` (a name in MODES), ``lr``, ``weight_decay``, the settings of
    :class:`cwd.optim.Options` and the rule's own hyperparameters; what a group leaves out comes from the defaults. The
    coefficient of the decay is ``lr * weight_decay``.

    Low-precision parameters (bfloat16, float16) are computed in float32 and rounded once, decay and update together;
    their state is float32.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of groups, as for torch.optim.
        defaults: hyperparameters of all groups that do not say otherwise; must hold ``rule`` and ``lr``.
        seed: seed of what is drawn.
        compile: compile the step of the elementwise rules: one pass over memory. None: where it pays, see
            :func:`cwd.optim.compiled.compiling_pays`. The first step then takes the seconds that compiling takes.
        flat: keep parameters, gradients and state of a group in one buffer each, where rule and mode are elementwise.
            ``p.data`` and ``p.grad`` become views; :meth:`zero_grad` then sets gradients to zero in place, whatever
            ``set_to_none`` says, so a parameter that gets no gradient later is stepped with a zero one.

    Attributes:
        observer: called with an :class:`Observation` of each tensor, in each step, before it; None: nobody looks.
        measure: measure the steps from now on; see :meth:`take_measures`.

    Raises:
        ValueError: a hyperparameter out of range, an unknown rule or mode, a rule that cannot take a tensor's shape.
    """

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        seed: int = 0,
        compile: bool | None = None,
        flat: bool = False,
    ) -> None:
        self._configure(seed, compile, flat)
        own = RULES[defaults["rule"]].defaults if defaults["rule"] in RULES else {}
        super().__init__(params, {**COMMON, **own, **defaults})

    def _configure(self, seed: int, compile: bool | None, flat: bool) -> None:
        self.seed, self.compile, self.flat, self.measure = seed, compile, flat, False
        self.observer: Callable[[Observation], None] | None = None
        self._plan: Plan | None = None
        self._planned: list[int] = []  # what the plan is of
        self._measured: Measured = []

    def __getstate__(self) -> dict[str, Any]:  # torch's leaves out what it does not know
        return {**super().__getstate__(), "seed": self.seed, "compile": self.compile, "flat": self.flat}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "seed" in state:  # a copy; load_state_dict comes here too, with groups and state alone
            self._configure(*(state[name] for name in ("seed", "compile", "flat")))
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its rule's defaults fill what it leaves out."""
        check_names(param_group)
        rule = param_group.setdefault("rule", self.defaults["rule"])
        if rule in RULES and rule != self.defaults["rule"]:
            for name, value in RULES[rule].defaults.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["lr_max"] is None and group["decay_schedule"] == "corrected":
            group["lr_max"] = float(group["lr"])
        try:
            check_group(group)
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._find_plan()
        if self.observer is not None:
            for slot in plan.slots:
                self._observe(slot, self.observer)
        found = plan.step(self.seed, self.measure)
        if self.measure:
            self._measured = found
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; those in flat buffers are set to zero."""
        super().zero_grad(set_to_none)
        flats = () if self._plan is None else self._plan.find_flats()
        for flat in flats:
            flat.clear()

    def take_measures(self) -> dict[str, Any]:
        """The measures of the last step that was measured: ``{"overall": {field: value}, "tensors": {name: {field:
        value}}}``, with the fields of :func:`cwd.optim.measures.summarize`. Overall is over all elements together.
        Measures of DTensors are of the whole tensors, the same on all processes, all of which must ask.
        """
        taken, self._measured = self._measured, []
        if not taken:
            return {"overall": {}, "tensors": {}}
        added = add_up([sums for _, sums in taken], [slot.total for slot, _ in taken])
        rows = torch.stack([row for row in added if row is not None])
        tensors = {slot.name: summarize(row, slot.size) for (slot, _), row in zip(taken, rows.tolist(), strict=True)}
        overall = summarize(rows.sum(0).tolist(), sum(slot.size for slot, _ in taken))
        return {"overall": overall, "tensors": tensors}

    def state_dict(self) -> dict[str, Any]:
        """torch's, in which every tensor has a step count of its own: here, those that go together share one."""
        state = super().state_dict()
        own = {
            key: {name: value.clone() if name == "step" else value for name, value in entry.items()}
            for key, entry in state["state"].items()
        }
        return {**state, "state": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or a stock one of torch.optim, whose groups do not know `rule` and
        `decay`.
        """
        mine, theirs = self.param_groups, state_dict["param_groups"]
        if len(mine) == len(theirs):
            filled = [
                {**{k: v for k, v in own.items() if k not in ("params", "param_names")}, **saved}
                for own, saved in zip(mine, theirs, strict=True)
            ]
            for own, group in zip(mine, filled, strict=True):
                if group["rule"] != own["rule"]:
                    raise ValueError(f"rule={group['rule']!r}: the state of another rule, {own['rule']!r} is wanted")
                check_group({**group, "params": own["params"]})
            state_dict = {**state_dict, "param_groups": filled}
        super().load_state_dict(state_dict)
        self._plan = None
        # torch casts the state to the parameter's dtype, or shares it: copy it, in the dtype that it has here.
        order = [i for group in theirs for i in group["params"]]
        slots = ((p, group) for group in self.param_groups for p in group["params"])
        for (p, group), i in zip(slots, order, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                self.state[p][name] = _loaded(name, value, p, group)

    def _parameters(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                yield name, p, group

    def _find_plan(self) -> Plan:
        """The last step's plan, if it fits this one; else a new one."""
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        present = [p for p, g in zip(params, grads, strict=True) if g is not None]
        if {g.layout for g in grads if g is not None} - {torch.strided}:
            self._refuse_sparse()
        if self._plan is None or self._planned != self._known(present) or not self._plan.fits():
            for group in self.param_groups:  # settings may have been changed by hand
                check_group(group)
            slots = [
                Slot(number, name, p, group, self.state[p])
                for number, (name, p, group) in enumerate(self._parameters())
                if p.grad is not None and p.numel() > 0
            ]
            self._plan = Plan(slots, self.compile, self.flat, len(present) == len(params))
            self._planned = self._known(present)
        return self._plan

    def _known(self, present: list[Tensor]) -> list[int]:
        """The groups, what they hold, the entries of the state, and the parameters with gradients, by identity."""
        sizes = [len(group["params"]) for group in self.param_groups]
        return sizes + list(map(id, (*self.param_groups, *self.state.values(), *present)))

    def _refuse_sparse(self) -> None:
        for name, p, _ in self._parameters():
            if p.grad is not None and p.grad.layout is not torch.strided:
                raise ValueError(f"{name}: sparse gradients are not supported; make the layer dense (sparse=False)")

    def _observe(self, slot: Slot, observer: Callable[[Observation], None]) -> None:
        """Works the step of a tensor out on a copy of its state."""
        step = int(slot.state["step"].item()) + 1
        now = Now(slot.group["lr"], 0.0, RULES[slot.group["rule"]].scalars(step, slot.group))
        slot.lay_gradient()
        part = slot.part(slot.gradient())
        part = part._replace(buffers={name: buffer.clone() for name, buffer in part.buffers.items()})
        u, g = directions_of([slot], [part], [slot.whole(self.seed, step)], now)[0]
        observer(Observation(slot.name, slot.x.to(slot.dtype), u, g))


def _loaded(name: str, value: Any, p: Tensor, group: dict[str, Any]) -> Tensor:
    if name == "step":
        # stock fused and capturable steps are the device's, which every step here would wait for
        return torch.as_tensor(value).to("cpu", torch.float32, copy=True)
    wide = p.dtype if p.is_complex() else computing_dtype(p.dtype)
    dtype = value.dtype if name == "anchor" else group["state_dtype"] or wide
    own = value.to(dtype=dtype, device=p.device, copy=True)
    if not is_distributed(p):
        if is_distributed(own):
            raise ValueError(f"{name} is a DTensor, its parameter is not: load it with torch.distributed.checkpoint")
        return own
    from cwd.optim.sharded import placed_like

    return placed_like(own, p)
