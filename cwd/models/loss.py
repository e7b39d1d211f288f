"""Next-token cross-entropy of a linear head, without the logits of all tokens and classes at once.

With 100,864 classes the logits of 4 x 2,048 tokens are 3.3 GB in float32, and training holds several tensors of that
size. Here they are made for a few hundred tokens at a time, and a chunk's gradient is taken while its logits are there:
nothing is computed twice, and only the gradients of the head's inputs stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**26  # logits at once: 256 MiB in float32
ALL_LOGITS = 2**27  # tokens x classes of a micro-batch above which the loss goes by chunks: 512 MiB in float32


class TokenLosses(NamedTuple):
    """Sums over tokens: `loss`, nats, 0-D float64; `correct`, how many targets are the most likely class, 0-D int64."""

    loss: Tensor
    correct: Tensor


class _Head(NamedTuple):
    """The head's tensors in the dtype that it computes in, and its soft-cap."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """`cap * tanh(x / cap)`, in the dtype of `x`; `x` itself where `cap` is None."""
    return x if cap is None else torch.tanh(x / cap) * cap


def linear_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor, cap: float | None = None) -> TokenLosses:
    """Cross-entropy of `softcap(head(hidden), cap)` with `targets`, summed, by chunks of tokens.

    As the plain computation to rounding: the product and the soft-cap have the dtype of the activations (of autocast,
    where that is on), what follows is at least float32. Gradients of the head are summed in at least float32, and have
    the head's dtype.

    Args:
        hidden: (B, T, D), what the head is applied to.
        head: its weight (V, D) and, where it has one, its bias (V).
        targets: int64 (B, T), each below V.
        cap: the soft-cap of the logits.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    if torch.is_grad_enabled():
        return TokenLosses(*_LinearCrossEntropy.apply(rows, head.weight, head.bias, wanted, cap))
    with torch.autocast(kind, enabled=False):
        return _without_gradients(rows, _in_dtype_of(rows, head.weight, head.bias, cap), wanted)


def accepts_targets(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a transformers causal model whose `lm_head` is linear, with one more argument: given `targets`
    (B, T), it returns their :class:`TokenLosses` in place of logits.

    The loss is a part of the forward, so that wrappers of the model (DDP, FSDP, torch.compile, autocast) see it.
    """

    @wraps(forward)  # generation looks at the signature
    def forward_or_losses(self: Any, *arguments: Any, targets: Tensor | None = None, **options: Any) -> Any:
        if targets is None:
            return forward(self, *arguments, **options)
        hidden = self.base_model(*arguments, **options).last_hidden_state
        return linear_cross_entropy(hidden, self.lm_head, targets)

    return forward_or_losses


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward, and multiplied by the gradient of the sum in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            losses, *gradients = _with_gradients(hidden, weight, bias, targets, cap)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses.correct)
        return losses.loss, losses.correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Any) -> Any:
        scaled = [None if gradient is None else gradient * factor.to(gradient.dtype) for gradient in ctx.saved_tensors]
        return *scaled, None, None


def _in_dtype_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> _Head:
    return _Head(weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype), cap)


def _chunks(hidden: Tensor, targets: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK // classes)
    for start in range(0, len(hidden), size):
        yield hidden[start : start + size], targets[start : start + size]


def _losses(hidden: Tensor, head: _Head, targets: Tensor) -> tuple[Tensor, Tensor, TokenLosses]:
    """Logits (n, V) after the soft-cap, at least float32; the log of their exponentials' sum (n, 1); the losses."""
    logits = softcap(F.linear(hidden, head.weight, head.bias), head.softcap)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = logits.logsumexp(dim=-1, keepdim=True)
    loss = (total - logits.gather(1, targets[:, None])).sum(dtype=torch.float64)
    return logits, total, TokenLosses(loss, (logits.argmax(dim=-1) == targets).sum())


def _without_gradients(hidden: Tensor, head: _Head, targets: Tensor) -> TokenLosses:
    found = [_losses(part, head, wanted)[2] for part, wanted in _chunks(hidden, targets, len(head.weight))]
    return _sum(found)


def _with_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None) -> Any:
    """The losses, and the gradients of their sum in `hidden`, `weight` and `bias`, each in its own dtype."""
    head = _in_dtype_of(hidden, weight, bias, cap)
    wide_enough = torch.promote_types(weight.dtype, torch.float32)  # a sum over chunks must not be rounded to bfloat16
    by_weight = torch.zeros_like(weight, dtype=wide_enough)
    by_bias = None if bias is None else torch.zeros_like(bias, dtype=wide_enough)
    found, by_hidden = [], []
    for part, wanted in _chunks(hidden, targets, len(weight)):
        logits, total, losses = _losses(part, head, wanted)
        wide = _gradient_of_logits(logits, total, wanted, cap)
        narrow = wide.to(hidden.dtype)
        by_hidden.append(narrow @ head.weight)
        if by_weight.dtype == hidden.dtype:
            by_weight.addmm_(narrow.T, part)
        else:
            by_weight.add_(narrow.T @ part)
        if by_bias is not None:
            by_bias.add_(wide.sum(dim=0))
        found.append(losses)
    of_bias = None if bias is None or by_bias is None else by_bias.to(bias.dtype)
    return _sum(found), torch.cat(by_hidden), by_weight.to(weight.dtype), of_bias


def _gradient_of_logits(logits: Tensor, total: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """The gradient (n, V) of the chunk's loss in what the soft-cap is applied to; `logits` are used up."""
    gradient = torch.exp(logits - total)
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    if cap is not None:
        gradient.mul_(logits.div_(cap).square_().neg_().add_(1.0))  # 1 - tanh^2
    return gradient


def _sum(found: list[TokenLosses]) -> TokenLosses:
    losses, correct = zip(*found, strict=True)
    return TokenLosses(torch.stack(losses).sum(), torch.stack(correct).sum())
