import math

import numpy as np
import pytest
from readable import check, drawn
from test_figures import CASES

from vitpos.analysis import breakdowns, style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import group, summarize

PLAN = Comparison("first", "Are sinusoids enough?", "learned")


def factors(rows):
    groups = group(rows)
    return breakdowns.factors(PLAN, groups, style.styles(groups))


def said(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in drawn(figure))


def counted(row, position, seed, correct, names=("cat", "dog"), count=(100, 200), **more):
    r = row(position, seed, 0.5, **more)
    r["per_class"] = {"names": list(names), "count": list(count), "correct": list(correct)}
    return r


def cells(figure):
    """By scheme the texts in its row, from left to right."""
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    places = sorted((text.get_position()[1], text.get_position()[0], text.get_text()) for text in axes.texts)
    width = len(axes.get_xticks())
    return {name: [text for *_, text in places[i * width : (i + 1) * width]] for i, name in enumerate(names)}


def test_classes_are_compared_by_pairs_of_seeds(row):
    rows = [
        counted(row, "learned", 0, [50, 100]),  # 50 and 50 %
        counted(row, "learned", 1, [60, 100]),
        counted(row, "learned", 2, [0, 0]),  # no pair
        counted(row, "none", 0, [40, 110]),  # -10 and +5
        counted(row, "none", 1, [30, 90]),  # -30 and -5
        counted(row, "cpe", 1, [70, 101]),
        row("cpe", 0, 0.5),  # an earlier version of rows
        row("irpe", 0, 0.5),
        counted(row, "irpe", 1, [1, 1, 1], names=("a", "b", "c"), count=(1, 1, 1)),
    ]
    figure = breakdowns.per_class(PLAN, group(rows))
    assert cells(figure) == {"cpe": ["+10.0", "+0.5"], "none": ["-20.0", "+0.0"]}
    text = said(figure)
    assert "mean over 1 to 2 pairs" in text
    assert "Without a pair that has counts by class: irpe." in text
    assert "1 run with other classes left out." in text
    # p = 0.5 and 0.4 of 100 images: sqrt(0.25 / 100 + 0.24 / 100)
    assert "a standard error of up to 7.0" in text
    assert figure.axes[0].collections[0].get_clim() == (-20, 20)


def test_of_many_classes_those_that_differ_most_in_their_order(row):
    names = [f"class {i}" for i in range(100)]
    gain = np.zeros(100, dtype=int)
    gain[[90, 3, 50]] = 30, -20, 10
    gain[60:70] = 5
    rows = [counted(row, "learned", 0, [50] * 100, names, [100] * 100)]
    rows += [counted(row, "none", 0, (50 + gain).tolist(), names, [100] * 100)]
    figure = breakdowns.per_class(PLAN, group(rows))
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [f"class {i}" for i in (3, 50, *range(60, 69), 90)]
    assert "the 12 of 100 classes where one differs most" in said(figure)
    assert "chance has a part" in said(figure)


def test_a_class_without_images_and_no_classes_at_all(row):
    rows = [counted(row, position, 0, [50, 0], count=(100, 0)) for position in ("learned", "none")]
    assert cells(breakdowns.per_class(PLAN, group(rows)))["none"] == ["+0.0", "no\nimage"]
    assert breakdowns.per_class(PLAN, group(rows[:1])) is None
    assert breakdowns.per_class(PLAN, group([row("learned", 0, 0.5), row("none", 0, 0.5)])) is None


def crossed(row, table):
    """Accuracies by position and (depth, scale), in seeds."""
    return [row(position, seed, a, axes={"model.depth": depth, "position.scale": scale})
            for position, points in table.items() for (depth, scale), values in points.items()
            for seed, a in enumerate(values)]  # fmt: skip


