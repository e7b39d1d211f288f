"""Documents: an artifact with its table or figure, its findings and what must be said beside them; and the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cwd.evidence.claims import Finding
from cwd.evidence.document import Document, Figure, Table
from cwd.evidence.figures import build_figure
from cwd.evidence.study import State
from cwd.evidence.tables import (
    check_tables,
    findings_tables,
    grid_tables,
    items_tables,
    ledger_table,
    values_of,
    where_of,
)
from cwd.evidence.theory import paths_figure

METHOD = (
    "Paired by seed: both arms share initial weights and batches. p: Student's t, two-sided, Holm over all comparisons "
    "of the table; supported or contradicted below 0.05. Bootstrap: percentiles of 9,999 resamples of the seeds. "
    "Seeds needed: the least n at which a t test at 0.05 over the number of comparisons finds the published effect "
    "with power 0.8, P(T' > t) of the noncentral t with n - 1 degrees of freedom and noncentrality "
    "effect * sqrt(n) / sd, with the sd measured here."
)
BAND = (
    "Lines: means over seeds. Band: one standard deviation over seeds, after each seed's mean over the lines is taken "
    "out (Cousineau and Morey), as the arms are paired."
)
ITEMS = (
    "Items: a minus b over the same items, each task counting alike; the interval is the normal one of a stratified "
    "mean. It says what the items decide between two models of one seed; the verdicts are by seed."
)
SMOKE = "SMOKE, NO EVIDENCE: it proves that the plumbing works, and nothing else"


def document(state: State) -> Document:
    """The artifact as it is now."""
    artifact = state.artifact
    parts: list[Table | Figure] = []
    if artifact.kind == "table":
        parts += grid_tables(state)
    elif artifact.kind == "figure":
        parts.append(build_figure(state))
    if artifact.kind == "theory":
        parts += check_tables(artifact.layout, state.checks)
        parts += paths_figure(state.artifact, state.checks)
    parts += [*findings_tables(state.findings), *items_tables(state)]
    remarks = tuple(_remarks(state))
    return Document(artifact.name, artifact.title, tuple(_marks(state)), tuple(parts), remarks, _data(state))


def ledger(states: Sequence[State]) -> Document:
    """Every claim of the artifacts with its verdict."""
    states = [state for state in states if state.artifact.ledger]
    scale = states[0].scale
    marks = (SMOKE,) if scale == "smoke" else ()
    warnings = [f"{choice}" for choice in _choices(states) if "EDGE" in choice]
    title = f"The ledger: every claim, {scale} scale"
    data = {"scale": scale, "artifacts": [_data(state) for state in states]}
    remarks = (*warnings, *_judged_apart(states), METHOD)
    return Document("ledger", title, marks, (ledger_table(states),), remarks, data)


def _judged_apart(states: Sequence[State]) -> list[str]:
    """The comparisons that several tables make of the same runs, with other verdicts, as each table corrects for its
    own comparisons: a reader of the ledger must not take one of them for a second experiment.
    """
    judged: dict[Any, dict[str, Finding]] = {}
    for state in states:
        for one in state.findings:
            if one.p is not None:
                what = one.claim.test, one.claim.metric, one.claim.expect, one.claim.bound
                judged.setdefault((what, tuple(sorted(one.runs.items()))), {})[state.artifact.name] = one
    lines = []
    for found in judged.values():
        by_verdict: dict[str, list[str]] = {}
        for name, one in found.items():
            by_verdict.setdefault(one.verdict, []).append(name)
        if len(by_verdict) > 1:
            where = max(map(where_of, found.values()), key=len)
            told = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in by_verdict.items())
            lines.append(f"The same runs, judged beside more or fewer other comparisons: {where}: {told}.")
    return lines


def _choices(states: Sequence[State]) -> list[str]:
    return list(dict.fromkeys(str(choice) for state in states for choice in state.choices))


def _marks(state: State) -> list[str]:
    marks = [SMOKE] if state.scale == "smoke" and state.artifact.kind != "theory" else []
    for needs in state.needs:
        marks.append(f"needs {needs}, no runs yet")
    unfinished = [one for one in state.unfinished if one != "diverged"]
    if unfinished:
        total = sum(len(point.cells) for point in state.points) + len(state.checks)
        counts = ", ".join(f"{unfinished.count(name)} {name}" for name in sorted(set(unfinished)))
        marks.append(f"INCOMPLETE: of {total} runs, {counts}")
    return marks


def _remarks(state: State) -> list[str]:
    lines = [f"The paper: {state.artifact.paper}."] if state.artifact.paper else []
    lines += [BAND] if state.artifact.kind == "figure" else []
    lines += [f"{claim.id}: {claim.says} Computed: {claim.means}." for claim in state.artifact.claims]
    notes = [f"{one.claim.id} {where_of(one)}: {note}" for one in state.findings for note in one.notes]
    lines += dict.fromkeys(note for note in notes if "needs " not in note)
    if state.searches:
        lines.append("Each arm at its own best, of a search on tuning seeds, which no claim reports:")
        lines += map(str, state.searches)
    if state.choices:
        budget = (
            f"The rate and the tuned lambda come from decoupled decay ({state.search_runs} runs in the tuning's grid)"
        )
        lines.append(
            f"{budget}; cautious decay reuses them. Own lambdas, chosen on tuning seeds, which no claim reports:"
        )
        lines += [str(choice) for choice in state.choices]
    if state.suite is not None:
        shots = ", ".join(f"{one.task} ({state.suite.shots(one)}-shot {one.metric})" for one in state.suite.tasks)
        lines += [f"Suite {state.suite.name}, {state.suite.about}: {shots}.", ITEMS]
    if any(one.claim.test != "check" for one in state.findings):
        lines.append(METHOD)
    return lines + _small(state) + _left_out(state)


def _small(state: State) -> list[str]:
    """Small scale is not the paper's scale."""
    done = [cell for point in state.points for cell in point.cells.values() if cell.summary]
    if state.scale == "paper" or not done:
        return []
    images = any("images" in (cell.summary or {}) for cell in done)
    unit = "images" if images else "tokens"
    paper = "22M to 87M and see 384 million" if images else "111M to 2.3B and see billions"
    counts, seen = ([cell.summary.get(name, 0) / 1e6 for cell in done if cell.summary] for name in ("parameters", unit))
    return [
        f"Small scale is not the paper's scale: here models of {min(counts):.2g}M to {max(counts):.2g}M parameters see "
        f"{min(seen):.2g}M to {max(seen):.2g}M {unit}; the paper's have {paper}. Sign and size may change."
    ]


