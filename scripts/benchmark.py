"""Measures what the project costs. ``python scripts/benchmark.py trainer [key=value ...]``

trainer    tokens/s of the trainer against a bare loop over the same model and data with torch.optim.AdamW(fused=True),
           in one process, by turns; prints the ratio.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

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
    if sys.argv[1] != "trainer":
        raise UserError(f"{sys.argv[1]}: no such benchmark; allowed are trainer")
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


if __name__ == "__main__":
    door(main)