def test_main_effects_compare_what_every_level_has(row):
    rows = crossed(row, {
        "learned": {(3, 1): [0.5, 0.6], (12, 1): [0.7, 0.9], (3, 2): [0.3, 0.2], (12, 2): [0.5, 0.3]},
        # the run (3, 2) of seed 1 has no counterpart at depth 12
        "none": {(3, 1): [0.1, 0.2], (12, 1): [0.2, 0.3], (3, 2): [0.9, 0.9], (12, 2): [0.9, math.nan]},
    })  # fmt: skip
    found = factors(rows)
    assert list(found) == ["model.depth", "position.scale"]
    left, right = found["model.depth"].axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["3", "12"]
    means = {line.get_marker(): line.get_ydata() for line in left.lines}
    np.testing.assert_allclose(means["o"], [40, 60])
    np.testing.assert_allclose(means["p"], [100 * (0.5 + 0.2) / 2, 100 * (0.55 + 0.3) / 2])
    ranks = {line.get_marker(): line.get_ydata() for line in right.lines if line.get_linestyle() == "None"}
    assert ranks["o"].tolist() == [1, 1]
    text = said(found["model.depth"])
    assert "Left out, without a counterpart at every level: 1 run." in text
    assert "learned (reference)" in text


def test_intervals_of_main_effects_are_over_seeds(row):
    rows = crossed(row, {"learned": {(d, 1): [0.5 + d / 100, 0.6, 0.4 + d / 50] for d in (3, 12)}})
    (figure,) = factors(rows).values()
    s = summarize([62.0, 60.0, 64.0], 0.95)
    ends = [segment[:, 1] for bars in figure.axes[0].collections for segment in bars.get_segments()]
    assert any(np.allclose(sorted(e), [s.low, s.high]) for e in ends)


def test_a_scheme_that_lacks_the_option_is_dashed(row):
    rows = [
        row("learned", seed, 0.5 + scale / 10, axes={"position.scale": scale}) for scale in (1, 2) for seed in (0, 1)
    ]
    rows += [{**row("none", seed, 0.4, axes={"position.scale": scale}), "idle": ["position.scale"]}
             for scale in (1, 2) for seed in (0, 1)]  # fmt: skip
    rows += [row("cpe", seed, 0.3) for seed in (0, 1)]
    (figure,) = factors(rows).values()
    found = {line.get_marker(): (line.get_linestyle(), line.get_ydata().tolist()) for line in figure.axes[0].lines}
    assert found["o"] == ("-", pytest.approx([60, 70]))
    assert found["p"] == ("--", pytest.approx([40, 40]))
    assert found["<"] == ("--", pytest.approx([30, 30]))
    assert "Dashed: has no such option" in said(figure)


def test_how_the_ranking_moves(row):
    table = {"learned": (0.5, 0.7), "none": (0.6, 0.6), "cpe": (0.7, 0.5)}
    rows = [
        row(p, 0, a, axes={"model.depth": d}) for p, both in table.items() for d, a in zip((3, 6), both, strict=True)
    ]
    (figure,) = factors(rows).values()
    ranks = {line.get_marker(): line.get_ydata() for line in figure.axes[1].lines if line.get_linestyle() == "None"}
    assert [ranks[mark].tolist() for mark in "op<"] == [[3, 1], [2, 2], [1, 3]]
    assert "(Kendall's tau, 1: the same): -1.00." in said(figure)
    assert "no interval" in said(figure)


def test_no_axis_no_figure_and_no_result_in_words(row):
    assert factors([row("learned", 0, 0.5), row("none", 0, 0.5)]) == {}
    assert factors([row("learned", 0, 0.5, axes={"model.depth": 3})]) == {}
    rows = [row("learned", 0, 0.5, axes={"model.depth": 3}), row("learned", 1, 0.5, axes={"model.depth": 6})]
    (figure,) = factors(rows).values()
    assert "no scheme has results at every level" in said(figure).replace("\n", " ")
    assert "Not drawn, for want of results: learned." in said(figure)
    check(figure)


@pytest.mark.parametrize("case", CASES)
def test_all_text_is_readable(row, case):
    positions, seeds, axes = CASES[case]
    rng = np.random.default_rng(0)
    classes = [f"a class name {i}" for i in range(30)]
    rows = [
        counted(row, p, seed, rng.integers(0, 100, 30), classes, [100] * 30, axes={**axes, "model.name": name})
        for p in positions
        for seed in range(min(seeds, 3))
        for name in ("a_name_of_a_model_with_33_letters", "b", "c")
    ]
    for r in rows:
        r["metrics"]["test/accuracy"] = 0.5 + 0.02 * rng.standard_normal()
    check(breakdowns.per_class(PLAN, group(rows)))
    for figure in factors(rows).values():
        check(figure)
