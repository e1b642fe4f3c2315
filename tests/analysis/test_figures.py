import math

import numpy as np
import pytest
from readable import check, drawn

from vitpos.analysis import figures, style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Variant, group
from vitpos.analysis.verdict import compare

PLAN = Comparison("first", "Are sinusoids enough?", "learned", margin=0.5)


def forest(groups, plan=PLAN):
    return figures.forest(plan, compare(plan, groups), style.styles(groups))


def curves(groups):
    return figures.curves(groups, style.styles(groups))


def said(figure):
    return " ".join(text.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ") for text in drawn(figure))


def lines(axes):
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), line) for line in axes.lines]


def has(axes, *x):
    return any(found.shape == (len(x),) and np.allclose(found, x) for found, _, _ in lines(axes))


def test_forest_shows_seeds_intervals_verdicts_and_margin(row):
    rng = np.random.default_rng(0)
    rows = [row("learned", seed, 0.6 + 0.01 * rng.standard_normal()) for seed in range(12)]
    rows += [row("cpe", seed, 0.62 + 0.01 * rng.standard_normal()) for seed in range(12)]
    groups = group(rows)
    figure = forest(groups)
    (d,) = compare(PLAN, groups)
    (axes,) = figure.axes
    assert has(axes, d.low, d.high)
    assert has(axes, d.flip_low, d.flip_high)
    assert has(axes, d.bca_low, d.bca_high)
    assert has(axes, d.mean)
    assert has(axes, *d.differences)
    band = axes.patches[0].get_bbox()
    assert (band.x0, band.x1) == (-0.5, 0.5)
    text = said(figure)
    assert f"{d.mean:+.2f}  {d.verdict}" in text
    assert "mean of the pairs (n = 12)" in text
    for kind in ("t interval", "sign-flip interval", "BCa bootstrap interval"):
        assert f"95 % {kind}" in text


def test_forest_names_no_interval_that_it_does_not_draw(study, row):
    text = said(forest(group(study)))  # four seeds
    assert "t interval" in text
    assert "sign-flip" not in text
    assert "BCa" not in text
    text = said(forest(group([row(position, 0, 0.5) for position in ("learned", "none")])))
    assert "t interval" not in text
    assert "difference of one seed" not in text
    assert "No interval: too few pairs." in text


def test_forest_says_where_there_is_no_pair_and_how_many_there_are(study):
    for r in study:
        if r["axes"]["position"] == "none":
            r["metrics"]["test/accuracy"] = math.nan
    rows = [r for r in study if r["axes"]["position"] != "sinusoidal_1d" or r["seed"] < 2]
    figure = forest(group(rows))
    assert "test/accuracy is not a number for seeds 0, 1, 2, 3" in said(figure)
    assert "(n = 2)" in said(figure)
    check(figure)


def test_forest_cuts_intervals_that_would_hide_the_rest(row):
    values = {"learned": [0.5, 0.5], "none": [0.50, 0.52], "irpe": [0.51, 0.512]}  # t interval of none: 1 ± 12.7
    figure = forest(group([row(p, seed, a) for p, all_ in values.items() for seed, a in enumerate(all_)]))
    low, high = figure.axes[0].get_xlim()
    assert -3 < low < high < 5
    edges = [
        x[0] for x, _, line in lines(figure.axes[0]) if line.get_marker() in ("<", ">") and line.get_markersize() == 8
    ]
    assert sorted(edges) == [low, high]
    assert "the interval goes on" in said(figure)


def test_forest_groups_settings_in_order(row):
    rows = [row(p, seed, 0.5 + 0.01 * seed * len(p), axes={"model.depth": depth})
            for depth in (12, 6) for p in ("learned", "none", "cpe") for seed in (0, 1)]  # fmt: skip
    figure = forest(group(rows))
    text = said(figure)
    assert text.index("model.depth = 6") < text.index("model.depth = 12")
    assert len(figure.axes[0].get_yticks()) == 4
    check(figure)


def test_forest_of_many_comparisons_keeps_the_decided_and_large_ones(row):
    rows = [row("learned", seed, 0.5) for seed in (0, 1)]
    rows += [row(f"x(a={i})", seed, 0.5 + 0.001 * i + 0.001 * seed) for i in range(1, 64) for seed in (0, 1)]
    figure = forest(group(rows))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 60
    assert "x(a=3)" not in names
    assert "x(a=63)" in names
    assert "3 comparisons more are not drawn" in said(figure)


def test_forest_without_a_candidate(row):
    assert forest(group([row("learned", 0, 0.5)])) is None


def test_curves_are_the_mean_over_seeds(study):
    groups = group(study)
    figure = curves(groups)
    (y,) = (y for _, y, line in lines(figure.axes[0]) if line.get_label() == "learned")
    rows = groups[Variant("learned")].values()
    values = np.array([[100 * h["val/accuracy"] for h in row["history"]] for row in rows])
    np.testing.assert_allclose(y, values.mean(0))
    bands = [band.get_datalim(figure.axes[0].transData) for band in figure.axes[0].collections]
    assert any(np.isclose(band.y1, values.max()) for band in bands)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["all epochs", "the last third"]
    assert figure.axes[1].get_xlim()[0] == 6


