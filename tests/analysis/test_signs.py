"""Joint sign flips and sign bets, against closed tests and fair coins counted one by one."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vitpos.analysis import signs
from vitpos.analysis.signs import bets, closed_mean, max_t, sign_flip, two_hypotheses

KINDS = ("normal", "grid", "lacking")


def draw(kind, m, n, seed=0):
    d = np.random.default_rng([m, n, seed]).normal(np.arange(m)[:, None] / 2, 1, (m, n))
    if kind == "grid":
        d = np.round(d * 2) / 2
    if kind == "lacking":
        d[np.random.default_rng(seed).random((m, n)) < 0.2] = np.nan
    return d


def subsets(items):
    return itertools.chain.from_iterable(itertools.combinations(items, k + 1) for k in range(len(items)))


def closed_test(d, two_sided):
    """Tests every intersection of hypotheses by its largest T over all flips; a hypothesis needs all that hold it."""
    x = np.where(np.isnan(d), 0, d)
    size = np.sqrt((x**2).sum(axis=1))
    flipped = []
    for flip in itertools.product((1, -1), repeat=d.shape[1]):
        t = [
            sum(s * value for s, value in zip(flip, row, strict=True)) / z if z else 0
            for row, z in zip(x, size, strict=True)
        ]
        flipped.append([abs(v) if two_sided else v for v in t])
    p = {
        part: np.mean([max(t[k] for k in part) >= max(flipped[0][k] for k in part) - 1e-9 for t in flipped])
        for part in subsets(range(len(d)))
    }
    return [max(value for part, value in p.items() if k in part) for k in range(len(d))]


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 6), (4, 7), (5, 3)])
def test_max_t_is_the_closed_test(m, n, kind, two_sided):
    for seed in range(3):
        d = draw(kind, m, n, seed)
        assert max_t(d, two_sided=two_sided) == pytest.approx(closed_test(d, two_sided))


@pytest.mark.parametrize("n", [4, 7, 10])
def test_one_comparison_equals_scipy(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    scipy = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(d) == pytest.approx(scipy.pvalue, rel=1e-12)


@pytest.mark.parametrize("m", [1, 5, 12])
def test_six_seeds_can_show_differences_and_five_equivalence(m):
    d = 5 + np.random.default_rng(m).normal(size=(m, 6)) / 10
    assert max_t(d).tolist() == [2 / 64] * m
    assert max_t(d[:, :5]).min() == 2 / 32
    near = max_t(two_hypotheses(np.random.default_rng(m).normal(size=(m, 5)) / 10, 3), two_sided=False)
    assert near.tolist() == [1 / 32] * 2 * m


def test_a_seed_that_is_missing_counts_for_nothing():
    d = draw("normal", 3, 8)
    d[1, 2] = d[2, 2] = d[2, 5] = np.nan
    assert sign_flip(d[1]) == sign_flip(np.delete(d[1], 2))
    assert max_t(5 + np.where(np.isnan(d), d, 0.1)).tolist() == [2 / 2**8, 2 / 2**7, 2 / 2**6]
    assert max_t(np.vstack((d, np.full(8, np.nan), np.zeros(8)))).tolist() == [*max_t(d), 1, 1]


def test_flips_that_cannot_be_counted_are_drawn(monkeypatch):
    d = draw("normal", 3, 12) - 0.2
    exact = max_t(d)
    assert 0.01 < exact.min() < 0.9
    signs.flips.cache_clear()
    monkeypatch.setattr(signs, "EXACT_SEEDS", 11)
    drawn = max_t(d)
    signs.flips.cache_clear()
    assert (drawn != exact).any()
    # shares of 16384 draws: four standard errors
    assert (np.abs(drawn - exact) <= 4 * np.sqrt(exact * (1 - exact) / 2**14)).all()
    assert max_t(np.full((1, 40), 0.5)).tolist() == [1 / 2**14]  # the observed signs are among them


def test_sums_that_only_rounding_tells_apart_are_ties():
    accuracy = np.float32([0.454, 0.4613, 0.4482, 0.4551, 0.4562])  # as rows have them
    other = np.float32([0.444, 0.4513, 0.4582, 0.4451, 0.4462])
    d = 100 * accuracy.astype(float) - 100 * other.astype(float)
    assert len(set(np.abs(d))) > 1  # all are 1 point
    assert sign_flip(d) == 2 * 6 / 32  # no or one sign the other way
    noise = np.full(9, 6e-6)
    assert max_t(np.vstack((d, d[::-1])))[0] == sign_flip(d)
    assert sign_flip(noise) == 1
    assert bets(noise).tolist() == [1] * 9


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_bet_on_fair_coins_gains_nothing(two_sided):
    d = np.random.default_rng(0).exponential(size=8)
    coins = np.array(list(itertools.product((1, -1), repeat=8)))
    e = bets(coins * d, two_sided=two_sided)
    assert e.min() >= 0
    np.testing.assert_allclose(e.mean(axis=0), 1, rtol=1e-12)  # after each seed


def test_bets_by_hand():
    # sizes 1 and infinity on two seeds of equal size: tanh(1) = .7616
    up = ((1 + math.tanh(1)) ** 2 + 2**2) / 2
    down = ((1 - math.tanh(1)) ** 2 + 0) / 2
    assert bets(np.array([3.0, 3.0]))[-1] == pytest.approx((up + down) / 2)
    assert bets(np.array([3.0, np.nan, 3.0]), two_sided=False) == pytest.approx([(2 + math.tanh(1)) / 2 + 0.5] * 2 + [
        # the missing seed lowers the root mean square by sqrt(2/3), so that 3 / rms is larger
        ((1 + math.tanh(1)) * (1 + math.tanh(math.sqrt(3 / 2))) + 4) / 2
    ])  # fmt: skip


@pytest.mark.parametrize("m", [1, 2, 5])
def test_closed_mean_is_the_least_mean_of_all_sets(m):
    e = np.random.default_rng(m).lognormal(1, 2, m)
    expected = [min(np.mean(e[list(part)]) for part in subsets(range(m)) if k in part) for k in range(m)]
    assert closed_mean(e) == pytest.approx(expected)
    assert closed_mean(np.stack((e, e[::-1]))) == pytest.approx(np.stack((expected, expected[::-1])))


@pytest.mark.parametrize("n", [5, 16])
def test_each_study_of_many_is_as_if_it_were_alone(n, monkeypatch):
    monkeypatch.setattr(signs, "_TABLE", 2**16)  # so that studies take several turns
    d = np.random.default_rng(n).normal(0.3, 1, (4, 3, n))
    for test in (max_t, bets, sign_flip):
        np.testing.assert_array_equal(test(d), np.stack([test(study) for study in d]))
