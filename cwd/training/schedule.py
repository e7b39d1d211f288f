"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from cwd.schema import WSD, Cosine, Schedule


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor on the peak rate at the update with 0-based number `step` of `steps`.

    Linear warmup over W = round(warmup * steps) updates, the first of which already moves (1 / W). Cosine, as in
    google-deepmind/simply: with t = step + 1 and p = (t - W) / (steps - W), end + (1 - end) * (1 + cos(pi p)) / 2, so
    that the last update has exactly end_factor. WSD: 1 until the last round(decay_fraction * steps) updates, then
    linear to end_factor.
    """
    warmup = round(schedule.warmup * steps)
    done = step + 1
    warm = min(done / warmup, 1.0) if warmup else 1.0
    return warm * _shape(schedule, done, steps, warmup)


def _shape(schedule: Schedule, done: int, steps: int, warmup: int) -> float:
    end = schedule.end_factor
    if isinstance(schedule, Cosine):
        progress = min(max((done - warmup) / max(steps - warmup, 1), 0.0), 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
    if isinstance(schedule, WSD):
        length = max(round(schedule.decay_fraction * steps), 1)
        progress = min(max((done - (steps - length)) / length, 0.0), 1.0)
        return 1 - (1 - end) * progress
    return 1.0
