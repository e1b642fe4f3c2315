"""A figure of a scheme: what it adds to tokens, its logits by offset, its response to an impulse."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vitpos import style
from vitpos.portraits import probes
from vitpos.positions import PositionEmbedding

_WIDTH = 8.0  # inches, like all figures
_GREY = "#8A8A8A"  # between maps, and for masked values: not a colour of the scales
_COLUMNS, _HEADS = 6, 12  # maximum number of maps side by side, and of heads

Panel = tuple[float, Callable[[SubFigure], None]]  # height in inches, drawing function
Box = tuple[float, float, float, float]  # left, right, bottom, top
Row = tuple[str, Tensor, Sequence[str]]  # name, maps (n, height, width), names of the maps


def draw(scheme: PositionEmbedding, name: str, path: Path) -> bool:
    """Draws a scheme on the grid of its geometry; writes a PNG of 1200 pixels width and an SVG.

    There is a part for each kind of effect (see `probes.kinds`): similarities, power, norms and spectrum of a table;
    logits by the offset from query to key; the response to an impulse. If blocks differ, the first, middle and last one
    with an effect are drawn. If the scheme starts as the identity, its parameters are drawn from N(0, 1) instead, and
    the title says so.

    Args:
        scheme: The scheme, on the CPU.
        name: Its name in the title.
        path: The PNG file, overwritten.

    Returns:
        False if there is nothing to draw; then no file is written.
    """
    panels = [panel for kind, layers in probes.kinds(scheme).items() for panel in _part(scheme, kind, layers)]
    if not panels:
        return False
    lines, own = textwrap.wrap(name, 80), scheme.geometry
    heights = [0.36 + 0.22 * len(lines), *(height for height, _ in panels)]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    title, *parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    title.text(0.012, 0.9, "\n".join(lines), fontsize=13, weight="bold", va="top")
    text = (
        f"grid {own.grid[0]} x {own.grid[1]} patches, width {own.embed_dim}, {own.num_heads} heads, {own.depth} blocks"
    )
    title.text(0.012, 0.04, f"{text}; before training", fontsize=10, va="bottom", color="#404040")
    for part, (_, panel) in zip(parts, panels, strict=True):
        panel(part)
    style.save(figure, path)
    return True


def _part(scheme: PositionEmbedding, kind: str, layers: list[int]) -> list[Panel]:
    """Returns the panels of one kind of effect, from top to bottom."""
    note, grid = "", scheme.geometry.grid
    effects = [probes.effect(scheme, kind, layer) for layer in layers]
    if not any(bool(effect.any()) for effect in effects):
        scheme, note = (
            probes.randomized(scheme),
            " (it starts as the identity: drawn with parameters from N(0,\N{NO-BREAK SPACE}1))",
        )
        effects = [probes.effect(scheme, kind, layer) for layer in layers]
    if all(torch.equal(effect, effects[0]) for effect in effects[1:]):
        every = "all blocks" if len(layers) == scheme.geometry.depth else f"blocks {layers[0]} to {layers[-1]}"
        shown = {layers[0]: every if len(layers) > 1 else f"block {layers[0]}"}
    else:
        shown = {layer: f"block {layer}" for layer in (layers[0], layers[len(layers) // 2], layers[-1])}
    if kind == "absolute":
        found = {label: probes.table(scheme, grid, layer) for layer, label in shown.items()}
        return _tables({label: table for label, table in found.items() if table is not None}, grid, note)
    if kind == "conditional":
        return _responses({label: probes.response(scheme, layer) for layer, label in shown.items()}, note)
    if kind == "contextual":
        drawn = {label: probes.contextual(scheme, layer) for layer, label in shown.items()}
        title = "Bias of the logit by offset in patches: deviation over random queries and keys" + note
        deviations = {label: bias.std(0) for label, bias in drawn.items()}
        label, bias = next(iter(drawn.items()))
        draws = bias[: _COLUMNS - 2, 0]
        names = [f"draw {i + 1}" for i in range(len(draws))]
        title_of_draws = f"Bias of the logit by offset in patches: single draws of query and key, {label}, head 0"
        return [
            *_kernels(deviations, title, "deviation", False),
            _maps([("", draws, names)], title_of_draws, "bias", True),
        ]
    if kind == "values":
        lengths = {label: probes.value_lengths(scheme, layer) for layer, label in shown.items()}
        title = "What a query gains that attends to one key alone, by offset in patches: length"
        return _kernels(lengths, title + note, "length", False)
    pairs = {label: probes.logits(scheme, kind, layer) for layer, label in shown.items()}
    spread = max(_spread(one, grid) for one in pairs.values())
    if spread > 0.01:  # float32 rounding accounts for about 1e-3
        note = f" (mean over places, which deviate by up to {spread:.0%} of the largest)" + note
    title, unit = "Logit by offset in patches: mean over random queries that equal the key", "mean logit"
    if kind == "relative":
        title, unit = "Bias of the logit by offset in patches", "bias"
    if kind == "weights":
        title, unit = "Weight by offset in patches that equal attention becomes", "weight"
    return _kernels({label: probes.by_offset(one, grid) for label, one in pairs.items()}, title + note, unit, True)


def _spread(pairs: Tensor, grid: tuple[int, int]) -> float:
    """Returns the largest standard deviation among pairs of the same offset, relative to the largest value."""
    finite = pairs.double().masked_fill(~pairs.isfinite(), 0)
    mean, square = probes.by_offset(finite, grid), probes.by_offset(finite.square(), grid)
    return float((square - mean.square()).clamp(min=0).max().sqrt() / finite.abs().max().clamp(min=1e-30))


def _tables(tables: Mapping[str, Tensor], grid: tuple[int, int], note: str) -> list[Panel]:
    """Returns panels with similarities and spectra of the tables of some blocks, and power and norms of the first."""
    count, ratio = len(tables), grid[0] / grid[1]
    block, first = next(iter(tables.items()))

    def similarities(part: SubFigure) -> None:
        panels = part.subplots(1, max(count, 2), squeeze=False)[0]
        for axes, (name, table) in zip(panels, tables.items(), strict=False):
            image = _map(axes, _mosaic(table, grid), Normalize(-1, 1), "RdBu_r")
            axes.set_title(f"Similarities, {name}", fontsize=10)
            _number(axes, grid)
        if note:
            part.suptitle(_wrapped(f"What is added to the tokens{note}"), fontsize=11)
        bar = part.colorbar(image, ax=panels[:count], location="bottom", aspect=30, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("cosine similarity of a position to all others (one small map per position)", fontsize=10)
        if count == 1:
            bar.set_label("cosine of a position to all others (a map each)", fontsize=10)
            _spectra(panels[1], tables)

    def numbers(part: SubFigure) -> None:
        power, norms, *more = part.subplots(1, 2 + (count > 1))
        power.set_title(f"2-D Fourier power, {block}", fontsize=10)
        image = _map(power, probes.power(first, grid).clamp(min=1e-4), LogNorm(1e-4, 1), "viridis", _box(grid))
        power.set(xlabel="periods across the columns", ylabel="periods across the rows")
        part.colorbar(image, ax=power, label="share of the power (mean taken off)", location="bottom")
        norms.set_title(f"Norms, {block}", fontsize=10)
        length = first.norm(dim=1).reshape(grid)
        image = _map(norms, length, Normalize(0, float(length.max())), "viridis")
        norms.set(xlabel="column", ylabel="row")
        part.colorbar(image, ax=norms, label="norm of a position's vector", location="bottom")
        for axes in more:
            _spectra(axes, tables)

    heights = (min(ratio**2 * (3.2 if count == 1 else 2.2), 6.0), min(ratio * 2.3, 6.0))
    return [(max(heights[0], 1.8) + 1.4, similarities), (max(heights[1], 1.2) + 1.4, numbers)]


def _spectra(axes: Axes, tables: Mapping[str, Tensor]) -> None:
    """Draws the variance of the principal components of some tables, one line per block."""
    for line, (block, table) in zip(("-", "--", ":"), tables.items(), strict=False):
        values = torch.linalg.svdvals((table - table.mean(0)).double()).square()
        share = values / values.sum().clamp(min=1e-30)
        dimensions = float(1 / share.square().sum().clamp(min=1e-30))
        label = f"{block}: {dimensions:.1f} dimensions"
        axes.plot(
            range(1, len(share) + 1), share.clamp(min=1e-12), line, color=style.COLOURS[0], marker=".", label=label
        )
    axes.set(yscale="log", ylim=(1e-7, 2), xlabel="principal component", ylabel="share of the variance")
    axes.set_title("Spectrum of the table", fontsize=10)
    style.plain(axes)
    axes.legend(fontsize=9, frameon=False)


def _mosaic(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the similarities as a mosaic in [-1, 1], with NaN between the maps."""
    mosaic = 2 * probes.mosaic(probes.similarity(table), grid) - 1
    mosaic[grid[0] :: grid[0] + 1] = math.nan
    mosaic[:, grid[1] :: grid[1] + 1] = math.nan
    return mosaic


