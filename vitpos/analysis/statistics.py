"""Rows by variant and seed, and accuracies over seeds; all in percent and percentage points."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitpos.analysis.inference import t_interval
from vitpos.analysis.signs import RESOLUTION
from vitpos.errors import VitposError

Row = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Variant:
    """One cell of a study: a position text and the values of the other axes."""

    position: str
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, axes: Mapping[str, Any]) -> "Variant":
        """Makes the variant of a row's or failure's ``axes``."""
        return cls(str(axes["position"]), tuple(sorted((k, str(v)) for k, v in axes.items() if k != "position")))

    @property
    def label(self) -> str:
        """Position text, then ``, key=value`` for each other axis."""
        return self.position + "".join(f", {key}={value}" for key, value in self.others)

    @property
    def kind(self) -> str:
        """Scheme name or names, without options: ``"a(x=1)+b"`` gives ``"a+b"``."""
        text, count = self.position, 1
        while count:  # innermost parentheses first
            text, count = re.subn(r"\([^()]*\)", "", text)
        return text.replace(" ", "")


Groups = dict[Variant, dict[int, Row]]


def group(rows: Sequence[Row]) -> Groups:
    """Sorts rows by variant and seed.

    Args:
        rows: One mapping per finished run.

    Returns:
        For each variant its rows by seed, both in ascending order.

    Raises:
        VitposError: If there are no rows, or two for one variant and seed.
    """
    if not rows:
        raise VitposError("there are no finished runs to analyse; run the study first")
    groups: Groups = {}
    for row in sorted(rows, key=lambda row: (Variant.of(row["axes"]), row["seed"])):
        variant = Variant.of(row["axes"])
        other = groups.setdefault(variant, {}).setdefault(int(row["seed"]), row)
        if other is not row:
            raise VitposError(
                f"two runs of {variant.label} with seed {row['seed']} (hashes {other['hash']} and {row['hash']}); "
                "keep the rows of one version of the study"
            )
    return groups


def points(row: Row, metric: str) -> float:
    """Gives a row's accuracy in percent; NaN where the row has none."""
    value = row["metrics"].get(metric)
    return math.nan if value is None else 100 * float(value)


@dataclass(frozen=True)
class Summary:
    """An accuracy over the seeds of one variant, in percent: mean, standard deviation, t interval of the mean.

    Runs that are not a number are counted in ``bad`` and in nothing else.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    bad: int


def summarize(values: Sequence[float], level: float) -> Summary:
    """Computes mean, deviation (n - 1) and the t interval of the mean: mean ± t(n - 1) sd / sqrt(n).

    Args:
        values: One value per seed.
        level: Confidence level, such as 0.95.

    Returns:
        The summary; NaN where too few values or no variance leave a number undefined.
    """
    all_values = np.asarray(values, dtype=np.float64)
    x = all_values[np.isfinite(all_values)]
    mean = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    low, high = t_interval(x, level) if len(x) > 1 and np.ptp(x) > RESOLUTION else (math.nan, math.nan)
    return Summary(len(x), mean, sd, float(low), float(high), len(all_values) - len(x))


def sampling_error(accuracy: float, images: int) -> float:
    """Computes the standard error of one accuracy that comes from which test images there are: sqrt(p (1 - p) / N).

    Args:
        accuracy: p, in percent.
        images: N, drawn independently.

    Returns:
        The error in percentage points. Seeds do not average it away: all runs see the same images.
    """
    p = accuracy / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def difference_sampling_error(one: float, other: float, images: int) -> float:
    """Bounds the standard error that the test images give a difference of two accuracies on the same images.

    ``sqrt((p (1 - p) + q (1 - q)) / N)`` is that of images of their own. On the same ones the variance is less by twice
    the covariance of being right. Assumes that this is not negative: an image that one scheme gets right is at least
    as likely as any other to be right with the other scheme. Where rows say which images were right,
    `vitpos.analysis.images.sampling_error` computes the error itself.

    Args:
        one: p, in percent; may be a mean over seeds.
        other: q, in percent; the same.
        images: N, drawn independently.

    Returns:
        The bound in percentage points.
    """
    return math.hypot(sampling_error(one, images), sampling_error(other, images))
