"""Text formatting shared by several folders, and files that are written whole or not at all."""

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitpos.errors import visible

_SPECIAL = re.compile(r"([\\`*\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def duration(seconds: float) -> str:
    """Formats seconds: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str) -> str:
    """Formats a count with its noun: ``1 seed``, ``1,200 seeds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def slug(text: str) -> str:
    """Returns text with everything but letters, digits and ``._=+-`` replaced, for use as a file name."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("_")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers see either the old or the whole new content; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Formats a number; ``-`` where it is not defined."""
    if not math.isfinite(value):
        return "-"
    return f"{round(value, digits) or 0.0:{'+' if sign else ''}.{digits}f}"  # never -0.00


def interval(low: float, high: float, *, sign: bool = False) -> str:
    """Formats an interval; ``-`` where it is not defined."""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]" if math.isfinite(low + high) else "-"


def p_value(value: float) -> str:
    """Formats a p value to three digits; ``-`` where there was no test."""
    if not math.isfinite(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def span(numbers: Sequence[int]) -> str:
    """Formats the range of some numbers: ``3`` or ``2 to 3``."""
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers))))) if len(numbers) else "0"


def ranges(numbers: Iterable[int]) -> str:
    """Formats which numbers there are, in order: ``0–5, 8``; with many gaps only the first ones."""
    distinct, parts = sorted(set(numbers)), list[str]()
    for _, group in itertools.groupby(enumerate(distinct), key=lambda place: place[1] - place[0]):
        run = [str(number) for _, number in group]
        parts += [f"{run[0]}\N{EN DASH}{run[-1]}"] if len(run) > 2 else run
    return ", ".join(parts[:8]) + (", ..." if len(parts) > 8 else "")


def seed_list(seeds: Iterable[int]) -> str:
    """Formats which seeds there are: ``seed 3``, ``seeds 0–5, 8``."""
    distinct = set(seeds)
    return f"seed{'' if len(distinct) == 1 else 's'} {ranges(distinct)}"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], width: int = 100) -> str:
    """Aligns columns for a terminal.

    Args:
        header: Names of the columns, two or more.
        rows: Cells; a first cell that is too long gets lines of its own, nothing is cut.
        notes: One per row, wrapped below it; may be empty.
        width: Largest number of characters per line.
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


def escape(text: object) -> str:
    """Escapes text so that Markdown shows it literally, on one line."""
    line = " ".join(visible(str(text)).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def paragraph(text: object) -> str:
    """Escapes text at the start of a line, where a mark or number could begin a heading or a list."""
    return re.sub(r"^(\d*)([.)]|[#+-]+)(?=\s|$)", r"\1\\\2", escape(text))


def code(text: object) -> str:
    """Marks text as code; line breaks become spaces, and backticks, which would end it, apostrophes."""
    return f"`{' '.join(visible(str(text)).split()).replace('`', chr(39)) or ' '}`"


def minus(text: str) -> str:
    """Replaces hyphens before digits by minus signs."""
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)
