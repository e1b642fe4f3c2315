"""Pictures show what the tables say, in text that can be read."""

import math

import numpy as np
import pytest
from readable import check, drawn

from vitpos import style
from vitpos.analysis import breakdowns, pictures
from vitpos.analysis.runs import curves, frame, similarity
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import verdicts

TERMS = Terms("first", "Are sinusoids enough?", "learned", margin=0.5)
LONG = [
    "sinusoidal_2d(temperature=100, scale=0.02, inject='every')",
    "learned(init='sinusoidal_2d', temperature=10000)+rope_axial",
    "path/to/some/folder/my_scheme.py:MyOwnPositionEmbedding2D",
]
CASES = {
    "two": (["learned", "none"], 1, {}),
    "long": (["learned", *LONG], 12, {}),
    "many": (["learned", *LONG, *(f"scheme_{i}" for i in range(9))], 2, {}),
    "settings": (["learned", "none", LONG[0]], 3, {"position.some_option_name": "x" * 20, "data.fraction": None}),
}


class Study:
    def __init__(self, rows):
        self.runs = frame(rows, TERMS.metric)
        self.found = verdicts(self.runs, TERMS)
        self.looks = style.styles({v.position: v.kind for v in self.runs["variant"]})
        self.at = breakdowns.by_setting(self.runs, self.found)

    def forest(self):
        return pictures.forest(self.found, TERMS, self.looks)

    def curves(self):
        return pictures.curves(curves(self.runs, "val/accuracy"), self.at, self.looks, "validation accuracy")

    def ranking(self):
        return pictures.ranking(breakdowns.ranking(self.runs, self.found), self.looks)

    def pareto(self):
        return pictures.pareto(breakdowns.cost(self.runs, self.found, TERMS), TERMS, self.looks)

    def classes(self):
        return pictures.classes(breakdowns.classes(self.runs, self.found), "learned")

    def similarity(self):
        return pictures.similarity(similarity(self.runs))

    def factor(self, axis):
        return pictures.factor(breakdowns.effects(self.runs, axis, 0.95), axis, TERMS, self.looks)


