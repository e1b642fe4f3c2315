"""How numbers, counts and names are written."""

import math

import pytest

from vitpos.text import (
    columns,
    duration,
    interval,
    minus,
    number,
    p_value,
    paragraph,
    plural,
    seed_list,
    slug,
    span,
    write_whole,
)


def test_numbers():
    assert [number(x) for x in (1.005, -0.001, math.nan)] == ["1.00", "0.00", "-"]
    assert number(0.25, 1, sign=True) == "+0.2"
    assert minus(interval(-1, 2, sign=True)) == "[−1.00, +2.00]"
    assert interval(math.nan, 1) == "-"
    assert [p_value(p) for p in (0.00099, 0.0467, 1.0, math.nan)] == ["<0.001", "0.047", "1.000", "-"]
    assert [plural(n, "seed") for n in (0, 1, 2000)] == ["0 seeds", "1 seed", "2,000 seeds"]
    assert [seed_list(n) for n in ([4], [2, 1], [5, 2, 3, 4, 9, 9, 8], range(0, 40, 2))] == [
        "seed 4", "seeds 1, 2", "seeds 2–5, 8, 9", "seeds 0, 2, 4, 6, 8, 10, 12, 14, ...",
    ]  # fmt: skip
    assert [span(n) for n in ([], [3, 3], [5, 2, 3])] == ["0", "3", "2 to 5"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_paragraph_begins_no_heading_or_list():
    assert [paragraph(text) for text in ("# a", "- b", "12. c", "32-true", "0.5", "a_b _c_")] == [
        r"\# a", r"\- b", r"12\. c", "32-true", "0.5", r"a_b \_c\_",
    ]  # fmt: skip


def test_slug_and_whole_files(tmp_path):
    assert slug("a(b='c/d'), e=1") == "a_b=_c_d_e=1"
    write_whole(tmp_path / "deep" / "a.txt", "é")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "é".encode()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_columns_are_aligned_and_nothing_is_cut():
    name = "a_very_long_scheme_name(" + "x" * 90 + ")"
    text = columns(["scheme", "n", "verdict"], [[name, "3", "better"], ["b", "12", "worse"]], ["a note " * 20, ""])
    assert max(map(len, text.splitlines())) <= 100
    assert name[:100] in text
    assert text.splitlines()[-1].split() == ["b", "12", "worse"]
