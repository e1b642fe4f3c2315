"""The tables of a report: pure functions of the runs and the verdicts, on which pictures and prose draw.

What a table says is in its `Table.frame`; how its columns are written is `Table.kinds`: ``code`` (names that are typed),
``axis`` (values of the axis that the column is named after), ``value`` (of another), ``text``, ``strong``, ``number`` and ``signed`` (with digits, as in ``number:1``),
``count``, ``p``, ``interval`` and ``signed interval`` (pairs of ends).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from vitpos.analysis import inference
from vitpos.analysis.confounds import confounds, parameters
from vitpos.analysis.runs import (
    Setting,
    Variant,
    accuracy_error,
    by_epoch,
    by_seed,
    class_differences,
    complete,
    difference_error_bound,
    image_error,
    level_order,
    settings,
    similarity_mosaic,
    summarize,
)
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import pair_up
from vitpos.errors import VitposError

# A rate relative to the reference that varies by more over seeds says something of the machine, not of the scheme.
_STEADY = 1.1


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: What it shows.
        kinds: Its columns, and how each is written.
        frame: Its values; the first column says what a row is about.
        facts: What prose or a picture says beside it.
    """

    title: str
    kinds: Mapping[str, str]
    frame: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)


def table(title: str, kinds: Mapping[str, str], rows: Iterable[Sequence[Any]], **facts: Any) -> Table:
    """Builds a table of rows of values, one value a column."""
    return Table(title, kinds, pd.DataFrame(list(rows), columns=list(kinds), dtype=object), facts)


def axes(runs: pd.DataFrame) -> list[str]:
    """Returns the axes beside position that some variant has."""
    return sorted({key for variant in runs["variant"] for key, _ in variant.others})


def level(value: str) -> str:
    """Formats the value of an axis; null stands for the default."""
    return "default" if value == "None" else value


def setting_label(setting: Setting) -> str:
    """Formats values of axes: ``model.depth = 3, position.scale = default``."""
    return ", ".join(f"{key} = {level(value)}" for key, value in setting)


def _subject(keys: Sequence[str]) -> dict[str, str]:
    return {"scheme": "code", **dict.fromkeys(keys, "axis")}


def _about(keys: Sequence[str], position: str, setting: Setting) -> list[str]:
    values = dict(setting)
    return [position, *(level(values[key]) if key in values else "-" for key in keys)]