def _number(axes: Axes, grid: tuple[int, int]) -> None:
    """Labels the maps of a mosaic by row and column, skipping labels that would overlap."""
    for axis, side, name in ((axes.yaxis, grid[0], "row"), (axes.xaxis, grid[1], "column")):
        shown = range(0, side, -(-side // 8))
        axis.set_ticks([i * (side + 1) + (side - 1) / 2 for i in shown], [str(i) for i in shown])
        axis.set_label_text(name, fontsize=10)


def _box(grid: tuple[int, int]) -> Box:
    """Returns the extent of a map whose centre, row R // 2 and column C // 2, is at 0."""
    (rows, columns), (above, before) = grid, (grid[0] // 2, grid[1] // 2)
    return (-before - 0.5, columns - before - 0.5, rows - above - 0.5, -above - 0.5)


def _kernels(kernels: Mapping[str, Tensor], title: str, unit: str, diverging: bool) -> list[Panel]:
    """Returns maps by block and head, and below them the profiles of the first block along row and column.

    Args:
        kernels: (heads, 2R - 1, 2C - 1) by name of the block.
        title: Title.
        unit: Label of the values.
        diverging: Whether values are signed.
    """
    heads = len(next(iter(kernels.values())))
    chosen = [round(float(head)) for head in np.linspace(0, heads - 1, min(heads, _HEADS))]
    names = [f"head {head}" for head in chosen]
    if heads > 1 and all(torch.allclose(one, one[:1].expand_as(one)) for one in kernels.values()):
        chosen, names = [0], ["all heads"]
    rows = [
        (block, kernel[chosen[i : i + _COLUMNS]], names[i : i + _COLUMNS])
        for block, kernel in kernels.items()
        for i in range(0, len(chosen), _COLUMNS)
    ]
    if len(chosen) == 1:  # side by side, then
        rows = [
            ("", torch.cat([kernel[:1] for kernel in kernels.values()]), [f"{block}, {names[0]}" for block in kernels])
        ]
    block, kernel = next(iter(kernels.items()))
    maps, profiles = _maps(rows, title, unit, diverging), _profiles(kernel[chosen], names, block, unit)
    if len(rows[0][1]) > 1:
        return [maps, profiles]

    def beside(part: SubFigure) -> None:
        part.suptitle(_wrapped(title), fontsize=11)
        left, right = part.subfigures(1, 2, width_ratios=[3.2, 4.8], squeeze=False)[0]
        _maps(rows, "", unit, diverging)[1](left)
        profiles[1](right)

    return [(maps[0], beside)]


def _maps(rows: Sequence[Row], title: str, unit: str, diverging: bool) -> Panel:
    """Returns a panel of maps by offset, on a common scale."""
    maps = torch.cat([maps for _, maps, _ in rows])
    hidden = bool(maps.isinf().any())
    low, high = (float(edge) for edge in maps[maps.isfinite()].aminmax())
    top = max(-low, high, 1e-12)
    norm, colours = Normalize(-top, top), "RdBu_r"
    if not diverging:
        norm, colours = Normalize(0, top), "viridis"
    elif low >= 0 or high <= 0:  # half of the scale, in its colours
        norm, colours = (Normalize(0, top), "Reds") if low >= 0 else (Normalize(-top, 0), "Blues_r")
    columns = max(len(maps) for _, maps, _ in rows)
    (height, width), side = maps.shape[1:], min(2.6, 6.4 / columns)
    between = ", " if columns < 5 else "\n"

    def panel(part: SubFigure) -> None:
        if title:
            part.suptitle(_wrapped(title), fontsize=11)
        panels = part.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
        box = (-width / 2, width / 2, height / 2, -height / 2)
        for line, (block, maps, names) in zip(panels, rows, strict=True):
            for axes in line[len(maps) :]:
                axes.set_axis_off()
            for axes, one, name in zip(line, maps, names, strict=False):
                image = _map(axes, one.masked_fill(~one.isfinite(), math.nan), norm, colours, box)
                axes.set_title(between.join(filter(None, (block, name))), fontsize=10 if columns < 5 else 9)
        part.supxlabel("columns to the key", fontsize=10)
        part.supylabel("rows to the key", fontsize=10)
        label = f"{unit}; grey: hidden" if hidden else unit
        place = "right" if len(maps) > 1 else "bottom"
        part.colorbar(image, ax=panels, label=label, pad=0.02, aspect=max(20, 12 * len(rows)), location=place)

    return (side * height / width + (0.3 if columns < 5 else 0.5)) * len(rows) + 0.75 + 0.2 * _wrapped(title).count(
        "\n"
    ), panel


def _profiles(kernel: Tensor, names: Sequence[str], block: str, unit: str) -> Panel:
    """Returns a panel of profiles along the row and the column through offset 0."""
    height, width = kernel.shape[1:]

    def panel(part: SubFigure) -> None:
        panels = part.subplots(1, 2, sharey=True)
        lines = (("row", "columns", kernel[:, height // 2]), ("column", "rows", kernel[:, :, width // 2]))
        for axes, (own, across, values) in zip(panels, lines, strict=True):
            offsets = torch.arange(values.shape[1]) - values.shape[1] // 2
            for i, (name, line) in enumerate(zip(names, values, strict=True)):
                look = {"color": style.COLOURS[i % len(style.COLOURS)], "marker": "o", "markersize": 3}
                shown = line.masked_fill(~line.isfinite(), math.nan)
                axes.plot(offsets, shown, "-" if i < len(style.COLOURS) else "--", label=name, linewidth=1.5, **look)
            axes.set_title(f"Same {own}, {block}", fontsize=10)
            axes.set_xlabel(f"{across} to the key", fontsize=10)
            style.plain(axes)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        panels[0].set_ylabel(unit, fontsize=10)
        if len(names) > 1:
            part.legend(
                *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False
            )

    return 2.6 + 0.2 * -(-len(names) // 6), panel


def _responses(responses: Mapping[str, tuple[Tensor, Tensor]], note: str) -> list[Panel]:
    """Returns a panel of responses by block: to a patch of ones (total and two channels) and to ones everywhere."""
    impulses = {block: impulse for block, (impulse, _) in responses.items()}
    (rows, columns), count = next(iter(impulses.values())).shape[1:], len(responses)
    top, box = max(float(impulse[:2].abs().max()) for impulse in impulses.values()), _box((rows, columns))

    def panel(part: SubFigure) -> None:
        part.suptitle(_wrapped(f"What is added to the tokens{note}"), fontsize=11)
        panels = part.subplots(count, 4, squeeze=False)
        for line, (block, (impulse, ones)) in zip(panels, responses.items(), strict=True):
            edge = (ones - ones[:, rows // 2, columns // 2, None, None]).square().mean(0).sqrt()
            whole = impulse.square().mean(0).sqrt()
            for axes, name, one, signed in (
                (line[0], "by one patch of ones,\nRMS of channels", whole, False),
                (line[1], "by one patch of ones,\nchannel 0", impulse[0], True),
                (line[2], "by one patch of ones,\nchannel 1", impulse[min(1, len(impulse) - 1)], True),
                (line[3], "by ones everywhere,\nRMS change from middle", edge, False),
            ):
                norm = Normalize(-top, top) if signed else Normalize(0, max(float(one.max()), 1e-12))
                image = _map(axes, one, norm, "RdBu_r" if signed else "viridis", None if one is edge else box)
                part.colorbar(image, ax=axes, location="bottom")
                if axes in panels[0]:
                    axes.set_title(name, fontsize=9)
            line[0].set_ylabel(f"{block}\nrows, patches", fontsize=9)
            line[3].set_ylabel("row", fontsize=9)
        for axes, name in zip(panels[-1], [*3 * ["columns, patches"], "column"], strict=True):
            axes.set_xlabel(name, fontsize=9)

    return [(0.4 + count * (1.5 * rows / columns + 1.2), panel)]


def _map(
    axes: Axes,
    values: Tensor,
    norm: Normalize,
    colours: str,
    box: Box | None = None,
) -> AxesImage:
    """Draws a map on grey, with integer tick labels."""
    axes.set_facecolor(_GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=9)
    image = axes.imshow(values.double().numpy(), cmap=colours, norm=norm, extent=box, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    return image


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(title, 84))
