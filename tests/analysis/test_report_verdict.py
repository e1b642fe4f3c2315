"""The answer in words, warnings, verdicts, what else differs, and the two errors."""

import dataclasses
import math

import numpy as np
import pytest

from vitpos.analysis import images, report_verdict
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background, gather
from vitpos.analysis.report_verdict import answer, differing, lead, two_errors, verdicts
from vitpos.analysis.statistics import Variant
from vitpos.analysis.tables import Table
from vitpos.analysis.verdict import Difference, Needed

PLAN = Comparison("first", "Why?", "learned")


def found(name, mean, verdict, n=3, needed=None, **axes):
    others = tuple(sorted(axes.items()))
    candidate, reference = (Variant(position, others) for position in (name, "learned"))
    return Difference(candidate, reference, tuple(range(n)), (mean,) * n, mean, verdict=verdict, needed=needed)


def tables(section):
    return {block.name: block for block in section.blocks if isinstance(block, Table)}


def warnings(evidence):
    stated = lead(evidence)
    return list(stated[1].lines) if len(stated) > 1 else []


def test_answer_by_verdict():
    needed = Needed(20, None)
    differences = [
        found("e", 0.1, "equivalent"), found("a", 3, "better"), found("b", -1, "falls short"),
        found("c", -2, "falls short"), found("u", 0.5, "undecided", needed=needed),
    ]  # fmt: skip
    assert answer(PLAN, differences) == (
        "Against `learned`, in points of test accuracy: `b` (-1.00) and `c` (-2.00) fall short of it; `a` (+3.00) is "
        "better; `e` (+0.10) is equivalent (within 1); `u` (+0.50) is undecided, and about 20 seeds in all, instead of "
        "3, would settle it."
    )
    assert answer(PLAN, []) == "There is nothing to compare with `learned` yet."


@pytest.mark.parametrize(
    ("needed", "text"),
    [
        ([Needed(9, 8), Needed(None, 12)], "about 8 to 12 seeds in all, instead of 3, would settle them."),
        (
            [Needed(9, None), Needed(None, None)],
            "about 9 to more than 1000 seeds in all, instead of 3, would settle them.",
        ),
        ([Needed(9, None), None], "about 9 seeds in all, instead of 3, would settle 1 of them."),
        ([None, None], "are undecided."),
    ],
)
def test_how_many_seeds_would_settle(needed, text):
    differences = [found(f"s{i}", 1, "undecided", needed=each) for i, each in enumerate(needed)]
    assert answer(PLAN, differences).endswith(text)


def test_schemes_that_stand_in_several_settings_are_named_once():
    differences = [
        found("a", m, v, lr=str(i)) for i, (m, v) in enumerate([(3, "better"), (2, "better"), (0, "equivalent")])
    ]
    assert "`a` (+3.00 to +2.00 in 2 of 3 settings) is better; `a` (+0.00 in 1 of 3 settings) is eq" in answer(
        PLAN, differences
    )


def test_an_answer_is_a_sentence_not_a_list():
    differences = [found(f"s{i}", 9 - i, "better") for i in range(9)]
    assert "9 schemes, from `s0` (+9.00) to `s8` (+1.00), are better." in answer(PLAN, differences)


def test_too_few_seeds_are_said_first(study):
    lines = warnings(gather(PLAN, study, [], Background()))
    # 2 / 2^n <= .05 / 5 takes 8 pairs, 1 / 2^n 7
    assert lines[0] == (
        "4 pairs of seeds cannot decide 5 comparisons, whatever is found: to reach 0.01, the level of each, a "
        "sign-flip test takes 8 pairs for a difference and 7 pairs for equivalence."
    )
    alone = [row for row in study if row["axes"]["position"] in ("learned", "none")]
    assert "5 pairs for equivalence" in warnings(gather(PLAN, alone, [], Background()))[0]
    none = dataclasses.replace(PLAN, margin=0.0)
    assert "equivalence" not in warnings(gather(none, alone, [], Background()))[0]


def test_confounds_are_named_and_parameters_alone_are_no_warning(row):
    rows = [row(name, seed, 0.5 + 0.01 * seed) for name in ("learned", "none", "sinusoidal_2d") for seed in range(9)]
    for r in rows:
        if r["axes"]["position"] == "sinusoidal_2d":
            r["position"]["rms_start"] = 0.02
    evidence = gather(PLAN, rows, [], Background())
    assert "In 1 of 2 comparisons more than the kind of positions differs (see What else differs)." in warnings(
        evidence
    )
    section = differing(evidence)
    assert section.blocks[0].startswith("In 2 of 2 comparisons scheme and `learned` differ in more than the kind")
    by_scheme = {line[0]: line[1] for line in tables(section)["confounds"].rows}
    assert by_scheme["none"] == "0 position parameters against 6,144"
    assert by_scheme["sinusoidal_2d"].startswith("starts at RMS 0.02 against 0.71")


def test_a_scheme_that_cannot_be_read_here_is_reported_all_the_same(row):
    rows = [row(name, seed, 0.5) for name in ("learned", "<no scheme>") for seed in range(2)]
    for r in rows:
        r["config"]["position"] = r["axes"]["position"]
    (line,) = tables(differing(gather(PLAN, rows, [], Background())))["confounds"].rows
    assert "cannot read position scheme '<no scheme>'" in line[1]


