"""Sections of a report that take accuracies apart: by axis, by seed, by class."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from vitpos.analysis import breakdowns
from vitpos.analysis.document import Block, Section, picture
from vitpos.analysis.evidence import Evidence
from vitpos.analysis.markup import code, strong
from vitpos.analysis.ranking import ranking as draw_ranks
from vitpos.analysis.signs import Floats
from vitpos.analysis.statistics import Groups, Variant, difference_sampling_error, points, summarize
from vitpos.analysis.style import count, level
from vitpos.analysis.tables import Column, Table, counts, intervals, names, number, numbers, texts
from vitpos.analysis.verdict import Difference


def factors(evidence: Evidence) -> Section:
    """Says how far each axis beside position moves accuracy, and how the ranking of the schemes moves with it."""
    if not evidence.axes:
        return Section("Other axes", ())
    effects, moves = [], []
    for key in evidence.axes:
        effects += _effects(evidence, key)
        moves += _moves(evidence, key)
    text = (
        "Mean accuracy at each value of an axis, over the schemes and the values of the other axes that were run at "
        "all of them and the seeds that these have in common, with the t interval over seeds of the difference to the "
        "first value. Schemes that lack the option are left out of these means. None of it is part of the family that "
        f"is judged above. {strong('tau')} is Kendall's, of the order of the schemes against that at the first value: "
        "1 is the same order, -1 the reverse."
    )
    columns = [
        names("axis"),
        Column("value", code),
        numbers(f"{evidence.metric}, %"),
        counts("variants"),
        counts("seeds"),
    ]
    columns += [numbers("minus first", sign=True), intervals(f"{evidence.level} t interval", sign=True)]
    order = [names("axis"), Column("value", code), numbers("tau", sign=True), texts("schemes, best first")]
    blocks: list[Block] = [text]
    blocks += [Table("factors", "Main effects of the axes", columns, effects)] if effects else []
    blocks += [Table("orders", "Ranking of the schemes by value", order, moves)] if moves else []
    for key, figure in breakdowns.factors(evidence.comparison, evidence.places, evidence.look).items():
        name = f"factor_{re.sub(r'[^A-Za-z0-9]+', '_', key)}"
        blocks += picture(name, figure, f"Effect of {key} on each scheme, and the rank of each scheme by its value")
    return Section("Other axes", blocks)


def _effects(evidence: Evidence, key: str) -> list[list[object]]:
    """Computes the main effect of an axis: means over complete cells, and their differences by seed."""
    values = _values(evidence.variants, key)
    cells = _cells(evidence.variants, key, values)
    table = _accuracies(evidence, evidence.variants, cells)
    if not table.size:
        return []
    means = table.mean(axis=0)  # (values, seeds)
    rows = []
    for value, over_seeds in zip(values, means, strict=True):
        s = summarize(list(over_seeds - means[0]), 1 - evidence.comparison.alpha)
        moved = [math.nan, (math.nan, math.nan)] if value == values[0] else [s.mean, (s.low, s.high)]
        rows.append([key, level(value), float(over_seeds.mean()), len(cells), s.n, *moved])
    return rows


def _moves(evidence: Evidence, key: str) -> list[list[object]]:
    """Orders the schemes at each value of an axis."""
    values = _values(evidence.places, key)
    cells = _cells(evidence.places, key, values)
    table = _accuracies(evidence, evidence.places, cells)
    positions = list(dict.fromkeys(cell[0].position for cell in cells))
    if len(positions) < 2 or not table.size:
        return []
    # (positions, values)
    means = np.array([table[[cell[0].position == p for cell in cells]].mean(axis=(0, 2)) for p in positions])
    rows = []
    for i, value in enumerate(values):
        order = sorted(range(len(positions)), key=lambda k, here=means[:, i]: -here[k])  # type: ignore[misc]
        tau = float(stats.kendalltau(means[:, 0], means[:, i]).statistic) if i else math.nan
        listed = ", ".join(f"{code(positions[k])} {number(means[k, i])}" for k in order)
        rows.append([key, level(value), tau, listed])
    return rows


def _accuracies(evidence: Evidence, groups: Groups, cells: Sequence[Sequence[Variant]]) -> Floats:
    """Collects accuracies (cells, values, seeds) of the seeds for which all of them are numbers."""
    if not cells:
        return np.empty((0, 0, 0))
    seeds = sorted(set.intersection(*(set(groups[v]) for cell in cells for v in cell)))
    table = np.array([[[points(groups[v][s], evidence.comparison.metric) for s in seeds] for v in c] for c in cells])
    whole: Floats = table[:, :, np.isfinite(table).all(axis=(0, 1))]
    return whole


def _values(groups: Groups, key: str) -> list[str]:
    """Gives the values of an axis: numbers in their order, then words in theirs."""
    found = dict.fromkeys(value for variant in groups for k, value in variant.others if k == key)

    def order(value: str) -> tuple[bool, float, str]:
        try:
            return (False, float(value), value)
        except ValueError:
            return (True, 0.0, value)

    return sorted(found, key=order)


def _cells(groups: Groups, key: str, values: Sequence[str]) -> list[list[Variant]]:
    """Gives, for each scheme and values of the other axes that were run at all values of one, those variants."""
    cells = []
    for variant in groups:
        if (key, values[0]) in variant.others:
            rest = [pair for pair in variant.others if pair[0] != key]
            cell = [replace(variant, others=tuple(sorted([*rest, (key, value)]))) for value in values]
            if all(v in groups for v in cell):
                cells.append(cell)
    return cells


def ranking(evidence: Evidence) -> Section:
    """Says how far the order of the schemes depends on the seed."""
    rows, agreement = [], []
    for others in sorted({v.others for v in evidence.places}):
        members = [v for v in evidence.places if v.others == others]
        seeds = sorted(set.intersection(*(set(evidence.places[v]) for v in members)))
        table = np.array([[points(evidence.places[v][s], evidence.comparison.metric) for v in members] for s in seeds])
        if len(members) < 2 or not len(table):
            continue
        table = table[np.isfinite(table).all(axis=1)]
        if len(table) < 2:
            continue
        ranks = np.asarray(stats.rankdata(-table, axis=1))
        where = f" with {Variant('', others).label[2:]}" if others else ""
        agreement.append(f"{number(_agreement(ranks))}{where} ({len(table)} seeds)")
        shown = stats.rankdata(-table.round(4), method="min", axis=1).T
        for i in sorted(range(len(members)), key=lambda i, ranks=shown: float(ranks[i].mean())):  # type: ignore[misc]
            r = shown[i]
            rows.append([*evidence.about(members[i]), float(r.mean()), r.min(), r.max(), (r == 1).sum(), len(table)])
    if not rows:
        return Section("Ranking by seed", ())
    text = (
        "Rank of each scheme among all that were run with the same seed and settings: 1 is the highest "
        f"{evidence.metric}, equal ones share the better rank. Kendall's W, from 0 where seeds do not agree to 1 where "
        f"every seed gives the same order: {'; '.join(agreement)}."
    )
    figure = draw_ranks(evidence.comparison, evidence.places, evidence.look)
    alt = "How often each scheme had which rank over the seeds; the ranks are in the table"
    columns = [*evidence.subject, numbers("mean rank"), counts("best"), counts("worst"), counts("times first")]
    ranks_table = Table("ranking", "Ranks over seeds", [*columns, counts("seeds")], rows)
    return Section("Ranking by seed", [text, *picture("ranking", figure, alt), ranks_table])


def _agreement(ranks: Floats) -> float:
    """Computes Kendall's W of ranks (seeds, schemes): 12 S / (n^2 (m^3 - m)), S the squares of the sums of ranks."""
    n, m = ranks.shape
    sums = ranks.sum(axis=0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (n**2 * (m**3 - m)))


