"""Tables that break accuracies down by axis, seed, cost, class and tuned values."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from vitpos.analysis.runs import (
    Setting,
    Variant,
    class_differences,
    complete,
    difference_error_bound,
    level_order,
    settings,
    summarize,
)
from vitpos.analysis.tables import Table, about, best_first, build, each, level, setting_label
from vitpos.analysis.terms import Terms

# A rate relative to the reference that varies by a larger factor over seeds depends on the machine, not on the scheme.
_STEADY = 1.1


def effects(runs: pd.DataFrame, axis: str, confidence: float) -> pd.DataFrame:
    """Computes the effect of an axis on each scheme.

    Per seed, accuracy is averaged over the settings of all other axes that a scheme has at every value of the axis, so
    that values differ in nothing else. Seeds and settings that lack runs are left out (`runs.complete`).

    Returns:
        One row per scheme and value, in their order: ``position``, ``level``, the fields of `runs.Summary`, ``cells``
        (number of settings), ``lacks`` (the scheme has no such option: the same runs at every value), ``values`` (by
        seed) and ``rank`` (1 is best). ``attrs``: ``levels``, ``absent`` schemes, ``unused`` runs.
    """
    levels = sorted({dict(v.others)[axis] for v in runs["variant"] if axis in dict(v.others)}, key=level_order)
    split = runs.assign(
        position=runs["variant"].map(lambda v: v.position),
        rest=runs["variant"].map(lambda v: tuple(pair for pair in v.others if pair[0] != axis)),
        level=runs["variant"].map(lambda v: dict(v.others).get(axis, "")),
    )
    records, absent, unused = [], [], 0
    for position, own in split.groupby("position", sort=True):
        lacks = (own["level"] == "").all()
        cells = complete(own.pivot(index=["rest", "level"], columns="seed", values="accuracy"))
        whole = [part.droplevel("rest") for _, part in cells.groupby(level="rest") if lacks or len(part) == len(levels)]
        if not whole or not cells.shape[1]:
            absent.append(position)
            continue
        unused += int(own["accuracy"].notna().sum()) - sum(part.size for part in whole)
        means = sum(whole[1:], whole[0]) / len(whole)
        for value in levels:
            line = means.loc["" if lacks else value]
            what = {"position": position, "level": value, "cells": len(whole), "lacks": lacks, "values": line}
            records.append({**what, **vars(summarize(line, confidence))})
    found = pd.DataFrame(records)
    if records:
        found["rank"] = found.groupby("level")["mean"].rank(ascending=False, method="min").astype(int)
    found.attrs |= {"absent": absent, "unused": unused, "levels": levels}
    return found


def factors(all_effects: Mapping[str, pd.DataFrame], terms: Terms) -> Table:
    """Returns the effect of each axis: means over the schemes that have it, paired by seed with the first value."""
    rows = []
    for axis, found in all_effects.items():
        if found.empty or found["lacks"].all():
            continue
        by = {value: own.set_index("position") for value, own in found[~found["lacks"]].groupby("level", sort=False)}
        over_seeds = {value: pd.DataFrame(dict(own["values"])).T for value, own in by.items()}
        first = found.attrs["levels"][0]
        kept = complete(over_seeds[first])
        means = {value: table.loc[kept.index, kept.columns].mean() for value, table in over_seeds.items()}
        for value, mean in means.items():
            s = summarize(mean - means[first], 1 - terms.alpha)
            row = {"axis": axis, "value": level(value), f"{terms.metric_label}, %": mean.mean()}
            row |= {"variants": by[value].loc[kept.index, "cells"].sum(), "n": s.n}
            row |= {"minus first": math.nan if value == first else s.mean}
            rows.append({**row, f"{terms.confidence} t interval": (s.low, s.high)})
    return build("Main effects of the axes", rows)


def orders(all_effects: Mapping[str, pd.DataFrame]) -> Table:
    """Returns the order of the schemes at each value of an axis, and Kendall's tau with that at the first value."""
    rows = []
    for axis, found in all_effects.items():
        if not len(found) or found["position"].nunique() < 2:
            continue
        means = found.pivot(index="position", columns="level", values="mean")[found.attrs["levels"]]
        for i, value in enumerate(means):
            tau = float(stats.kendalltau(means.iloc[:, 0], means[value]).statistic) if i else math.nan
            order = means[value].sort_values(ascending=False, kind="stable").items()
            listed = ", ".join(f"{position} {mean:.2f}" for position, mean in order)
            rows.append({"axis": axis, "value": level(value), "tau": tau, "schemes, best first": listed})
    return build("Ranking of the schemes by axis value", rows)