def test_curves_of_a_short_or_missing_history(row):
    assert len(curves(group([row("none", 0, 0.5, epochs=2)])).axes) == 1
    assert curves(group([row("none", 0, 0.5, epochs=0)])) is None
    figure = curves(group([row("none", 0, 0.5, epochs=0), row("learned", 0, 0.5), row("learned", 1, 0.5)]))
    assert "No history: none." in said(figure)


def test_curves_say_where_they_are_not_a_number(row):
    rows = [row("learned", seed, 0.5) for seed in (0, 1)]
    rows[0]["history"][4]["val/accuracy"] = math.nan
    figure = curves(group(rows))
    ((_, y, _),) = lines(figure.axes[0])
    assert np.isnan(y[4])
    assert np.isfinite(y[[3, 5]]).all()
    assert "Not a number in at least one seed, where the line has a gap: learned." in said(figure)


def test_many_schemes_have_a_panel_each_the_best_first(row):
    groups = group([row(f"x(a={i})", seed, 0.5 + i / 100) for i in range(9) for seed in (0, 1)])
    panels = [axes for axes in curves(groups).axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["x(a=8)", "x(a=7)"]
    look = style.styles(groups)["x(a=8)"]
    assert [line.get_color() == look.colour for line in panels[0].lines] == 8 * [False] + [True]


def test_settings_have_a_panel_each(row):
    rows = [row(p, 0, 0.5, axes={"model.depth": depth}) for depth in (12, 6) for p in ("learned", "none")]
    figure = curves(group(rows))
    titles = [axes.get_title(loc="left").replace("\N{NO-BREAK SPACE}", " ") for axes in figure.axes]
    assert titles == ["model.depth = 6", "model.depth = 12"]
    assert "one seed" in said(figure)


def test_epochs_that_every_seed_has(row):
    epochs, values = figures.by_epoch([row("x", 0, 0.5, epochs=4), row("x", 1, 0.5, epochs=3)], "train/loss")
    assert epochs.tolist() == [1, 2, 3]
    np.testing.assert_allclose(values, [[2.3, 1.15, 2.3 / 3]] * 2)


def test_similarity_maps_lie_where_their_position_is(row):
    rows = [row("x", seed, 0.5) for seed in (0, 1)]
    for seed, r in enumerate(rows):  # a rectangle; entry (i, j) is i + j / 10, and the mean adds half a unit
        i, j = np.mgrid[:6, :6]
        r["position"] = {"grid": [2, 3], "rms_start": 1, "rms_end": 1, "similarity": (i + j / 10 + seed).tolist()}
    figure = figures.similarity(group([*rows, row("none", 0, 0.5)]))
    assert "Nothing is added to the patch tokens by none." in said(figure)
    assert len(figure.axes) == 2  # a map and the scale
    assert figure.axes[0].get_title() == "x"
    (image,) = figure.axes[0].images
    assert image.get_clim() == (-1, 1)
    shown = image.get_array().filled(np.nan)
    assert shown.shape == (5, 11)
    position = 1 * 3 + 2  # row 1, column 2: its map starts at (3, 8)
    np.testing.assert_allclose(shown[3:5, 8:11], 0.5 + position + np.array([[0, 0.1, 0.2], [0.3, 0.4, 0.5]]))
    assert np.isnan(shown[2]).all()
    assert np.isnan(shown[:, 3]).all()


def test_similarity_says_what_is_no_number_and_what_is_left_out(row):
    rows = [row(f"x(a={i})", 0, 0.5, axes={"model.depth": depth}) for i in range(20) for depth in (10, 9)]
    rows[0]["position"]["similarity"] = np.full((16, 16), np.nan).tolist()
    rows[1]["position"]["similarity"] = rows[0]["position"]["similarity"]
    figure = figures.similarity(group(rows))
    assert len([axes for axes in figure.axes if axes.images]) == 20
    assert "not a number" in said(figure)
    assert "Of 40 maps, those with model.depth = 9." in said(figure)
    assert figures.similarity(group([row("none", 0, 0.5)])) is None


LONG = [
    "sinusoidal_2d(temperature=100, scale=0.02, inject='every')",
    "learned(init='sinusoidal_2d', temperature=10000)+rope_axial",
    "path/to/some/folder/my_scheme.py:MyOwnPositionEmbedding2D",
]
CASES = {
    "two": (["learned", "none"], 1, {}),
    "long": (["learned", *LONG], 20, {}),
    "many": (["learned", *LONG, *(f"scheme_{i}" for i in range(21))], 2, {}),
    "settings": (["learned", "none", LONG[0]], 3, {"position.some_option_name": "x" * 20, "data.fraction": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_all_text_is_readable(row, case):
    positions, seeds, axes = CASES[case]
    rng = np.random.default_rng(0)
    points = [{**axes, "model.depth": depth} for depth in (3, 12)] if axes else [{}]
    groups = group([row(p, seed, 0.5 + 0.02 * rng.standard_normal(), axes=point)
                    for point in points for p in positions for seed in range(seeds)])  # fmt: skip
    for figure in (forest(groups), curves(groups), figures.similarity(groups)):
        check(figure)


def test_a_single_epoch_is_a_point_that_shows(row):
    figure = curves(group([row(p, seed, 0.5, epochs=1) for p in ("learned", "none") for seed in (0, 1)]))
    shown = [line for x, _, line in lines(figure.axes[0]) if len(x) == 1]
    assert len(shown) == 2
    assert all(line.get_marker() != "None" and line.get_markevery() == 1 for line in shown)
