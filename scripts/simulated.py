"""Simulated studies with known truth, and the verdicts on them; ``honesty.py`` writes the page.

A study has m candidates and one reference that they share. Verdicts come from the functions that judge real studies.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from vitpos.analysis import inference, power
from vitpos.analysis.signs import Floats, max_t, sign_flip

Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
World = Callable[..., Floats]
"""Draws differences: (generator, studies, m, n, true) to (studies, m, n)."""
Shown = npt.NDArray[np.bool_]
ALPHA, MARGIN, SD, FAMILY = 0.05, 1.0, 0.6, 5
"""MARGIN and SD (standard deviation of a paired difference) are in points."""

# Deviations of runs from their mean, with a standard deviation of 1.
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "uniform": lambda rng, size: rng.uniform(-math.sqrt(3), math.sqrt(3), size),
    "t, 3 df": lambda rng, size: rng.standard_t(3, size) / math.sqrt(3),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
    "lognormal": lambda rng, size: (rng.lognormal(size=size) - math.exp(0.5)) / math.sqrt(math.exp(2) - math.exp(1)),
}


def world(
    shape: str = "normal", *, spread: float = 1, reference: float = 1, grid: float = 0, batch: float = 0
) -> World:
    """Returns a function that draws differences of schemes whose mean is `true`.

    Args:
        shape: Key of `SHAPES`.
        spread: Standard deviation of the last candidate's runs relative to the first's; the others lie between.
        reference: Standard deviation of the reference's runs relative to the (geometric) mean of the candidates'.
        grid: Points between two possible accuracies.
        batch: Standard deviation of the effect of a second batch of seeds (e.g. another machine) on a scheme, relative
            to that of a run.
    """

    def draw(rng: np.random.Generator, studies: int, m: int, n: int, true: Sequence[float] | float = 0) -> Floats:
        scale = np.geomspace(spread**-0.5, spread**0.5, m) if m > 1 else np.ones(1)
        runs = SHAPES[shape](rng, (studies, m + 1, n)) * np.append(scale, reference)[:, None]
        runs[..., n // 2 :] += batch * rng.standard_normal((studies, m + 1, 1))
        runs *= SD / math.sqrt(2)
        runs[:, :m] += np.broadcast_to(true, m)[:, None]
        runs = np.round(runs / grid) * grid if grid else runs
        return np.asarray(runs[:, :m] - runs[:, m:])

    return draw


LIKE = {f"{shape} runs": world(shape) for shape in SHAPES}
UNLIKE = {
    "coarse accuracies: a deviation of one image": world(grid=SD),
    "deviations of candidates 1:16": world(spread=16),
    "a noisy reference (4 times)": world(reference=4),
    "a quiet reference (1/10)": world(reference=0.1),
}
SKEWED = {
    "deviations of candidates 1:16, exponential": world("exponential", spread=16),
    "a quiet reference (1/10), exponential": world("exponential", reference=0.1),
    "a quiet reference (1/10), lognormal": world("lognormal", reference=0.1),
}
BATCHES = {f"two batches that move schemes by {x:g} sd": world(batch=x) for x in (0.25, 0.5, 1)}


def generator(*key: object) -> np.random.Generator:
    """Returns the random generator of one number of the page, always the same."""
    return np.random.default_rng(list(repr(key).encode()))


def share(shown: Shown) -> float:
    """Returns the share of studies with at least one finding."""
    return float(shown.any(axis=-1).mean())


def differs(d: Floats) -> Shown:
    """Returns which comparisons show a difference by max-T."""
    return np.asarray(max_t(d) <= ALPHA)


def differs_holm(d: Floats) -> Shown:
    """Returns which comparisons show a difference by separate sign flips with Holm."""
    return np.asarray(inference.adjust(sign_flip(d), "holm") <= ALPHA)


def equivalent(d: Floats, correction: str = "max_t") -> Shown:
    """Returns which comparisons show equivalence."""
    return np.asarray(inference.flip_tests(d, MARGIN, correction).equivalence <= ALPHA)


def indicated(d: Floats, what: str) -> Shown:
    """Returns which comparisons the second tier indicates: ``differs`` or ``equivalent``."""
    found = inference.indicate(d, MARGIN if what == "equivalent" else 0.0, ALPHA)
    return np.asarray(found == "equivalent" if what == "equivalent" else found != "")


def beyond(d: Floats) -> Shown:
    """Returns which comparisons show a difference larger than the margin."""
    return np.asarray(inference.flip_tests(d, MARGIN).beyond <= ALPHA)


def wrong_in_both(studies: int, m: int, n: int) -> float:
    """Returns the share of studies with a wrong verdict if half do not differ and half differ by the margin."""
    d = world()(generator("both", m, n), studies, m, n, [0] * (m // 2) + [MARGIN] * (m - m // 2))
    d[:, : m // 2] *= 3
    verdicts = inference.decide(d.mean(axis=-1), inference.flip_tests(d, MARGIN), ALPHA)
    unequal = np.isin(verdicts, ["better", "worse"])
    return share(np.concatenate((unequal[:, : m // 2], verdicts[:, m // 2 :] == "equivalent"), axis=1))


# Rejected alternatives


def pooled_dunnett(d: Floats) -> Shown:
    """Dunnett's test (1955) with one deviation for all schemes and seeds as blocks; its critical value is simulated."""
    studies, m, n = d.shape
    free, rng = m * (n - 1), generator("dunnett", m, n)
    mean = (rng.standard_normal((50_000, m)) - rng.standard_normal((50_000, 1))) / math.sqrt(2)
    critical = np.quantile(np.abs(mean).max(axis=1) / np.sqrt(rng.chisquare(free, 50_000) / free), 1 - ALPHA)
    runs = np.concatenate(
        (d, np.zeros((studies, 1, n))), axis=1
    )  # seed effects are removed below, so the reference can be 0
    rest = runs - runs.mean(axis=1, keepdims=True) - runs.mean(axis=2, keepdims=True)
    rest += runs.mean(axis=(1, 2), keepdims=True)
    sd = np.sqrt(2 * (rest**2).sum(axis=(1, 2)) / free)
    return np.asarray(np.abs(d.mean(axis=-1)) * math.sqrt(n) / sd[:, None] > critical)


