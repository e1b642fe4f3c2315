"""Carries out ``vitpos study plan``: what verdicts a study's seeds can reach, and what that costs in time."""

import math
from typing import NamedTuple

import pandas as pd

from vitpos.analysis.inference import describe
from vitpos.analysis.power import MOST, deviation_limits, flip_power, per_test, seeds_for, seeds_for_level
from vitpos.analysis.runs import Variant, frame
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import compare, pairs
from vitpos.errors import VitposError
from vitpos.study.machine import default_slots
from vitpos.study.plan import Study
from vitpos.study.results import Results
from vitpos.study.timing import estimate
from vitpos.text import columns, duration, plural


def forecast(study: Study, results: Results, sd: float | None, workers: int | None) -> int:
    """Prints how many seeds the study's comparisons take, for 80 % and 95 % power, what they cost, and what is in vain.

    Args:
        study: The study.
        results: Its results, from which deviation and time are measured where there are some.
        sd: Deviation of paired differences in points; None to measure it.
        workers: Runs at a time; None for as many as ``study run`` would do.

    Returns:
        0.

    Raises:
        VitposError: `sd` is not above 0, there is nothing to compare, or a result is damaged.
    """
    comparison = study.comparison
    seeds = comparison.most or len({run.seed for run in study.runs})
    first = study.runs[0].seed
    compared = len(pairs((Variant.of(run.axes) for run in study.runs), comparison.reference))
    deviations, source = deviation(study, results, sd)
    plans = {each: plan_seeds(comparison, compared, seeds, each) for each in deviations}
    level, _ = per_test(comparison.alpha, comparison.correction, compared)
    correction = "jointly" if comparison.correction == "max_t" else f"each at {level:.2g}"
    added = f"{comparison.start} to " if comparison.start else ""
    print(
        f"{comparison.name}: {plural(compared, 'comparison')} with {comparison.reference}, "
        f"{added}{plural(seeds, 'seed')}, margin {comparison.margin:g}, alpha {comparison.alpha:g}, {correction}"
    )
    if added:
        print("seeds are added until all is decided; below are numbers fixed beforehand, which are a little lower")
    each, note = seconds_per_run(study, results)
    many, runs = workers or default_slots(), [run for run in study.trials or study.runs if run.seed == first]
    if math.isfinite(each):
        a_seed = each * len(runs) / many
        print(
            f"a run takes some {duration(each)} ({note}); {plural(len(runs), 'run')} a seed, {many} at a time: "
            f"{duration(a_seed)} a seed, {duration(a_seed * seeds)} in all{' at most' if added else ''}"
        )
    else:
        a_seed = math.nan
        print(f"the time is not known: {note}")
    print(f"deviation of paired differences: {source}")
    for assumed, goals in plans.items():
        print(f"\nif it is {assumed:.2g} points, seeds to show" + (" (and time)" if math.isfinite(a_seed) else ""))
        rows = [
            [goal.what, enough(goal.seeds_80, a_seed), enough(goal.seeds_95, a_seed), f"{100 * goal.power:.0f} %"]
            for goal in goals
        ]
        print(columns(["", "80 % power", "95 % power", f"power with {plural(seeds, 'seed')}"], rows, [""] * len(rows)))
    for line in warnings(plans[deviations[0]], comparison.margin, seeds, level):
        print(f"\nwarning: {line}")
    return 0


class Goal(NamedTuple):
    """A result that a study may want to show for one comparison, and the power to do so with the seeds that it has.

    ``seeds_80`` and ``seeds_95`` are the smallest numbers of seeds with a power of 80 and 95 % (see `seeds_for`).
    """

    what: str
    seeds_80: int | None
    seeds_95: int | None
    power: float


def plan_seeds(terms: Terms, comparisons: int, seeds: int, sd: float) -> list[Goal]:
    """Computes what so many comparisons with so many seeds can show if paired differences have this deviation.

    Returns:
        A difference of the margin, one of twice the margin, and equivalence where there is no difference.

    Raises:
        VitposError: The deviation is not above 0, or there is nothing to compare.
    """
    if not 0 < sd < math.inf:
        raise VitposError(f"the deviation of paired differences is {sd}; it must be above 0 percentage points")
    if comparisons < 1:
        raise VitposError("there is nothing to compare: the study has no position but the reference")
    level, family = per_test(terms.alpha, terms.correction, comparisons)
    goals, points = [], terms.margin
    for what, effect, margin in (
        (f"a difference of the margin ({points:g} points)", points, None),
        (f"a difference of twice the margin ({2 * points:g} points)", 2 * points, None),
        (f"equivalence within {points:g} points where there is no difference", 0.0, points),
    ):
        few, many = (seeds_for(power, effect, sd, level, family, margin) for power in (0.80, 0.95))
        reached = flip_power(seeds, effect, sd, level, family, margin) if seeds > 1 and points > 0 else 0.0
        goals.append(Goal(what, few, many, reached))
    return goals


def deviation(study: Study, results: Results, sd: float | None) -> tuple[list[float], str]:
    """Returns the deviations to plan for, and in words where they come from."""
    if sd is not None:
        return [sd], f"{sd:g} points, as stated with --sd"
    if results.stored():
        try:
            collected = results.gather(study)[0]
            found = compare(frame(collected, study.comparison.metric), study.comparison, (), ())
            found = found.join(describe(pd.DataFrame(found["by_seed"].tolist()).sort_index(axis=1)))
        except VitposError:  # rows of another metric, or of another version of the study
            found = None
        if found is not None and len(found) and (found["sd"] > 0).any():
            widest = found.loc[found["sd"].idxmax()]
            return list(deviation_limits(widest["sd"], widest["n"])), (
                f"{widest['sd']:.2f} points, the largest of {plural(len(found), 'comparison')}, that of "
                f"{widest['candidate'].label} on {plural(widest['n'], 'pair')}; from its lower to its upper 80 % limit:"
            )
    margin = study.comparison.margin or 1.0
    return [margin / 2, margin, 2 * margin], "not known; state one with --sd, or run two seeds. Three examples:"


def seconds_per_run(study: Study, results: Results) -> tuple[float, str]:
    """Estimates the seconds of a run; NaN with the reason where the study cannot run here."""
    try:
        return estimate(study, results)
    except VitposError as error:
        return math.nan, str(error)


def enough(seeds: int | None, seconds: float) -> str:
    """Writes a number of seeds with the time that they take."""
    if seeds is None:
        return f"over {MOST}"
    return f"{seeds} ({duration(seconds * seeds)})" if math.isfinite(seconds) else str(seeds)


def warnings(goals: list[Goal], margin: float, seeds: int, level: float) -> list[str]:
    """Lists the verdicts that are out of reach with these seeds, whatever the runs give."""
    lines = []
    for what, sides in (("a difference, however large,", 2), ("equivalence", 1)):
        if seeds < (least := seeds_for_level(level, sides)) and (sides == 2 or margin):
            lines.append(
                f"{plural(seeds, 'seed')} cannot show {what} since the sign-flip test cannot get below "
                f"{sides}/2^{seeds} = {sides / 2**seeds:.2g}; {least} seeds can reach {level:.2g}"
            )
    if not margin:
        lines.append("with a margin of 0 nothing can be shown to be equivalent")
    if seeds >= seeds_for_level(level):
        weak = [goal for goal in goals if goal.power < 0.8]
        lines += [f"a power of {100 * goal.power:.0f} % for {goal.what}: likely to stay undecided" for goal in weak]
    return lines
