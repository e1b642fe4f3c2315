"""The report's pictures: differences, curves and similarity maps, readable at 800 pixels of width.

Figures are made without pyplot, which keeps global state and may open a display. Colours are those of Okabe and Ito
(2008), told apart with any colour vision; a kind of scheme has one colour everywhere, its options differ by line style.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Difference, Floats, Groups, Row, Variant
from vitpos.analysis.tables import number

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"
_GREY = "#5F5F5F"  # for none: the absence of a scheme
_WIDTH = 8.0  # inches; 1200 pixels at 150 dpi, so 10 points are 14 pixels when shown at 800


@dataclass(frozen=True)
class Style:
    """How a variant is drawn."""

    colour: str
    line: str
    marker: str


def styles(variants: Sequence[Variant]) -> dict[Variant, Style]:
    """Gives each kind a colour, by name, and each variant of a kind a line style and a marker."""
    kinds = sorted({v.kind for v in variants} - {"none"})
    seen: dict[str, int] = {}
    result = {}
    for variant in sorted(variants):
        k = seen.get(variant.kind, 0)
        seen[variant.kind] = k + 1
        colour = _GREY if variant.kind == "none" else _COLOURS[kinds.index(variant.kind) % len(_COLOURS)]
        turn = 0 if variant.kind == "none" else kinds.index(variant.kind) // len(_COLOURS)
        result[variant] = Style(colour, _LINES[(k + turn) % len(_LINES)], _MARKERS[(k + 2 * turn) % len(_MARKERS)])
    return result


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG at 150 dpi; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=150, metadata={"Software": None})  # no version in a file under git
    part.replace(path)


def forest(comparison: Comparison, differences: Sequence[Difference], look: dict[Variant, Style]) -> Figure:
    """Draws the mean paired differences to the reference with their intervals, and the margin as a band.

    Args:
        comparison: Reference, margin and alpha.
        differences: From `statistics.compare`, drawn from top to bottom.
        look: From `styles`.

    Returns:
        The figure.
    """
    names = [_wrap(d.candidate.label, 34) for d in differences]
    lines = sum(1 + name.count("\n") for name in names)
    figure = Figure(figsize=(_WIDTH, 1.7 + 0.42 * max(lines, 2)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(-comparison.margin, comparison.margin, color="#E3E3E3", zorder=0)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    for y, d in enumerate(differences):
        style = look[d.candidate]
        if np.isfinite(d.low):
            axes.plot([d.low, d.high], [y, y], "|-", color=style.colour, linewidth=2, markersize=13, markeredgewidth=2)
        axes.plot(d.mean, y, style.marker, color=style.colour, markersize=7, markeredgecolor="white", zorder=3)
        text = f"{number(d.mean, sign=True)}  {d.verdict}"
        axes.annotate(text, (1.02, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=10)
    if all(np.isnan(d.mean) for d in differences):
        axes.set_xlim(-2 * max(comparison.margin, 1), 2 * max(comparison.margin, 1))
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.set_ylim(len(names) - 0.5, -0.5)
    level = f"{100 * (1 - comparison.alpha):g} % t interval"
    _plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"difference in {words(comparison.metric)} to {comparison.reference}, percentage points\n"
        f"(mean of pairs by seed, {level}; grey: within the margin of {comparison.margin:g})",
        fontsize=10,
    )
    axes.set_title(f"Compared with {comparison.reference}", fontsize=12, loc="left")
    return figure


def curves(groups: Groups, look: dict[Variant, Style], metric: str = "val/accuracy") -> Figure | None:
    """Draws accuracy by epoch, mean over seeds with a band from the lowest to the highest; at the right its last third.

    Args:
        groups: All rows, from `statistics.group`.
        look: From `styles`.
        metric: Key of the rows' ``history``.

    Returns:
        The figure; None where no row has a history of the metric.
    """
    data = {variant: by_epoch(list(runs.values()), metric) for variant, runs in groups.items()}
    data = {variant: (x, 100 * y) for variant, (x, y) in data.items() if len(x)}
    if not data:
        return None
    last = max(x[-1] for x, _ in data.values())
    zoom = int(np.ceil(last * 2 / 3)) if last >= 6 else None
    columns = 2 if max(len(variant.label) for variant in data) <= 34 else 1
    figure = Figure(figsize=(_WIDTH, 3.9 + 0.24 * -(-len(data) // columns)), layout="constrained")
    panels = figure.subplots(1, 2 if zoom else 1, squeeze=False)[0]
    order = sorted(data, key=lambda v: -np.nan_to_num(data[v][1][:, -1].mean(), nan=-1.0))
    crowded = len({(look[v].colour, look[v].line) for v in data}) < len(data)
    low, high = 100.0, 0.0
    for variant in order:
        x, y = data[variant]
        style = look[variant]
        marks: dict[str, Any] = {"marker": style.marker, "markevery": -(-len(x) // 8)} if crowded else {}
        for axes in panels:
            axes.fill_between(x, y.min(0), y.max(0), color=style.colour, alpha=0.18, linewidth=0)
            axes.plot(x, y.mean(0), style.line, color=style.colour, linewidth=1.8, label=variant.label, **marks)
            axes.set_xlabel("epoch", fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            _plain(axes)
        if zoom and (shown := y[:, x >= zoom][np.isfinite(y[:, x >= zoom])]).size:
            low, high = min(low, float(shown.min())), max(high, float(shown.max()))
    panels[0].set_ylabel(f"{words(metric)}, %", fontsize=10)
    seeds = sorted({len(runs) for runs in groups.values()})
    title = f"{words(metric).capitalize()}: mean of {' to '.join(map(str, (seeds[0], seeds[-1])[: len(seeds)]))} seed"
    panels[0].set_title(f"{title}{'' if seeds == [1] else 's'}, band: lowest to highest", fontsize=11, loc="left")
    if zoom:
        panels[0].set_title(f"{title}{'' if seeds == [1] else 's'}", fontsize=11, loc="left")
        panels[1].set_title("Last third (band: lowest to highest)", fontsize=11, loc="left")
        panels[1].set_xlim(zoom, last + 0.02 * (last - zoom))
        if high > low:
            panels[1].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=10, frameon=False, handlelength=3
    )
    return figure


def similarity(groups: Groups) -> Figure:
    """Draws the cosine similarity of each scheme's position table, as figure 7 of the ViT paper (arXiv:2010.11929).

    A panel is a grid of small maps, one per patch position: the similarity of that position's vector to all others,
    mean over seeds, at the end of training. All panels share the scale [-1, 1].

    Args:
        groups: All rows, from `statistics.group`.

    Returns:
        The figure; a scheme without a table has a panel that says so.
    """
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(_WIDTH, 0.9 + rows * (_WIDTH / columns * (0.85 if columns > 1 else 0.6) + 0.25)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for axes, (variant, runs) in zip(panels, groups.items(), strict=False):
        axes.set_title(_wrap(variant.label, 96 // columns), fontsize=10)
        axes.set(xticks=[], yticks=[])
        mosaic = _mosaic(list(runs.values()))
        if mosaic is None:
            axes.text(0.5, 0.5, "adds nothing\nto the patch tokens", ha="center", va="center", fontsize=10)
            axes.set_box_aspect(1)
        else:
            axes.set_facecolor("#8A8A8A")  # the gaps: a cosine of 0 is white
            image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.spines[:].set_visible(False)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    if image is not None:
        bar = figure.colorbar(image, ax=panels.tolist(), location="bottom", shrink=0.5, aspect=30, pad=0.02)
        bar.set_label("cosine similarity of a position to all others (one small map per position)", fontsize=10)
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


def words(metric: str) -> str:
    """Says a metric's key in words: ``"val/accuracy"`` gives ``"validation accuracy"``."""
    return " ".join({"val": "validation", "train": "training"}.get(part, part) for part in metric.split("/"))


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


def _wrap(label: str, width: int) -> str:
    """Breaks a label that is too long: between words, else also before options."""
    lines = textwrap.wrap(label, width, break_long_words=False, break_on_hyphens=False)
    if all(len(line) <= width for line in lines):
        return "\n".join(lines)
    return "\n".join(line for part in label.replace("(", "\n(").split("\n") for line in textwrap.wrap(part, width))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
