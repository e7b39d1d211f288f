"""Paired statistics: two arms of one seed share initial weights and batches, so their difference is what is
measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences with its confidence interval; the bounds are None for fewer than two pairs.

    ``sd`` is the standard deviation of the differences over seeds.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Mean of ``a[i] - b[i]`` with Student's t interval, n - 1 degrees of freedom.

    Raises:
        ValueError: no pairs, or sequences of different lengths.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"pairs are needed: {len(a)} values against {len(b)}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n, mean = len(differences), fmean(differences)
    if n < 2:
        return PairedDifference(mean, None, None, None, n)
    from scipy.stats import t

    sd = stdev(differences)
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
    return PairedDifference(mean, mean - half, mean + half, sd, n)