def test_notes_are_said_once(row):
    rows = [
        row(name, s, 0.5 + 0.01 * s, commit="old" if s else "new") for name in ("learned", "a", "b") for s in (0, 1)
    ]
    section = verdicts(gather(PLAN, rows, [], Background()))
    notes = section.blocks[section.blocks.index("Notes:") + 1].lines
    assert len(notes) == 1
    assert notes[0].startswith("All comparisons: the pairs differ in commit;")


def test_columns_of_axes_stand_beside_the_scheme(row):
    rows = [
        row(n, s, 0.5 + 0.01 * s, axes={"model.lr": lr}) for n in ("learned", "a") for lr in (0.1, None) for s in (0, 1)
    ]
    table = tables(verdicts(gather(PLAN, rows, [], Background())))["verdicts"]
    assert [column.head for column in table.columns][:3] == ["scheme", "`model.lr`", "difference"]
    assert sorted(line[:2] for line in table.rows) == [["a", "0.1"], ["a", "default"]]


def test_seeds_that_would_settle_it_are_in_the_table_where_something_is_open(study, row):
    table = tables(verdicts(gather(PLAN, study, [], Background())))["verdicts"]
    assert table.columns[-1].head == "seeds to settle"
    by_scheme = {line[0]: line[-1] for line in table.rows}
    assert by_scheme["none"] == 8  # less than that cannot decide five comparisons
    assert [table.columns[-1].write(value) for value in (None, 8, math.inf)] == ["-", "8", "> 1000"]
    rows = [row(n, s, 0.5 + 0.1 * len(n) + 0.001 * s * len(n)) for n in ("learned", "a") for s in range(10)]
    heads = [c.head for c in tables(verdicts(gather(PLAN, rows, [], Background())))["verdicts"].columns]
    assert heads[-1] == "verdict"


def test_intervals_that_few_seeds_do_not_have_are_left_out(study, row):
    heads = [c.head for c in tables(verdicts(gather(PLAN, study, [], Background())))["verdicts"].columns]
    assert "95 % sign-flip interval" not in heads
    rows = [row(n, s, 0.5 + 0.01 * s * len(n)) for n in ("learned", "a") for s in range(10)]
    found = tables(verdicts(gather(PLAN, rows, [], Background())))
    (line,) = found["verdicts"].rows
    (d,) = gather(PLAN, rows, [], Background()).differences
    assert (d.flip_low, d.flip_high) in line
    assert (d.bca_low, d.bca_high) in found["tests"].rows[0]


def test_errors_over_seeds_and_images_are_given_apart(row):
    rng = np.random.default_rng(0)
    rows = [row(name, seed, value / 100) for name, values in {"learned": (50, 52), "x": (53, 54)}.items()
            for seed, value in enumerate(values)]  # fmt: skip
    (line,) = tables(two_errors(gather(PLAN, rows, [], Background())))["errors"].rows
    # differences 3 and 2: sd / sqrt(2) is a half; sqrt((.51 x .49 + .535 x .465) / 10000)
    assert line == ["x", pytest.approx(2.5), pytest.approx(0.5), pytest.approx(0.7062, abs=1e-4), "at most"]
    flags = {r["hash"]: rng.random(10_000) < 0.5 for r in rows}
    for r in rows:
        r["right"], r["per_class"] = images.pack(flags[r["hash"]]), {"names": ["a"], "count": [10_000], "correct": [1]}
    (line,) = tables(two_errors(gather(PLAN, rows, [], Background())))["errors"].rows
    ours, theirs = ([flags[f"{name}-{s}"] for s in (0, 1)] for name in ("x", "learned"))
    shares = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    assert line[3:] == [pytest.approx(100 * shares.std(ddof=1) / math.sqrt(10_000)), "by image"]


def test_images_that_nobody_counted(row):
    rows = [row(name, 0, 0.5) for name in ("learned", "x")]
    for r in rows:
        del r["data"]["test"]
    (text,) = two_errors(gather(PLAN, rows, [], Background())).blocks
    assert text == "The size of the test split is not in the rows, so its sampling error is not given."


def test_missing_runs_and_edges_are_warned_of(row):
    rows = [row(name, s, 0.5 + 0.01 * s) for name in ("learned", "x") for s in range(9)]
    choice = {"axes": {"position": "x"}, "values": {"model.lr": 1}, "scores": (), "edge": ("model.lr",), "error": ""}
    failure = {"axes": {"position": "y"}, "seed": 0, "error": "x", "hash": "1"}
    background = Background(planned=20, tuning=[choice])
    # one failure that stands at two places is one run
    places = [{**failure, "axes": {"position": "y", "a": a}, "idle": ["a"]} for a in (1, 2)]
    lines = warnings(gather(PLAN, rows, places, background))
    assert "1 run failed: what failed has no verdict (see Caveats)." in lines
    assert "1 of 20 planned runs are missing." in lines
    assert "Tuning chose the edge of its grid for 1 variant (see Tuning)." in lines
    assert report_verdict._warnings(gather(PLAN, rows, [], Background()))[1:] == []
