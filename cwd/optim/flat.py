"""Parameters, gradients and state of a group in one buffer each, so that a step is one pass however many tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.slots import Slot

ALIGNED = 16  # elements: each tensor begins at a multiple of them, as matrix products want it


def can_flatten(slots: Sequence[Slot]) -> bool:
    """Whether alike slots may lie in one buffer: elementwise rule and mode, plain contiguous tensors, more than one."""
    group = slots[0].group
    elementwise = not RULES[group["rule"]].matrices_only and MODES[group["decay"]].sums is None
    plain = all(type(slot.p) in (Tensor, torch.nn.Parameter) and slot.plain for slot in slots)
    real = not any(slot.p.is_complex() or slot.draws for slot in slots)
    return len(slots) > 1 and elementwise and plain and real


class Flat:
    """Moves the slots' tensors into flat buffers; parameters, state and gradients become views of them.

    ``slot`` is the whole of it, as one parameter.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        first = slots[0]
        self.params = [slot.p for slot in slots]
        p = self._move([slot.x for slot in slots])
        for slot, view in zip(slots, self._views(p), strict=True):
            slot.p.data = view
            slot.x = slot.p.detach()  # which counts its versions with it
        state = {"step": first.state["step"]}
        names = (*first.names, *(["anchor"] if isinstance(first.anchor, Tensor) else []))
        for name in names:
            state[name] = self._move([slot.state[name] for slot in slots])
            for slot, view in zip(slots, self._views(state[name]), strict=True):
                slot.state[name] = view
                if name == "anchor":
                    slot.anchor = view
                else:
                    slot.buffers[name] = view
        grads = [param.grad for param in self.params if param.grad is not None]
        self.g = self._move(grads)
        self.views = self._views(self.g)
        self.places = [view.data_ptr() for view in self.views]
        for param, view in zip(self.params, self.views, strict=True):
            param.grad = view
        self.slot = Slot(first.number, "flat", p, first.group, state)

    def gradient(self) -> Tensor:
        """The flat gradient; gradients that lie elsewhere are copied in."""
        grads = [param.grad for param in self.params if param.grad is not None]
        if list(map(Tensor.data_ptr, grads)) == self.places:
            return self.g
        places = enumerate(zip(grads, self.places, strict=True))
        elsewhere = [i for i, (grad, place) in places if grad.data_ptr() != place]
        if elsewhere:
            views = self._views_again()
            torch._foreach_copy_([views[i] for i in elsewhere], [grads[i] for i in elsewhere])
        return self.g

    def clear(self) -> None:
        """Sets the gradients to zero, in place: the next backward pass adds to them."""
        self.g.zero_()
        for param, view in zip(self.params, self._views_again(), strict=True):
            param.grad = view

    def _views_again(self) -> list[Tensor]:
        """The views of the gradients, made anew if the data of one was replaced: it is the parameter's gradient."""
        if [view.data_ptr() for view in self.views] != self.places:
            self.views = self._views(self.g)
        return self.views

    def _move(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = tensors[0].new_zeros(sum(_padded(tensor.numel()) for tensor in tensors))
        torch._foreach_copy_(self._views(flat), list(tensors))
        return flat

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Tensors on parts of `flat`, with storages of their own: what saves a model takes tensors of one storage for
        tied, and safetensors and accelerate then leave all but one of them out.
        """
        parts = flat.split([_padded(param.numel()) for param in self.params])
        views = [part[: param.numel()].view(param.shape) for part, param in zip(parts, self.params, strict=True)]
        return [torch.from_dlpack(view) for view in views]


def _padded(elements: int) -> int:
    return -(-elements // ALIGNED) * ALIGNED
