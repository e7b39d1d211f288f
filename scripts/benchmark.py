"""Measures what the project costs. ``python scripts/benchmark.py trainer [key=value ...]``

trainer    tokens/s of the trainer against a bare loop over the same model and data with torch.optim.AdamW(fused=True),
           in one process, by turns; prints the ratio.
optimizers milliseconds of a step, cautious, against torch's own with plain decay, by turns: [threads=2]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from cwd.cli import door
from cwd.config import Config, identity
from cwd.errors import UserError
from cwd.sweeps import compose_config

STEPS, PIECES = 40, 9  # updates in a piece, pieces of each kind; the first piece of each is not counted


def main() -> None:
    """See the module's docstring."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    if sys.argv[1] == "optimizers":
        benchmark_optimizers(int(sys.argv[2].removeprefix("threads=")) if len(sys.argv) > 2 else 2)
        return
    if sys.argv[1] != "trainer":
        raise UserError(f"{sys.argv[1]}: no such benchmark; allowed are trainer, optimizers")
    config = compose_config(["decay=decoupled", "tracker=none", "training.steps=100000", *sys.argv[2:]])
    with tempfile.TemporaryDirectory() as folder:
        benchmark_trainer(config, Path(folder))


def benchmark_trainer(config: Config, folder: Path) -> None:
    """Times pieces of both by turns, as another process may slow the machine down at any time."""
    from cwd.training.memory import keep_freed_memory

    keep_freed_memory()  # for both
    kinds = {"bare loop": bare_loop(config), "trainer": trainer_loop(config, folder)}
    tokens = STEPS * config.training.batch_size * config.training.seq_len
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(PIECES):
        for name, advance in kinds.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                advance()
            speeds[name].append(tokens / (time.perf_counter() - start))
    for name, values in speeds.items():
        low, high = min(values[1:]), max(values[1:])
        print(
            f"{name:<10} {median(values[1:]):>10,.0f} tokens/s   ({low:,.0f} to {high:,.0f} over {PIECES - 1} pieces)"
        )
    ratios = [ours / bare for ours, bare in zip(speeds["trainer"][1:], speeds["bare loop"][1:], strict=True)]
    print(f"ratio      {median(ratios):>10.3f} (trainer / bare loop, median of neighbouring pieces)")


def trainer_loop(config: Config, folder: Path) -> Callable[[], None]:
    """One update of the real trainer, with its metrics, telemetry and checkpoints, without evaluations."""
    import dataclasses

    from accelerate import Accelerator

    from cwd.runs import Record
    from cwd.training.progress import Progress
    from cwd.training.signals import Interrupts
    from cwd.training.sources import load_tokens
    from cwd.training.tasks import LanguageTask
    from cwd.training.tracker import open_tracker
    from cwd.training.trainer import Trainer

    never = dataclasses.replace(config.evaluation, every=10**9)
    config = dataclasses.replace(config, evaluation=never)
    data = load_tokens(config, print)
    record = Record.create(folder, identity(config), {"fingerprint": data.fingerprint}, {})
    progress = Progress("none", config.training.steps, "tokens")
    tracker = open_tracker(config.tracker, config, record, print)
    accelerator = Accelerator(cpu=config.machine.device == "cpu")
    trainer = Trainer(config, LanguageTask(config, data), record, accelerator, progress, tracker, Interrupts())
    trainer.start()
    return trainer.advance


def bare_loop(config: Config) -> Callable[[], None]:
    """One update as anybody would write it."""
    import torch
    from torch.nn import functional as F

    from cwd.data.batches import inputs_and_targets, rows
    from cwd.training.sources import load_tokens
    from cwd.training.tasks import LanguageTask

    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    data, training = load_tokens(config, print), config.training
    device = "cuda" if torch.cuda.is_available() and config.machine.device != "cpu" else "cpu"
    torch.manual_seed(config.seed)
    model = LanguageTask(config, data).build_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, fused=True)
    tokens, step = data.tokens("train"), 0

    def advance() -> None:
        nonlocal step
        picked = rows(tokens, seed=0, step=step, batch_size=training.batch_size, seq_len=training.seq_len)
        inputs, targets = (torch.from_numpy(array).to(device) for array in inputs_and_targets(picked))
        loss = F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        step += 1

    return advance


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "38M in 19 tensors": [(2048, 1024)] * 18 + [(1024,)],
    "300 tensors of 10,000": [(100, 100)] * 300,
}


def benchmark_optimizers(threads: int) -> None:
    """A table of median step times; each step of ours comes right after one of torch's, which it is compared with."""
    import torch

    torch.set_num_threads(threads)
    for title, shapes in SHAPES.items():
        print(f"{title}, float32, {threads} threads: ms a step (ratio to torch's)")
        for name, ours, theirs in _contenders():
            if name.startswith("Muon") and any(len(shape) != 2 for shape in shapes):
                shapes = [shape for shape in shapes if len(shape) == 2]
            times = _time_by_turns([_stepper(make, shapes) for make in (ours, theirs)], 3 if "Muon" in name else 15)
            print(f"  {name:<34} {times[0]:>8.2f}  ({times[0] / times[1]:.2f} of {times[1]:.2f})", flush=True)


def _contenders() -> list[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    import torch

    from cwd.optim import SGD, AdamW, Lion, Muon

    def fused(params: Any) -> Any:
        return torch.optim.AdamW(params, lr=1e-9, weight_decay=0.1, fused=True)

    def torch_muon(params: Any) -> Any:
        return torch.optim.Muon(params, lr=1e-9, weight_decay=0.1)

    bf16 = torch.bfloat16
    return [
        ("AdamW compiled / torch AdamW fused", lambda p: AdamW(p, lr=1e-9, compile=True), fused),
        ("AdamW eager / torch AdamW fused", lambda p: AdamW(p, lr=1e-9, compile=False), fused),
        ("Lion compiled / torch AdamW fused", lambda p: Lion(p, lr=1e-9, compile=True), fused),
        ("SGD compiled / torch AdamW fused", lambda p: SGD(p, lr=1e-9, compile=True), fused),
        ("Muon bfloat16 / torch Muon", lambda p: Muon(p, lr=1e-9, ns_dtype=bf16), torch_muon),
        ("Muon float32 / torch Muon", lambda p: Muon(p, lr=1e-9), torch_muon),
    ]


def _stepper(make: Callable[..., Any], shapes: list[tuple[int, ...]]) -> Callable[[], Any]:
    import torch

    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return make(params).step


def _time_by_turns(steps: list[Callable[[], Any]], count: int) -> list[float]:
    """Median milliseconds of each, after two calls that do not count."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(count + 2):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            found.append((time.perf_counter() - start) * 1e3)
    return [median(found[2:]) for found in times]


if __name__ == "__main__":
    door(main)
