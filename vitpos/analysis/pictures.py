"""The pictures of a report. They draw tables and compute nothing; captions are in the report's template.

``found`` comes from `verdict.verdicts`, tables from `breakdowns`, ``looks`` from `style.styles`. A function returns
None if there is nothing to draw.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from vitpos import style
from vitpos.analysis import tables
from vitpos.analysis.runs import Setting, Variant, setting_order, settings
from vitpos.analysis.signs import Floats
from vitpos.analysis.tables import Table, level
from vitpos.analysis.terms import Terms
from vitpos.style import Style
from vitpos.text import minus, number, span

_OVERLAID = 8  # most schemes whose curves can be told apart in one panel
_PANELS = 36  # most panels of a figure
_ROWS = 60  # most rows of a figure
_CLASSES = 12  # most classes of a figure: as many numbers as fit side by side

Looks = Mapping[str, Style]
Mark = tuple[Artist, str]  # handle and label in a legend
Cell = tuple[tuple[float, float, float, float], str]  # colour and text
Blocks = dict[str, list[tuple[str, Sequence[Cell]]]]  # by title, rows of cells with their names
_EMPTY: Cell = ((1.0, 1.0, 1.0, 0.0), "")


def forest(found: pd.DataFrame, terms: Terms, looks: Looks) -> Figure | None:
    """Draws the paired differences to the reference with intervals, the margin as a band, and the verdicts.

    Comparisons in several settings are grouped. Of more than `_ROWS`, decided ones and the largest are drawn.
    """
    if found.empty:
        return None
    ranked = found.assign(open=found["verdict"] == "undecided", size=-found["mean"].abs().fillna(-1))
    found = found.loc[sorted(ranked.sort_values(["open", "size"]).index[:_ROWS])]
    rows: list[tuple[str, pd.Series | None]] = []
    for setting, group in found.groupby("setting", sort=False):
        if found["setting"].nunique() > 1:
            rows.append((style.wrap(_where(setting) or "other axes do not apply", 76), None))
        rows += [(style.wrap(d["scheme"], 32), d) for _, d in group.iterrows()]
    heights = np.array([(0.12 if d is None else 0.2) + _height(name) for name, d in rows])
    middles = heights.cumsum() - heights / 2  # inches from the top
    figure = _figure(heights.sum() + 1.3)
    axes = figure.add_subplot()
    axes.axvspan(-terms.margin, terms.margin, color=style.BAND, zorder=0, linewidth=0)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    limits = _limits(found, terms)
    axes.set(xlim=limits, ylim=(heights.sum(), 0), xlabel=f"difference to {terms.reference}, percentage points")
    ticks = {}
    for y, (name, d) in zip(middles, rows, strict=True):
        if d is None:
            left = axes.get_yaxis_transform()
            axes.annotate(name, (0, y), (-4, 0), left, "offset points", va="center", fontsize=10, weight="bold")
        else:
            ticks[y] = name
            _difference(axes, float(y), d, looks[d["scheme"]], limits)
    style.plain(axes)
    axes.grid(visible=False, axis="y")
    axes.set_yticks([*ticks], [*ticks.values()], fontsize=10)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=8)
    dot, mean = Line2D([], [], color="black", marker=".", ls="", alpha=0.45), f"mean of n = {span(found['n'])} pairs"
    marks: list[Mark] = [(Line2D([], [], color="black", marker="o", ls="", markersize=7), mean)]
    marks += [(dot, "difference of one seed"), (Patch(color=style.BAND), f"within the margin of {terms.margin:g}")]
    if found["low"].notna().any():
        thin, wide = (Line2D([], [], color="black", linewidth=w, alpha=a) for w, a in ((1.4, None), (5, 0.45)))
        marks.append((thin, f"{terms.confidence} interval, simultaneous"))
        marks.append((wide, f"{terms.confidence} t interval, single"))
    _legend(figure, marks)
    return figure


def _difference(axes: Axes, y: float, d: pd.Series, look: Style, limits: tuple[float, float]) -> None:
    text = f"{minus(number(d['mean'], sign=True))}  {d['verdict']}" if d["n"] else d["verdict"]
    axes.annotate(text, (1.035, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=10)
    if not d["n"]:
        axes.text(0.5, y, "no pair of runs", transform=axes.get_yaxis_transform(), va="center", ha="center", fontsize=9)
        return
    if np.isfinite(d["low"]):
        alone, together = (np.clip(d[[f"{of}low", f"{of}high"]].astype(float), *limits) for of in ("single_", ""))
        axes.plot(alone, [y, y], color=look.colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(together, [y, y], color=look.colour, linewidth=1.4, marker="|", markersize=10)
        for end, edge, mark in ((d["low"], limits[0], "<"), (d["high"], limits[1], ">")):
            if not limits[0] <= end <= limits[1]:  # it goes on beyond the edge
                axes.plot(edge, y, mark, color=look.colour, markersize=8, clip_on=False)
    differences = list(d["by_seed"].values())
    if len(differences) > 1:
        axes.plot(differences, np.full(len(differences), y - 0.11), ".", color=look.colour, markersize=5, alpha=0.6)
    _mark(axes, d["mean"], y, look)


def _limits(found: pd.DataFrame, terms: Terms) -> tuple[float, float]:
    """Returns the limits of the axis: all differences, and as much of wide intervals as leaves those visible."""
    seen = [0.0, -terms.margin, terms.margin, *(x for values in found["by_seed"] for x in values.values())]
    ends = found[["low", "high", "single_low", "single_high"]].to_numpy(dtype=float)
    low, high = min(seen), max(seen)
    room = 0.6 * (high - low) or 1.0
    low = max(float(np.nanmin([low, *ends.ravel()])), low - room)
    high = min(float(np.nanmax([high, *ends.ravel()])), high + room)
    edge = 0.04 * (high - low) or 1.0
    return low - edge, high + edge


def curves(
    data: Mapping[Variant, pd.DataFrame], at: Mapping[Setting, Sequence[Variant]], looks: Looks, label: str
) -> Figure | None:
    """Draws accuracy by epoch: mean over seeds, with a band from the lowest to the highest.

    Up to eight schemes share a panel, and have a second one of the last third. More have a panel each, in which the
    others are grey. Several settings have a panel each, all with the schemes that lack the option.
    """
    if not data:
        return None
    best_first = sorted(data, key=lambda v: -np.nan_to_num(data[v]["mean"].iloc[-1], nan=-1.0))
    names = list(dict.fromkeys(v.position for v in best_first))
    first, last = (int(end(d["epoch"].iloc[i] for d in data.values())) for end, i in ((min, 0), (max, -1)))
    late = int(np.ceil(last * 2 / 3)) if last >= 6 else first
    apart = len(at) == 1 and len(names) > _OVERLAID
    share = apart or len(at) > 1
    if apart:
        panels = [(v.position, [*(w for w in best_first if w != v), v], first) for v in best_first]
    elif share:
        panels = [(_where(s), [v for v in best_first if v in members], first) for s, members in at.items()]
    else:
        panels = [("", best_first, first), ("the last third", best_first, late)][: 2 if late > first else 1]
    panels = panels[:_PANELS]
    columns = min(len(panels), 3 if share else 2)
    titles = [style.wrap(title, 31 if columns == 3 else 50) for title, _, _ in panels]
    height, below = 2.9 if len(panels) <= columns else 1.9, 0.5 + (0 if apart else 0.1 * len(names))
    figure, grid = _panels(titles, columns, height, below, "epoch", share=share)
    for axes, (_, members, start) in zip(grid, panels, strict=True):
        for variant in members:
            d, look = data[variant], looks[variant.position]
            if apart and variant != members[-1]:
                axes.plot(d["epoch"], d["mean"], color="#C4C4C4", linewidth=0.8)
                continue
            if (d["n"] > 1).all() and (apart or len(names) <= _OVERLAID):
                axes.fill_between(d["epoch"], d["low"], d["high"], color=look.colour, alpha=0.18, linewidth=0)
            axes.plot(d["epoch"], d["mean"], look.line, color=look.colour, linewidth=1.8, marker=look.marker, ms=5)
            axes.lines[-1].set_markevery((0.02, 0.14) if len(d) > 1 else 1)
        style.plain(axes)
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if start > first:
            seen = pd.concat([data[v][data[v]["epoch"] >= start] for v in members])[["low", "high"]].to_numpy()
            axes.set_xlim(start, last + 0.02 * (last - start))
            if np.isfinite(seen).any() and np.nanmax(seen) > np.nanmin(seen):
                edge = 0.05 * (np.nanmax(seen) - np.nanmin(seen))
                axes.set_ylim(np.nanmin(seen) - edge, np.nanmax(seen) + edge)
    figure.supylabel(f"{label}, %", fontsize=10)
    if not apart:
        _legend(figure, [(style.handle(looks[name]), name) for name in names])
    return figure


def similarity(mosaics: Mapping[Variant, Floats]) -> Figure | None:
    """Draws similarity maps as figure 7 of the ViT paper (arXiv:2010.11929): one panel per variant, on one scale."""
    if not mosaics:
        return None
    order = sorted(mosaics, key=lambda v: (v.position, setting_order(v.others)))
    if len(order) > _PANELS:
        start = settings(v.others for v in order)[0]
        order = [v for v in order if v.others == start][:_PANELS]
    columns = min(3 if len(order) <= 9 else 4, len(order))
    several = len({v.others for v in order}) > 1
    labels = [", ".join(filter(None, (v.position, _where(v.others) if several else ""))) for v in order]
    titles = [style.wrap(label, 100 // columns) for label in labels]
    shape = max(mosaics[v].shape[0] / mosaics[v].shape[1] for v in order)
    height = min(shape * (style.WIDTH / max(columns, 2) - 0.1), 6.0) + 0.3
    figure, grid = _panels(titles, columns, height, 0.7)
    for axes, variant in zip(grid, order, strict=True):
        axes.set(xticks=[], yticks=[], facecolor="#8A8A8A")  # the gaps: a cosine of 0 is white
        axes.spines[:].set_visible(False)
        axes.imshow(mosaics[variant], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
        if not np.isfinite(mosaics[variant]).any():
            axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center", va="center", fontsize=10)
    bar = figure.colorbar(grid[0].images[0], ax=figure.axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("cosine similarity", fontsize=10)
    return figure


def ranking(table: Table, looks: Looks) -> Figure | None:
    """Draws how often each scheme had which rank, one block per setting."""
    shares = table.facts["shares"][:_ROWS]
    most = max((len(counts) for _, _, counts in shares), default=0)
    blocks: Blocks = {}
    for at, position, counts in shares:
        cells = [_EMPTY] * most
        for rank in np.flatnonzero(counts):
            share = min(1.0, 0.2 + 0.8 * counts[rank] / counts.sum())
            cells[rank] = (to_rgba(looks[position].colour, share), str(counts[rank]))
        blocks.setdefault(_where(at), []).append((position, cells))
    return _heat(blocks, [str(i + 1) for i in range(most)], "rank (1: the best)") if shares else None


def classes(table: Table, reference: str) -> Figure | None:
    """Draws differences to the reference by class; of many classes the twelve in which some scheme differs most."""
    names = table.facts["names"]
    if not names:
        return None
    values = table.frame[names].astype(float).to_numpy()
    shown = np.sort(np.argsort(-np.nan_to_num(np.abs(values)).max(0), kind="stable")[:_CLASSES])
    top = max(float(np.nanmax(np.abs(values[:, shown]), initial=0.0)), 0.1)
    keys = [head for head in table.frame.columns if head not in ("scheme", *names)]
    blocks: Blocks = {}
    for row, line in list(zip(table.frame.to_dict("records"), values[:, shown], strict=True))[:_ROWS]:
        colours = colormaps["RdBu"](Normalize(-top, top)(line))
        cells = [
            (tuple(colour), minus(number(x, 1, sign=True))) if np.isfinite(x) else (_EMPTY[0], "no\nimage")
            for colour, x in zip(colours, line, strict=True)
        ]
        where = ", ".join(f"{key} = {row[key]}" for key in keys if row[key] != "-")
        blocks.setdefault(where, []).append((row["scheme"], cells))
    heads = [style.wrap(str(names[i]), 18) for i in shown]
    return _heat(blocks, heads, f"difference to {reference} by class, points: red is worse, blue better")


def _heat(blocks: Blocks, columns: Sequence[str], label: str) -> Figure:
    """Draws blocks of cells under each other, the names of the columns at the top and a label at the bottom."""
    parts = [(style.wrap(title, 56), [style.wrap(name, 30) for name, _ in rows]) for title, rows in blocks.items()]
    heights = [len(names) * (0.16 + max(map(_height, names))) + _height(title) for title, names in parts]
    widest = max(len(line) for name in columns for line in name.split("\n"))
    turned = widest > 7 * 12 / max(len(columns), 6)
    figure = _figure(sum(heights) + (0.09 * widest if turned else 0.3) + 0.6)
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for i, (axes, (title, names), rows) in enumerate(zip(grid, parts, blocks.values(), strict=True)):
        axes.imshow(np.array([[colour for colour, _ in cells] for _, cells in rows]), aspect="auto")
        for y, (_, cells) in enumerate(rows):
            for x, (colour, text) in enumerate(cells):
                ink = style.ink(colour[:3], colour[3])
                axes.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)
        axes.set_title(title, fontsize=10, loc="left", weight="bold")
        axes.set_yticks(range(len(rows)), names, fontsize=10)
        axes.set_xticks(range(len(columns)), columns if not i else [], rotation=90 if turned else 0, fontsize=9)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.hlines(np.arange(len(rows) + 1) - 0.5, -0.5, len(columns) - 0.5, color="white", linewidth=2)
        axes.vlines(np.arange(len(columns) + 1) - 0.5, -0.5, len(rows) - 0.5, color="white", linewidth=2)
    figure.supxlabel(label, fontsize=10)
    return figure


def pareto(table: Table, terms: Terms, looks: Looks) -> Figure | None:
    """Draws accuracy with its interval against relative cost, with the Pareto front, one panel per setting."""
    points = table.facts["points"]
    names = list(dict.fromkeys(position for _, position, _, _ in points))
    at = list(dict.fromkeys(setting for setting, *_ in points))[:_PANELS]
    if len(names) < 2:
        return None
    costs = [x for _, _, x, _ in points]
    spread = max(costs) - min(costs)
    spread = spread if spread >= 0.005 else 0.0  # then all cost the same, and marks stand side by side
    columns, digits = min(len(at), 3), 3 if 0 < spread <= 0.05 else 2
    titles = [style.wrap(_where(setting), 76 // columns) for setting in at]
    height, below = 3.2 if columns == 1 else 2.8, 0.6 + 0.1 * len(names)
    xlabel = f"{table.facts['measure']}, relative to {terms.reference}"
    figure, grid = _panels(titles, columns, height, below, xlabel, share=True)
    for axes, setting in zip(grid, at, strict=True):
        here = {position: (x, s) for s_, position, x, s in points if s_ == setting}
        front, best = [], -np.inf
        for x, s in sorted(here.values(), key=lambda point: (point[0], -point[1].mean)):
            if s.mean > best:
                front.append((x, s.mean))
                best = s.mean
        front.append((max(costs) + 0.05 * (spread or 1), best))
        if spread:
            axes.step(*zip(*front, strict=True), "--", where="post", color="#9A9A9A", zorder=1)
        for position, x in _spread_out({p: x for p, (x, _) in here.items()}, spread or 1).items():
            s = here[position][1]
            axes.plot([x, x], [s.low, s.high], color=looks[position].colour, linewidth=1.6, alpha=0.6)
            _mark(axes, x, s.mean, looks[position])
        style.plain(axes)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.{digits}f}x")
        ticks = MaxNLocator(6 // columns + 1, steps=[1, 2, 5, 10]) if spread else FixedLocator([1.0])
        axes.xaxis.set_major_locator(ticks)
        axes.margins(0.06)
    figure.supylabel(f"{terms.metric_label}, %", fontsize=10)
    marks: list[Mark] = [(style.handle(looks[p], line=False), p) for p in names]
    front_mark: Mark = (Line2D([], [], color="#9A9A9A", ls="--"), "Pareto front of the means")
    _legend(figure, [*marks, front_mark] if spread else marks)
    return figure


def _spread_out(places: Mapping[str, float], spread: float) -> dict[str, float]:
    """Moves overlapping marks apart, by at most a few percent of the axis."""
    step, found = 0.012 * spread, {}
    crowd: list[str] = []
    for p in sorted(places, key=lambda p: places[p]):
        if crowd and places[p] - places[crowd[0]] > step:
            crowd = []
        crowd.append(p)
        for i, q in enumerate(crowd):
            found[q] = places[crowd[0]] + step * (i - (len(crowd) - 1) / 2)
    return found


def factor(found: pd.DataFrame, axis: str, terms: Terms, looks: Looks) -> Figure | None:
    """Draws the accuracy of each scheme at each value of an axis with its t interval, and how the ranks move."""
    levels = found.attrs["levels"]
    if found.empty or len(levels) < 2:
        return None
    order = list(found[found["level"] == levels[-1]].sort_values("mean", ascending=False)["position"])[: tables.MOST]
    ticks = [style.wrap(level(value), 14) for value in levels]
    turned = max(map(len, ticks)) * len(levels) > 26
    figure = _figure(max(3.2, 0.3 * len(order) + 1.2) + 0.1 * len(order))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    x = np.arange(len(levels))
    for i, position in enumerate(order):
        own, look = found[found["position"] == position].set_index("level").loc[levels], looks[position]
        line, shift = "--" if own["lacks"].all() else "-", x + 0.5 * (i + 0.5) / len(order) - 0.25
        left.plot(shift, own["mean"], line, color=look.colour, marker=look.marker, markersize=6, linewidth=1.4)
        left.vlines(shift, own["low"], own["high"], color=look.colour, linewidth=1.4, alpha=0.6)
        right.plot(x, own["rank"], line, color=look.colour, marker=look.marker, markersize=7, linewidth=1.4)
    for axes in (left, right):
        style.plain(axes)
        axes.set_xticks(x, ticks, fontsize=9, rotation=90 if turned else 0)
        axes.set_xlim(-0.4, len(levels) - 0.6)
        axes.set_xlabel(axis, fontsize=10)
    left.set_ylabel(f"{terms.metric_label}, %", fontsize=10)
    right.set_ylabel("rank (1: the best)", fontsize=10)
    right.set(ylim=(len(order) + 0.5, 0.5), yticks=range(1, len(order) + 1))
    _legend(figure, [(style.handle(looks[position]), position) for position in order])
    return figure


def _figure(height: float) -> Figure:
    return Figure((style.WIDTH, float(height)), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.07))


def _height(label: str) -> float:
    return 0.16 * (1 + label.count("\n"))  # inches


def _panels(
    titles: Sequence[str], columns: int, height: float, below: float, xlabel: str = "", *, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels with these titles; the lowest of each column has the label and ticks of the x axis.

    `height` is that of a panel and `below` that of what comes under all of them, in inches.
    """
    lines = -(-len(titles) // columns)
    figure = _figure(lines * (height + max(map(_height, titles)) - 0.16) + below)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axes in grid[len(titles) :]:
        axes.set_axis_off()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, fontsize=9, loc="left" if xlabel else "center")
    for axes in grid[max(0, len(titles) - columns) : len(titles)]:
        axes.set_xlabel(style.wrap(xlabel, 80 // columns), fontsize=10)
        axes.tick_params(labelbottom=True)
    return figure, list(grid[: len(titles)])


def _where(setting: Setting) -> str:
    """Formats a setting so that it does not break at its equals signs."""
    return tables.setting_label(setting).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _mark(axes: Axes, x: float, y: float, look: Style) -> None:
    axes.plot(x, y, look.marker, color=look.colour, markersize=8, mec="white", mew=0.6, zorder=3)


def _legend(figure: Figure, marks: Iterable[Mark]) -> None:
    handles, labels = zip(*marks, strict=True)
    wrapped = [style.wrap(label, 44) for label in labels]
    figure.legend(handles, wrapped, loc="outside lower left", ncols=2, fontsize=9, frameon=False, handlelength=3)