def per_class(evidence: Evidence) -> Section:
    """Says which classes gain and lose most, and gives all differences in a file."""
    found = {d.candidate: _by_class(evidence, d) for d in evidence.differences}
    known = {variant: classes for variant, classes in found.items() if classes}
    if not known:
        return Section("Classes", ())
    least = min(n for classes in known.values() for n, _ in classes.values())
    text = (
        f"Mean difference to {code(evidence.comparison.reference)} on the test images of each class, over the pairs of "
        "seeds. Nothing is tested here: of so many classes some differ by chance. The smallest class has "
        f"{count(least, 'image')}, and a difference on so few an error over images of up to "
        f"{number(difference_sampling_error(50, 50, least))} points."
    )
    columns = [*evidence.subject, names("gains most"), numbers("gain", sign=True)]
    columns += [names("loses most, or gains least"), numbers("loss", sign=True)]
    rows = []
    for variant, classes in known.items():
        order = sorted(classes, key=lambda name, of=classes: of[name][1])  # type: ignore[misc]
        rows.append([*evidence.about(variant), order[-1], classes[order[-1]][1], order[0], classes[order[0]][1]])
    every = dict.fromkeys(name for classes in known.values() for name in classes)
    table = [
        [*evidence.about(variant), *(classes.get(name, (0, math.nan))[1] for name in every)]
        for variant, classes in known.items()
    ]
    heads = [*evidence.subject, *(numbers(code(name), sign=True) for name in every)]
    figure = breakdowns.per_class(evidence.comparison, evidence.places)
    alt = f"Differences to {evidence.comparison.reference} by class; the largest are in the table"
    blocks = [
        *picture("per_class", figure, alt),
        Table("classes_extreme", "Classes that gain and lose most", columns, rows),
        Table("classes", "Differences by class", heads, table, shown=False),
    ]
    return Section("Classes", [text, *blocks])


def _by_class(evidence: Evidence, d: Difference) -> dict[str, tuple[int, float]]:
    """Gives images and mean difference of each class; nothing where a row does not say or has other classes."""
    if not d.n:
        return {}
    ours, theirs = ([row.get("per_class") for row in rows] for rows in evidence.pair(d))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a and b]
    if len(pairs) < d.n:
        return {}
    first = pairs[0][0]
    if any(counted[key] != first[key] for pair in pairs for counted in pair for key in ("names", "count")):
        return {}
    shares = [np.subtract(a["correct"], b["correct"]) / np.maximum(1, a["count"]) for a, b in pairs]
    means = 100 * np.mean(shares, axis=0)
    return {str(k): (n, float(x)) for k, n, x in zip(first["names"], first["count"], means, strict=True) if n}