def said(figure):
    return " ".join(text.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ") for text in drawn(figure))


def has(axes, *x):
    return any(len(line.get_xdata()) == len(x) and np.allclose(line.get_xdata(), x) for line in axes.lines)


@pytest.mark.parametrize("case", CASES)
def test_all_text_is_readable(row, case):
    positions, seeds, axes = CASES[case]
    rng, classes = np.random.default_rng(0), [f"a class name {i}" for i in range(30)]
    points = [{**axes, "model.depth": depth} for depth in (3, 12)] if axes else [{}]
    rows = [row(p, seed, 0.5 + 0.02 * rng.standard_normal(), axes=point)
            for point in points for p in positions for seed in range(seeds)]  # fmt: skip
    for i, r in enumerate(rows):
        r["flops"] += 1000 * (i % 7)
        r["per_class"] = {"names": classes, "count": [100] * 30, "correct": rng.integers(0, 100, 30).tolist()}
    study = Study(rows)
    drawings = [getattr(study, name)() for name in ("forest", "curves", "ranking", "pareto", "classes", "similarity")]
    drawings += [study.factor("model.depth")] if axes else []
    for figure in drawings:
        check(figure)


def test_forest_shows_seeds_intervals_verdicts_and_margin(row):
    rng = np.random.default_rng(0)
    rows = [
        row(p, s, mean + 0.01 * rng.standard_normal())
        for p, mean in (("learned", 0.6), ("cpe", 0.62))
        for s in range(8)
    ]
    study = Study(rows)
    figure, d = study.forest(), study.found.iloc[0]
    (axes,) = figure.axes
    assert has(axes, d["low"], d["high"])
    assert has(axes, d["single_low"], d["single_high"])
    assert has(axes, d["mean"])
    assert has(axes, *d["by_seed"].values())
    band = axes.patches[0].get_bbox()
    assert (band.x0, band.x1) == (-0.5, 0.5)
    assert f"{d['mean']:+.2f}  {d['verdict']}".replace("-", "−") in said(figure)
    assert "what decides" not in said(figure)


def test_forest_is_cut_where_intervals_are_vast_and_draws_the_telling_of_many(row):
    rows = [row("learned", s, 0.5) for s in range(2)] + [row("x", s, 0.5 + 0.01 * s) for s in range(2)]
    study = Study(rows)
    low, high = study.forest().axes[0].get_xlim()
    assert study.found["high"][0] > high > 1
    assert low < 0
    many = Study([row(p, 0, 0.5 + i / 1000) for i, p in enumerate(["learned", *(f"s{i}" for i in range(70))])])
    labels = [label.get_text() for label in many.forest().axes[0].get_yticklabels()]
    assert len(labels) == 60
    assert "s0" not in labels
    assert pictures.forest(Study([row("learned", 0, 0.5)]).found, TERMS, {}) is None


def test_curves_of_settings_share_their_axis_and_show_a_scheme_without_the_option_in_each(row):
    rows = [row("learned", s, a, axes={"position.scale": scale}) for scale, a in ((1, 0.3), (2, 0.9)) for s in (0, 1)]
    figure = Study([*rows, *(row("none", s, 0.5) for s in (0, 1))]).curves()
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert len(first.lines) == len(second.lines) == 2
    assert "position.scale = 1" in said(figure)


def test_a_single_epoch_is_a_point_and_no_history_no_picture(row):
    figure = Study([row(p, seed, 0.5, epochs=1) for p in ("learned", "none") for seed in (0, 1)]).curves()
    assert all(line.get_marker() != "None" and line.get_markevery() == 1 for line in figure.axes[0].lines)
    assert len(figure.axes[0].lines) == 2
    assert Study([row("learned", 0, 0.5, epochs=0)]).curves() is None


def test_ranking_shows_the_counts_of_its_table(row):
    table = {"learned": [0.5, 0.7, 0.6], "none": [0.4] * 3, "cpe": [0.6] * 3}
    figure = Study([row(p, s, a) for p, values in table.items() for s, a in enumerate(values)]).ranking()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    found = {(names[round(t.get_position()[1])], round(t.get_position()[0]) + 1): t.get_text() for t in axes.texts}
    assert {place: n for place, n in found.items() if n} == {
        ("cpe", 1): "2", ("cpe", 2): "1", ("learned", 1): "2", ("learned", 2): "1", ("none", 3): "3",
    }  # fmt: skip


def test_classes_show_those_that_differ_most_in_their_order(row):
    names, gain = [f"class {i}" for i in range(100)], np.zeros(100, dtype=int)
    gain[[90, 3, 50]] = 30, -20, 10
    gain[60:70] = 5
    rows = [row("learned", 0, 0.5), row("none", 0, 0.5)]
    for r, correct in zip(rows, (np.full(100, 50), 50 + gain), strict=True):
        r["per_class"] = {"names": names, "count": [100] * 100, "correct": correct.tolist()}
    (axes,) = Study(rows).classes().axes
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == [f"class {i}" for i in (3, 50, *range(60, 69), 90)]
    assert [t.get_text() for t in axes.texts][:2] == ["−20.0", "+10.0"]
    assert Study([row("learned", 0, 0.5), row("none", 0, 0.5)]).classes() is None


def marks(axes):
    found = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    return {line.get_marker(): (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found}


def test_pareto_shows_the_front_of_the_means(row):
    table = {"learned": 0.5, "none": 0.4, "cpe": 0.45, "irpe": 0.6, "liere": 0.6, "shaw_2d": 0.55}
    cost = {"learned": 1000, "none": 900, "cpe": 1100, "irpe": 1200, "liere": 1400, "shaw_2d": 1200}
    rows = [row(p, 0, a) for p, a in table.items()]
    for r in rows:
        r["flops"] = cost[r["axes"]["position"]]
    (axes,) = Study([*rows, row("fourier", 0, math.nan)]).pareto().axes
    (front,) = (line for line in axes.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(front.get_xdata()[:-1], [0.9, 1.0, 1.2])
    np.testing.assert_allclose(front.get_ydata(), [40, 50, 60, 60])
    assert marks(axes)["o"] == pytest.approx((1, 50))
    assert "relative to learned" in axes.get_xlabel()
    assert Study([row("learned", 0, 0.5)]).pareto() is None


def test_marks_of_equal_cost_do_not_lie_on_one_another(row):
    (axes,) = Study([row(p, 0, 0.5 + i / 10) for i, p in enumerate(("learned", "none", "cpe"))]).pareto().axes
    assert len({round(x, 4) for x, _ in marks(axes).values()}) == 3
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]


def test_a_factor_is_drawn_by_scheme_and_dashed_without_the_option(row):
    rows = [row("learned", s, 0.5 + scale / 10, axes={"position.scale": scale}) for scale in (1, 2) for s in (0, 1)]
    study = Study([*rows, *(row("none", seed, 0.65) for seed in (0, 1))])
    left, right = study.factor("position.scale").axes
    found = {line.get_marker(): (line.get_linestyle(), line.get_ydata().tolist()) for line in left.lines}
    assert found["o"] == ("-", pytest.approx([60, 70]))
    assert found["p"] == ("--", pytest.approx([65, 65]))
    assert {line.get_marker(): line.get_ydata().tolist() for line in right.lines} == {"o": [2, 1], "p": [1, 2]}
    assert Study(rows[:2]).factor("position.scale") is None  # one value
    assert Study([rows[0], rows[3]]).factor("position.scale") is None  # no seed at both


def test_similarity_draws_the_first_setting_of_many(row):
    rows = [row(f"s{i}", 0, 0.5, axes={"model.depth": depth}) for depth in (10, 9) for i in range(20)]
    rows[25]["position"] = {**rows[25]["position"], "similarity": np.full((16, 16), math.nan).tolist()}
    figure = Study([*rows, row("none", 0, 0.5, axes={"model.depth": 9})]).similarity()
    assert len([axes for axes in figure.axes if axes.images]) == 20
    assert said(figure).count("not a number") == 1
    assert Study([row("none", 0, 0.5)]).similarity() is None
