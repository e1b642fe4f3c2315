"""The sentences of a report that take code: the answer, and what is said of the code that runs come from."""

import pytest

from vitpos.analysis import report, wording
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


def origins(rows):
    return wording.origins(frame(rows, "test/accuracy"))


@pytest.mark.parametrize("environment", [{"sources": ["0011"]}, {}])  # a row of an earlier version has no sources
def test_one_state_of_the_sources(row, environment):
    found = origins([row("a", seed, 0.5, **environment) for seed in range(3)])
    assert len(found["states"]) == 1
    assert (found["hardware"], found["halves"], found["dirty"]) == (1, "", [])


def test_sources_that_differ_are_named_with_their_runs(row):
    rows = [row(name, seed, 0.5, sources=["0011" if seed < 2 else "2233"]) for name in ("a", "b") for seed in range(5)]
    found = origins([*rows, row("a", 9, 0.5)])
    assert found["states"] == {
        "`0011`": "`a` seed 0, `a` seed 1, `b` seed 0, `b` seed 1",
        "`2233`": "6 runs with seeds 2–4",
        "commit `abc1234`, sources not recorded": "`a` seed 9",
    }
    assert found["known"] == 2


def test_rows_without_sources_are_told_apart_by_commit(row):
    found = origins([row("a", 0, 0.5, commit="aaa"), row("a", 1, 0.5, commit="bbb")])
    assert found["states"] == {
        "commit `aaa`, sources not recorded": "`a` seed 0",
        "commit `bbb`, sources not recorded": "`a` seed 1",
    }
    assert found["known"] == 0  # other commits may train by the same code


def test_a_change_half_way_and_a_change_that_no_commit_holds(row):
    half = row("a", 0, 0.5, sources=["0011", "2233"], commit="aaa+")
    found = origins([half, row("a", 1, 0.5, sources=["2233"], commit="aaa")])
    assert found["states"] == {"`0011` then `2233`": "`a` seed 0", "`2233`": "`a` seed 1"}
    assert (found["halves"], found["dirty"]) == ("`a` seed 0", ["aaa+"])


def test_what_is_said_of_sources(row, tmp_path):
    rows = [row("a", 0, 0.5, sources=["0011", "2233"], commit="aaa+", hardware="a card"), row("a", 1, 0.5)]
    report.write(TERMS, [*rows, row("a", 2, 0.5, sources=["2233"])], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "3 versions of vitpos's source code (`0011` then `2233`: `a` seed 0; " in text
    assert "alpha says. Comparisons across known versions are not judged.\n- The runs were made on 2 kinds" in text
    assert "changed between an interruption and its resumption in `a` seed 0." in text
    assert "1 run used uncommitted changes (`aaa+`)" in text
