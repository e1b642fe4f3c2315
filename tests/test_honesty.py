"""Simulated studies are what they say, and verdicts on them are wrong no more often than promised."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import honesty  # noqa: E402
import simulated  # noqa: E402
from simulated import FAMILY, MARGIN, SD, generator, share, world  # noqa: E402

from vitpos.analysis import inference  # noqa: E402
from vitpos.analysis.terms import Terms  # noqa: E402

STUDIES = 1000
SETTLED = Terms("simulated", "", "learned", margin=MARGIN, start=6)
FAIR = {**simulated.LIKE, **simulated.UNLIKE}


def above(rate, bound=0.05, studies=STUDIES):
    """Tells whether a share is larger than a bound beyond chance, by an exact binomial test at 0.1 %."""
    return stats.binomtest(round(rate * studies), studies, bound, alternative="greater").pvalue < 0.001


@pytest.mark.parametrize("shape", simulated.SHAPES)
def test_differences_have_the_mean_and_deviation_that_they_say(shape):
    d = world(shape)(generator(shape), 20_000, 3, 6, [0, 0, 2.0])
    np.testing.assert_allclose(d.mean(axis=(0, 2)), [0, 0, 2], atol=0.02)
    np.testing.assert_allclose(d.std(axis=(0, 2)), SD, rtol=0.05)
    assert np.corrcoef(d[:, 0].ravel(), d[:, 1].ravel())[0, 1] == pytest.approx(0.5, abs=0.05)  # one reference


def test_worlds_differ_in_what_they_say():
    d = world(spread=16)(generator(), 4000, 3, 4)
    quiet = SD * SD / 2  # variance of the reference
    assert np.sqrt((d.var(axis=(0, 2)) - quiet) / quiet) == pytest.approx([0.25, 1, 4], rel=0.1, abs=0.06)
    assert world(reference=4)(generator(), 4000, 2, 4).std() == pytest.approx(SD * np.sqrt(17 / 2), rel=0.05)
    coarse = world(grid=SD)(generator(), 100, 2, 4)
    np.testing.assert_allclose(coarse, np.round(coarse / SD) * SD, atol=1e-12)
    halves = world(batch=3)(generator(), 4000, 1, 8).reshape(-1, 2, 4).mean(axis=-1)
    assert (halves[:, 1] - halves[:, 0]).std() == pytest.approx(SD * np.sqrt(9 + 1 / 2), rel=0.05)


@pytest.mark.parametrize("name", FAIR)
def test_wrong_verdicts_are_as_rare_as_promised(name):
    draw = FAIR[name]
    for n in (6, 8):
        rate = share(simulated.differs(draw(generator(name, n), STUDIES, FAMILY, n)))
        assert not above(rate), (n, rate)
        at_margin = draw(generator(name, n, "margin"), STUDIES, FAMILY, n, MARGIN)
        assert not above(share(simulated.equivalent(at_margin))), n
        assert not above(share(simulated.beyond(at_margin))), n
    few = draw(generator(name, 5), STUDIES, FAMILY, 5)
    assert not above(share(simulated.indicated(few, "differs")), 0.06)
    d = draw(generator(name, 16), STUDIES, FAMILY, 16)
    assert not above(share(simulated.until_settled(d, margin=0)[0]))
    assert not above(share(simulated.until_settled(d + MARGIN)[1]))


def test_the_level_is_used():
    # a test that never rejects would pass the one above
    assert share(simulated.differs(world()(generator(), STUDIES, FAMILY, 8))) > 0.03
    assert share(simulated.equivalent(world()(generator(), STUDIES, FAMILY, 8, MARGIN))) > 0.02


def test_max_t_shows_with_six_seeds_what_holm_shows_with_eight():
    for n, way, expected in (
        (6, simulated.differs, 0.78),
        (7, simulated.differs_holm, 0.0),
        (8, simulated.differs_holm, 0.97),
    ):
        found = way(world()(generator(n), STUDIES, FAMILY, n, 2 * SD))[:, 0].mean()
        assert found == pytest.approx(expected, abs=0.05), n


def test_where_the_page_says_that_the_promise_does_not_hold_it_does_not():
    for draw in (*simulated.SKEWED.values(), world(batch=1)):
        assert above(share(simulated.differs(draw(generator(12), STUDIES, FAMILY, 12))))
    assert above(share(simulated.looking_again(world()(generator(), STUDIES, FAMILY, 11))))
    assert above(share(simulated.differs(simulated.tuned(STUDIES, 8, 1))), 0.25)
    assert not above(share(simulated.differs(simulated.tuned(STUDIES, 8, 0))))
    assert not above(simulated.wrong_in_both(STUDIES, 6, 8), 0.1)
    unequal = simulated.UNLIKE["deviations of candidates 1:16"](generator(), STUDIES, FAMILY, 5)
    for rejected in (simulated.pooled_dunnett, simulated.moderated_t, simulated.bayes_sign):
        assert above(share(rejected(unequal))), rejected
    normal = world()(generator(), STUDIES, FAMILY, 5)
    assert not above(share(simulated.pooled_dunnett(normal)))
    assert above(share(simulated.bayes_sign(normal, of=simulated.hierarchical)))
    assert above(share(simulated.bayes_rope(normal + MARGIN)))


def test_settled_studies_are_judged_as_real_ones_are():
    d = world()(generator("same"), 20, FAMILY, 12, [0, 0, 0.4, 1.0, 2.0])
    unequal, equal, last = simulated.until_settled(d)
    assert len(set(last)) > 2
    for study, differs, same, n in zip(d, unequal, equal, last.astype(int), strict=True):
        found = inference.judge(study[:, :n], SETTLED)["verdict"]
        assert (found == "equivalent").tolist() == same.tolist()
        assert found.isin(["better", "worse"]).tolist() == differs.tolist()
        assert n == 12 or (found != "undecided").all()


def test_both_errors_are_covered():
    held = simulated.covered(6, 200, 400)
    assert held["seeds alone"] < 0.93 < held["seeds and images"]


def test_planning_with_the_limit_reaches_the_power_more_often():
    (mean, low, seeds), (better, rare, more) = (simulated.advised(3, SD, 25, limit=limit) for limit in (False, True))
    assert (mean < better, low > rare, seeds < more) == (True, True, True)
    assert better > 0.75


def test_a_table_marks_what_is_above_alpha():
    assert honesty.marked(0.07, 1000) == "0.070"
    assert honesty.marked(0.08, 1000) == "**0.080**"
    text = honesty.errors({"one": world(), "two": world(batch=1)}, simulated.differs, 300, (6, 20), (1,))
    assert [line.split(" | ")[0] for line in text.splitlines()] == ["| runs", "| ---", "| one", "| two"]
    assert "**" in text.splitlines()[-1]


@pytest.mark.slow
def test_the_page_is_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "page.md"
    monkeypatch.setattr("sys.argv", ["honesty.py", "--studies", "20", "--out", str(path)])
    honesty.main()
    text = path.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    committed = (ROOT / "results" / "honesty.md").read_text()
    heads = [[line for line in page.splitlines() if line.startswith("#")] for page in (text, committed)]
    assert heads[0] == heads[1]
