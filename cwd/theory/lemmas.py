"""Two lemmas behind Theorem 1, on what the library's AdamW does  (CWD paper, Appendix E)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cwd.optim import AdamW, Observation
from cwd.theory.objectives import Array

BETAS = [(0.9, 0.9), (0.9, 0.95), (0.9, 0.99), (0.9, 0.999), (0.0, 0.999)]


def check_lemmas(seed: int, steps: int) -> dict[str, Any]:
    """|mhat| / (sqrt(vhat) + eps) <= C = sqrt((1 - beta1) / (1 - beta2)), and, for m and any g,
    |(1[m x >= 0] - 1[g x >= 0]) x| <= 1[m g <= 0] |x|.

    Both along random gradients, of which a third are zero; the first also along the gradients that make the ratio
    largest at the last step. Ratios are divided by C, so that the lemma says: at most 1, up to rounding.
    """
    rows, violations, checked = [], 0, 0
    for beta1, beta2 in BETAS:
        c = ((1 - beta1) / (1 - beta2)) ** 0.5
        ratio, broken, count = _drive(random_gradients(seed, steps, 64), (beta1, beta2))
        violations, checked = violations + broken, checked + count
        worst, *_ = _drive(worst_gradients(beta1, beta2, steps), (beta1, beta2))
        rows.append({"betas": [beta1, beta2], "C": c, "random_over_C": ratio / c, "worst_over_C": worst / c})
    return {"update": rows, "mask_violations": violations, "mask_checked": checked}


def random_gradients(seed: int, steps: int, dimension: int) -> Array:
    """(steps, dimension): normal numbers times 10 to a uniform power between -3 and 3, and zeros."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((steps, dimension))
    return normal * 10 ** generator.uniform(-3, 3, normal.shape) * (generator.random(normal.shape) > 1 / 3)


def worst_gradients(beta1: float, beta2: float, steps: int) -> Array:
    """(steps, 1): with w_k the weights of mhat and v_k those of vhat, g_k = w_k / v_k makes mhat^2 / vhat largest
    (Cauchy-Schwarz); up to a factor that is (beta1 / beta2)^(steps - k).
    """
    return np.maximum((beta1 / beta2) ** np.arange(steps - 1.0, -1.0, -1.0), 1e-100)[:, None]


def _drive(gradients: Array, betas: tuple[float, float]) -> tuple[float, int, int]:
    """Feeds gradients (steps, d) to AdamW. Returns the largest |u|, and how many of how many coordinates break the
    second lemma.
    """
    x = torch.linspace(-1, 1, gradients.shape[1], dtype=torch.float64).requires_grad_()
    optimizer = AdamW([x], 1e-3, betas, eps=1e-30, weight_decay=0.1, compile=False)
    largest, broken = 0.0, 0

    def observe(seen: Observation) -> None:
        nonlocal largest, broken
        u, g, value = (torch.sign(tensor) for tensor in (seen.u, seen.g, seen.x))  # u has m's sign
        differ = (u * value >= 0) != (g * value >= 0)
        broken += int(torch.sum(differ & (value != 0) & (u * g > 0)))
        largest = max(largest, float(torch.max(torch.abs(seen.u))))

    optimizer.observer = observe
    for gradient in gradients:
        x.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return largest, broken, gradients.size
