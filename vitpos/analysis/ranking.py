"""How stable the ranking of schemes is over seeds, and what accuracy costs."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from vitpos.analysis import style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Groups, Summary, Variant, points, summarize
from vitpos.analysis.style import Style, count

Cell = tuple[tuple[tuple[str, str], ...], int]
"""A setting of the axes other than position, and a seed."""

# A rate relative to the reference that varies by more over seeds says something of the machine, not of the scheme.
_STEADY = 1.1
_SHARED = re.compile(r"(\d+) (?:threads? )?of (\d+) \w+")


def ranking(comparison: Comparison, groups: Groups, look: Mapping[str, Style]) -> Figure | None:
    """Draws how often each scheme had which rank, over seeds and, where there are several, settings of other axes.

    Equal accuracies share the better rank. Only seeds in which all schemes have a result count; a scheme that lacks
    more than half of them is left out. Both are said in the caption.

    Args:
        comparison: Metric and reference.
        groups: All rows, from `statistics.group`.
        look: From `style.styles`.

    Returns:
        The figure; None where no seed has results of two schemes.
    """
    values = accuracies(comparison, groups)
    taking_part: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for variant in groups:
        taking_part.setdefault(variant.others, set()).add(variant.position)
    compared = max(taking_part.values(), key=len)
    cells = {(v.others, seed) for v, runs in groups.items() if compared <= taking_part[v.others] for seed in runs}
    names = [p for p in sorted(compared) if 2 * len(cells & values.get(p, {}).keys()) > len(cells)]
    whole = sorted(c for c in cells if all(c in values[p] for p in names))
    if len(names) < 2 or not whole:
        return None
    table = np.array([[values[p][c] for c in whole] for p in names])
    ranks = stats.rankdata(-table.round(4), method="min", axis=0).astype(int)
    order = sorted(range(len(names)), key=lambda i: (ranks[i].mean(), -table[i].mean()))
    shares = np.array([np.bincount(ranks[i], minlength=len(names) + 1)[1:] for i in order])
    labels = [style.wrap(style.named(comparison.reference, names[i]), 32) for i in order]
    heights = np.array([0.14 + 0.16 * (1 + label.count("\n")) for label in labels])
    runs = count(len({seed for _, seed in whole}), "seed")
    if len({s for s, _ in whole}) > 1:
        runs = f"{len(whole)} runs: {runs}, {len({s for s, _ in whole})} settings of the other axes"
    absent = [p for p in dict.fromkeys(v.position for v in groups) if p not in names]
    caption = [
        f"A number says how often (of {len(whole)}). Equal accuracies share the better rank.",
        "One seed cannot show how stable this is." if len(whole) == 1 else "",
        f"{count(len(cells) - len(whole), 'seed')} left out, in which not all have a result."
        if len(cells) > len(whole)
        else "",
        f"Not ranked, for want of results in these: {', '.join(absent)}." if absent else "",
    ]
    title = f"Rank by {style.words(comparison.metric)} in {runs}"
    figure = style.make(float(heights.sum()) + 0.6, title, " ".join(filter(None, caption)))
    axes = figure.add_subplot()
    edges = np.concatenate(([0.0], heights.cumsum()))
    for row, i in enumerate(order):
        colour, middle = look[names[i]].colour, edges[row] + heights[row] / 2
        for rank in np.flatnonzero(shares[row]):
            share = 0.2 + 0.8 * float(shares[row, rank] / len(whole))
            axes.fill_between([rank + 0.52, rank + 1.48], edges[row] + 0.02, edges[row + 1] - 0.02,
                              color=to_rgba(colour, share), linewidth=0)  # fmt: skip
            axes.text(float(rank) + 1, middle, f"{shares[row, rank]}", ha="center", va="center", fontsize=9,
                      color=style.ink(colour, share))  # fmt: skip
        axes.annotate(f"{ranks[i].mean():.1f}", (1.02, middle), xycoords=axes.get_yaxis_transform(), va="center",
                      fontsize=10)  # fmt: skip
    axes.annotate("mean", (1.02, 1), (0, 4), "axes fraction", "offset points", fontsize=10)
    style.plain(axes)
    axes.grid(visible=False)
    axes.set(xlim=(0.4, len(names) + 0.6), ylim=(edges[-1], 0), xlabel="rank (1: the best)")
    axes.set_xticks(range(1, len(names) + 1))
    axes.tick_params(axis="x", labelsize=9 if len(names) > 15 else 10)
    axes.set_yticks(edges[:-1] + heights / 2, labels, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def pareto(comparison: Comparison, groups: Groups, look: Mapping[str, Style]) -> Figure | None:
    """Draws accuracy with its interval against cost relative to the reference, and which schemes are not outdone.

    Cost is the measured time of training per image, paired by seed, where the rates can be compared: same hardware, no
    sign that runs shared it (in the name of the hardware, or a ratio that varies by more than a tenth over seeds). Else
    it is the operations of one forward pass. The picture says which, and why. Where all cost the same, accuracies
    are listed instead.

    Args:
        comparison: Metric, reference and alpha.
        groups: All rows, from `statistics.group`.
        look: From `style.styles`.

    Returns:
        The figure; None where fewer than two schemes have both a cost and an accuracy.
    """
    values = accuracies(comparison, groups)
    seeds = {p: _by_seed(cells) for p, cells in values.items()}
    accuracy = {p: summarize(list(by.values()), 1 - comparison.alpha) for p, by in seeds.items() if by}
    cost, what, why = _costs(comparison, groups)
    names = sorted((p for p in accuracy if p in cost), key=lambda p: (-round(accuracy[p].mean, 4), p))
    if len(names) < 2:
        return None
    absent = [p for p in dict.fromkeys(v.position for v in groups) if p not in names]
    settings = {v.others for v in groups}
    n = style.span(s.n for s in accuracy.values())
    caption = [
        f"Bars: {100 * (1 - comparison.alpha):g} % t interval of the mean over {n} seeds; wider than those of paired "
        "differences."
        if any(np.isfinite(s.low) for s in accuracy.values())
        else "No intervals: they need two seeds that differ.",
        f"Means over {len(settings)} settings of the other axes." if len(settings) > 1 else "",
        f"Measured rates are no measure of cost here: {why}." if why else "",
        f"Not drawn, for want of results: {', '.join(absent)}." if absent else "",
    ]
    metric = style.words(comparison.metric)
    spread = max(cost[p] for p in names) - min(cost[p] for p in names)
    if spread < 0.005:
        return _listed(comparison, names, accuracy, look, f"{metric.capitalize()}; all cost the same ({what})", caption)
    front = [p for p in names if not any(
        cost[q] <= cost[p] and accuracy[q].mean >= accuracy[p].mean and q != p
        and (cost[q], accuracy[q].mean) != (cost[p], accuracy[p].mean) for q in names)]  # fmt: skip
    legend = [(style.handle(look[p], line=False), style.named(comparison.reference, p)) for p in names]
    legend.append((Line2D([], [], color="#9A9A9A", ls="--"), "not outdone at its cost"))
    caption.append(
        "Marks of nearly equal cost are set side by side; the dashed line takes means as they are, chance included."
    )
    figure = style.make(4.2, f"{metric.capitalize()} against cost", " ".join(filter(None, caption)), legend)
    axes = figure.add_subplot()
    front.sort(key=lambda p: cost[p])
    reach = max(cost[p] for p in names) + 0.05 * spread
    corners = [*((cost[p], accuracy[p].mean) for p in front), (reach, accuracy[front[-1]].mean)]
    axes.step(*zip(*corners, strict=True), "--", where="post", color="#9A9A9A", zorder=1)
    places = _spread_out({p: cost[p] for p in names}, spread)
    for p in names:
        s, x = accuracy[p], places[p]
        if np.isfinite(s.low):
            axes.plot([x, x], [s.low, s.high], color=look[p].colour, linewidth=1.6, alpha=0.6)
        axes.plot(
            x,
            s.mean,
            look[p].marker,
            color=look[p].colour,
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )
    style.plain(axes)
    digits = 2 if spread > 0.05 else 3
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.{digits}f}x")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.margins(0.06)
    axes.set_xlabel(f"{what}, relative to {comparison.reference}", fontsize=10)
    axes.set_ylabel(f"{metric}, %", fontsize=10)
    return figure


def accuracies(comparison: Comparison, groups: Groups) -> dict[str, dict[Cell, float]]:
    """Sorts all finite accuracies by position, setting and seed."""
    values: dict[str, dict[Cell, float]] = {}
    for variant, runs in groups.items():
        for seed, row in runs.items():
            if np.isfinite(value := points(row, comparison.metric)):
                values.setdefault(variant.position, {})[variant.others, seed] = value
    return values


def _by_seed(cells: Mapping[Cell, float]) -> dict[int, float]:
    """Takes the mean over settings by seed, of those seeds that have all settings."""
    settings = {s for s, _ in cells}
    seeds = [seed for seed in sorted({seed for _, seed in cells}) if all((s, seed) in cells for s in settings)]
    return {seed: float(np.mean([cells[s, seed] for s in settings])) for seed in seeds}


def _costs(comparison: Comparison, groups: Groups) -> tuple[dict[str, float], str, str]:
    """Computes the cost of each position relative to the reference; says what it is, and why not the measured one."""
    rows = [row for runs in groups.values() for row in runs.values()]
    hardware = {str(row["environment"].get("hardware")) for row in rows}
    shared = [found for name in sorted(hardware) if (found := _SHARED.search(name)) and int(found[1]) < int(found[2])]
    rates = _relative(comparison, groups, "images_per_second")
    if len(hardware) > 1:
        why = "the hardware differs"
    elif shared:
        why = f"runs had {shared[0][0]} and shared the machine"
    elif any(max(ratios) > _STEADY * min(ratios) for ratios in rates.values()):
        why = "from seed to seed they vary by more than a tenth"
    else:
        return (
            {p: float(np.mean(1 / np.array(r))) for p, r in rates.items()},
            "training time per image, as measured",
            "",
        )
    operations = _relative(comparison, groups, "flops")
    return {p: float(np.mean(r)) for p, r in operations.items()}, "operations of a forward pass", why


def _relative(comparison: Comparison, groups: Groups, key: str) -> dict[str, list[float]]:
    """Divides a number of each run by that of the reference with the same setting and seed."""
    found: dict[str, list[float]] = {}
    for variant, runs in groups.items():
        others = groups.get(Variant(comparison.reference, variant.others), {})
        for seed in sorted(runs.keys() & others.keys()):
            ours, theirs = runs[seed].get(key), others[seed].get(key)
            if ours and theirs:
                found.setdefault(variant.position, []).append(ours / theirs)
    return found


def _spread_out(places: Mapping[str, float], spread: float) -> dict[str, float]:
    """Moves marks that would lie on one another apart, by at most a few percent of the axis."""
    step, found = 0.012 * spread, {}
    crowd: list[str] = []
    for p in sorted(places, key=lambda p: places[p]):
        if crowd and places[p] - places[crowd[0]] > step:
            crowd = []
        crowd.append(p)
        for i, q in enumerate(crowd):
            found[q] = places[crowd[0]] + step * (i - (len(crowd) - 1) / 2)
    return found


def _listed(
    comparison: Comparison,
    names: Sequence[str],
    accuracy: Mapping[str, Summary],
    look: Mapping[str, Style],
    title: str,
    caption: Sequence[str],
) -> Figure:
    """Draws accuracies with their intervals, one scheme a line."""
    labels = [style.wrap(style.named(comparison.reference, p), 34) for p in names]
    heights = [0.14 + 0.16 * (1 + label.count("\n")) for label in labels]
    figure = style.make(sum(heights) + 0.6, title, " ".join(filter(None, caption)))
    axes = figure.add_subplot()
    middles = np.cumsum(heights) - np.array(heights) / 2
    for y, p in zip(middles, names, strict=True):
        s = accuracy[p]
        if np.isfinite(s.low):
            axes.plot([s.low, s.high], [y, y], color=look[p].colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(
            s.mean,
            y,
            look[p].marker,
            color=look[p].colour,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )
    style.plain(axes)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(middles, labels, fontsize=10)
    axes.set_ylim(sum(heights), 0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{style.words(comparison.metric)}, %", fontsize=10)
    return figure
