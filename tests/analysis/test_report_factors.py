"""Sections by axis, by seed and by class, against numbers by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from vitpos.analysis import report_factors
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background, gather
from vitpos.analysis.tables import Table

PLAN = Comparison("first", "Why?", "learned")


def evidence(rows):
    return gather(PLAN, rows, [], Background())


def tables(section):
    return {block.name: block for block in section.blocks if isinstance(block, Table)}


@pytest.fixture
def crossed(row):
    """Two axes, three schemes, one of which lacks the option and stands at both of its values."""
    accuracy = {"learned": (50, 52), "x": (51, 54), "none": (40, 40)}
    rows = []
    for name, by_scale in accuracy.items():
        for scale, value in zip((0.1, 0.7), by_scale, strict=True):
            for lr in (0.01, 0.002):
                for seed in range(3):
                    lower = 10 if lr == 0.002 and name == "x" else 0
                    axes = {"position.scale": scale, "model.lr": lr}
                    new = row(name, seed, (value - lower + 0.1 * seed * (scale == 0.7)) / 100, axes=axes)
                    new["hash"] = f"{name}{'' if name == 'none' else scale}{lr}{seed}"
                    rows.append({**new, "idle": ["position.scale"]} if name == "none" else new)
    return rows


def test_main_effects_are_paired_by_seed_over_what_has_the_axis(crossed):
    found = tables(report_factors.factors(evidence(crossed)))["factors"].rows
    by_name = {f"{line[0]} = {line[1]}": line[2:] for line in found}
    # numbers in their order, not that of their texts
    assert list(by_name) == ["model.lr = 0.002", "model.lr = 0.01", "position.scale = 0.1", "position.scale = 0.7"]
    first, second = by_name["position.scale = 0.1"], by_name["position.scale = 0.7"]
    # learned and x at both rates: (50 + 50 + 51 + 41) / 4; none has no scale
    assert first[:3] == [pytest.approx(48), 4, 3]
    assert math.isnan(first[3])
    # + 2 and + 3, and 0.1 a seed: 2.5, 2.6, 2.7
    assert second[3] == pytest.approx(2.6)
    assert second[4] == pytest.approx(stats.t.interval(0.95, 2, 2.6, stats.sem([2.5, 2.6, 2.7])))
    # learned, x and none at both scales, of which none counts once: (0 + 0 + 10 + 10 + 0) / 5
    assert by_name["model.lr = 0.01"][1:4] == [5, 3, pytest.approx(4)]


def test_a_run_without_a_number_takes_its_seed_out_for_all(crossed):
    crossed[0]["metrics"]["test/accuracy"] = math.nan
    found = tables(report_factors.factors(evidence(crossed)))["factors"].rows
    assert {line[4] for line in found} == {2}
    assert not any(math.isnan(line[2]) for line in found)


def test_how_the_ranking_moves(crossed):
    found = {
        f"{line[0]} = {line[1]}": line[2:] for line in tables(report_factors.factors(evidence(crossed)))["orders"].rows
    }
    assert found["model.lr = 0.002"][1] == "`learned` 51.05, `x` 42.55, `none` 40.05"
    assert found["model.lr = 0.01"][1] == "`x` 52.55, `learned` 51.05, `none` 40.05"
    # of three pairs one is turned: (2 - 1) / 3
    assert found["model.lr = 0.01"][0] == pytest.approx(1 / 3)
    assert math.isnan(found["model.lr = 0.002"][0])


def test_no_further_axes(study):
    assert report_factors.factors(evidence(study)).blocks == ()


def test_ranks_and_their_agreement(row):
    values = {"learned": (50, 50, 52), "x": (51, 51, 51), "none": (40, 51, 40)}
    rows = [row(name, seed, a / 100) for name, all_ in values.items() for seed, a in enumerate(all_)]
    section = report_factors.ranking(evidence(rows))
    (table,) = tables(section).values()
    assert [line[0] for line in table.rows] == ["x", "learned", "none"]
    assert table.rows[0] == ["x", pytest.approx(4 / 3), 1, 2, 2, 3]
    assert table.rows[2] == ["none", pytest.approx(7 / 3), 1, 3, 1, 3]
    # ranks by seed: learned 2 3 1, x 1 1.5 2, none 3 1.5 3; sums 6, 4.5, 7.5; 12 x 4.5 / (9 x 24)
    assert "0.25 (3 seeds)" in section.blocks[0]
    same = report_factors._agreement(np.array([[1.0, 2, 3]] * 4))
    assert same == pytest.approx(1)


def test_one_seed_or_one_scheme_has_no_ranking(row):
    assert report_factors.ranking(evidence([row("learned", 0, 0.5), row("x", 0, 0.6)])).blocks == ()
    assert report_factors.ranking(evidence([row("learned", s, 0.5) for s in range(3)])).blocks == ()


def with_classes(made, correct, names=("cat", "dog", "owl")):
    return {**made, "per_class": {"names": list(names), "count": [10, 20, 0], "correct": correct}}


def test_classes(row):
    rows = [with_classes(row("learned", seed, 0.5), [5, 10, 0]) for seed in (0, 1)]
    rows += [with_classes(row("x", seed, 0.6), [6 + seed, 9, 0]) for seed in (0, 1)]
    found = tables(report_factors.per_class(evidence(rows)))
    assert found["classes_extreme"].rows == [["x", "cat", pytest.approx(15), "dog", pytest.approx(-5)]]
    assert found["classes"].rows == [["x", pytest.approx(15), pytest.approx(-5)]]
    assert [column.head for column in found["classes"].columns] == ["scheme", "`cat`", "`dog`"]  # there is no owl


def test_rows_that_do_not_say_have_no_classes(row):
    rows = [row(name, seed, 0.5) for name in ("learned", "x") for seed in (0, 1)]
    assert report_factors.per_class(evidence(rows)).blocks == ()
    rows[2:] = [with_classes(r, [1, 2, 0]) for r in rows[2:]]
    assert report_factors.per_class(evidence(rows)).blocks == ()
    rows[:2] = [with_classes(r, [1, 2, 0], ("a", "b", "c")) for r in rows[:2]]
    assert report_factors.per_class(evidence(rows)).blocks == ()
