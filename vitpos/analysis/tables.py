"""Tables as Markdown, CSV, LaTeX and plain text, and how numbers are written in them."""

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitpos.analysis.markup import code, to_latex, to_markdown, to_plain
from vitpos.errors import visible


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Writes a number; ``-`` where it is not defined."""
    if not math.isfinite(value):
        return "-"
    return f"{round(value, digits) or 0.0:{'+' if sign else ''}.{digits}f}"  # never -0.00


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


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: Its name, with markup.
        write: Shows a value, with markup; ``str`` where values are text with markup.
        left: Whether it holds text, which starts at the left; numbers end at the right.
        ends: Whether its values are pairs (low, high), two columns in CSV.
    """

    head: str
    write: Callable[[Any], str] = str
    left: bool = False
    ends: bool = False


def names(head: str) -> Column:
    """Makes a column of schemes and other names that are typed as they stand."""
    return Column(head, code, left=True)


def texts(head: str) -> Column:
    """Makes a column of text with markup."""
    return Column(head, left=True)


def numbers(head: str, digits: int = 2, *, sign: bool = False) -> Column:
    """Makes a column of numbers; NaN is one that is not defined."""
    return Column(head, lambda value: number(value, digits, sign=sign))


def counts(head: str) -> Column:
    """Makes a column of whole numbers, None or NaN where there is none."""
    return Column(head, lambda value: f"{value:,.0f}" if value is not None and math.isfinite(value) else "-")


def intervals(head: str, *, sign: bool = False) -> Column:
    """Makes a column of intervals (low, high)."""
    return Column(head, lambda ends: interval(*ends, sign=sign), ends=True)


def p_values(head: str) -> Column:
    """Makes a column of p values."""
    return Column(head, p_value)


@dataclass(frozen=True)
class Table:
    """A table of values, which each format shows in its own way.

    Attributes:
        name: Stem of its files, such as ``verdicts``.
        title: What it shows, for those who do not see where it stands.
        columns: Its columns; the first says what a row is about.
        rows: Values, as the columns take them.
        shown: Whether the report shows it; else it is in the files alone.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    shown: bool = True

    def cells(self) -> list[list[str]]:
        """Shows all values, with markup."""
        return [[column.write(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]


def to_csv(table: Table) -> str:
    """Writes a table as CSV with a header: numbers to ten digits, nothing where they are not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [[f"{c.head}, low", f"{c.head}, high"] if c.ends else [c.head] for c in table.columns]
    writer.writerow([_harmless(to_plain(head)) for pair in heads for head in pair])
    for row in table.rows:
        values = [(c, value if c.ends else [value]) for c, value in zip(table.columns, row, strict=True)]
        writer.writerow([_raw(c, value) for c, pair in values for value in pair])
    return text.getvalue()


def to_booktabs(table: Table) -> str:
    r"""Writes a table as a LaTeX ``tabular`` with rules of booktabs, to be read with ``\input``."""
    lines = [[to_latex(cell) for cell in row] for row in [[column.head for column in table.columns], *table.cells()]]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    layout = "".join("l" if column.left else "r" for column in table.columns)
    return "\n".join(
        [
            f"% {' '.join(table.title.split())}; needs \\usepackage{{booktabs}}",
            f"\\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            "\\end{tabular}\n",
        ]
    )


def markdown(table: Table) -> str:
    """Lays out a Markdown table."""
    rule = ["---" if column.left else "---:" for column in table.columns]
    rows = [[_cell(cell) for cell in row] for row in [[column.head for column in table.columns], *table.cells()]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows[0], rule, *rows[1:]])


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


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", to_markdown(text)).replace("|", "\\|")


def _raw(column: Column, value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, int):
        return str(value)
    return _harmless(to_plain(str(value)) if column.write is str else visible(str(value)))


def _harmless(text: str) -> str:
    """Puts an apostrophe before text that a spreadsheet would compute as a formula; numbers stay."""
    try:
        float(text)
        return text
    except ValueError:
        return f"'{text}" if re.match(r"\s*[=+@\-]\s*\S|[\t\n]", text) else text
