"""What the tests of docs/optimizers.md share: its blocks and tables, and the paper's algorithm as a torch optimizer."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests import optim_reference as reference
from tests.conftest import ROOT
from tests.optim_helpers import normal

PAGE = (ROOT / "docs" / "optimizers.md").read_text()


def blocks(language: str = "python") -> list[tuple[str, str]]:
    """(heading, content) of each block in `language`, in order."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ (.+)$|^```(\w+)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE):
        heading = match[1] or heading
        if match[2] == language:
            found.append((heading, match[3]))
    return found


def block(heading: str, number: int = 0, language: str = "python") -> str:
    """The content of a heading's block."""
    return [content for title, content in blocks(language) if title == heading][number]


def run_block(heading: str, number: int = 0, **given: Any) -> dict[str, Any]:
    """Runs a heading's code with the names that are given. Returns all names after it."""
    names = {"__name__": "recipe", **given}
    exec(compile(block(heading, number), f"docs/optimizers.md: {heading}", "exec"), names)
    return names


def rows(heading: str, *columns: str) -> list[dict[str, str]]:
    """The rows of the tables of a section whose first columns have these names, as {column: cell}."""
    section = re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE):
        header, _, *body = ([cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines())
        if tuple(header[: len(columns)]) == columns:
            found += [dict(zip(header, cells, strict=True)) for cells in body]
    return found


class Reference(torch.optim.Optimizer):
    """Algorithm 1 in float64 numpy; groups may differ in rule, mode, rate, lambda and the rule's own arguments."""

    def __init__(self, params, *, lr=1e-3, weight_decay=0.1, rule="adamw", mode="cautious", hyper=None) -> None:
        hyper = {"betas": (0.9, 0.95), "eps": 1e-8} if hyper is None else hyper
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "rule": rule, "mode": mode, "hyper": hyper})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "weight_decay", "hyper")}
            for p in group["params"]:
                if p.grad is not None:
                    x, g = p.double().numpy(), p.grad.double().numpy()
                    p.copy_(
                        torch.as_tensor(
                            reference.step(group["rule"], group["mode"], x, g, self.state[p], **settings)[0]
                        )
                    )


def network() -> torch.nn.Module:
    """6 numbers in, 3 classes out, in torch's default dtype."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 4 for :func:`network`."""
    dtype = torch.get_default_dtype()
    return [(normal(4, 6, seed=i, dtype=dtype), torch.arange(4).add(i).remainder(3)) for i in range(count)]


def loader(count: int) -> torch.utils.data.DataLoader:
    """The same, as a loader."""
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches(count), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in model.parameters()]
