"""Tokens/s of the trainer against a bare loop over the same model and data with torch.optim.AdamW(fused=True), the same
loop compiled, and Hugging Face's Trainer, in one process, by turns.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from cwd.benchmarks.hf_trainer import hf_trainer_loop
from cwd.benchmarks.timing import Turn, ratio_of_neighbours, time_by_turns
from cwd.config import Config, identity
from cwd.data.batches import inputs_and_targets, rows
from cwd.runs import Record
from cwd.sweeps import compose_config
from cwd.training.memory import keep_freed_memory
from cwd.training.progress import Progress
from cwd.training.signals import Interrupts
from cwd.training.sources import load_tokens
from cwd.training.tasks.language import LanguageTask
from cwd.training.tracker import open_tracker
from cwd.training.trainer import Trainer

STEPS, PIECES = 40, 8  # updates in a piece, pieces of each kind that count


def main(arguments: Sequence[str]) -> None:
    """`arguments` are overrides of the configuration, as for train.py."""
    config = compose_config(["decay=decoupled", "tracker=none", "training.steps=100000", *arguments])
    with tempfile.TemporaryDirectory() as folder:
        _benchmark(config, Path(folder))


def _benchmark(config: Config, folder: Path) -> None:
    assert config.training.seq_len is not None
    keep_freed_memory()  # for both
    loops = {
        "trainer": trainer_loop(config, folder),
        "bare loop": bare_loop(config),
        "bare loop, compiled": bare_loop(config, compiled=True),
        "Hugging Face Trainer": hf_trainer_loop(config, build(config), folder),
    }
    times = time_by_turns([Turn(_piece(advance)) for advance in loops.values()], PIECES, warmups=1)
    tokens = 1e3 * STEPS * config.training.batch_size * config.training.seq_len
    for name, found in zip(loops, times, strict=True):
        speeds = [tokens / milliseconds for milliseconds in found]
        spread = f"({min(speeds):,.0f} to {max(speeds):,.0f} over {PIECES} pieces)"
        ratio = ratio_of_neighbours(found, times[0])  # of speeds: the other's time over the trainer's
        print(f"{name:<20} {median(speeds):>10,.0f} tokens/s   {spread}   trainer / it: {ratio}")


def _piece(advance: Callable[[], None]) -> Callable[[], None]:
    def piece() -> None:
        for _ in range(STEPS):
            advance()

    return piece


def trainer_loop(config: Config, folder: Path) -> Callable[[], None]:
    """One update of the real trainer, with its metrics, telemetry and checkpoints, without evaluations."""
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


def build(config: Config) -> nn.Module:
    """The configured model with the seed's weights, where the configuration trains it."""
    device = "cuda" if torch.cuda.is_available() and config.machine.device != "cpu" else "cpu"
    torch.manual_seed(config.seed)
    return LanguageTask(config, load_tokens(config, print)).build_model().to(device)


def bare_loop(config: Config, compiled: bool = False) -> Callable[[], None]:
    """One update as anybody would write it; `compiled`: forward and loss as one graph of torch.compile."""
    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    tokens, training, model = load_tokens(config, print).tokens("train"), config.training, build(config)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, fused=True)
    assert training.seq_len is not None
    length, step = training.seq_len, 0

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def advance() -> None:
        nonlocal step
        picked = rows(tokens, seed=0, step=step, batch_size=training.batch_size, seq_len=length)
        inputs, targets = (torch.from_numpy(array).to(device) for array in inputs_and_targets(picked))
        forward(inputs, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        step += 1

    return advance
