"""Accuracies by axis, seed, cost and class: one rule for table and picture."""

import math

import numpy as np
import pytest

from vitpos.analysis import breakdowns
from vitpos.analysis.runs import Variant, frame, summarize
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import verdicts

TERMS = Terms("first", "Are sinusoids enough?", "learned")
TABLE = {"learned": [0.5, 0.7, 0.6], "none": [0.4, 0.4, 0.4], "cpe": [0.6, 0.6, 0.6]}


def rows_of(row, table, **more):
    return [row(p, seed, a, **more) for p, values in table.items() for seed, a in enumerate(values) if a is not None]


def analyse(rows):
    runs = frame(rows, TERMS.metric)
    return runs, verdicts(runs, TERMS)


def crossed(row, table):
    """Accuracies by position and (depth, scale), in seeds."""
    return [row(position, seed, a, axes={"model.depth": depth, "position.scale": scale})
            for position, points in table.items() for (depth, scale), values in points.items()
            for seed, a in enumerate(values)]  # fmt: skip


def test_effects_compare_what_every_value_has(row):
    rows = crossed(row, {
        "learned": {(3, 1): [0.5, 0.6], (12, 1): [0.7, 0.9], (3, 2): [0.3, 0.2], (12, 2): [0.5, 0.3]},
        "none": {(3, 1): [0.1, 0.2], (12, 1): [0.2, 0.3], (3, 2): [0.9, 0.9], (12, 2): [0.9, math.nan]},
        "cpe": {(3, 1): [0.1, 0.2]},
    })  # fmt: skip
    found = breakdowns.effects(frame(rows, TERMS.metric), "model.depth", 0.95)
    assert found.attrs["levels"] == ["3", "12"]
    assert (found.attrs["absent"], found.attrs["unused"]) == (["cpe"], 3)
    means = {(e.position, e.level): e.mean for e in found.itertuples()}
    assert means["learned", "3"] == pytest.approx(40)
    assert means["learned", "12"] == pytest.approx(60)
    # setting 2 has one seed of two at depth 12, and is left out
    assert means["none", "3"] == pytest.approx(15)
    assert means["none", "12"] == pytest.approx(25)
    s = summarize([40.0, 40.0 + 1e-9], 0.95)
    assert (found["n"][0], found["cells"][0]) == (s.n, 2)
    assert found.set_index(["position", "level"])["rank"].to_dict() == {
        ("learned", "3"): 1, ("learned", "12"): 1, ("none", "3"): 2, ("none", "12"): 2,
    }  # fmt: skip


def test_values_are_in_one_order_and_the_first_is_the_baseline_everywhere(row):
    accuracies = {0.7: 0.6, None: 0.5, 0.02: 0.3}
    rows = [row(p, seed, a + (p == "cpe") / 10 + seed / 100, axes={"position.scale": scale})
            for p in ("learned", "cpe") for scale, a in accuracies.items() for seed in (0, 1)]  # fmt: skip
    all_effects = {"position.scale": breakdowns.effects(frame(rows, TERMS.metric), "position.scale", 0.95)}
    assert all_effects["position.scale"].attrs["levels"] == ["None", "0.02", "0.7"]
    factors = breakdowns.factors(all_effects, TERMS).frame
    assert factors["value"].tolist() == ["default", "0.02", "0.7"]
    assert factors["minus first"].tolist() == pytest.approx([math.nan, -20, 10], nan_ok=True)
    assert factors["test accuracy, %"].tolist() == pytest.approx([55.5, 35.5, 65.5])
    assert breakdowns.orders(all_effects).frame["value"].tolist() == ["default", "0.02", "0.7"]


