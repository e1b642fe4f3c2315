"""The report's first pictures: differences to the reference with their verdicts, curves, similarity maps.

The others are in `vitpos.analysis.ranking` and `vitpos.analysis.breakdowns`; `vitpos.analysis.style` says how all look.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from vitpos.analysis import style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.signs import Floats
from vitpos.analysis.statistics import Groups, Row, Variant
from vitpos.analysis.style import Style, count
from vitpos.analysis.tables import number
from vitpos.analysis.verdict import POWER, Difference

_OVERLAID = 8  # most schemes whose curves are told apart in one panel
_PANELS = 36  # most panels of a figure
_ROWS = 60  # most comparisons of a figure


def forest(comparison: Comparison, differences: Sequence[Difference], look: dict[str, Style]) -> Figure | None:
    """Draws the paired differences to the reference with their intervals, the margin as a band, and the verdicts.

    Comparisons in several settings (of the other axes) stand in groups. Of more than sixty, the decided and the largest
    are drawn.

    Args:
        comparison: Reference, margin and alpha.
        differences: From `verdict.compare`, drawn from top to bottom.
        look: From `style.styles`.

    Returns:
        The figure; None where there are no differences.
    """
    if not differences:
        return None
    telling = sorted(differences, key=lambda d: (d.verdict == "undecided", -np.nan_to_num(abs(d.mean), nan=-1.0)))
    left_out, differences = len(telling[_ROWS:]), [d for d in differences if d in telling[:_ROWS]]
    settings = sorted({d.candidate.others for d in differences}, key=style.by_value)
    rows: list[tuple[str, Difference | None]] = []
    for others in settings:
        if len(settings) > 1:
            rows.append((style.wrap(style.setting(others) or "other axes do not apply", 76), None))
        rows += [(style.wrap(d.candidate.position, 32), d) for d in differences if d.candidate.others == others]
    heights = [(0.14 if d is None else 0.26) + 0.16 * (1 + name.count("\n")) for name, d in rows]
    middles = np.cumsum(heights) - np.array(heights) / 2
    level = f"{100 * (1 - comparison.alpha):g} %"
    pairs = style.span(d.n for d in differences)
    dot = Line2D([], [], marker="o", color="black", linestyle="", markersize=7)
    marks: list[tuple[Artist, str]] = [(dot, f"mean of the pairs (n = {pairs})")]
    keys = [
        ("", "difference of one seed", Line2D([], [], marker=".", color="black", alpha=0.45, linestyle="")),
        ("low", f"{level} t interval", Line2D([], [], color="black", linewidth=4, solid_capstyle="butt")),
        ("flip_low", f"{level} sign-flip interval: what decides", Line2D([], [], color="black", linewidth=1.4)),
        ("bca_low", f"{level} BCa bootstrap interval", Line2D([], [], marker="d", markersize=5, color="black", ls="")),
    ]
    for key, label, mark in keys:
        if any(np.isfinite(getattr(d, key)) if key else d.n > 1 for d in differences):
            marks.append((mark, label))
    marks.append((Patch(color=style.BAND), f"within the margin of {comparison.margin:g}"))
    low, high = _limits(comparison, differences)
    cut = any(np.isfinite(d.low) and (d.low < low or d.high > high) for d in differences)
    drawn = any(np.isfinite(d.low) for d in differences)
    metric = style.words(comparison.metric)
    where = f" ({style.setting(settings[0])})" if len(settings) == 1 and settings[0] else ""
    figure = style.make(
        sum(heights) + 0.6,
        f"{metric.capitalize()} compared with {comparison.reference}{where}",
        (
            "Intervals are not adjusted for the number of comparisons; verdicts are."
            if drawn
            else "No interval: too few pairs."
        )
        + (
            f" Seeds that may settle it: in all, with {100 * POWER:g} % power."
            if any(d.needed for d in differences)
            else ""
        )
        + (" An arrow: the interval goes on beyond the edge." if cut else "")
        + (f" {count(left_out, 'comparison')} more are not drawn: undecided or smaller ones." if left_out else ""),
        marks,
    )
    axes = figure.add_subplot()
    axes.axvspan(-comparison.margin, comparison.margin, color=style.BAND, zorder=0, linewidth=0)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    axes.set_xlim(low, high)
    for y, (name, d) in zip(middles, rows, strict=True):
        if d is None:
            axes.annotate(name, (0, y), (-4, 0), axes.get_yaxis_transform(), "offset points", va="center",
                          fontsize=10, weight="bold")  # fmt: skip
        else:
            _difference(axes, float(y), d, look[d.candidate.position], (low, high), "to" in pairs)
    shown = [(y, name) for y, (name, d) in zip(middles, rows, strict=True) if d is not None]
    style.plain(axes)
    axes.grid(visible=False, axis="y")
    axes.set_yticks([y for y, _ in shown], [name for _, name in shown], fontsize=10)
    axes.set_ylim(sum(heights), 0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.set_xlabel("difference, percentage points", fontsize=10)
    return figure


def _difference(axes: Axes, y: float, d: Difference, look: Style, limits: tuple[float, float], say_n: bool) -> None:
    """Draws a row of the forest; y is in inches from the top."""
    right = axes.get_yaxis_transform()
    text = f"{number(d.mean, sign=True)}  {d.verdict}" if d.n else d.verdict
    text += f" (n = {d.n})" if d.n and say_n else ""
    more = d.needed.seeds if d.needed else None
    axes.annotate(text, (1.02, y - (0.08 if more else 0)), xycoords=right, va="center", fontsize=10)
    if more:
        axes.annotate(f"{more} seeds may settle it", (1.02, y + 0.1), xycoords=right, va="center", fontsize=9)
    if not d.n:
        reason = textwrap.shorten(d.note.split(";")[0] or "no pair", 60, placeholder=" ...")
        axes.text(0.5, y, "\n".join(textwrap.wrap(reason, 34)), transform=right, va="center", ha="center", fontsize=9,
                  backgroundcolor="white")  # fmt: skip
        return
    if np.isfinite(d.low):
        low, high = np.clip((d.low, d.high), *limits)
        axes.plot([low, high], [y, y], color=look.colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        for end, edge, mark in ((d.low, limits[0], "<"), (d.high, limits[1], ">")):
            if not limits[0] <= end <= limits[1]:
                axes.plot(edge, y, mark, color=look.colour, markersize=8, clip_on=False)
    if np.isfinite(d.flip_low):
        axes.plot([d.flip_low, d.flip_high], [y, y], "|-", color=look.colour, linewidth=1.4, markersize=10)
    if np.isfinite(d.bca_low):
        axes.plot([d.bca_low, d.bca_high], [y + 0.1, y + 0.1], "d", color=look.colour, markersize=4)
    if d.n > 1:
        axes.plot(d.differences, np.full(d.n, y - 0.12), ".", color=look.colour, markersize=5, alpha=0.6)
    axes.plot(
        d.mean, y, look.marker, color=look.colour, markersize=8, markeredgecolor="white", markeredgewidth=0.6, zorder=3
    )


def _limits(comparison: Comparison, differences: Sequence[Difference]) -> tuple[float, float]:
    """Finds the axis: all differences, and as much of the intervals (vast, of two seeds) as leaves those visible."""
    seen = [x for d in differences for x in (*d.differences, d.mean) if np.isfinite(x)]
    seen += [-comparison.margin, comparison.margin, 0.0]
    ends = [x for d in differences for x in (d.low, d.high, d.flip_low, d.flip_high) if np.isfinite(x)]
    low, high = min(seen), max(seen)
    room = 0.6 * (high - low) or 1.0
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    edge = 0.04 * (high - low) or 1.0
    return low - edge, high + edge


def curves(groups: Groups, look: dict[str, Style], metric: str = "val/accuracy") -> Figure | None:
    """Draws accuracy by epoch: mean over seeds, with a band from the lowest to the highest.

    Up to eight schemes share a panel, and have a second one of the last third. More have a panel each, in which the
    others are grey. Where there are several settings (of the other axes), each has a panel.

    Args:
        groups: All rows, from `statistics.group`.
        look: From `style.styles`.
        metric: Key of the rows' ``history``.

    Returns:
        The figure; None where no row has a history of the metric.
    """
    found = {variant: by_epoch(list(runs.values()), metric) for variant, runs in groups.items()}
    data = {variant: (x, 100 * y) for variant, (x, y) in found.items() if len(x)}
    if not data:
        return None
    order = sorted(data, key=lambda v: -np.nan_to_num(data[v][1][:, -1].mean(), nan=-1.0))
    names = list(dict.fromkeys(v.position for v in order))
    settings = sorted({v.others for v in data}, key=style.by_value)
    first, last = (int(end(x[i] for x, _ in data.values())) for end, i in ((min, 0), (max, -1)))
    late = int(np.ceil(last * 2 / 3)) if last >= 6 else first
    apart = len(settings) == 1 and len(names) > _OVERLAID
    if apart:
        panels = [(style.wrap(v.position, 31), [*(w for w in order if w != v), v], late) for v in order]
    elif len(settings) > 1:
        panels = [(style.wrap(style.setting(s) or "other axes do not apply", 31),
                   [v for v in order if v.others == s], late) for s in settings]  # fmt: skip
    else:
        panels = [("all epochs", order, first), ("the last third", order, late)][: 2 if late > first else 1]
    banded = apart or len(names) <= _OVERLAID
    seeds = {len(runs) for runs in groups.values()}
    left_out, panels = len(panels) - _PANELS, panels[:_PANELS]
    columns = min(len(panels), 2 if not apart and len(settings) == 1 else 3)
    lines = -(-len(panels) // columns)
    title_lines = max(1 + title.count("\n") for title, _, _ in panels)
    side = 3.3 if lines == 1 else 1.7
    figure = style.make(
        lines * (side + 0.16 * title_lines),
        f"{style.words(metric).capitalize()} by epoch, "
        + ("one seed" if seeds == {1} else f"mean of {style.span(seeds)} seeds")
        + (", band from lowest to highest" if banded and seeds != {1} else ""),
        _curves_caption(groups, data, apart, left_out, late > first),
        [] if apart else [(style.handle(look[name]), name) for name in names],
    )
    grid = figure.subplots(lines, columns, squeeze=False, sharey=apart, sharex=apart)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for axes in grid.ravel()[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("epoch", fontsize=10)
        axes.tick_params(labelbottom=True)
    for axes, (title, members, start) in zip(grid.ravel(), panels, strict=False):
        axes.set_title(title if len(panels) > 1 else "", fontsize=9 if columns == 3 else 10, loc="left")
        for variant in members:
            x, y = data[variant]
            colour, front = look[variant.position], not apart or variant == members[-1]
            mean = y.mean(0)
            if not front:
                axes.plot(x, mean, color="#C4C4C4", linewidth=0.8)
                continue
            if (len(y) > 1 and len(names) <= _OVERLAID) or apart:
                axes.fill_between(x, y.min(0), y.max(0), color=colour.colour, alpha=0.18, linewidth=0)
            marks = (
                {"marker": colour.marker, "markersize": 5, "markevery": (0.02, 0.14) if len(x) > 1 else 1}
                if not apart or len(x) == 1
                else {}
            )
            axes.plot(x, mean, colour.line, color=colour.colour, linewidth=1.8, label=variant.label, **marks)
        style.plain(axes)
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        shown = [y[:, x >= start] for x, y in (data[v] for v in members)]
        values = np.concatenate([y[np.isfinite(y)] for y in shown])
        if start > first:
            axes.set_xlim(start, last + 0.02 * (last - start))
            if values.size and np.ptp(values):
                axes.set_ylim(values.min() - 0.05 * np.ptp(values), values.max() + 0.05 * np.ptp(values))
    figure.supylabel(f"{style.words(metric)}, %", fontsize=10)
    return figure


def _curves_caption(groups: Groups, data: dict[Variant, tuple[Floats, Floats]], apart: bool, left_out: int,
                    zoomed: bool) -> str:  # fmt: skip
    """Says what curves do not show."""
    broken = [v.label for v, (_, y) in data.items() if not np.isfinite(y).all()]
    parts = [
        "A panel a scheme, the best first; grey: the others." if apart else "",
        "Panels show the last third of the epochs." if zoomed and (apart or len({v.others for v in data}) > 1) else "",
        f"Not a number in at least one seed, where the line has a gap: {', '.join(broken)}." if broken else "",
        f"No history: {', '.join(v.label for v in groups if v not in data)}." if len(groups) > len(data) else "",
        f"{count(left_out, 'panel')} more: not drawn." if left_out > 0 else "",
    ]
    return " ".join(filter(None, parts))


def similarity(groups: Groups) -> Figure | None:
    """Draws the cosine similarity of each scheme's position table, as figure 7 of the ViT paper (arXiv:2010.11929).

    A panel is a grid of small maps, one per patch position: the similarity of that position's vector to all others,
    mean over seeds, at the end of training. All panels share the scale [-1, 1]. Schemes that add nothing to the patch
    tokens are named below.

    Args:
        groups: All rows, from `statistics.group`.

    Returns:
        The figure; None where no scheme has a table.
    """
    order = sorted(groups, key=lambda v: (v.position, style.by_value(v.others)))
    found = {variant: _mosaic(list(groups[variant].values())) for variant in order}
    maps = {variant: mosaic for variant, mosaic in found.items() if mosaic is not None}
    without = list(dict.fromkeys(v.position for v in order if v not in maps))
    if not maps:
        return None
    settings = sorted({v.others for v in maps}, key=style.by_value)
    shown = list(maps.items())
    if len(maps) > _PANELS:
        shown = [(v, mosaic) for v, mosaic in shown if v.others == settings[0]][:_PANELS]
    columns = min(3 if len(shown) <= 9 else 4, len(shown))
    rows = -(-len(shown) // columns)
    several = len({v.others for v, _ in shown}) > 1
    titles = [
        style.wrap(f"{v.position}, {style.setting(v.others)}" if several and v.others else v.position, 100 // columns)
        for v, _ in shown
    ]
    height = max(mosaic.shape[0] / mosaic.shape[1] for _, mosaic in shown) * (style.WIDTH / max(columns, 2) - 0.1)
    caption = [
        "Mean over seeds, at the end of training.",
        f"Nothing is added to the patch tokens by {', '.join(without)}." if without else "",
        f"Of {count(len(maps), 'map')}, those with {style.setting(settings[0])}." if len(maps) > len(shown) else "",
    ]
    figure = style.make(
        rows * (min(height, 6.0) + 0.1 + 0.16 * max(1 + title.count("\n") for title in titles)) + 0.6,
        "Cosine similarity of a position's vector to all others: one small map per position",
        " ".join(filter(None, caption)),
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    for axes, title, (_, mosaic) in zip(panels, titles, shown, strict=False):
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_facecolor("#8A8A8A")  # the gaps: a cosine of 0 is white
        image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
        if not np.isfinite(mosaic).any():
            axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center", va="center", fontsize=10)
    ticks = [-1, -0.5, 0, 0.5, 1]
    bar = figure.colorbar(image, ax=panels.tolist(), location="bottom", shrink=0.5, aspect=30, pad=0.02, ticks=ticks)
    bar.set_label("cosine similarity", fontsize=10)
    return figure


def by_epoch(rows: Sequence[Row], metric: str) -> tuple[Floats, Floats]:
    """Collects a history over seeds.

    Args:
        rows: Rows of one variant, one per seed.
        metric: Key of the rows' ``history``, such as ``"val/accuracy"``.

    Returns:
        Epochs that every seed has, shape (E,), and values, shape (seeds, E).
    """
    tables = [{h["epoch"]: h[metric] for h in row["history"] if h.get(metric) is not None} for row in rows]
    epochs = sorted(set.intersection(*map(set, tables)))
    return np.array(epochs, dtype=float), np.array([[t[e] for e in epochs] for t in tables], dtype=float)


def _mosaic(rows: Sequence[Row]) -> Floats | None:
    """Lays out the mean similarity, (N, N), as rows x columns small maps with a gap of NaN between them."""
    tables = [row["position"] for row in rows if row["position"] is not None]
    if not tables:
        return None
    height, width = tables[0]["grid"]
    mean = np.mean([np.array(table["similarity"], dtype=float) for table in tables], axis=0)
    cells = np.full((height, width, height + 1, width + 1), np.nan)
    cells[..., :height, :width] = mean.reshape(height, width, height, width)
    return cells.transpose(0, 2, 1, 3).reshape(height * (height + 1), width * (width + 1))[:-1, :-1]
