"""Sections that describe the schemes."""

import math

import pytest

from vitpos.analysis import report_schemes
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background, gather
from vitpos.analysis.tables import Table

PLAN = Comparison("first", "Why?", "learned")


def evidence(rows):
    return gather(PLAN, rows, [], Background())


def tables(section):
    return {block.name: block for block in section.blocks if isinstance(block, Table)}


def test_best_first_and_what_is_not_a_number_last(row):
    rows = [row(name, 0, a) for name, a in {"learned": 0.5, "x": math.nan, "y": 0.7}.items()]
    for section, name in ((report_schemes.schemes, "schemes"), (report_schemes.cost, "cost")):
        assert [line[0] for line in tables(section(evidence(rows)))[name].rows] == ["y", "learned", "x"]


def test_cost(row):
    rows = [row("learned", seed, 0.5) for seed in (0, 1)]
    rows[1].update(images_per_second=289.8, seconds=2100, peak_memory_mb=950)
    (line,) = tables(report_schemes.cost(evidence(rows)))["cost"].rows
    assert line[:1] + line[3:4] + line[6:] == ["learned", 684000, 950]
    assert line[1:3] + line[4:6] == pytest.approx([50, 97, 300, 1800])


def test_options_against_kinds(study):
    section = report_schemes.kind_or_options(evidence(study))
    rows = tables(section)["options"].rows
    assert rows[0][:2] == ["sinusoidal_2d(scale=0.02)", "sinusoidal_2d"]
    assert rows[0][2] == pytest.approx(-5.225)
    # 58.975 - 57.325 across kinds; 60.075 - 53.725 within
    text = section.blocks[-1]
    assert "1.65 points across kinds at default options (`learned`, `sinusoidal_1d`, `sinusoidal_2d`)" in text
    assert "6.35 points across 3 forms of `sinusoidal_2d`. In these rows, options moved accuracy more than kind" in text


def test_options_can_matter_less_than_kind(row):
    values = {"learned": 0.6, "sinusoidal_1d": 0.5, "sinusoidal_1d(scale=1)": 0.51}
    text = report_schemes.kind_or_options(evidence([row(p, s, a) for p, a in values.items() for s in (0, 1)])).blocks[
        -1
    ]
    assert "over 10.00 points across kinds" in text
    assert "1.00 points across 2 forms of `sinusoidal_1d`. In these rows, kind moved accuracy more" in text


def test_no_options_nothing_to_say(row):
    rows = [row(name, s, 0.5) for name in ("learned", "x") for s in (0, 1)]
    assert report_schemes.kind_or_options(evidence(rows)).blocks == []


def test_no_tables_no_maps(row):
    assert report_schemes.similarity(evidence([row("none", 0, 0.5)])).blocks == ()
