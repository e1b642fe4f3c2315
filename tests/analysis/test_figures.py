import numpy as np
import pytest

from vitpos.analysis import figures
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import Variant, compare, group

PLAN = Comparison("first", "Are sinusoids enough?", "learned", margin=0.5)


def test_a_kind_has_one_colour_and_each_variant_its_look():
    kinds = [Variant(f"scheme_{c}") for c in "abcdefghij"]
    look = figures.styles([*kinds, Variant("none"), Variant("scheme_a(x=1)"), Variant("scheme_a(x=2)")])
    assert len(set(look.values())) == 13
    assert look[Variant("scheme_a(x=1)")].colour == look[Variant("scheme_a")].colour
    assert look[Variant("scheme_a")].line == "-"
    assert len({look[v].colour for v in kinds[:7]} | {look[Variant("none")].colour}) == 8


def test_forest_shows_means_intervals_and_margin(study):
    groups = group(study)
    found = compare(PLAN, groups)
    axes = figures.forest(PLAN, found, figures.styles(list(groups))).axes[0]
    drawn = [line.get_xdata() for line in axes.lines]
    for d in found:
        assert any(len(x) == 2 and np.allclose(x, [d.low, d.high]) for x in drawn)
        assert any(len(x) == 1 and np.isclose(x[0], d.mean) for x in drawn)
    band = axes.patches[0].get_bbox()
    assert (band.x0, band.x1) == (-0.5, 0.5)


def test_curves_are_the_mean_over_seeds(study):
    groups = group(study)
    figure = figures.curves(groups, figures.styles(list(groups)))
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "learned")
    rows = groups[Variant("learned")].values()
    expected = [100 * np.mean([row["history"][e]["val/accuracy"] for row in rows]) for e in range(9)]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert len(figure.axes) == 2  # the second: the last third


def test_curves_of_a_short_or_missing_history(row):
    groups = group([row("none", 0, 0.5, epochs=2)])
    assert len(figures.curves(groups, figures.styles(list(groups))).axes) == 1
    groups = group([row("none", 0, 0.5, epochs=0)])
    assert figures.curves(groups, figures.styles(list(groups))) is None


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
    by_title = {axes.get_title(): axes for axes in figure.axes}
    assert "adds nothing" in by_title["none"].texts[0].get_text()
    image = by_title["x"].images[0]
    assert image.get_clim() == (-1, 1)
    shown = image.get_array().filled(np.nan)
    assert shown.shape == (5, 11)
    position = 1 * 3 + 2  # row 1, column 2: its map starts at (3, 8)
    np.testing.assert_allclose(shown[3:5, 8:11], 0.5 + position + np.array([[0, 0.1, 0.2], [0.3, 0.4, 0.5]]))
    assert np.isnan(shown[2]).all()
    assert np.isnan(shown[:, 3]).all()


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("sinusoidal_2d(scale=0.5)", ["sinusoidal_2d(scale=0.5)"]),
        ("sinusoidal_2d(scale=0.5), model.depth=3", ["sinusoidal_2d(scale=0.5),", "model.depth=3"]),
        ("sinusoidal_2d(temperature=100000.0)", ["sinusoidal_2d", "(temperature=100000.0)"]),
    ],
)
def test_long_labels_break_where_it_reads_well(label, lines):
    assert figures._wrap(label, 30).split("\n") == lines


def test_variants_beyond_the_line_styles_are_told_apart_by_markers(row):
    def looks(count):
        groups = group([row(f"x(a={i})", 0, 0.5) for i in range(count)])
        lines = figures.curves(groups, figures.styles(list(groups))).axes[0].lines
        return {(line.get_linestyle(), line.get_marker()) for line in lines}

    assert len(looks(6)) == 6
    assert {marker for _, marker in looks(3)} == {"None"}


@pytest.mark.parametrize(
    ("metric", "words"), [("val/accuracy", "validation accuracy"), ("train/loss", "training loss")]
)
def test_metrics_in_words(metric, words):
    assert figures.words(metric) == words
