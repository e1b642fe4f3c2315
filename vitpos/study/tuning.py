"""Tuning: for each variant and seed, the choice from a small grid by that seed's own validation accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitpos.study.plan import CHOSEN_BY, Choice, Run, Study
from vitpos.study.results import Results


def settle(study: Study, results: Results) -> Study:
    """Chooses for each variant and seed, and puts the chosen trials in the place of runs; else all stays as it is.

    The choice is made when all trials of the variant and seed are done or have failed, and falls on the best validation
    accuracy after the last epoch, of equals on the first. It follows from the results alone, so that it is the same
    wherever they are copied to.
    """
    if not study.tune:
        return study
    groups: dict[tuple[str, int], list[Run]] = {}
    for trial in study.trials:
        groups.setdefault((repr(trial.axes), trial.seed), []).append(trial)
    runs, choices = [], []
    for run in study.runs:
        trials = groups[repr(run.axes), run.seed]
        choice = choose(trials, study.tune, results)
        if choice.values is not None:
            run = next(trial for trial in trials if trial.trial == choice.values).chosen(choice.edge)
        runs.append(run if choice.values is not None else replace(run, blocked=choice.error))
        choices.append(choice)
    return replace(study, runs=tuple(runs), choices=tuple(choices))


def choose(trials: Sequence[Run], tune: Mapping[str, Sequence[Any]], results: Results) -> Choice:
    """Chooses from the trials of one variant and seed (see `settle`)."""
    scores, failures, missing = [], [], False
    for trial in trials:
        row = results.row(trial)
        accuracy = row["metrics"].get(CHOSEN_BY) if row else None
        # equal counts of images may differ in the last digits of their mean over batches
        scores.append((trial.trial, None if accuracy is None else round(accuracy, 6)))
        if row and accuracy is None:
            failures.append(f"no {CHOSEN_BY} after the last epoch")
        elif not row:
            failure = results.failure(trial)
            missing |= failure is None
            failures += [failure["error"]] if failure else []
    found = Choice(trials[0].axes, trials[0].seed, None, tuple(scores))
    known = [(score, point) for point, score in scores if score is not None]
    if missing:
        return found
    if not known:
        error = f"no value of {', '.join(tune)} can be chosen: all {len(trials)} trials failed ({failures[0]})"
        return replace(found, error=error)
    best = max(known, key=lambda pair: pair[0])[1]
    return replace(found, values=best, edge=at_edge(best, tune))


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


def chosen(choice: Choice) -> str:
    """Says what tuning chose for a variant and seed."""
    others = (f"{k}={v}" for k, v in choice.axes.items() if k != "position")
    name = ", ".join([choice.axes["position"], *others, f"seed {choice.seed}"])
    if choice.values is None:
        return f"tuning {name}: {choice.error or 'not yet chosen, trials are missing'}"
    values = ", ".join(
        f"{k}={v}" + (", the edge of its grid" if k in choice.edge else "") for k, v in choice.values.items()
    )
    lost = [", ".join(map(str, point.values())) for point, score in choice.scores if score is None]
    return f"tuning {name}: {values}" + (f"; no score for {'; '.join(lost)}" if lost else "")


def to_do(study: Study, results: Results) -> list[Run]:
    """Returns the trials of a settled study that have no result; failed ones only until the choice was tested."""
    tested = {(repr(run.axes), run.seed) for run in study.runs if results.row(run)}
    return [
        trial for trial in study.trials if results.row(trial) is None and (repr(trial.axes), trial.seed) not in tested
    ]
