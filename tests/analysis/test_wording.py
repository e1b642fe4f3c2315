"""The sentences of a report that take code: the answer, and what is said of the code that runs come from."""

from vitpos.analysis import wording
from vitpos.analysis.runs import frame
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import verdicts

TERMS = Terms("first", "", "learned")


def answer(rows):
    return wording.answer(verdicts(frame(rows, TERMS.metric), TERMS), TERMS)


def rows_of(row, means, seeds=9, **more):
    return [row(p, s, mean + (0.0 if p == "learned" else 0.0004 * (s % 3 - 1)), **more)
            for p, mean in {"learned": 0.6, **means}.items() for s in range(seeds)]  # fmt: skip


def test_the_answer_says_yes_partly_no_or_open_of_each_scheme(row):
    assert answer(rows_of(row, {"a": 0.63, "b": 0.6, "c": 0.55})) == [
        "**Yes:** `a` (+3.00) is better; `b` (+0.00) is equivalent (within 1 point).",
        "**No:** `c` (−5.00) is worse.",
    ]
    near, far = ({"axes": {"model.depth": depth}} for depth in (3, 6))
    (line,) = answer([*rows_of(row, {"a": 0.63}, **near), *rows_of(row, {"a": 0.5}, **far)])
    assert line == (
        "**Partly:** `a` (+3.00 to −10.00 in 2 settings) is better in 1 of its 2 settings, worse in 1 of its 2 "
        "settings."
    )
    assert answer(rows_of(row, {})) == ["There is nothing to compare with `learned` yet."]


def test_an_answer_that_is_open_says_why_and_what_it_takes(row):
    rows = rows_of(row, {"a": 0.63}, seeds=3)
    (line,) = answer(rows)
    assert line.startswith(
        "**Not decided:** `a` (+3.00) is undecided (too few seeds). Indicated, if differences are normal: "
    )
    assert line.endswith("6 seeds would be needed in all; there are 3.")


def warnings(rows):
    return wording.origins(frame(rows, "test/accuracy"))


def test_one_state_of_the_sources_is_no_matter(row):
    assert warnings([row("a", seed, 0.5, sources=["0011"]) for seed in range(3)]) == []
    assert warnings([row("a", seed, 0.5) for seed in range(3)]) == []  # of an earlier version, all at one commit


def test_sources_that_differ_are_named_with_their_runs(row):
    rows = [row(name, seed, 0.5, sources=["0011" if seed < 2 else "2233"]) for name in ("a", "b") for seed in range(5)]
    (line,) = warnings([*rows, row("a", 9, 0.5)])
    assert "3 states of vitpos's sources" in line
    assert "`0011`: `a` seed 0, `a` seed 1, `b` seed 0, `b` seed 1" in line
    assert "`2233`: 6 runs of seeds 2, 3, 4" in line
    assert "unknown at commit `abc1234`: `a` seed 9" in line
    assert line.endswith("Comparisons over several known states are not judged.")


def test_rows_without_sources_are_told_apart_by_commit(row):
    (line,) = warnings([row("a", 0, 0.5, commit="aaa"), row("a", 1, 0.5, commit="bbb")])
    assert "unknown at commit `aaa`: `a` seed 0; unknown at commit `bbb`: `a` seed 1" in line
    assert "not judged" not in line  # a caveat alone: other commits may train by the same code


def test_a_change_half_way_and_a_change_that_no_commit_holds(row):
    half = row("a", 0, 0.5, sources=["0011", "2233"], commit="aaa+")
    differ, halves, dirty = warnings([half, row("a", 1, 0.5, sources=["2233"], commit="aaa")])
    assert "`0011` then `2233`: `a` seed 0; `2233`: `a` seed 1" in differ
    assert "changed half-way" in halves
    assert halves.endswith("in `a` seed 0.")
    assert dirty.startswith("1 run used sources with changes that no commit holds (`aaa+`)")
