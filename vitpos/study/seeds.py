"""Which seeds of a study are due, and how its statement has changed since there were results."""

import dataclasses
import itertools
from typing import Any

from vitpos.study import tuning
from vitpos.study.plan import Study, expand, read
from vitpos.study.results import Results
from vitpos.text import plural


def settle(study: Study, results: Results, step: int = 1) -> Study:
    """Returns a study as its results have it so far: with what tuning chose, and with the seeds that are due.

    Where seeds are added until settled, one looks after each seed of which all runs are through: as long as a
    comparison is undecided, the next seeds are due. Seeds that have results count, due or not.

    Args:
        study: The study, with all seeds that there may be.
        results: Its results.
        step: How many seeds are added at a time.
    """
    study = tuning.settle(study, results)
    if not study.comparison.start:
        return study
    whole, decided, all_ = look(study, results)
    due = study.comparison.start
    if whole >= due:
        due = whole if decided == all_ else min(whole + step, study.comparison.most)
    begun = {run.seed for run in (*study.runs, *study.trials) if results.row(run)}

    def kept(of: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each for each in of if each.seed < due or each.seed in begun)

    return dataclasses.replace(study, runs=kept(study.runs), trials=kept(study.trials), choices=kept(study.choices))


def look(study: Study, results: Results) -> tuple[int, int, int]:
    """Looks at the results of a study whose choices are made.

    Returns:
        How many seeds, from the first on, are through, how many comparisons they decide, and how many there are.
    """
    from vitpos.analysis.runs import frame
    from vitpos.analysis.verdict import verdicts

    rows = {run.hash: row for run in study.runs if (row := results.row(run))}
    waiting = {run.seed for run in study.runs if not (run.hash in rows or results.failure(run) or run.blocked)}
    through = {run.seed for run in study.runs} - waiting
    whole = next(seed for seed in itertools.count() if seed not in through)
    runs = [run for run in study.runs if run.seed < whole]
    planned = [{"axes": run.axes, "seed": run.seed} for run in runs]
    done = [{**rows[run.hash], "axes": run.axes} for run in runs if run.hash in rows]
    if not done:
        return whole, 0, 1
    failures = [each for run, each in zip(runs, planned, strict=True) if run.hash not in rows]
    state = whole, len(done), len(failures)
    if state not in results.looks:  # a command looks at the same results more than once
        found = verdicts(frame(done, study.comparison.metric), study.comparison, failures, planned)
        results.looks[state] = int((found["verdict"] != "undecided").sum()) if len(found) else 0, len(found)
    return whole, *results.looks[state]


def looked(study: Study, results: Results) -> str:
    """Says how far a study is whose seeds are added until all is decided."""
    whole, decided, comparisons = look(study, results)
    return f"after {plural(whole, 'seed')}: {decided} of {plural(comparisons, 'comparison')} decided"


def amend(study: Study, results: Results) -> tuple[Study, list[str]]:
    """Compares a study with its first statement, which is kept beside its results.

    Returns:
        The study with as many comparisons in its family as were stated at first, at least, and in words what was added
        or left out after there were results.
    """
    kept = results.folder / "study.yaml"
    if not kept.exists() or not results.stored():
        return study, []
    first, now, lines = read(kept), read(study.path), []

    def changed(what: str, then: list[str], now: list[str]) -> None:
        for names, how in (
            ([name for name in now if name not in then], "added"),
            ([name for name in then if name not in now], "left out"),
        ):
            if names:
                lines.append(f"{what} {how} after there were results: {', '.join(names)}")

    changed("seeds", list(map(str, first.seed_list)), list(map(str, now.seed_list)))
    if first.axes != now.axes:
        from vitpos.analysis.runs import Variant  # imports scipy
        from vitpos.analysis.verdict import pairs

        bare = dataclasses.replace(first, overrides={}, seeds=[0], tune={})
        runs, _ = expand({}, bare, study.path.parent.resolve(), results.settings)
        then, here = (list(dict.fromkeys(Variant.of(run.axes) for run in each)) for each in (runs, study.runs))
        changed("schemes or settings", [v.label for v in then], [v.label for v in here])
        family = len(pairs(then, study.comparison.reference))
        study = dataclasses.replace(study, comparison=dataclasses.replace(study.comparison, family=family))
    return study, lines
