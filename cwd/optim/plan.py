"""How an optimizer's parameters are stepped: which together, which compiled, which by themselves.

A plan is made once and kept as long as it fits: the same parameters have gradients, nothing was moved or replaced, no
setting changed but the rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from cwd.optim.compiled import Chunk, can_compile, chunks, compiling_pays, fixed_settings, values_of
from cwd.optim.decay import lambda_of
from cwd.optim.directions import RULES
from cwd.optim.eager import gather_coupled, gather_small, is_coupled, is_small, step_alone, step_coupled, step_together
from cwd.optim.flat import Flat, can_flatten
from cwd.optim.slots import Slot, is_distributed, local
from cwd.optim.update import Now

Measured = list[tuple[Slot, Tensor]]


class Plan:
    """The steps of all slots. `compile` and `flat` as for :class:`cwd.optim.RuleOptimizer`.

    `complete`: every parameter of the optimizer has a gradient.
    """

    def __init__(self, slots: Sequence[Slot], compile: bool | None, flat: bool, complete: bool) -> None:
        self.slots, self.distributed = slots, [slot for slot in slots if is_distributed(slot.p)]
        candidates = [slot for slot in slots if can_compile(slot)] if compile is not False else []
        compiled = {slot.number for slot in candidates} if compile or compiling_pays(candidates) else set()
        self.sets = [Set(alike, compiled, flat and complete) for alike in _alike(slots)]
        self.entries = [slot.state for slot in slots]
        self.settings, self.seen = self._settings(), self._look()

    def fits(self) -> bool:
        """Whether parameters, state and settings are still those that the plan was made for."""
        return self.settings == self._settings() and self.seen == self._look()

    def step(self, seed: int, measured: bool) -> Measured:
        """Steps everything; returns the sums of the measures if `measured`."""
        for slot in self.distributed:  # first, as what follows may differ between processes in order
            slot.lay_gradient()
        return [found for one in self.sets for found in one.step(seed, measured)]

    def find_flats(self) -> Sequence[Flat]:
        """The flat buffers; none if parameters were moved out of them."""
        flats = [one.flat for one in self.sets if one.flat is not None]
        return flats if flats and self.fits() else []

    def _look(self) -> tuple[list[torch.Size], list[int], list[int]]:
        """Which tensors there are, their shapes, where they lie. Of hundreds of tensors in each step: hence `map`."""
        params = [slot.p for slot in self.slots]
        state = list(chain.from_iterable(map(dict.values, self.entries)))
        seen = [*params, *state]
        where = list(map(Tensor.data_ptr, map(local, seen) if self.distributed else seen))
        return list(map(Tensor.size, params)), list(map(id, state)), where  # data may be replaced by a part of itself

    def _settings(self) -> list[Any]:
        groups = {id(one.group): one.group for one in self.sets}
        others = ("anchor", "state_dtype", "decay_schedule", "decay_steps", "lr_max")
        return [(fixed_settings(group), [group[name] for name in others]) for group in groups.values()]


class Set:
    """Slots of one group that share dtype, device and step number, which they count in one tensor."""

    def __init__(self, slots: Sequence[Slot], compiled: set[int], flat: bool) -> None:
        self.slots, self.group = slots, slots[0].group
        self.counter: Tensor = slots[0].state["step"].clone()  # which no tensor outside of the set counts in
        for slot in slots:
            slot.state["step"] = self.counter
        self.flat = Flat(slots) if flat and can_flatten(slots) else None
        self.chunks = list(chunks([slot for slot in slots if slot.number in compiled]))
        self.flat_chunk = Chunk([self.flat.slot]) if self.flat and self.chunks else None
        left = [slot for slot in slots if slot.number not in compiled]
        self.small = list(gather_small([slot for slot in left if is_small(slot)]))
        self.coupled = list(gather_coupled([slot for slot in left if is_coupled(slot)]))
        self.alone = [slot for slot in left if not is_small(slot) and not is_coupled(slot)]

    def step(self, seed: int, measured: bool) -> Measured:
        """Steps the set; returns the sums of the measures if `measured`."""
        self.counter += 1
        self.number = int(self.counter.item())
        group = self.group
        scalars = RULES[group["rule"]].scalars(self.number, group)
        now = Now(group["lr"], lambda_of(group, self.number), scalars)
        if self.flat is not None and not measured:
            self._step_flat(self.flat, now, seed)
            return []
        return [*self._step_compiled(now, seed, measured), *self._step_eagerly(now, seed, measured)]

    def _step_flat(self, flat: Flat, now: Now, seed: int) -> None:
        g = flat.gradient()
        if self.flat_chunk is not None:
            self.flat_chunk.step([g], values_of(now, flat.slot), seed, self.number, measured=False)
        else:
            step_alone(flat.slot, g, flat.slot.whole(seed, self.number), now)
        torch.autograd.graph.increment_version([slot.p for slot in self.slots])

    def _step_compiled(self, now: Now, seed: int, measured: bool) -> Measured:
        found: Measured = []
        values = values_of(now, self.slots[0]) if self.chunks else torch.empty(0)
        for chunk in self.chunks:
            gs = chunk.gradients()
            gs = [g if g.is_contiguous() else g.contiguous() for g in gs]
            sums = chunk.step(gs, values, seed, self.number, measured=measured)
            found += zip(chunk.slots, sums, strict=False)  # no sums if not measured
        return found

    def _step_eagerly(self, now: Now, seed: int, measured: bool) -> Measured:
        found: Measured = []
        for run in self.small:
            if measured or len(run) == 1:
                found += self._step_each(run, now, seed, measured)
            else:
                whole = run[0].whole(seed, self.number)
                step_together(run, [slot.gradient() for slot in run], whole, now)
        for run in self.coupled:
            gs, wholes = [slot.gradient() for slot in run], [slot.whole(seed, self.number) for slot in run]
            found += zip(run, step_coupled(run, gs, wholes, now, measured=measured), strict=False)
        return found + self._step_each(self.alone, now, seed, measured)

    def _step_each(self, slots: Sequence[Slot], now: Now, seed: int, measured: bool) -> Measured:
        found: Measured = []
        for slot in slots:
            sums = step_alone(slot, slot.gradient(), slot.whole(seed, self.number), now, measured=measured)
            if sums is not None:
                found.append((slot, sums))
        return found


def _alike(slots: Sequence[Slot]) -> Iterable[list[Slot]]:
    alike: dict[Any, list[Slot]] = {}
    for slot in slots:
        assert slot.p.grad is not None
        dtypes = [tensor.dtype for tensor in (slot.p, slot.p.grad, *(slot.state[name] for name in slot.stored))]
        key = (id(slot.group), *dtypes, slot.p.device, slot.total, slot.state["step"].item())
        alike.setdefault(key, []).append(slot)
    return alike.values()
