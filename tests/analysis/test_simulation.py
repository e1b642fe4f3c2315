"""The verdicts are wrong no more often than promised, and reached as often as planned."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vitpos.analysis import simulation
from vitpos.analysis.simulation import FAMILY, PAIRS, SHAPES, TERMS, Rate
from vitpos.analysis.statistics import group
from vitpos.analysis.verdict import compare

STUDIES = 2000
THREE = ["normal", "skewed (exponential)", "heavy tails (t, 3 df)"]
shapes = pytest.mark.parametrize("shape", THREE)
pairs = pytest.mark.parametrize("pairs", PAIRS)


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_have_the_mean_and_deviation_that_they_say(shape):
    runs = SHAPES[shape](np.random.default_rng(0), (1_000_000,))
    # a heavy tail's deviation converges slowly
    assert (runs.mean(), runs.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.03))
    d = simulation.differences(shape, 5, 20_000, [0.0, 2.0])
    np.testing.assert_allclose(d.mean(axis=(0, 2)), [0, 2], atol=0.02)
    assert d.std(axis=(0, 2)) == pytest.approx(simulation.SD, rel=0.05)
    assert np.corrcoef(d[:, 0].ravel(), d[:, 1].ravel())[0, 1] == pytest.approx(0.5, abs=0.05)  # one reference


@shapes
@pairs
def test_wrong_verdicts_of_a_difference(shape, pairs):
    rate = simulation.wrong_differences(shape, pairs, STUDIES)
    assert not rate.above(0.05), rate
    assert rate.share > 0.015 or pairs == 5  # a test that never rejects would pass too


@shapes
@pairs
def test_wrong_verdicts_of_equivalence_at_the_margin(shape, pairs):
    rate = simulation.wrong_equivalences(shape, pairs, STUDIES)
    assert not rate.above(0.05), rate
    assert rate.share > 0.01 or pairs == 5


@shapes
def test_wrong_verdicts_where_others_do_differ(shape):
    assert not simulation.wrong_differences(shape, 12, STUDIES, different=2).above(0.05)


@pytest.mark.parametrize("family", [1, FAMILY])
@pytest.mark.parametrize("true", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("planned", [0.8, 0.95])
def test_power_is_as_planned(family, true, planned):
    found = simulation.as_planned("normal", family, true, planned, STUDIES).found
    assert not found.below(planned - 0.01), found  # the plan's own simulation is good to a point


@shapes
@pairs
def test_intervals_hold_the_truth(shape, pairs):
    rates = simulation.coverage(shape, pairs, STUDIES)
    assert not rates["t"].below(0.95), rates
    assert not rates["sign-flip"].below(0.95), rates
    # it is too narrow, which is why few pairs get none and no verdict rests on it
    assert rates["BCa"].share < 0.95


def test_what_the_page_says_does_not_hold_does_not():
    assert simulation.wrong_differences("skewed (exponential)", 12, STUDIES, steady=True).above(0.05)
    assert simulation.second_look("normal", 8, STUDIES).above(0.05)
    light = "light tails (uniform)"
    assert simulation.wrong_equivalences(light, 5, STUDIES, steady=True, by_t=True).above(0.05)
    assert not simulation.wrong_equivalences(light, 8, STUDIES, steady=True).above(0.05)


@pytest.mark.parametrize("correction", ["holm", "bonferroni", "none"])
def test_simulated_studies_are_judged_as_rows_are(row, correction):
    terms = type(TERMS)("simulated", "", "learned", correction=correction)
    true = [0.0, 0.8, -2.0, 0.5]
    d = simulation.differences("skewed (exponential)", 9, 30, true)
    verdicts = simulation.judge(d, terms)
    assert len(np.unique(verdicts)) >= 3
    for study, expected in zip(d, verdicts, strict=True):
        rows = [row(f"x{i}", seed, 0.6 + x / 100) for i, line in enumerate(study) for seed, x in enumerate(line)]
        found = compare(terms, group([*rows, *(row("learned", seed, 0.6) for seed in range(9))]))
        assert {f.candidate.position: f.verdict for f in found} == {f"x{i}": v for i, v in enumerate(expected)}


def test_rates_are_judged_by_the_binomial_distribution():
    assert Rate(140, 2000).above(0.05)  # four standard errors
    assert not Rate(115, 2000).above(0.05)
    assert Rate(60, 2000).below(0.05)
    assert not Rate(90, 2000).below(0.05)


def test_the_page_is_written(tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[2] / "scripts" / "honesty.py"
    spec = importlib.util.spec_from_file_location("honesty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", ["honesty.py", "--studies", "20", "--out", str(tmp_path / "new" / "page.md")])
    module.main()
    text = (tmp_path / "new" / "page.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    committed = (path.parents[1] / "results" / "honesty.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in committed.splitlines() if line.startswith("#")
    ]
