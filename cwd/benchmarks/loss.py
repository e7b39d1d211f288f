"""Peak memory and time of the language models' loss with its gradients: by chunks of tokens, and all logits at once.

The head is Simply's, with bias and soft-cap, over random hidden states. With the paper's 100,864 classes and 4 x 2,048
tokens all logits at once need about 20 GB in float32: give a smaller batch where that is too much. See
cwd.benchmarks.memory for how memory is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwd.benchmarks.memory import peak_of
from cwd.benchmarks.report import Table, publish, read_names, read_options
from cwd.benchmarks.workload import device
from cwd.models.loss import linear_cross_entropy, softcap

OPTIONS: dict[str, int | str] = {
    "batch": 4,
    "length": 2048,
    "classes": 100_864,
    "width": 64,
    "precision": "fp32",
    "ways": "",
    "threads": 2,
    "markdown": "",
}
CAP = 30.0
NOTE = (
    "Loss, gradients of the hidden states, of the head's weight and of its bias. Logits: in units of one float32 "
    "tensor of all logits. Target: by chunks at most a quarter of the peak of all logits at once."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    precision = read_names(options, "precision", ("fp32", "bf16"))[0]
    torch.set_num_threads(options["threads"])
    tokens = options["batch"] * options["length"]
    title = f"{options['batch']} x {options['length']} tokens, {options['classes']:,} classes, width {options['width']}"
    table = Table(f"Loss of {title}, {precision}", ["way", "peak, MiB", "logits", "seconds"], [NOTE])
    for way in read_names(options, "ways", WAYS):
        name, loss = WAYS[way]
        action = _forward_and_backward(loss, options, precision == "bf16")
        peak, seconds = peak_of(action), _seconds(action)
        logits = 4 * tokens * options["classes"]
        table.add(name, f"{peak / 2**20:,.0f}", f"{peak / logits:.2f}", f"{seconds:.1f}")
    publish("loss", "Loss of a language model", arguments, [table], options["markdown"])


def _by_chunks(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, head, targets, CAP).loss / targets.numel()


def _plain(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    logits = softcap(head(hidden), CAP).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


WAYS = {"chunks": ("by chunks", _by_chunks), "whole": ("all logits at once", _plain)}


def _forward_and_backward(loss: Any, options: dict[str, Any], bfloat16: bool) -> Callable[[], None]:
    shape, classes, where = (options["batch"], options["length"]), options["classes"], device()
    head = nn.Linear(options["width"], classes, device=where)
    hidden = torch.randn(*shape, options["width"], device=where, requires_grad=True)
    targets = torch.randint(classes, shape, device=where)

    def action() -> None:
        for tensor in (hidden, *head.parameters()):
            tensor.grad = None
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=bfloat16):
            value = loss(hidden, head, targets)
        value.backward()

    return action


def _seconds(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