def moderated_t(d: Floats) -> Shown:
    """The moderated t of limma (Smyth, 2004) with Holm: deviations are shrunk to their common estimate."""
    n, variance = d.shape[-1], d.var(axis=-1, ddof=1)
    free = n - 1
    e = np.log(variance) - special.digamma(free / 2) + math.log(free / 2)
    excess = np.maximum(e.var(axis=-1, ddof=1, keepdims=True) - special.polygamma(1, free / 2), 1e-4)
    half = 1 / excess  # trigamma(x) = excess, by Newton
    for _ in range(30):
        half = half * (1 + special.polygamma(1, half) * (1 - special.polygamma(1, half) / excess)
                       / (half * special.polygamma(2, half)))  # fmt: skip
    prior = 2 * half
    center = np.exp(e.mean(axis=-1, keepdims=True) + special.digamma(half) - np.log(half))
    shrunk = (prior * center + free * variance) / (prior + free)
    p = 2 * stats.t.sf(np.abs(d.mean(axis=-1)) / np.sqrt(shrunk / n), np.minimum(prior + free, d.shape[1] * free))
    return np.asarray(inference.adjust(p, "holm") <= ALPHA)


def posterior(d: Floats, low: float, high: float) -> Floats:
    """Posterior probability that a mean lies between two values (flat prior: Student's t, as in Bayesian t tests)."""
    mean, error = d.mean(axis=-1), np.sqrt(d.var(axis=-1, ddof=1) / d.shape[-1])
    return np.asarray(
        np.diff(stats.t.cdf((np.array([low, high])[:, None, None] - mean) / error, d.shape[-1] - 1), axis=0)[0]
    )


def bayes_sign(d: Floats, of: Callable[..., Floats] = posterior) -> Shown:
    """Decides on a sign if its posterior probability is above .975."""
    return np.asarray(np.abs(of(d, -np.inf, 0) - 0.5) > 0.475)


def bayes_rope(d: Floats, of: Callable[..., Floats] = posterior) -> Shown:
    """Decides on equivalence if the posterior probability of a mean within the margin (ROPE) is above .95."""
    return np.asarray(of(d, -MARGIN, MARGIN) > 0.95)


def hierarchical(d: Floats, low: float, high: float) -> Floats:
    """`posterior` with a normal prior on the means, whose centre and deviation are estimated (on a grid)."""
    m, n = d.shape[1:]
    mean, error = d.mean(axis=-1)[:, None], d.var(axis=-1, ddof=1).mean(axis=-1)[:, None, None] / n  # (studies, 1, m)
    total = error + np.linspace(0, 4 * MARGIN, 41)[:, None] ** 2  # (studies, deviations of means, 1)
    centre = mean.mean(axis=-1, keepdims=True)
    weight = -(m - 1) / 2 * np.log(total) - ((mean - centre) ** 2).sum(axis=-1, keepdims=True) / (2 * total)
    weight = special.softmax(weight, axis=1)
    shrink = error / total
    middle, width = shrink * centre + (1 - shrink) * mean, np.sqrt((1 - shrink) * error + shrink**2 * total / m)
    inside = stats.norm.cdf((high - middle) / width) - stats.norm.cdf((low - middle) / width)
    return np.asarray((weight * inside).sum(axis=1))


# Procedures with several steps


