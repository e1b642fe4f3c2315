"""How numbers are written, and one table in each format."""

import csv
import io
import math

import pytest

from vitpos.analysis.tables import (
    Table,
    counts,
    duration,
    intervals,
    markdown,
    names,
    number,
    numbers,
    p_values,
    plain,
    texts,
    to_booktabs,
    to_csv,
)

TABLE = Table(
    "verdicts",
    "Verdicts\nagainst `x`",
    [names("scheme"), numbers("difference", sign=True), intervals("95 % interval"), p_values("p"), counts("n"),
     texts("note")],
    [
        ["a_b(c=1)", -1.23456789012, (-2.0, -0.5), 0.0004, 1200, "so | **much**"],
        ["d&e", math.nan, (math.nan, math.nan), math.nan, None, ""],
    ],
)  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"),
    (7500, "2 h 05 min"),
])  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_number_that_rounds_to_nothing_has_no_minus():
    assert number(-0.004) == "0.00"
    assert number(-0.004, sign=True) == number(0.0, sign=True) == "+0.00"
    assert number(-0.005001) == "-0.01"
    assert number(math.nan) == "-"


def test_markdown():
    assert markdown(TABLE).splitlines() == [
        "| scheme | difference | 95 % interval | p | n | note |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        "| `a_b(c=1)` | -1.23 | [-2.00, -0.50] | <0.001 | 1,200 | so \\| **much** |",
        "| `d&e` | - | - | - | - |  |",
    ]


def test_csv_has_all_digits_and_both_ends_and_no_markup():
    header, first, second = csv.reader(io.StringIO(to_csv(TABLE)))
    assert header == ["scheme", "difference", "95 % interval, low", "95 % interval, high", "p", "n", "note"]
    assert first == ["a_b(c=1)", "-1.23456789", "-2", "-0.5", "0.0004", "1200", "so | much"]
    assert second == ["d&e", "", "", "", "", "", ""]


def test_latex():
    assert to_booktabs(TABLE).splitlines() == [
        "% Verdicts against `x`; needs \\usepackage{booktabs}",
        "\\begin{tabular}{lrrrrl}",
        "\\toprule",
        "scheme & difference & 95 \\% interval & p & n & note \\\\",
        "\\midrule",
        "\\texttt{a\\_b(c=1)} & $-1.23$ & $[-2.00, -0.50]$ & $<0.001$ & $1{,}200$ & so \\textbar{} \\textbf{much} \\\\",
        "\\texttt{d\\&e} & - & - & - & - &  \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_plain_keeps_to_the_width():
    text = plain(
        ["scheme", "n", "verdict"], [["long " * 20, "3", "better"], ["b", "12", "undecided"]], ["", "why " * 40]
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["scheme", "n", "verdict"]
    assert lines[-3].split() == ["b", "12", "undecided"]
    assert lines[-1].startswith("    why")


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+A1", "'+A1"), ("-A1", "'-A1"), ("  =1", "'  =1"), ("-", "-"),
     ("-0.5", "-0.5"), ("+1.5e-3", "+1.5e-3"), ("learned+cpe", "learned+cpe"), ("a\x1b[31m", "a\\x1b[31m")],
)  # fmt: skip
def test_no_cell_of_a_csv_is_a_formula(text, cell):
    table = Table("t", "t", [names(text), texts("note")], [[text, text]])
    header, first = csv.reader(io.StringIO(to_csv(table)))
    assert (header[0], first) == (cell, [cell, cell])
