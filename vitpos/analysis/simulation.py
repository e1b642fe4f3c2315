"""Simulated studies that show what the verdicts are worth: how often they are wrong, and how often they are reached.

A study has `FAMILY` candidates and one reference, so that its differences are correlated. The truth is known, and
verdicts come from the functions of `vitpos.analysis.inference` that judge real studies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from vitpos.analysis import inference, power
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.inference import Floats

Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
Verdicts = npt.NDArray[np.str_]

# Runs around their mean, with a deviation of 1.
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "light tails (uniform)": lambda rng, size: rng.uniform(-math.sqrt(3), math.sqrt(3), size),
    "heavy tails (t, 3 df)": lambda rng, size: rng.standard_t(3, size) / math.sqrt(3),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "very skewed (lognormal)": lambda rng, size: (
        (rng.lognormal(size=size) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1))
    ),
}
PAIRS = (5, 8, 12, 20)
FAMILY = 5
SD = 0.6
"""Standard deviation of a paired difference, in points; the margin is 1."""
TERMS = Comparison("simulated", "", "reference")


@dataclass(frozen=True)
class Rate:
    """In how many of the simulated studies something happened."""

    hits: int
    studies: int

    @property
    def share(self) -> float:
        """Hits / studies."""
        return self.hits / self.studies

    def above(self, bound: float) -> bool:
        """Tells whether the share is larger than a bound beyond chance: exact binomial test at 0.1 %."""
        return bool(stats.binomtest(self.hits, self.studies, bound, alternative="greater").pvalue < 0.001)

    def below(self, bound: float) -> bool:
        """Tells whether the share is smaller than a bound beyond chance: exact binomial test at 0.1 %."""
        return bool(stats.binomtest(self.hits, self.studies, bound, alternative="less").pvalue < 0.001)


def differences(
    shape: str, pairs: int, studies: int, true: Sequence[float], *, steady: bool = False, seed: int = 0
) -> Floats:
    """Draws the paired differences of studies.

    Args:
        shape: Key of `SHAPES`.
        pairs: Seeds of each study.
        studies: How many.
        true: True difference of each candidate, in points.
        steady: Runs of the reference do not vary, so that differences are skewed where runs are. Else all runs vary
            alike, and differences are symmetric.
        seed: Of the random numbers.

    Returns:
        Shape (studies, len(true), pairs), with a deviation of `SD`.
    """
    rng = np.random.default_rng([seed, pairs, list(SHAPES).index(shape)])
    draw = SHAPES[shape]
    noise = draw(rng, (studies, len(true), pairs))
    if not steady:
        noise = (noise - draw(rng, (studies, 1, pairs))) / math.sqrt(2)
    return np.asarray(np.array(true)[:, None] + SD * noise)


def adjusted(d: Floats, terms: Comparison = TERMS, *, by_t: bool = False) -> tuple[Floats, Floats]:
    """Computes the adjusted p values of a difference and of equivalence, (studies, candidates, pairs) to two without n.

    Args:
        d: From `differences`.
        terms: Margin, alpha and correction.
        by_t: By t tests, as no real study is judged; they need a margin.
    """
    if by_t:
        p, q = inference.t_test(d), inference.tost(d, terms.margin)
    else:
        p, q = inference.sign_flip(d), inference.equivalence(d, terms.margin)
    return inference.adjust(p, terms.correction), inference.adjust(q, terms.correction)


def judge(d: Floats, terms: Comparison = TERMS, *, by_t: bool = False) -> Verdicts:
    """Gives the verdicts of studies, (studies, candidates, pairs) to (studies, candidates); arguments as `adjusted`."""
    return inference.decide(d.mean(axis=-1), *adjusted(d, terms, by_t=by_t), terms.alpha)


def wrong_differences(shape: str, pairs: int, studies: int, *, different: int = 0, steady: bool = False) -> Rate:
    """Counts studies where a candidate like the reference gets a verdict of a difference.

    With a margin of 0, so that no verdict of equivalence takes the place of a wrong one.

    Args:
        shape: Key of `SHAPES`.
        pairs: Seeds of each study.
        studies: How many.
        different: So many of the candidates do differ, by 3 points; any verdict on those is left out.
        steady: As in `differences`.
    """
    d = differences(shape, pairs, studies, [0.0] * (FAMILY - different) + [3.0] * different, steady=steady, seed=1)
    verdicts = judge(d, Comparison("simulated", "", "reference", margin=0.0))
    return _any(verdicts[:, : FAMILY - different] != "undecided")


def wrong_equivalences(shape: str, pairs: int, studies: int, *, steady: bool = False, by_t: bool = False) -> Rate:
    """Counts studies where a candidate is called equivalent, all of which differ by just the margin.

    Candidates are better and worse in turn; with a steady reference all are better, the worse case where long tails are
    above.
    """
    signs = [1 if steady or i % 2 == 0 else -1 for i in range(FAMILY)]
    d = differences(shape, pairs, studies, [sign * TERMS.margin for sign in signs], steady=steady, seed=2)
    return _any(judge(d, by_t=by_t) == "equivalent")


def second_look(shape: str, pairs: int, studies: int) -> Rate:
    """Counts studies with a wrong verdict of a difference at their end or halfway, where they get as many seeds again.

    It is what happens where seeds are added because a verdict is missing.
    """
    d = differences(shape, 2 * pairs, studies, [0.0] * FAMILY, seed=3)
    terms = Comparison("simulated", "", "reference", margin=0.0)
    return _any((judge(d[..., :pairs], terms) != "undecided") | (judge(d, terms) != "undecided"))


@dataclass(frozen=True)
class Planned:
    """A power that was planned, and the one that was found.

    Attributes:
        pairs: Seeds that `vitpos.analysis.power` asks for.
        found: Studies that show it.
    """

    pairs: int
    found: Rate


def as_planned(shape: str, family: int, true: float, planned: float, studies: int) -> Planned:
    """Simulates studies with the seeds that `power` asks for, and counts those that show what they were planned for.

    Args:
        shape: Key of `SHAPES`.
        family: Comparisons of a study; all but the first have no difference.
        true: True difference of the first, in points, to be shown; at 0, equivalence.
        planned: The power.
        studies: How many.

    Raises:
        ValueError: No number of seeds has that power.
    """
    level = TERMS.level(family)
    if true:
        pairs = power.seeds_for_difference(planned, true, SD, level)
    else:
        pairs = power.seeds_for_equivalence(planned, true, SD, level, TERMS.margin)
    if pairs is None:
        raise ValueError(f"no number of seeds has a power of {planned} for a difference of {true}")
    d = differences(shape, pairs, studies, [true] + [0.0] * (family - 1), seed=4)
    differs, equal = adjusted(d)
    return Planned(pairs, _any((differs if true else equal)[:, :1] <= TERMS.alpha))


def coverage(shape: str, pairs: int, studies: int, *, steady: bool = False) -> dict[str, Rate]:
    """Counts studies whose intervals of 95 % hold the true difference.

    The sign-flip interval holds what its test does not reject.

    Returns:
        By kind of interval: t, sign-flip and BCa.
    """
    d = differences(shape, pairs, studies, [0.0], steady=steady, seed=5)[:, 0]
    inside = {"t": inference.t_interval(d, 0.95), "BCa": inference.bca_interval(d, 0.95, resamples=1999)}
    rates = {kind: _any(((low <= 0) & (high >= 0))[:, None]) for kind, (low, high) in inside.items()}
    return {**rates, "sign-flip": _any((inference.sign_flip(d) > 0.05)[:, None])}


def _any(found: npt.NDArray[np.bool_]) -> Rate:
    return Rate(int(found.any(axis=1).sum()), len(found))