def until_settled(d: Floats, start: int = 6, margin: float = MARGIN) -> tuple[Shown, Shown, Floats]:
    """Adds seeds until every comparison is decided by sign bets.

    Args:
        d: (studies, m, most).
        start: Seeds before the first look.
        margin: In points; with 0, equivalence cannot end a study.

    Returns:
        Which comparisons show a difference, which equivalence, and the number of seeds of each study.
    """
    tests = inference.bet_tests(d, margin)
    equal, unequal = tests.equivalence <= ALPHA, tests.difference <= ALPHA
    settled = (equal | unequal).all(axis=1)
    settled[:, : start - 1] = False
    last = np.where(settled.any(axis=1), settled.argmax(axis=1), d.shape[-1] - 1)
    equal, unequal = (np.take_along_axis(x, last[:, None, None], axis=2)[..., 0] for x in (equal, unequal))
    return unequal & ~equal, equal, last + 1.0


def looking_again(d: Floats, start: int = 6) -> Shown:
    """Judges by max-T after each seed as if it were the last, which is not valid."""
    return np.any([differs(d[..., :n]) for n in range(start, d.shape[-1] + 1)], axis=0)


def tuned(studies: int, n: int, tuning_seeds: int, gap: float = 1) -> Floats:
    """Draws differences of equal schemes, each with the best of three learning rates by validation accuracy.

    Args:
        studies: Number of studies.
        n: Seeds that are judged.
        tuning_seeds: Seeds that choose one rate for all others; 0 if each seed chooses for itself.
        gap: Difference between the true accuracies of two rates, in standard deviations of a run.
    """
    rng = generator("tuned", n, tuning_seeds)
    truth = -gap * np.arange(3.0)[:, None]
    seeds = tuning_seeds or n
    trials = truth + rng.standard_normal((studies, FAMILY + 1, 3, seeds))
    scores = trials + rng.standard_normal(trials.shape)  # few validation images
    if tuning_seeds:
        choice = scores.mean(axis=-1).argmax(axis=-1)
        runs = -gap * choice[..., None] + rng.standard_normal((studies, FAMILY + 1, n))
    else:
        runs = np.take_along_axis(trials, scores.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    return np.asarray(runs[:, 1:] - runs[:, :1])


def covered(n: int, images: int, studies: int) -> dict[str, float]:
    """Returns the share of studies whose interval of one difference contains the value for other seeds and images.

    An image is classified correctly if ability + ease of the image + noise is above 0, so seeds, images and both
    together vary.

    Returns:
        By interval: over seeds alone, and over seeds and images (`inference.pigeonhole_interval`).
    """
    rng = generator("covered", n, images)
    held = {"seeds alone": 0, "seeds and images": 0}
    truth = 100 * (stats.norm.cdf(1.0 / math.sqrt(3.05)) - stats.norm.cdf(0.8 / math.sqrt(3.05)))
    for _ in range(studies):
        ease = rng.standard_normal(images) + rng.standard_normal((2, 1, images)) * 1.0
        noise = rng.standard_normal((2, n, images))
        right = (
            np.array([1.0, 0.8])[:, None, None] + math.sqrt(0.05) * rng.standard_normal((2, n, 1)) + ease + noise > 0
        )
        d = 100 * (right[0].mean(axis=1) - right[1].mean(axis=1))
        intervals = (
            inference.t_interval(d.mean(), d.std(ddof=1), n, 0.95),
            inference.pigeonhole_interval(right[0], right[1], 0.95),
        )
        for kind, (low, high) in zip(held, intervals, strict=True):
            held[kind] += bool(low <= truth <= high)
    return {kind: count / studies for kind, count in held.items()}


def advised(n: int, true: float, studies: int, *, limit: bool) -> tuple[float, float, float]:
    """Plans a study from one with n seeds, and computes its actual power to decide.

    Args:
        n: Seeds of the first study.
        true: Difference, in points.
        studies: Number of studies.
        limit: Whether to plan with the upper limit of the deviation, else with the deviation as found.

    Returns:
        Mean power, share of studies with a power under one half, and median of the recommended seeds.
    """
    d = world()(generator("advised", n, true), studies, 1, n, true)[:, 0]
    level, found = power.sidak(ALPHA, FAMILY), []
    for x in d:
        mean, sd = float(x.mean()), float(x.std(ddof=1))
        high = power.deviation_limits(sd, n)[1]
        planned = sd if limit else sd * sd / high  # a deviation whose upper limit is the observed one
        seeds = power.seeds_to_decide(mean, planned, n, margin=MARGIN, alpha=ALPHA, family=FAMILY)[1]
        reached = 1.0, power.MOST
        if seeds is not None:
            ways = (
                power.t_power(seeds, true, SD, level),
                power.t_power(seeds, true, SD, level, MARGIN),
            )
            reached = max(ways), seeds
        found.append(reached)
    powers, seeds_needed = np.array(found).T
    return float(powers.mean()), float((powers < 0.5).mean()), float(np.median(seeds_needed))