def _left_out(state: State) -> list[str]:
    count = sum(cell.left_out for point in state.points for cell in point.cells.values())
    return [f"Left out: {count} runs of the same settings on other data."] if count else []


def _data(state: State) -> dict[str, Any]:
    """The artifact for JSON: every cell and finding, unrounded, with the keys of its runs."""
    artifact = state.artifact
    smoke = state.scale == "smoke" and artifact.kind != "theory"
    return {
        "artifact": artifact.name,
        "title": artifact.title,
        "scale": state.scale,
        "evidence": not smoke,
        "unfinished": len(state.unfinished),
        "needs": state.needs,
        "cells": [
            {
                "coordinates": point.coordinates,
                "runs": {str(seed): cell.record.key for seed, cell in point.cells.items() if cell.record},
                "values": {name: {str(s): v for s, v in values_of(point, name).items()} for name in _finals(state)},
            }
            for point in state.points
        ],
        "claims": [_finding_data(one) for one in state.findings],
        "own_lambdas": [vars(choice) for choice in state.choices],
    }


def _finals(state: State) -> list[str]:
    """The layout's metrics that are one number a run."""
    layout = state.artifact.layout
    return [] if state.artifact.kind == "figure" and layout.x == "step" else list(layout.metrics)


def _finding_data(one: Finding) -> dict[str, Any]:
    return {
        "claim": one.claim.id,
        "says": one.claim.says,
        "means": one.claim.means,
        "where": one.coordinates,
        "verdict": one.verdict,
        "seeds": one.planned,
        "values": {str(seed): value for seed, value in one.values.items()},
        "runs": {str(seed): list(keys) for seed, keys in one.runs.items()},
        "estimate": vars(one.estimate) if one.estimate else None,
        "effect_in_sd": one.effect_in_sd,
        "p_holm": one.p,
        "published": one.published,
        "seeds_needed": one.seeds_needed,
        "measured": one.measured,
        "notes": list(one.notes),
    }