def by_setting(runs: pd.DataFrame, found: pd.DataFrame) -> dict[Setting, list[Variant]]:
    """Groups variants by the settings in which schemes are compared; one that lacks an option is in each of them."""
    variants = sorted(set(runs["variant"]))
    at = settings([*(found["setting"] if len(found) else ()), *(v.others for v in variants)])
    return {s: [v for v in variants if set(v.others) <= set(s)] for s in at}


def ranking(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Ranks the schemes of each setting by seed; equal accuracies share the better rank.

    Only seeds with a result for every scheme count; a scheme that lacks half of them is left out (`runs.complete`).

    Facts: ``shares`` (setting, position, how often it had rank 1, 2, ...), ``agreement`` (setting, Kendall's W, seeds),
    ``absent`` (labels of what is left out), ``dropped`` (number of seeds without results for all).
    """
    rows, shares, agreement, absent, dropped = [], [], [], [], 0
    for at, members in by_setting(runs, found).items():
        here = runs[runs["variant"].isin(members)].pivot(index="variant", columns="seed", values="accuracy")
        kept = complete(here.dropna(axis=1, how="all"))
        m, n = kept.shape
        if m < 2 or not n:
            continue
        absent += [v.label for v in members if v not in kept.index]
        dropped += here.shape[1] - n
        if n > 1:  # Kendall's W: 12 S / (n^2 (m^3 - m)), S the squares of the sums of ranks about their mean
            sums = np.asarray(stats.rankdata(-kept.to_numpy(), axis=0)).sum(axis=1)
            agreement.append((setting_label(at), 12 * m * sums.var() / (n**2 * (m**3 - m)), n))
        ranks = pd.DataFrame(stats.rankdata(-kept.to_numpy().round(4), method="min", axis=0).astype(int), kept.index)
        order = pd.DataFrame({"rank": ranks.mean(axis=1), "mean": -kept.mean(axis=1)}).sort_values(["rank", "mean"])
        for variant in order.index:
            r = ranks.loc[variant]
            row = {**about(runs, variant.position, at), "mean rank": r.mean(), "best": r.min(), "worst": r.max()}
            rows.append({**row, "times first": (r == 1).sum(), "seeds": n})
            shares.append((at, variant.position, np.bincount(r, minlength=m + 1)[1:]))
    return build("Ranking by seed", rows, shares=shares, agreement=agreement, absent=absent, dropped=dropped)


def cost(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns accuracy and cost, relative to the reference over the pairs of the verdicts, the highest mean first.

    Cost is the measured training time per image if the rates are comparable: same hardware, no sign that runs shared it
    (in the name of the hardware, or a ratio that varies by more than a tenth over seeds). Otherwise it is the number of
    operations of a forward pass.

    Facts: ``measure`` (which of the two), ``why`` (the time is not used), ``points`` (setting, position, relative cost,
    `runs.Summary` of the accuracy).
    """
    time, operations = _relative(found, "images_per_second"), _relative(found, "flops")
    why = _incomparable(runs, time)
    ratios = operations if why else {variant: [1 / r for r in rates] for variant, rates in time.items()}
    relative = {variant: float(np.mean(r)) for variant, r in ratios.items()}
    rows, summaries = [], {}
    for variant, own in best_first(runs):
        s = summaries[variant] = summarize(own["accuracy"], 1 - terms.alpha)
        row = {**about(runs, variant.position, variant.others), f"{terms.metric_label}, %": s.mean}
        row |= {"relative cost": relative.get(variant, math.nan), "MFLOPs per image": own["flops"].iloc[0] / 1e6}
        row |= {"parameters": own["parameters"].iloc[0], "images/s": own["images_per_second"].mean()}
        rows.append({**row, "seconds per run": own["seconds"].mean(), "peak memory, MB": own["peak_memory_mb"].max()})
    points = [
        (at, v.position, relative[v], summaries[v])
        for at, members in by_setting(runs, found).items()
        for v in members
        if v in relative and summaries[v].n
    ]
    measure = "FLOPs of a forward pass" if why else "training time per image"
    return build("Accuracy and cost", rows, measure=measure, why=why, points=points)


def _relative(found: pd.DataFrame, key: str) -> dict[Variant, list[float]]:
    """Divides a number of each run by that of the reference run of its pair; the reference itself has 1."""
    ratios: dict[Variant, list[float]] = {}
    for d in found.itertuples():
        both = [(d.ours[s].get(key), d.theirs[s].get(key)) for s in d.finished]
        if known := [a / b for a, b in both if a and b]:
            ratios.setdefault(d.reference, [1.0])
            ratios.setdefault(d.candidate, []).extend(known)
    return ratios


def _incomparable(runs: pd.DataFrame, rates: Mapping[Variant, Sequence[float]]) -> str:
    """Returns why measured rates cannot be compared; empty if they can."""
    hardware = sorted({str(row["environment"].get("hardware")) for row in runs["row"]})
    shared = re.search(r"((\d+) (?:threads? )?of (\d+)) \w+", hardware[0])
    if len(hardware) > 1:
        return "the hardware differs"
    if shared and int(shared[2]) < int(shared[3]):
        return f"runs had {shared[0]} and shared the machine"
    unsteady = any(max(ratios) > _STEADY * min(ratios) for ratios in rates.values())
    return "it varied by more than a tenth from seed to seed" if unsteady else ""


def classes(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Returns the mean difference of each comparison by class, over the pairs of its verdict.

    Facts: ``names`` (columns of the classes), ``least`` (images of the smallest class), ``error`` (largest error that
    so few images can give), ``absent`` (comparisons without results by class).
    """
    known, absent = [], []
    for d, subject in each(runs, found):
        by_class = class_differences([d.ours[s] for s in d.finished], [d.theirs[s] for s in d.finished])
        if by_class:
            known.append((subject, {f"class {k}" if k in subject else k: x for k, x in by_class.items()}))
        else:
            absent.append(", ".join(filter(None, [d.scheme, setting_label(d.setting)])))
    names = list(dict.fromkeys(name for _, by_class in known for name in by_class))
    rows = [{**subject, **{k: by_class.get(k, (0, math.nan))[1] for k in names}} for subject, by_class in known]
    least = min((n for _, by_class in known for n, _ in by_class.values()), default=0)
    error = difference_error_bound(50, 50, least) if least else math.nan
    return build("Differences by class", rows, names=names, least=least, error=error, absent=absent)


def class_extremes(by_class: Table) -> Table:
    """Returns the classes in which each comparison gains and loses most."""
    if not (names := by_class.facts["names"]):
        return by_class
    values = by_class.frame[names].astype(float)
    gains, losses = values.iloc[:, ::-1].idxmax(axis=1), values.idxmin(axis=1)
    extremes = {"gains most": gains, "gain": values.max(axis=1), "loses most": losses, "loss": values.min(axis=1)}
    return Table("Classes that gain and lose most", by_class.frame.drop(columns=names).assign(**extremes))


def tuning(runs: pd.DataFrame, choices: Sequence[Mapping[str, Any]]) -> Table:
    """Returns how many seeds chose each value tried, and its mean validation accuracy, for each variant.

    Facts: ``edges`` (labels of variants of which most seeds chose a value at the edge of the grid), ``keys`` (what was
    tuned), ``tried`` (how many values), ``seeds`` (how many seeds chose).
    """
    groups: dict[Variant, list[Mapping[str, Any]]] = {}
    for choice in choices:
        groups.setdefault(Variant.of(choice["axes"]), []).append(choice)
    rows, edges, points = [], [], [point for point, _ in choices[0]["scores"]] if choices else []
    for variant, own in groups.items():
        row: dict[str, Any] = dict(about(runs, variant.position, variant.others))
        for i, point in enumerate(points):
            scores = [score for choice in own if (score := choice["scores"][i][1]) is not None]
            name = ", ".join(f"{k} {v}" for k, v in point.items())
            row[f"{name}: chosen by"] = str(sum(choice["values"] == point for choice in own))
            row[name] = 100 * sum(scores) / len(scores) if scores else math.nan
        if lacking := sum(choice["values"] is None for choice in own):
            row["without a choice"] = str(lacking)
        at_edge = sum(bool(choice["edge"]) for choice in own)
        edges += [variant.label] if 2 * at_edge > len(own) else []
        rows.append({**row, "at the edge": str(at_edge)})
    keys, seeds = list(points[0]) if points else [], len({choice["seed"] for choice in choices})
    return build("Tuning", rows, edges=edges, keys=keys, tried=len(points), seeds=seeds)
