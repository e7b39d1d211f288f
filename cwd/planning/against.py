"""Forecasts beside what happened: the time of artifacts whose runs are recorded, from what was known before they began.

Nothing is stored for it: the records say when each run began, so the forecast of then can be made again, from the runs
that had ended by then and from the ladder. The runs that are forecast take no part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.evidence.artifact_files import artifact_names, load_artifact
from cwd.evidence.document import Document, Table
from cwd.evidence.study import State, Study
from cwd.planning.forecast import PAUSE, Forecaster, Past, Total, ladder_seconds, past_runs, total
from cwd.planning.words import duration

FILLED = 0.8  # of the cores' time: below it other runs had a part of it, and the wall time says nothing
COLUMNS = ("artifact", "size", "runs", "ended before", "forecast", "took", "ratio", "forecast from")


@dataclass(frozen=True)
class Outcome:
    """The recorded runs of an artifact, or of one of its sizes.

    Attributes:
        runs: that count: they went through in one go, on one core.
        before: runs that had ended on the same machine when the first of the artifact began.
        forecast: core seconds, from those and the ladder.
        took: core seconds.
        wall: (forecast, took) seconds from the first beginning to the last end, pauses left out; None where other runs
            were made at the same time.
    """

    artifact: str
    size: str
    runs: int
    before: int
    forecast: Total
    took: float
    wall: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """Forecast by what it took; None where nothing was known of some run."""
        return self.forecast.seconds / self.took if not self.forecast.unknown else None


def outcomes(names: Sequence[str], scale: str, runs: Path) -> list[Outcome]:
    """Of each artifact that has runs under `runs`: its sizes and, last, the whole of it (size "").

    Raises:
        UserError: no such artifact or scale, or no run that counts.
    """
    for name in names:
        load_artifact(name)
    study = Study(scale, runs)
    states = {name: study.state(name) for name in artifact_names()}
    past = {one.key: one for one in past_runs(runs, "cpu", anywhere=True)}
    ladder = ladder_seconds(list(states.values()))
    found = [one for name in names or states for one in _outcomes(states[name], past, ladder)]
    if not found:
        raise UserError(
            f"{' '.join(names) or 'every artifact'}: no run of it under {runs} was done in one go on a core"
        )
    return found


def _outcomes(
    state: State, past: Mapping[str, Past], ladder: Sequence[tuple[Mapping[str, Any], float]]
) -> list[Outcome]:
    sizes = {key: size for key, size in _keys(state) if key in past}
    host, _ = Counter(past[key].worker[0] for key in sizes).most_common(1)[0] if sizes else ("", 0)
    own = {key: size for key, size in sizes.items() if past[key].worker[0] == host}
    if not own:
        return []
    first = min(past[key].started for key in own)
    before = [one for one in past.values() if one.worker[0] == host and one.ended <= first and one.key not in own]
    workers = {past[key].worker for key in own}
    forecaster = Forecaster(before, ladder)
    between, _ = Forecaster([one for one in past.values() if one.worker in workers]).between

    def outcome(size: str, keys: Sequence[str], whole: bool) -> Outcome:
        chosen = [past[key] for key in keys]
        forecast = total(forecaster, [one.config for one in chosen])
        took = sum(one.seconds + between for one in chosen)
        wall = _wall(chosen, forecast, took) if whole else None
        return Outcome(state.artifact.name, size, len(chosen), len(before), forecast, took, wall)

    rows = [outcome(size, [key for key in own if own[key] == size], False) for size in dict.fromkeys(own.values())]
    return [*(rows if len(rows) > 1 else []), outcome("" if len(rows) > 1 else rows[0].size, list(own), True)]


def _keys(state: State) -> Iterable[tuple[str, str]]:
    """(key, size) of every run that the artifact asks for and that has a record."""
    for point in (*state.bases, *state.points, *state.tuning):
        for cell in point.cells.values():
            if cell.record:
                yield cell.record.key, str(point.coordinates["size"])


def _wall(runs: Sequence[Past], forecast: Total, took: float) -> tuple[float, float] | None:
    """(forecast, took), on as many cores as worked on the runs at once; None if other runs had a part of their time."""
    cores = max(sum(one.started <= run.started < one.ended for one in runs) for run in runs)
    wall, end = 0.0, float("-inf")
    for run in sorted(runs, key=lambda run: run.started):
        wall += max(0.0, run.ended - (max(end, run.started) if run.started - end < PAUSE else run.started))
        wall += max(0.0, run.started - end) if run.started - end < PAUSE else 0.0
        end = max(end, run.ended)
    return (forecast.seconds / cores, wall) if took > FILLED * wall * cores else None


def against_page(names: Sequence[str], scale: str, runs: Path) -> Document:
    """The outcomes as tables."""
    found = outcomes(names, scale, runs)
    whole = [one for one in found if one.wall is not None]
    tables = [Table("Core time of recorded runs", COLUMNS, tuple(map(_row, found)), 2)]
    if whole:
        rows = tuple((one.artifact, *_times(*one.wall)) for one in whole if one.wall)
        tables.append(Table("Wall time", ("artifact", "forecast", "took", "ratio"), rows, 1))
    return Document("plan_against", f"forecasts against runs, {scale} scale", (), tuple(tables), REMARKS, _data(found))


REMARKS = (
    "Forecast: as it would have been when the first run of the artifact began, from the runs that had ended on that "
    "machine and the ladder's seconds; the artifact's own runs take no part. If the ladder's seconds were measured on "
    "these very runs, it knows them.",
    "Took: the seconds of each run and those between two runs of a worker. Only runs that went through in one go.",
    "Wall time: where no others were made at the same time; pauses of more than half a minute are left out.",
)


def _row(one: Outcome) -> tuple[str, ...]:
    counts = (f"{one.runs:,}", f"{one.before:,}")
    return (
        one.artifact,
        one.size,
        *counts,
        *_times(one.forecast.seconds, one.took, one.ratio is None),
        str(one.forecast),
    )


def _times(forecast: float, took: float, unknown: bool = False) -> tuple[str, str, str]:
    return ("-", duration(took), "-") if unknown else (duration(forecast), duration(took), f"{forecast / took:.2f}")


def _data(found: Sequence[Outcome]) -> dict[str, Any]:
    rows = [
        {
            **{name: getattr(one, name) for name in ("artifact", "size", "runs", "before", "took", "ratio", "wall")},
            "forecast": one.forecast.seconds,
            "sources": one.forecast.sources,
        }
        for one in found
    ]
    return {"outcomes": rows}
