import math

import numpy as np
import pytest
from readable import check, drawn
from test_figures import CASES

from vitpos.analysis import ranking, style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import group, summarize

PLAN = Comparison("first", "Are sinusoids enough?", "learned")


def rank(rows):
    groups = group(rows)
    return ranking.ranking(PLAN, groups, style.styles(groups))


def pareto(rows):
    groups = group(rows)
    return ranking.pareto(PLAN, groups, style.styles(groups))


def rows_of(row, table, **more):
    return [row(p, seed, a, **more) for p, values in table.items() for seed, a in enumerate(values) if a is not None]


def said(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in drawn(figure))


def counts(figure):
    """By scheme: how often it has which rank."""
    (axes,) = figure.axes
    names = {round(y, 3): label.get_text() for y, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    found = {name: {} for name in names.values()}
    for text in axes.texts:
        if text.get_transform() == axes.transData:
            x, y = text.get_position()
            found[names[round(y, 3)]][x] = int(text.get_text())
    return found


TABLE = {"learned": [0.5, 0.7, 0.6], "none": [0.4, 0.4, 0.4], "cpe": [0.6, 0.6, 0.6]}


def test_ranks_are_counted_over_seeds_and_equal_ones_share_the_better(row):
    figure = rank(rows_of(row, TABLE))
    assert counts(figure) == {"cpe": {1: 2, 2: 1}, "learned (reference)": {1: 2, 2: 1}, "none": {3: 3}}
    assert "in 3 seeds" in said(figure)
    assert "A number says how often (of 3)." in said(figure)
    assert "1.3" in said(figure)  # (2 + 1 + 1) / 3


def test_only_seeds_that_all_have_count_and_who_lacks_most_is_left_out(row):
    table = {
        "learned": [0.5, 0.7, math.nan, 0.8],
        "none": [0.4] * 4,
        "cpe": [None, None, None, 0.9],
        "x": [None] * 3 + [math.nan],
    }
    figure = rank(rows_of(row, table))
    assert counts(figure) == {"learned (reference)": {1: 3}, "none": {2: 3}}
    assert "1 seed left out, in which not all have a result." in said(figure)
    assert "Not ranked, for want of results in these: cpe, x." in said(figure)


def test_one_seed_is_called_one(row):
    figure = rank([row("learned", 0, 0.5), row("none", 0, 0.4)])
    assert "One seed cannot show how stable this is." in said(figure)
    assert rank([row("learned", 0, 0.5), row("none", 1, 0.4)]) is None
    assert rank([row("learned", 0, 0.5), row("none", 0, math.nan)]) is None
    assert rank([row("learned", 0, math.nan), row("none", 0, math.nan)]) is None


def test_ranks_within_settings(row):
    rows = [r for depth in (3, 6) for r in rows_of(row, TABLE, axes={"model.depth": depth})]
    figure = rank([*rows, row("shaw_2d", 0, 0.9)])  # alone in a setting of its own
    assert counts(figure)["none"] == {3: 6}
    assert "in 6 runs: 3 seeds, 2 settings of the other axes" in said(figure)
    assert "shaw_2d" in said(figure)


def timed(row, rates, flops=None, **environment):
    rows = rows_of(row, TABLE, hardware="an accelerator", **environment)
    for r in rows:
        position = r["axes"]["position"]
        r["images_per_second"] = rates[position] * (1 + 0.01 * r["seed"])  # a machine that warms up: the ratio stays
        r["flops"] = (flops or {}).get(position, 1000)
    return rows


RATES = {"learned": 100, "none": 125, "cpe": 50}


def marks(figure):
    """By marker: cost and accuracy."""
    found = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    return {line.get_marker(): (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found}


def test_cost_is_the_measured_time_where_rates_compare(row):
    figure = pareto(timed(row, RATES))
    assert figure.axes[0].get_xlabel() == "training time per image, as measured, relative to learned"
    found = marks(figure)
    assert found["o"] == pytest.approx((1, 60))
    assert found["p"] == pytest.approx((0.8, 40))
    assert found["<"] == pytest.approx((2, 60))
    s = summarize([50.0, 70.0, 60.0], 0.95)
    bars = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(bar, [s.low, s.high]) for bar in bars)


def test_the_front_is_of_those_that_none_outdoes(row):
    table = {"learned": [0.5], "none": [0.4], "cpe": [0.45], "irpe": [0.6], "liere": [0.6], "shaw_2d": [0.55]}
    cost = {"learned": 1000, "none": 900, "cpe": 1100, "irpe": 1200, "liere": 1400, "shaw_2d": 1200}
    rows = rows_of(row, table)
    for r in rows:
        r["flops"] = cost[r["axes"]["position"]]
    figure = pareto(rows)
    (front,) = (line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(front.get_xdata()[:-1], [0.9, 1.0, 1.2])
    np.testing.assert_allclose(front.get_ydata(), [40, 50, 60, 60])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[0]["environment"].update(hardware="another"), "the hardware differs"),
        (
            lambda rows: [r["environment"].update(hardware="a processor, 1 of 2 threads") for r in rows],
            "runs had 1 of 2 threads and shared the machine",
        ),
        (lambda rows: rows[0].update(images_per_second=89.0), "from seed to seed they vary by more than a tenth"),
    ],
)
def test_operations_are_the_cost_where_rates_do_not_compare(row, change, why):
    rows = timed(row, RATES, {"cpe": 1500})
    change(rows)
    figure = pareto(rows)
    assert figure.axes[0].get_xlabel() == "operations of a forward pass, relative to learned"
    assert f"Measured rates are no measure of cost here: {why}." in said(figure)
    assert marks(figure)["<"] == pytest.approx((1.5, 60))


def test_a_whole_machine_is_not_shared(row):
    rows = timed(row, RATES)
    for r in rows:
        r["environment"]["hardware"] = "a processor, 2 of 2 threads"
    assert "as measured" in pareto(rows).axes[0].get_xlabel()


def test_where_all_cost_the_same_accuracies_are_listed(row):
    rows = timed(row, dict.fromkeys(RATES, 100))
    rows.append(row("shaw_2d", 0, math.nan))
    figure = pareto(rows)
    assert "all cost the same (operations" in said(figure)  # the hardware of the last row differs
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["cpe", "learned (reference)", "none"]
    assert "Not drawn, for want of results: shaw_2d." in said(figure)
    assert pareto(rows[:3]) is None  # one scheme
    assert pareto([r for r in rows if r["axes"]["position"] != "learned"]) is None  # cost relative to what?


def test_marks_of_equal_cost_do_not_lie_on_one_another(row):
    rows = timed(row, RATES, {"none": 1000, "cpe": 1500}, device="gpu")
    rows[0]["environment"]["hardware"] = "another"
    found = marks(pareto(rows))
    assert 0 < abs(found["o"][0] - found["p"][0]) < 0.01


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spread", [0, 1000])
def test_all_text_is_readable(row, case, spread):
    positions, seeds, axes = CASES[case]
    rng = np.random.default_rng(0)
    rows = [row(p, seed, 0.5 + 0.02 * rng.standard_normal(), axes=axes) for p in positions for seed in range(seeds)]
    for i, r in enumerate(rows):
        r["flops"] += spread * 10000 * (i // seeds % 7)
    check(pareto(rows))
    if not spread:
        check(rank(rows))
