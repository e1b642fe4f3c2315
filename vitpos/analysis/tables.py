"""Plain and Markdown tables, and how numbers are written in them."""

import math
import textwrap
from collections.abc import Sequence


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Writes a number; ``-`` where it is not defined."""
    return f"{value:{'+' if sign else ''}.{digits}f}" if math.isfinite(value) else "-"


def interval(low: float, high: float, *, sign: bool = False) -> str:
    """Writes an interval; ``-`` where it is not defined."""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]" if math.isfinite(low + high) else "-"


def p_value(value: float) -> str:
    """Writes a p value to three digits; ``-`` where there was no test."""
    if not math.isfinite(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Writes seconds as people say them: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Lays out a Markdown table: the columns ``left`` to the left, the others to the right."""
    lines = [header, ["---" if i in left else "---:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], width: int = 100) -> str:
    """Lays out aligned columns for a terminal.

    Args:
        header: Names of the columns, two or more.
        rows: Cells; a first cell too long for the width stands on lines of its own, nothing is cut.
        notes: One per row, put below it, wrapped; may be empty.
        width: Most characters in a line.

    Returns:
        The lines, joined.
    """
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    widths[0] = min(widths[0], width - sum(widths[1:]) - 2 * (len(header) - 1))
    lines = []
    for row, note in zip([header, *rows], ["", *notes], strict=True):
        first = row[0]
        if len(first) > widths[0]:
            lines += textwrap.wrap(first, width)
            first = ""
        middle = [cell.rjust(size) for cell, size in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *middle, row[-1]]).rstrip())
        lines += textwrap.wrap(note, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