def test_a_scheme_that_lacks_the_option_has_the_same_runs_at_every_value(row):
    rows = [row("learned", s, 0.5 + scale / 10, axes={"position.scale": scale}) for scale in (1, 2) for s in (0, 1)]
    rows += [row("none", seed, 0.65) for seed in (0, 1)]
    found = breakdowns.effects(frame(rows, TERMS.metric), "position.scale", 0.95)
    assert found.set_index(["position", "level"])["mean"].to_dict() == pytest.approx(
        {("learned", "1"): 60, ("learned", "2"): 70, ("none", "1"): 65, ("none", "2"): 65}
    )
    assert found.groupby("position")["lacks"].all().to_dict() == {"learned": False, "none": True}
    factors = breakdowns.factors({"position.scale": found}, TERMS).frame
    assert factors["test accuracy, %"].tolist() == pytest.approx([60, 70])  # of those that have it
    orders = breakdowns.orders({"position.scale": found}).frame
    assert orders["schemes, best first"].tolist() == ["none 65.00, learned 60.00", "learned 70.00, none 65.00"]
    assert orders["tau"][1] == -1


def test_ranks_are_counted_over_seeds_and_equal_ones_share_the_better(row):
    table = breakdowns.ranking(*analyse(rows_of(row, TABLE)))
    assert {p: counts.tolist() for _, p, counts in table.facts["shares"]} == {
        "cpe": [2, 1, 0], "learned": [2, 1, 0], "none": [0, 0, 3],
    }  # fmt: skip
    found = table.frame.set_index("scheme")
    assert found["mean rank"].to_dict() == pytest.approx({"cpe": 4 / 3, "learned": 4 / 3, "none": 3})
    assert found["times first"].to_dict() == {"cpe": 2, "learned": 2, "none": 0}


def test_one_scheme_with_few_seeds_does_not_cost_the_ranking(row):
    table = {"learned": [0.5, 0.7, math.nan, 0.8], "none": [0.4] * 4, "cpe": [None, None, None, 0.9]}
    found = breakdowns.ranking(*analyse(rows_of(row, table)))
    assert found.frame["scheme"].tolist() == ["learned", "none"]
    assert found.frame["seeds"].tolist() == [3, 3]
    assert (found.facts["absent"], found.facts["dropped"]) == (["cpe"], 1)
    ((_, w, n),) = found.facts["agreement"]
    assert (w, n) == (pytest.approx(1), 3)
    assert breakdowns.ranking(*analyse([row("learned", 0, 0.5), row("none", 1, 0.4)])).frame.empty


def test_rankings_are_by_setting_and_a_scheme_without_the_option_is_in_each(row):
    rows = [r for depth in (3, 6) for r in rows_of(row, TABLE, axes={"position.scale": depth})]
    found = breakdowns.ranking(*analyse([*rows, *rows_of(row, {"shaw_2d": [0.9, 0.9, 0.9]})])).frame
    assert len(found) == 8
    assert found[found["scheme"] == "shaw_2d"]["mean rank"].tolist() == [1, 1]
    assert found[found["scheme"] == "none"]["mean rank"].tolist() == [4, 4]


def timed(row, rates, flops=None, **environment):
    rows = rows_of(row, TABLE, hardware="an accelerator", **environment)
    for r in rows:
        position = r["axes"]["position"]
        r["images_per_second"] = rates[position] * (1 + 0.01 * r["seed"])  # a machine that warms up: the ratio stays
        r["flops"] = (flops or {}).get(position, 1000)
    return rows


RATES = {"learned": 100, "none": 125, "cpe": 50}


def test_cost_is_the_measured_time_where_rates_compare(row):
    table = breakdowns.cost(*analyse(timed(row, RATES)), TERMS)
    assert (table.facts["measure"], table.facts["why"]) == ("training time per image", "")
    assert table.frame.set_index("scheme")["relative cost"].to_dict() == pytest.approx(
        {"learned": 1, "none": 0.8, "cpe": 2}
    )
    points = {position: (x, s.mean) for _, position, x, s in table.facts["points"]}
    assert points == {"learned": (1, pytest.approx(60)), "none": (pytest.approx(0.8), 40), "cpe": (2, 60)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[0]["environment"].update(hardware="another"), "the hardware differs"),
        (
            lambda rows: [r["environment"].update(hardware="a processor, 1 of 2 threads") for r in rows],
            "runs had 1 of 2 threads and shared the machine",
        ),
        (lambda rows: rows[0].update(images_per_second=89.0), "it varied by more than a tenth from seed to seed"),
    ],
)
def test_operations_are_the_cost_where_rates_do_not_compare(row, change, why):
    rows = timed(row, RATES, {"cpe": 1500})
    change(rows)
    table = breakdowns.cost(*analyse(rows), TERMS)
    assert (table.facts["measure"], table.facts["why"]) == ("FLOPs of a forward pass", why)
    assert table.frame.set_index("scheme")["relative cost"]["cpe"] == pytest.approx(1.5)


