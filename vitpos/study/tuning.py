"""Tuning: each variant's choice from a small grid, by validation accuracy on seeds that judge nothing."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vitpos.errors import VitposError

if TYPE_CHECKING:
    from vitpos.study.plan import Run, Study
    from vitpos.study.results import Results

METRIC = "val/accuracy"


@dataclass(frozen=True)
class Choice:
    """What tuning chose for one variant.

    Attributes:
        axes: The variant.
        values: The chosen value of each key; None until its trials are through, or where there is an error.
        scores: Mean validation accuracy of each point of the grid over the tuning seeds; None where a trial failed or
            is missing, so that the point cannot be chosen.
        edge: Keys whose value is the least or the greatest of several numbers: the best may lie outside the grid.
        error: Why nothing can be chosen; empty otherwise.
        used: Whether runs were made with it. Then it stands, and failed trials are not tried again.
    """

    axes: dict[str, Any]
    values: dict[str, Any] | None
    scores: tuple[tuple[dict[str, Any], float | None], ...]
    edge: tuple[str, ...] = ()
    error: str = ""
    used: bool = False


def grid(tune: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Crosses the values of all tuned keys, the last key fastest; nothing where nothing is tuned."""
    if not tune:
        return []
    return [dict(zip(tune, values, strict=True)) for values in itertools.product(*tune.values())]


def tuning_seeds(seeds: Sequence[int], given: Sequence[int]) -> list[int]:
    """Returns the seeds for tuning: those given, else the first from 1000 on that judges nothing.

    Raises:
        VitposError: One of those given is among the study's seeds: what is chosen on it would be judged on it.
    """
    for seed in given:
        if seed in seeds:
            raise VitposError(f"tune_seeds and seeds both name {seed}: a value must not be judged on what chose it")
    return list(given) or [next(seed for seed in itertools.count(1000) if seed not in seeds)]


def choices(study: "Study", results: "Results") -> list[Choice]:
    """Chooses for each variant the point of the grid with the best mean validation accuracy; of equals the first.

    A choice that runs were made with stands, whatever became of its trials since.

    Args:
        study: The study.
        results: Its results.

    Returns:
        A choice for each variant, in the order of the plan; nothing where nothing is tuned.
    """
    points = grid(study.tune)
    variants = {repr(run.axes): run.axes for run in study.runs} if points else {}
    return [choose(study, results, axes, points) for axes in variants.values()]


def choose(study: "Study", results: "Results", axes: dict[str, Any], points: list[dict[str, Any]]) -> Choice:
    """Chooses for one variant (see `choices`)."""
    trials = [run for run in study.trials if run.axes == axes]
    outcome = [(trial, results.row(trial)) for trial in trials]
    scores = []
    for point in points:
        rows = [row for trial, row in outcome if trial.trial == point]
        values = [row["metrics"][METRIC] for row in rows if row]
        # equal counts of images may differ in the last digits of their mean over batches
        scores.append((point, round(sum(values) / len(rows), 6) if len(values) == len(rows) else None))
    found = Choice(axes, None, tuple(scores))
    ours = [run for run in study.runs if run.axes == axes]
    for point in points:
        made = [results.row(run.with_choice(point)) for run in ours]
        if any(row and row.get("tuned") == point for row in made):
            return replace(found, values=point, edge=at_edge(point, study.tune), used=True)
    failures = [results.failure(trial) for trial, row in outcome if not row]
    if None in failures:  # not through yet
        return found
    known = [(score, point) for point, score in scores if score is not None]
    if not known:
        count, why = len(failures), next(failure["error"] for failure in failures if failure)
        error = f"no value of {', '.join(study.tune)} can be chosen: {count} of {len(trials)} trials failed ({why})"
        return replace(found, error=error)
    best = max(known, key=lambda pair: pair[0])[1]
    return replace(found, values=best, edge=at_edge(best, study.tune))


def at_edge(point: Mapping[str, Any], tune: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Names the keys whose value is the least or the greatest of several numbers."""
    found = []
    for key, value in point.items():
        try:
            numbers = [float(other) for other in tune[key] if not isinstance(other, bool)]  # YAML reads 1e-3 as text
            if len(numbers) > 1 and float(value) in (min(numbers), max(numbers)):
                found.append(key)
        except (TypeError, ValueError):
            continue  # no numbers, no edge
    return tuple(found)


def settle(study: "Study", results: "Results") -> "Study":
    """Puts what tuning has chosen so far into the runs of a study; without tuning it stays as it is."""
    chosen = {repr(choice.axes): choice for choice in choices(study, results)}
    if not chosen:
        return study

    def settled(run: "Run") -> "Run":
        choice = chosen[repr(run.axes)]
        if choice.values is None:
            return replace(run, blocked=choice.error)
        return run.with_choice(choice.values, choice.edge)

    return replace(study, runs=tuple(settled(run) for run in study.runs))


def to_do(study: "Study", results: "Results") -> "list[Run]":
    """Returns the trials that have no result, but for variants whose choice is in use."""
    used = [choice.axes for choice in choices(study, results) if choice.used]
    return [trial for trial in study.trials if trial.axes not in used and results.row(trial) is None]
