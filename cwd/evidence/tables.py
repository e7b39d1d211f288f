"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cwd.errors import UserError
from cwd.evidence.grid import Cell, check_paired
from cwd.evidence.listing import flatten
from cwd.evidence.published import table10_difference
from cwd.evidence.statistics import PairedDifference, paired_difference

OPTIMIZERS = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon", "sgd": "SGD"}


def terminal() -> Console:
    """The terminal as it is; 160 columns where there is none, so that a file or a pipe gets whole tables."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_comparison(cells: Sequence[Cell], baseline: str, arm: str, console: Console | None = None) -> None:
    """For each optimizer: mean loss of both arms, their paired difference with its 95% interval, and the published one
    (338M).

    Only seeds of which both arms are done count; what is missing is said below the table.
    """
    console = console or terminal()
    smoke = "SMOKE, NO EVIDENCE. " if _is_smoke(cells) else ""
    title = f"{smoke}Final validation loss (nats per token), {arm} against {baseline} decay"
    table = Table(title=title, title_justify="left")
    for name in ("optimizer", "lambda", "seeds", baseline, arm, "difference", "95% interval", "published, 338M"):
        table.add_column(name, justify="left" if name == "optimizer" else "right", no_wrap=True)
    for optimizer in dict.fromkeys(cell.identity["optimizer"]["name"] for cell in cells):
        table.add_row(*_row([cell for cell in cells if cell.identity["optimizer"]["name"] == optimizer], baseline, arm))
    console.print(table)
    for line in _remarks(cells):
        console.print(line, highlight=False, soft_wrap=True)


def _row(cells: Sequence[Cell], baseline: str, arm: str) -> list[str]:
    first = cells[0].identity
    _check_one_comparison(cells)
    pairs = _pairs(cells, baseline, arm)
    head = [OPTIMIZERS[first["optimizer"]["name"]], f"{first['decay']['weight_decay']:g}", str(len(pairs))]
    published = table10_difference("338m", first["optimizer"]["name"])
    tail = "-" if published is None or _is_smoke(cells) else f"{published:+.4f}"
    if not pairs:
        return [*head, "-", "-", "-", "-", tail]
    theirs, ours = [a for a, _ in pairs], [b for _, b in pairs]
    difference = paired_difference(ours, theirs)
    means = [f"{sum(losses) / len(losses):.4f}" for losses in (theirs, ours)]
    if _is_smoke(cells):
        return [*head, *means, "-", "-", tail]
    return [*head, *means, f"{difference.mean:+.4f}", _interval(difference), tail]


def _pairs(cells: Sequence[Cell], baseline: str, arm: str) -> list[tuple[float, float]]:
    """(baseline loss, arm loss) of each seed that has both."""
    by_arm = {(cell.identity["decay"]["mode"], cell.identity["seed"]): cell for cell in cells}
    pairs = []
    for seed in sorted({cell.identity["seed"] for cell in cells}):
        a, b = by_arm.get((baseline, seed)), by_arm.get((arm, seed))
        if a is not None and b is not None and a.loss is not None and b.loss is not None:
            check_paired(a, b)
            pairs.append((a.loss, b.loss))
    return pairs


def _check_one_comparison(cells: Sequence[Cell]) -> None:
    """Refuses cells that differ in more than the arm and the seed: a row would mix them."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in flatten(cell.identity):
            values.setdefault(name, set()).add(str(value))
    mixed = sorted(name for name, found in values.items() if len(found) > 1 and name not in ("decay.mode", "seed"))
    if mixed:
        name = cells[0].identity["optimizer"]["name"]
        several = "; ".join(f"{key}: {', '.join(sorted(values[key]))}" for key in mixed)
        raise UserError(
            f"optimizer={name}: one row cannot mix runs of several settings ({several}); choose one of each"
        )


def _interval(difference: PairedDifference) -> str:
    if difference.low is None or difference.high is None:
        return "one pair: none"
    return f"[{difference.low:+.4f}, {difference.high:+.4f}]"


def _is_smoke(cells: Sequence[Cell]) -> bool:
    return any(cell.identity["scale"] == "smoke" for cell in cells)


def _remarks(cells: Sequence[Cell]) -> list[str]:
    first = cells[0].identity
    shape, training = first["model"], first["training"]
    millions = training["steps"] * training["batch_size"] * training["seq_len"] / 1e6
    lines = [
        "difference: cautious minus decoupled, mean over seeds; below zero favours cautious. Both arms of a seed share",
        "initial weights, batches and lambda. An interval that holds zero says: not resolved with these seeds.",
        "Small scale is not the paper's scale: here a model "
        f"{shape['hidden_size']} wide and {shape['num_hidden_layers']} layers deep sees {millions:.1f}M tokens;",
        "the paper's smallest in this table has 338M parameters and sees billions. Sign and size may change.",
    ]
    if _is_smoke(cells):
        lines.append("This is smoke scale: it proves that the plumbing works, and nothing else.")
    unfinished = [cell.state for cell in cells if cell.loss is None]
    if unfinished:
        counts = ", ".join(f"{unfinished.count(state)} {state}" for state in sorted(set(unfinished)))
        lines.append(f"Incomplete: of {len(cells)} runs, {counts}. A seed counts only where both of its arms are done.")
    diverged = [cell.identity for cell in cells if cell.state == "diverged"]
    if diverged:
        names = ", ".join(f"{one['optimizer']['name']} {one['decay']['mode']} seed {one['seed']}" for one in diverged)
        lines.append(f"Diverged, which no mean above shows: {names}.")
    left_out = sum(cell.left_out for cell in cells)
    if left_out:
        lines.append(f"Left out: {left_out} runs of the same settings on other data.")
    return lines
