"""Where schemes differ: class by class, and between the levels of the other axes of a study."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vitpos.analysis import style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.ranking import Cell, accuracies, pareto, ranking
from vitpos.analysis.signs import Floats
from vitpos.analysis.statistics import Groups, Row, Summary, Variant, difference_sampling_error, summarize
from vitpos.analysis.style import Style, count

__all__ = ["factors", "pareto", "per_class", "ranking"]

_CLASSES = 12  # most classes of a figure: so many numbers can stand side by side


def per_class(comparison: Comparison, groups: Groups) -> Figure | None:
    """Draws the difference of each scheme to the reference by class, mean over the pairs of seeds, as a heat map.

    Of many classes the twelve are drawn in which some scheme differs most.

    Args:
        comparison: The reference; accuracy is that on the test images, whatever the metric.
        groups: All rows, from `statistics.group`; those without ``per_class`` are left out.

    Returns:
        The figure; None where no pair of rows has counts by class.
    """
    known = [row for runs in groups.values() for row in runs.values() if row.get("per_class")]
    if not known:
        return None
    classes = [tuple(row["per_class"]["names"]) for row in known]
    names = max(dict.fromkeys(classes), key=classes.count)
    found: dict[str, list[Floats]] = {v.position: [] for v in groups if v.position != comparison.reference}
    pairs: list[tuple[Row, Row]] = []
    for variant, runs in groups.items():
        others = groups.get(Variant(comparison.reference, variant.others), {})
        for seed in sorted(runs.keys() & others.keys()) if variant.position in found else ():
            both = runs[seed], others[seed]
            if all(tuple((row.get("per_class") or {}).get("names", ())) == names for row in both):
                ours, theirs = (_by_class(row) for row in both)
                found[variant.position].append(ours - theirs)
                pairs.append(both)
    table = {p: np.mean(d, axis=0) for p, d in found.items() if d}
    if not table:
        return None
    values = np.array(list(table.values()))
    largest = np.nan_to_num(np.abs(values)).max(0)
    shown = np.sort(np.argsort(-largest, kind="stable")[:_CLASSES])
    error = max(_class_error(one, other) for one, other in pairs) if pairs else 0.0
    order = sorted(table, key=lambda p: -float(np.nan_to_num(table[p]).mean()))
    labels = [style.wrap(p, 30) for p in order]
    heights = [0.12 + 0.16 * (1 + label.count("\n")) for label in labels]
    columns = [style.wrap(str(names[i]), 18) for i in shown]
    head = max(max(map(len, name.split("\n"))) for name in columns) * 0.075
    fewer = f" the {len(shown)} of {len(names)} classes where one differs most" if len(shown) < len(names) else ""
    absent = [p for p, d in found.items() if not d]
    other = len(known) - classes.count(names)
    caption = [
        f"Points, mean over {style.span(len(d) for d in found.values() if d)} pairs of runs. "
        f"The choice of test images alone gives a cell a standard error of up to {error:.1f}.",
        "Classes were chosen for being the largest, so chance has a part in these." if fewer else "",
        f"Without a pair that has counts by class: {', '.join(absent)}." if absent else "",
        f"{count(other, 'run')} with other classes left out." if other else "",
    ]
    figure = style.make(
        sum(heights) + head + 0.8,
        f"Accuracy by class compared with {comparison.reference}{':' if fewer else ''}{fewer}",
        " ".join(filter(None, caption)),
    )
    axes = figure.add_subplot()
    top = max(float(np.nanmax(np.abs(values[:, shown]), initial=0.0)), 0.1)
    edges = np.concatenate(([0.0], np.cumsum(heights)))
    cells = np.array([table[p][shown] for p in order])
    image = axes.pcolormesh(np.arange(len(shown) + 1), edges, cells, cmap="RdBu_r", vmin=-top, vmax=top,
                            edgecolors="white", linewidth=1)  # fmt: skip
    for (i, j), value in np.ndenumerate(cells):
        text = f"{value:+.1f}" if np.isfinite(value) else "no\nimage"
        colour = "white" if abs(value) > 0.62 * top else "black"
        axes.text(j + 0.5, (edges[i] + edges[i + 1]) / 2, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_ylim(edges[-1], 0)
    axes.set_xticks(np.arange(len(shown)) + 0.5, columns, rotation=90 if head > 0.5 else 0, fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks((edges[1:] + edges[:-1]) / 2, labels, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.set_label(
        f"\N{LEFTWARDS ARROW} worse than {comparison.reference}, points, better \N{RIGHTWARDS ARROW}", fontsize=10
    )
    return figure


def factors(comparison: Comparison, groups: Groups, look: Mapping[str, Style]) -> dict[str, Figure]:
    """Draws for each further axis its main effect on each scheme, and how the ranking moves between its levels.

    A point is the mean over seeds of the mean over the settings of all other axes, with the t interval over seeds. Only
    seeds and settings that a scheme has at every level of the axis count, so that levels differ in nothing else. A
    scheme that lacks the option is a dashed line.

    Args:
        comparison: Metric, reference and alpha.
        groups: All rows, from `statistics.group`.
        look: From `style.styles`.

    Returns:
        A figure by axis, in the order of names; none for an axis of one level.
    """
    levels: dict[str, set[str]] = {}
    for variant in groups:
        for axis, value in variant.others:
            levels.setdefault(axis, set()).add(value)
    found = {}
    for axis in sorted(levels):
        if len(levels[axis]) > 1:
            order = sorted(levels[axis], key=lambda value: style.by_value([("", value)]))
            found[axis] = _factor(comparison, groups, look, axis, order)
    return found


def _factor(
    comparison: Comparison, groups: Groups, look: Mapping[str, Style], axis: str, levels: Sequence[str]
) -> Figure:
    lacking = {v.position for v in groups} - {
        v.position for v, runs in groups.items() if axis in dict(v.others)
        and not all(axis in row.get("idle", ()) for row in runs.values())
    }  # fmt: skip
    effects, dropped = _effects(accuracies(comparison, groups), axis, levels, 1 - comparison.alpha)
    names = sorted(effects, key=lambda p: -effects[p][-1].mean)
    absent = [p for p in dict.fromkeys(v.position for v in groups) if p not in names]
    ranks = stats.rankdata([[-s.mean for s in effects[p]] for p in names], method="min", axis=0) if names else None
    labels = [style.wrap(style.named(comparison.reference, p), 28) for p in names]
    heights = [0.12 + 0.16 * (1 + label.count("\n")) for label in labels]
    level_text = [style.wrap(style.level(value), 14) for value in levels]
    widest = max(len(line) for text in level_text for line in text.split("\n"))
    turned = widest * len(levels) > 26  # the right panel has room for so many characters
    below = 0.085 * widest if turned else 0.16 * max(1 + text.count("\n") for text in level_text)
    taus = [] if ranks is None or len(names) < 3 else [
        float(stats.kendalltau(ranks[:, i], ranks[:, j]).statistic) for i in range(len(levels)) for j in range(i)
        if np.ptp(ranks[:, i]) and np.ptp(ranks[:, j])
    ]  # fmt: skip
    n = style.span(s.n for p in names for s in effects[p])
    caption = [
        f"Mean over {n} {'seed' if n == '1' else 'seeds'} and all settings of the other axes, "
        + (f"with the {100 * (1 - comparison.alpha):g} % t interval over seeds." if n != "1" else "no interval."),
        f"Least agreement of two rankings (Kendall's tau, 1: the same): {min(taus):.2f}." if taus else "",
        "Dashed: has no such option; the same runs at every level." if lacking & set(names) else "",
        f"Left out, without a counterpart at every level: {count(dropped, 'run')}." if dropped else "",
        f"Not drawn, for want of results: {', '.join(absent)}." if absent else "",
    ]
    figure = style.make(max(3.0, sum(heights) + 0.65 + below), f"Effect of {axis}", " ".join(filter(None, caption)))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    x = np.arange(len(levels))
    for i, p in enumerate(names):
        s, kind = effects[p], look[p]
        line = "--" if p in lacking else "-"
        shift = x + (0.5 * (i + 0.5) / len(names) - 0.25)
        means = np.array([one.mean for one in s])
        left.plot(shift, means, line, color=kind.colour, marker=kind.marker, markersize=6, linewidth=1.4)
        left.vlines(shift, [one.low for one in s], [one.high for one in s], color=kind.colour, linewidth=1.4, alpha=0.6)
        if ranks is not None:
            place = (np.cumsum(heights)[i] - heights[i] / 2) / sum(heights) * len(names) + 0.5
            right.plot([*x, len(levels) - 0.6], [*ranks[i], place], line, color=kind.colour, linewidth=1.4)
            right.plot(
                x,
                ranks[i],
                kind.marker,
                color=kind.colour,
                markersize=7,
                linestyle="",
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            right.annotate(labels[i], (len(levels) - 0.52, place), va="center", fontsize=9, annotation_clip=False)
    for axes in (left, right):
        style.plain(axes)
        axes.set_xticks(x, level_text, fontsize=9, rotation=90 if turned else 0)
        axes.set_xlabel(axis, fontsize=10)
    left.set_ylabel(f"{style.words(comparison.metric)}, %", fontsize=10)
    left.set_xlim(-0.4, len(levels) - 0.6)
    right.set_title("rank (1: the best)", fontsize=10, loc="left")
    right.set(xlim=(-0.25, len(levels) - 0.55), ylim=(max(len(names), 1) + 0.5, 0.5))
    right.set_yticks(range(1, len(names) + 1))
    right.tick_params(axis="y", labelsize=9)
    right.spines["bottom"].set_bounds(-0.25, len(levels) - 0.75)
    if not names:
        left.text(0.5, 0.5, "no scheme has results\nat every level", transform=left.transAxes, ha="center", va="center")
    return figure


def _effects(
    values: Mapping[str, Mapping[Cell, float]], axis: str, levels: Sequence[str], confidence: float
) -> tuple[dict[str, list[Summary]], int]:
    """Summarizes each position at each level of an axis; says how many runs have no counterpart at every level."""
    effects = {}
    dropped = 0
    for position, cells in values.items():
        by_level: dict[str, dict[Cell, float]] = {level: {} for level in levels}
        for (others, seed), value in cells.items():
            rest = tuple(pair for pair in others if pair[0] != axis)
            for level in [dict(others)[axis]] if axis in dict(others) else levels:
                by_level[level][rest, seed] = value
        common = sorted(set.intersection(*map(set, by_level.values())))
        dropped += sum(len(found) - len(common) for found in by_level.values())
        seeds = sorted({seed for _, seed in common})
        means = [[float(np.mean([found[c] for c in common if c[1] == seed])) for seed in seeds]
                 for found in by_level.values()]  # fmt: skip
        if common:
            effects[position] = [summarize(over_seeds, confidence) for over_seeds in means]
    return effects, dropped


def _by_class(row: Row) -> Floats:
    counts = row["per_class"]
    total = np.array(counts["count"], dtype=np.float64)
    result: Floats = np.divide(
        100 * np.array(counts["correct"], dtype=float), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return result


def _class_error(one: Row, other: Row) -> float:
    """Bounds the standard error that the test images give the difference in any class of two runs."""
    a, b = _by_class(one), _by_class(other)
    counts = one["per_class"]["count"]
    return max((difference_sampling_error(p, q, n) for p, q, n in zip(a, b, counts, strict=True) if n), default=0.0)
