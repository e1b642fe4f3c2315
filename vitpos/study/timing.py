"""What a run of a study costs in time on this machine: from its finished runs, else from a few steps of training."""

import statistics
from typing import Any

from vitpos.study.machine import cuda, name
from vitpos.study.plan import OPTION, Run, Study
from vitpos.study.results import Results


def estimate(study: Study, results: Results) -> tuple[float, str]:
    """Estimates the seconds of one run, the mean over all that are planned, or where the study tunes, of its trials.

    For a variant without a finished run it takes the mean of those that differ in their position alone, else of all.
    Where there are none at all, one position is measured at each point of the other axes.

    Args:
        study: The study.
        results: Its results. Rows from other hardware do not count.

    Returns:
        Seconds, as slow as a run is with as many beside it as there were, and in words where they come from. The study
        takes some ``seconds * runs / runs at a time``.

    Raises:
        VitposError: There is no row, and the data or a config is missing or wrong.
    """
    here = name("cuda" if cuda() else "cpu").split(",")[0]
    planned = study.trials or study.runs
    known: dict[str, list[float]] = {}
    rows = [row for row in results.stored() if row["environment"]["hardware"].split(",")[0] == here]
    for row in rows:
        for key in ("", repr(row["axes"]), repr(besides(row["axes"]))):
            known.setdefault(key, []).append(row["seconds"])
    if rows:
        count = f"{len(rows)} finished run{'s' if len(rows) > 1 else ''}"
        source = f"measured: mean of {count} of this study on this hardware"
    else:
        from vitpos.study import steps  # imports what trains

        first = {repr(besides(run.axes)): run for run in reversed(study.runs)}
        known = {key: [steps.measure(run)] for key, run in first.items()}
        source = f"estimated from {steps.STEPS} steps of {study.runs[0].axes['position']}, run alone"

    means = {key: statistics.mean(values) for key, values in known.items()}

    def seconds(run: Run) -> float:
        keys = (repr(run.axes), repr(besides(run.axes)), "")
        return next(means[key] for key in keys if key in means)

    return statistics.mean(map(seconds, planned)), source


def besides(axes: dict[str, Any]) -> dict[str, Any]:
    """Returns the axes that are not of the position."""
    return {key: value for key, value in axes.items() if key != "position" and not key.startswith(OPTION)}