def test_a_whole_machine_is_not_shared(row):
    rows = timed(row, RATES)
    for r in rows:
        r["environment"]["hardware"] = "a processor, 2 of 2 threads"
    assert breakdowns.cost(*analyse(rows), TERMS).facts["why"] == ""


def counted(row, position, seed, correct, names=("cat", "dog"), count=(100, 200), **more):
    r = row(position, seed, 0.5, **more)
    r["per_class"] = {"names": list(names), "count": list(count), "correct": list(correct)}
    return r


def test_classes_are_compared_over_the_pairs_of_the_verdict(row):
    """A run in another precision is no pair, in no table: with it, the signs of both classes would be reversed."""
    rows = [counted(row, "learned", s, [50, 100]) for s in range(3)]
    rows += [counted(row, "none", s, [60, 80]) for s in (0, 1)]
    rows += [counted(row, "none", 2, [10, 180], precision="bf16-mixed")]
    runs, found = analyse(rows)
    assert list(found["finished"][0]) == [0, 1]
    table = breakdowns.classes(runs, found)
    assert table.frame[["cat", "dog"]].to_numpy().tolist() == [[pytest.approx(10), pytest.approx(-10)]]
    (extremes,) = breakdowns.class_extremes(table).frame.to_dict("records")
    assert (extremes["gains most"], extremes["gain"]) == ("cat", pytest.approx(10))
    assert (extremes["loses most"], extremes["loss"]) == ("dog", pytest.approx(-10))


def test_rows_without_classes_or_with_others_are_named(row):
    rows = [counted(row, "learned", 0, [50, 0], count=(100, 0)), counted(row, "cpe", 0, [70, 0], count=(100, 0))]
    rows += [row("none", 0, 0.5), counted(row, "irpe", 0, [1, 1, 1], names="abc", count=(1, 1, 1))]
    table = breakdowns.classes(*analyse(rows))
    assert table.frame["scheme"].tolist() == ["cpe"]
    assert sorted(table.facts["absent"]) == ["irpe", "none"]
    assert table.facts["names"] == ["cat"]  # no image of the other
    assert table.facts["error"] == pytest.approx(100 * math.sqrt(0.5 / 100))


def test_a_class_called_like_a_column(row):
    rows = [counted(row, p, 0, [50, 60], names=("scheme", "x")) for p in ("learned", "cpe")]
    assert breakdowns.classes(*analyse(rows)).frame.columns.tolist() == ["scheme", "class scheme", "x"]


def test_tuning(row):
    runs = frame([row("none", 0, 0.5)], TERMS.metric)
    scores = [({"model.lr": 0.1}, 0.5), ({"model.lr": 0.2}, None)]
    choice = {
        "axes": {"position": "none"},
        "seed": 0,
        "scores": scores,
        "values": {"model.lr": 0.1},
        "edge": ("model.lr",),
        "error": "",
    }
    other = {**choice, "seed": 1, "scores": [({"model.lr": 0.1}, 0.6), ({"model.lr": 0.2}, 0.5)]}
    lost = {**choice, "seed": 2, "scores": [(p, None) for p, _ in scores], "values": None, "edge": ()}
    table = breakdowns.tuning(runs, [choice, other, lost, {**lost, "axes": {"position": "cpe"}}])
    assert table.frame["model.lr 0.1: chosen by"].tolist() == ["2", "0"]
    assert table.frame["model.lr 0.1"].tolist()[0] == pytest.approx(55)
    assert np.isnan(table.frame["model.lr 0.2"].astype(float)).tolist() == [False, True]
    assert table.frame["without a choice"].tolist() == ["1", "1"]
    assert table.facts == {"edges": ["none"], "keys": ["model.lr"], "tried": 2, "seeds": 3}
    assert breakdowns.by_setting(runs, runs[:0]) == {(): [Variant("none")]}