def verdict_table(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns the verdicts with what they rest on, the largest difference first."""
    keys = axes(runs)
    kinds = {"scheme": "code", "verdict": "strong", "detail": "text", **dict.fromkeys(keys, "axis")}
    kinds |= {"difference": "signed", f"{terms.confidence} interval": "signed interval", "p (difference)": "p"}
    kinds |= {"p (equivalence)": "p", "n": "count"}
    needed = any(needed_label(d) for _, d in found.iterrows())
    kinds |= {"seeds needed": "text"} if needed else {}
    rows = []
    for _, d in found.iterrows():
        few = d["reason"] == "too few seeds"  # then p is its floor, which says nothing of the difference
        scheme, *values = _about(keys, d["scheme"], d["setting"])
        line = [scheme, d["verdict"], detail(d), *values, d["mean"], (d["low"], d["high"])]
        line += [math.nan if few else d["p"], math.nan if few else d["p_equivalence"], d["n"]]
        rows.append([*line, *([needed_label(d) or "-"] if needed else [])])
    return _without_empty(table("Verdicts", kinds, rows), "detail")


def _without_empty(found: Table, column: str) -> Table:
    """Leaves a column out that says nothing."""
    if found.frame[column].any():
        return found
    kinds = {head: kind for head, kind in found.kinds.items() if head != column}
    return replace(found, kinds=kinds, frame=found.frame.drop(columns=column))


def detail(d: pd.Series) -> str:
    """Returns what belongs to a verdict: its reason, whether it exceeds the margin, and what is merely indicated."""
    parts = [d["reason"], "by more than the margin" if d["beyond"] else ""]
    parts.append(f"indicated, if differences are normal: {d['indicated']}" if d["indicated"] else "")
    return "; ".join(filter(None, parts))


def needed_label(d: pd.Series) -> str:
    """Formats how many seeds an undecided comparison takes in all: ``8 to 21``, ``9 or more``, or nothing."""
    low, high = (None if pd.isna(d[key]) else int(d[key]) for key in ("needed_low", "needed_high"))
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"


def tests(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns effect sizes, unadjusted tests and intervals, and what pairing bought, for specialists."""
    keys, at = axes(runs), terms.confidence
    kinds = {**_subject(keys), "sd": "number", "g": "signed", f"{at} t interval": "signed interval"}
    kinds |= {f"{at} sign-flip interval": "signed interval", f"{at} BCa interval": "signed interval"}
    kinds |= {"sign-flip p": "p", "equivalence p": "p", "t-test p": "p", "TOST p": "p", "p (beyond margin)": "p"}
    kinds |= {"least margin": "number", "correlation": "signed", "unpaired seeds": "count"}
    rows = []
    for _, d in found.iterrows():
        x = np.array(list(d["by_seed"].values()))
        varied = len(x) > 1 and float(np.ptp(x)) > inference.RESOLUTION
        nothing = (math.nan, math.nan)
        flip = inference.sign_flip_interval(x, 1 - terms.alpha) if varied else nothing
        bca = inference.bca_interval(x, 1 - terms.alpha) if varied and len(x) >= inference.BCA_PAIRS else nothing
        tested = len(x) > 1 and d["testable"]
        one = [d["p_single"], float(inference.equivalence(x, terms.margin)) if tested else math.nan]
        normal = [float(inference.t_test(x)), float(inference.tost(x, terms.margin)) if terms.margin else 1.0]
        both = np.array([d["ours"], d["theirs"]]).reshape(2, -1)
        apart = both.var(axis=1, ddof=1) if both.shape[1] > 2 and varied else np.zeros(2)
        r = float(np.corrcoef(both)[0, 1]) if apart.all() else math.nan
        unpaired = math.ceil(len(x) * float(apart.sum()) / float(x.var(ddof=1))) if apart.all() else None
        line = [*_about(keys, d["scheme"], d["setting"]), d["sd"], d["g"], (d["single_low"], d["single_high"]), flip, bca]
        line += [*one, *(normal if varied and tested else nothing), d["p_beyond"], d["least_margin"], r, unpaired]
        rows.append(line)
    return table("Effect sizes and unadjusted tests", kinds, rows)


def confounders(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Names what differs in each comparison besides the kind of positions; fact ``count``: in how many that is so."""
    keys = axes(runs)
    kinds = {**_subject(keys), "also differs in": "text", "position parameters": "text"}
    phrases, rows = [], []
    for _, d in found.iterrows():
        ours, theirs = (list(by_seed(runs, d[who]).values()) for who in ("candidate", "reference"))
        try:
            phrases.append(confounds(ours, theirs))
        except VitposError as error:  # rows of a version that writes schemes in another way are still reported
            phrases.append([str(error)])
        about = _about(keys, d["scheme"], d["setting"])
        rows.append([*about, "; ".join(phrases[-1]) or "nothing found", parameters(ours, theirs)])
    return table("Confounders", kinds, rows, count=sum(map(bool, phrases)), phrases=phrases)


def errors(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Sets the error that comes from the seeds beside that from the test images.

    Facts: ``images`` (how many, 0 where rows do not say), ``split``, ``worst`` (largest error of one accuracy).
    """
    keys, split = axes(runs), terms.metric.split("/")[0]
    images = min(row["data"].get(split) or 0 for row in runs["row"])
    facts = {"images": images, "split": split, "worst": math.nan}
    kinds = {**_subject(keys), "difference": "signed", "error over seeds": "number", "error over images": "number"}
    kinds |= {"estimate": "text"}
    rows = []
    if images:
        known = runs["accuracy"].dropna()
        facts["worst"] = max((accuracy_error(x, images) for x in known), default=math.nan)
        for _, d in found[found["seeds"].map(len) > 0].iterrows():
            pair = [by_seed(runs, d[who]) for who in ("candidate", "reference")]
            ours, theirs = ([rows_[s] for s in d["seeds"]] for rows_ in pair)
            exact = image_error(ours, theirs) if split == "test" else math.nan
            known_ = math.isfinite(exact)
            error = exact if known_ else difference_error_bound(np.mean(d["ours"]), np.mean(d["theirs"]), images)
            about = _about(keys, d["scheme"], d["setting"])
            rows.append([*about, d["mean"], d["sd"] / math.sqrt(d["n"]), error, "by image" if known_ else "upper bound"])
    return table("Sources of error", kinds, rows, **facts)


def schemes(runs: pd.DataFrame, terms: Terms) -> Table:
    """Returns each variant's accuracy over seeds and its size, the highest mean first."""
    keys = axes(runs)
    kinds = {**_subject(keys), f"{terms.metric_label}, %": "number", "sd": "number"}
    kinds |= {f"{terms.confidence} interval of the mean": "interval", "n": "count", "not a number": "count"}
    kinds |= {"parameters": "count", "position parameters": "count", "RMS at start": "number:3"}
    kinds |= {"RMS at end": "number:3", "images/s": "count"}
    rows = []
    for variant, own in _best_first(runs):
        s, first = summarize(own["accuracy"], 1 - terms.alpha), own.iloc[0]
        line = [*_about(keys, variant.position, variant.others), s.mean, s.sd, (s.low, s.high), s.n, s.bad]
        line += [first["parameters"], first["position_parameters"]]
        rows.append([*line, *(own[key].mean() for key in ("rms_start", "rms_end", "images_per_second"))])
    return _without_empty(table("All schemes", kinds, rows), "not a number")


def _best_first(runs: pd.DataFrame) -> list[tuple[Variant, pd.DataFrame]]:
    """Groups runs by variant, the highest mean first, those without a number last."""
    groups = [(variant, own) for variant, own in runs.groupby("variant", sort=True)]
    mean = {variant: own["accuracy"].mean() for variant, own in groups}
    return sorted(groups, key=lambda pair: math.inf if math.isnan(mean[pair[0]]) else -mean[pair[0]])


def options(runs: pd.DataFrame, terms: Terms) -> Table:
    """Compares each variant that sets options with the same scheme at its defaults, paired by seed.

    Fact ``spreads``: for each setting in which a kind has several forms, its label, the spread of the means across
    kinds at default options (names and points; None without two), and the spread within each kind by name.
    """
    keys, found = axes(runs), list(dict.fromkeys(runs["variant"]))
    kinds = {**_subject(keys), "against": "code", "difference": "signed"}
    kinds |= {f"{terms.confidence} t interval": "signed interval", "n": "count"}
    rows = []
    for variant in found:
        default = replace(variant, position=variant.kind)
        if variant.position != variant.kind and default in found:
            pair = pair_up(runs, variant, default, sorted(set(runs["seed"])))
            s = summarize(list(pair["finished"].values()), 1 - terms.alpha)
            rows.append([*_about(keys, variant.position, variant.others), default.position, s.mean, (s.low, s.high), s.n])
    means = runs.groupby("variant", sort=True)["accuracy"].mean().dropna()
    spreads = []
    for others in sorted({v.others for v in means.index}):
        here = {v: mean for v, mean in means.items() if v.others == others}
        kinds_here = pd.Series({v: v.kind for v in here})
        within = {
            kind: (len(members), float(np.ptp([here[v] for v in members.index])))
            for kind, members in kinds_here.groupby(kinds_here)
            if len(members) > 1
        }
        defaults = [v for v in here if v.position == v.kind != "none"]
        across = ([v.kind for v in defaults], float(np.ptp([here[v] for v in defaults]))) if len(defaults) > 1 else None
        if within:
            spreads.append((setting_label(others), across, within))
    return table("Scheme options against defaults", kinds, rows, spreads=spreads)


def effects(runs: pd.DataFrame, axis: str, confidence: float) -> pd.DataFrame:
    """Computes the effect of an axis on each scheme.

    Per seed, accuracy is averaged over the settings of all other axes that a scheme has at every value of the axis, so
    that values differ in nothing else; seeds and settings that lack runs are left out as `runs.complete` says.

    Returns:
        One row per scheme and value, in their order: ``position``, ``level``, ``mean``, ``low`` and ``high`` (t interval
        over seeds), ``n``, ``cells`` (settings), ``lacks`` (the scheme has no such option: the same runs at every
        value), ``values`` (by seed) and ``rank`` (1 the best). ``attrs``: ``absent`` schemes, ``unused`` runs.
    """
    levels = sorted({dict(v.others)[axis] for v in runs["variant"] if axis in dict(v.others)}, key=level_order)
    records, absent, unused = [], [], 0
    for position, own in runs.groupby(runs["variant"].map(lambda v: v.position), sort=True):
        lacks = all(axis not in dict(v.others) for v in own["variant"])
        rest = own["variant"].map(lambda v: tuple(pair for pair in v.others if pair[0] != axis))
        which = own["variant"].map(lambda v: dict(v.others).get(axis, ""))
        cells = complete(own.assign(rest=rest, level=which).pivot(index=["rest", "level"], columns="seed", values="accuracy"))
        by_rest = {r: part.droplevel("rest") for r, part in cells.groupby(level="rest")}
        whole = [part for part in by_rest.values() if lacks or set(part.index) == set(levels)]
        if not whole or not cells.shape[1]:
            absent.append(position)
            continue
        unused += int(own["accuracy"].notna().sum()) - sum(part.size for part in whole)
        means = sum(whole[1:], whole[0]) / len(whole)
        for value in levels:
            line = means.loc["" if lacks else value]
            s = summarize(line, confidence)
            records.append({"position": position, "level": value, "mean": s.mean, "low": s.low, "high": s.high, "n": s.n,
                            "cells": len(whole), "lacks": lacks, "values": line})  # fmt: skip
    found = pd.DataFrame(records)
    if records:
        found["rank"] = found.groupby("level")["mean"].rank(ascending=False, method="min").astype(int)
    found.attrs |= {"absent": absent, "unused": unused, "levels": levels}
    return found


def factors(all_effects: Mapping[str, pd.DataFrame], terms: Terms) -> Table:
    """Returns the main effect of each axis: means over the schemes that have it, paired by seed with the first value."""
    kinds = {"axis": "code", "value": "value", f"{terms.metric_label}, %": "number", "variants": "count", "n": "count"}
    kinds |= {"minus first": "signed", f"{terms.confidence} t interval": "signed interval"}
    rows = []
    for axis, found in all_effects.items():
        has = found[~found["lacks"]] if len(found) else found
        if has.empty:
            continue
        levels = found.attrs["levels"]
        by = {value: pd.DataFrame(dict(zip(part["position"], part["values"], strict=True))).T
              for value, part in has.groupby("level")}  # fmt: skip
        kept = complete(by[levels[0]])
        means = {value: by[value].loc[kept.index, kept.columns].mean() for value in levels}
        variants = int(has[(has["level"] == levels[0]) & has["position"].isin(kept.index)]["cells"].sum())
        for value in levels:
            s = summarize(means[value] - means[levels[0]], 1 - terms.alpha)
            moved = [math.nan, (math.nan, math.nan)] if value == levels[0] else [s.mean, (s.low, s.high)]
            rows.append([axis, level(value), means[value].mean(), variants, s.n, *moved])
    return table("Main effects of the axes", kinds, rows)


def orders(all_effects: Mapping[str, pd.DataFrame]) -> Table:
    """Returns the order of the schemes at each value of an axis, and Kendall's tau with that at the first value."""
    kinds = {"axis": "code", "value": "value", "tau": "signed", "schemes, best first": "text"}
    rows = []
    for axis, found in all_effects.items():
        if not len(found) or found["position"].nunique() < 2:
            continue
        means = found.pivot(index="position", columns="level", values="mean")[found.attrs["levels"]]
        for i, value in enumerate(means):
            tau = float(stats.kendalltau(means.iloc[:, 0], means[value]).statistic) if i else math.nan
            order = means[value].sort_values(ascending=False, kind="stable")
            listed = ", ".join(f"{position} {mean:.2f}" for position, mean in order.items())
            rows.append([axis, level(value), tau, listed])
    return table("Ranking of the schemes by axis value", kinds, rows)


def by_setting(runs: pd.DataFrame, found: pd.DataFrame) -> dict[Setting, list[Variant]]:
    """Sorts variants by the settings at which schemes are compared; one that lacks an option stands in each of them."""
    variants = sorted(set(runs["variant"]))
    at = settings([*(found["setting"] if len(found) else ()), *(v.others for v in variants)])
    return {s: [v for v in variants if set(v.others) <= set(s)] for s in at}


def ranking(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Ranks the schemes of each setting by seed; equal accuracies share the better rank.

    Only seeds count in which all have a result; a scheme that lacks half of them is left out (see `runs.complete`).

    Facts: ``shares`` (how often each row had rank 1, 2, ...), ``agreement`` (setting, Kendall's W, seeds), ``absent``
    (labels of what is left out), ``dropped`` (seeds in which not all have a result).
    """
    keys = axes(runs)
    kinds = {**_subject(keys), "mean rank": "number", "best": "count", "worst": "count", "times first": "count"}
    kinds |= {"seeds": "count"}
    rows, shares, agreement, absent, dropped = [], [], [], [], 0
    for at, members in by_setting(runs, found).items():
        here = runs[runs["variant"].isin(members)].pivot(index="variant", columns="seed", values="accuracy")
        kept = complete(here.reindex(members).dropna(axis=1, how="all"))
        if len(kept) < 2 or not kept.shape[1]:
            continue
        absent += [v.label for v in members if v not in kept.index]
        dropped += here.shape[1] - kept.shape[1]
        if kept.shape[1] > 1:
            w = _agreement(np.asarray(stats.rankdata(-kept.to_numpy(), axis=0)).T)
            agreement.append((setting_label(at), w, kept.shape[1]))
        ranks = stats.rankdata(-kept.to_numpy().round(4), method="min", axis=0).astype(int)
        for i in sorted(range(len(kept)), key=lambda i, ranks=ranks, kept=kept: (ranks[i].mean(), -kept.iloc[i].mean())):  # type: ignore[misc]
            r = ranks[i]
            rows.append([*_about(keys, kept.index[i].position, at), r.mean(), r.min(), r.max(), (r == 1).sum(), len(r)])
            shares.append((at, kept.index[i].position, np.bincount(r, minlength=len(kept) + 1)[1:]))
    facts = {"shares": shares, "agreement": agreement, "absent": absent, "dropped": dropped}
    return table("Ranking by seed", kinds, rows, **facts)


def _agreement(ranks: inference.Floats) -> float:
    """Computes Kendall's W of ranks (seeds, schemes): 12 S / (n^2 (m^3 - m)), S the squares of the sums of ranks."""
    n, m = ranks.shape
    sums = ranks.sum(axis=0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (n**2 * (m**3 - m)))


def cost(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Sets accuracy beside cost, relative to the reference over the pairs of the verdicts, the highest mean first.

    Cost is the measured time of training per image where the rates can be compared: same hardware, no sign that runs
    shared it (in the name of the hardware, or a ratio that varies by more than a tenth over seeds). Else it is the
    operations of one forward pass.

    Facts: ``measure`` (which of the two), ``why`` (why not the time), ``points`` (setting, position, relative cost,
    `runs.Summary` of the accuracy).
    """
    keys = axes(runs)
    kinds = {**_subject(keys), f"{terms.metric_label}, %": "number", "relative cost": "number", "MFLOPs per image": "number:1"}
    kinds |= {"parameters": "count", "images/s": "count", "seconds per run": "count", "peak memory, MB": "count"}
    rates, operations = _relative(runs, found, "images_per_second"), _relative(runs, found, "flops")
    measure, why = "operations of a forward pass", _incomparable(runs, rates)
    ratios = operations
    if not why:
        measure, ratios = "training time per image", {v: [1 / r for r in found_] for v, found_ in rates.items()}
    relative = {v: float(np.mean(r)) for v, r in ratios.items()}
    rows, summaries = [], {}
    for variant, own in _best_first(runs):
        summaries[variant] = summarize(own["accuracy"], 1 - terms.alpha)
        line = [*_about(keys, variant.position, variant.others), summaries[variant].mean, relative.get(variant, math.nan)]
        line += [own["flops"].iloc[0] / 1e6, own["parameters"].iloc[0], own["images_per_second"].mean()]
        rows.append([*line, own["seconds"].mean(), own["peak_memory_mb"].max()])
    points = [(at, v.position, relative[v], summaries[v]) for at, members in by_setting(runs, found).items()
              for v in members if v in relative and summaries[v].n]  # fmt: skip
    return table("Accuracy and cost", kinds, rows, measure=measure, why=why, points=points)


def _relative(runs: pd.DataFrame, found: pd.DataFrame, key: str) -> dict[Variant, list[float]]:
    """Divides a number of each run by that of the reference of its pair; the reference has 1."""
    ratios: dict[Variant, list[float]] = {}
    for _, d in found.iterrows():
        ours, theirs = (by_seed(runs, d[who]) for who in ("candidate", "reference"))
        both = [(ours[s].get(key), theirs[s].get(key)) for s in d["seeds"]]
        if pairs := [(a, b) for a, b in both if a and b]:
            ratios.setdefault(d["reference"], [1.0])
            ratios.setdefault(d["candidate"], []).extend(a / b for a, b in pairs)
    return ratios


def _incomparable(runs: pd.DataFrame, rates: Mapping[Variant, Sequence[float]]) -> str:
    """Says why measured rates are no measure of cost; nothing where they are."""
    hardware = sorted({str(row["environment"].get("hardware")) for row in runs["row"]})
    if len(hardware) > 1:
        return "the hardware differs"
    if (shared := runs["row"].iloc[0]["environment"].get("hardware")) and (part := _part_of(str(shared))):
        return f"runs had {part} and shared the machine"
    if any(max(ratios) > _STEADY * min(ratios) for ratios in rates.values()):
        return "they vary by more than a tenth from seed to seed"
    return ""


def _part_of(hardware: str) -> str:
    found = pd.Series([hardware]).str.extract(r"((\d+) (?:threads? )?of (\d+)) \w+").iloc[0]
    return str(found[0]) if found.notna().all() and int(found[1]) < int(found[2]) else ""


def classes(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Returns the mean difference of each comparison by class, over the pairs of its verdict.

    Facts: ``least`` (images of the smallest class), ``error`` (largest error that so few images can give), ``absent``
    (labels of comparisons whose rows do not count by class).
    """
    keys = axes(runs)
    known, absent = [], []
    for _, d in found.iterrows():
        ours, theirs = (by_seed(runs, d[who]) for who in ("candidate", "reference"))
        by_class = class_differences([ours[s] for s in d["seeds"]], [theirs[s] for s in d["seeds"]])
        if by_class:
            known.append((_about(keys, d["scheme"], d["setting"]), by_class))
        else:
            absent.append(", ".join([d["scheme"], *(f"{key}={value}" for key, value in d["setting"])]))
    names = list(dict.fromkeys(name for _, by_class in known for name in by_class))
    heads = {name: f"class {name}" if name in _subject(keys) else name for name in names}
    rows = [[*about, *(by_class.get(name, (0, math.nan))[1] for name in names)] for about, by_class in known]
    least = min((n for _, by_class in known for n, _ in by_class.values()), default=0)
    error = difference_error_bound(50, 50, least) if least else math.nan
    kinds = {**_subject(keys), **{heads[name]: "signed" for name in names}}
    return table("Differences by class", kinds, rows, least=least, error=error, absent=absent, names=list(heads.values()))


def class_extremes(by_class: Table) -> Table:
    """Returns the classes in which each comparison gains and loses most."""
    names = by_class.facts["names"]
    about = {key: kind for key, kind in by_class.kinds.items() if key not in names}
    kinds = {**about, "gains most": "code", "gain": "signed", "loses most": "code", "loss": "signed"}
    rows = []
    for _, row in by_class.frame.iterrows():
        values = row[names].astype(float)
        most, least = values.idxmax(), values.idxmin()
        rows.append([*row[list(about)], most, values[most], least, values[least]])
    return table("Classes that gain and lose most", kinds, rows)


def tuning(runs: pd.DataFrame, choices: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the validation accuracy of each value tried, and what was chosen.

    Facts: ``edges`` (labels of variants whose choice lies at the edge of the grid), ``keys`` (what was tuned), ``tried``
    (how many values).
    """
    points = [point for point, _ in choices[0]["scores"]] if choices else []
    keys = axes(runs)
    heads = [", ".join(f"{k} {v}" for k, v in point.items()) for point in points]
    kinds = {**_subject(keys), "chosen": "text", "at the edge of": "text", **dict.fromkeys(heads, "number")}
    rows = []
    for choice in choices:
        variant, values = Variant.of(choice["axes"]), choice["values"]
        chosen = ", ".join(f"{k} {v}" for k, v in (values or {}).items())
        chosen = chosen or choice["error"] or "not yet chosen, trials are missing"
        scores = [math.nan if score is None else 100 * score for _, score in choice["scores"]]
        edge = ", ".join(k for k in values or {} if k in choice["edge"]) or "-"
        rows.append([*_about(keys, variant.position, variant.others), chosen, edge, *scores])
    edges = [Variant.of(c["axes"]).label for c in choices if c["edge"]]
    return table("Tuning", kinds, rows, edges=edges, keys=list(points[0]) if points else [], tried=len(points))


def curves(runs: pd.DataFrame, metric: str) -> dict[Variant, pd.DataFrame]:
    """Returns ``epoch``, ``mean``, ``low``, ``high`` (over seeds, percent) and ``n`` of each variant with a history."""
    found = {}
    for variant, own in runs.groupby("variant", sort=True):
        epochs, values = by_epoch(own["row"], metric)
        if len(epochs):
            y = 100 * values
            found[variant] = pd.DataFrame(
                {"epoch": epochs, "mean": y.mean(0), "low": y.min(0), "high": y.max(0), "n": len(own)}
            )
    return found


def similarity(runs: pd.DataFrame) -> dict[Variant, inference.Floats]:
    """Returns the mosaic of similarity maps of each variant that adds a table (see `runs.similarity_mosaic`)."""
    found = {variant: similarity_mosaic(own["row"]) for variant, own in runs.groupby("variant", sort=True)}
    return {variant: mosaic for variant, mosaic in found.items() if mosaic is not None}
