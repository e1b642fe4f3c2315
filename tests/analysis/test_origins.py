"""What is said of the code that runs come from."""

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background, gather
from vitpos.analysis.origins import warnings
from vitpos.analysis.report_verdict import lead


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


def test_rows_without_sources_are_told_apart_by_commit(row):
    (line,) = warnings([row("a", 0, 0.5, commit="aaa"), row("a", 1, 0.5, commit="bbb")])
    assert "unknown at commit `aaa`: `a` seed 0; unknown at commit `bbb`: `a` seed 1" in line


def test_a_change_half_way_and_a_change_that_no_commit_holds(row):
    half = row("a", 0, 0.5, sources=["0011", "2233"], commit="aaa+")
    differ, halves, dirty = warnings([half, row("a", 1, 0.5, sources=["2233"], commit="aaa")])
    assert "`0011` then `2233`: `a` seed 0; `2233`: `a` seed 1" in differ
    assert "changed half-way" in halves
    assert halves.endswith("in `a` seed 0.")
    assert dirty.startswith("1 run used sources with changes that no commit holds (`aaa+`)")
    evidence = gather(Comparison("study", "", "a"), [half], [], Background())
    assert halves in lead(evidence)[1].lines
