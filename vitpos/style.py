"""How figures look: the colour, line and marker of a scheme, sizes, and the files that a figure is saved as.

Figures are made without pyplot, which keeps global state and may open a display. A scheme has the same colour and
marker in every figure of every study. The first colours are those of Okabe and Ito (2008), the others are Paul Tol's
(2021), chosen to be distinct under any colour vision. No 25 colours are always distinguishable, so colours that look
alike to a colour-blind reader have different markers.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitpos.errors import visible
from vitpos.text import write_whole

WIDTH = 8.0
"""Width of all figures in inches: 1200 pixels at 150 dpi, so 9 points are 12.5 pixels when shown at 800."""
GREY = "#5F5F5F"
BAND = "#E3E3E3"
_KINDS = {
    "none": (GREY, "p"),  # grey: the absence of a scheme
    "learned": ("#0072B2", "o"),
    "sinusoidal_1d": ("#E69F00", "P"),
    "sinusoidal_2d": ("#009E73", "^"),
    "rope_axial": ("#D55E00", "v"),
    "relative_bias": ("#CC79A7", "s"),
    "fourier": ("#56B4E9", "<"),
    "sinusoidal_2d_shuffled": ("#225522", "^"),
    "learned_axial": ("#332288", "P"),
    "log_cpb": ("#AA3377", "X"),
    "alibi_2d": ("#42150A", "D"),
    "lookhere": ("#6699CC", "v"),
    "shaw_2d": ("#4EB265", "X"),
    "irpe": ("#222255", "X"),
    "rope_1d": ("#882255", "v"),
    "rope_mixed": ("#A5170E", "o"),
    "rope_dinov3": ("#EE3377", "<"),
    "rope_golden": ("#3E024D", "p"),
    "liere": ("#999933", "D"),
    "comrope": ("#0501CF", "D"),
    "gpsa": ("#110278", "o"),
    "cpe": ("#72190E", "<"),
}
_SPARE = (  # for sums and for schemes from elsewhere
    ("#CC3311", "P"),
    ("#004488", "s"),
    ("#EE7733", "p"),
    ("#994455", "D"),
    ("#228833", "s"),
    ("#AA6F9E", "P"),
    ("#44BB99", "o"),
)
COLOURS = tuple(colour for colour, _ in _KINDS.values() if colour != GREY)
"""For things other than schemes, such as heads; the first six are Okabe and Ito's."""
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<p"
# The SVG lists fonts of which every system has one; the first comes with matplotlib, Verdana is as wide.
_SAVED: dict[Any, Any] = {
    "svg.hashsalt": "vitpos",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
}


@dataclass(frozen=True)
class Style:
    """How a scheme is drawn."""

    colour: str
    line: str
    marker: str


def styles(texts: Mapping[str, str]) -> dict[str, Style]:
    """Assigns a style to each position text of a study, whatever its other axes are.

    The schemes of this package have fixed colours. The colour of another kind, such as a sum, follows from its name; if
    two such kinds would share a colour, the alphabetically later one takes the next free one. Texts of one kind share
    its colour and differ by line and marker; the default options have a solid line.

    Args:
        texts: Kind of scheme by position text, for a whole study.

    Returns:
        The styles by position text, no two alike.
    """
    kinds = sorted(set(texts.values()))
    own = [kind for kind in kinds if kind not in _KINDS]
    given = {kind: _KINDS[kind] for kind in kinds if kind in _KINDS}
    others = [look for kind, look in _KINDS.items() if kind not in given]
    taken: list[tuple[str, str]] = []
    for kind in own:
        start = int(hashlib.sha256(kind.encode()).hexdigest(), 16) % len(_SPARE)
        order = [*_SPARE[start:], *_SPARE[:start], *others]
        given[kind] = next((look for look in order if look not in taken), order[0])
        taken = [] if len(taken) == len(order) - 1 else [*taken, given[kind]]
    used: dict[str, set[Style]] = {}
    result = {}
    for text in sorted(texts, key=lambda text: (text != texts[text], text)):
        colour, marker = given[texts[text]]
        same, first = used.setdefault(colour, set()), _MARKERS.index(marker)
        looks = (Style(colour, _LINES[k % 4], _MARKERS[(first + k) % 9]) for k in range(len(same), 36 + len(same)))
        result[text] = next((look for look in looks if look not in same), Style(colour, "-", marker))
        same.add(result[text])
    return result


def handle(style: Style, *, line: bool = True) -> Line2D:
    """Builds the legend handle of a scheme."""
    return Line2D([], [], color=style.colour, ls=style.line if line else "", marker=style.marker, linewidth=1.8)


def plain(axes: Axes) -> None:
    """Removes the frame and adds a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def wrap(label: str, width: int) -> str:
    """Breaks a label that is too long: after spaces and slashes, before options and names, at worst anywhere."""
    lines = [""]
    for part in re.split(r"(?<=[ /])|(?=[(+:])", visible(label).replace("$", r"\$")):  # a lone $ would start a formula
        if len((lines[-1] + part).rstrip(" ")) > width:
            lines.append("")
        pieces = [part[i : i + width] for i in range(0, len(part), width)]
        lines[-1] += pieces[0] if pieces else ""
        lines += pieces[1:]
    return "\n".join(line.rstrip(" ") for line in lines if line)


def ink(colour: str | tuple[float, float, float], share: float = 1.0) -> str:
    """Returns the colour of text that is legible on a colour that lies on white with this opacity."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG at 150 dpi and an SVG of the same name beside it, with its text as text.

    The same figure gives the same bytes, in any process. A reader sees the old file or the whole new one.

    Args:
        figure: The figure.
        path: Where to write the PNG; missing folders are made.
    """
    with matplotlib.rc_context(_SAVED), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that no font here has, names of a thousand letters
        figure.set_dpi(150)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:  # the last digits of the layout differ from process to process
            left, bottom, width, height = (round(x, 5) for x in axes.get_position(original=True).bounds)
            axes.set_position((left, bottom, width, height))
        # no version or date in files under git
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
            written = io.BytesIO()
            figure.savefig(written, format=suffix[1:], dpi=150, metadata=metadata)
            write_whole(path.with_suffix(suffix), written.getvalue())
