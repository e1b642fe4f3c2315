"""The runs of a study as one table, and what their rows hold: test images that were right, curves, position tables.

Accuracies are in percent, differences in percentage points.
"""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitpos.analysis.inference import t_interval
from vitpos.analysis.signs import RESOLUTION, Floats
from vitpos.errors import VitposError

Row = Mapping[str, Any]
Setting = tuple[tuple[str, str], ...]
"""Values of the axes other than position, sorted by axis."""

_NUMBERS = ("parameters", "position_parameters", "flops", "images_per_second", "seconds", "peak_memory_mb")


@dataclass(frozen=True, order=True)
class Variant:
    """One cell of a study: a position text and the values of the other axes that this scheme has."""

    position: str
    others: Setting = ()

    @classmethod
    def of(cls, axes: Mapping[str, Any]) -> "Variant":
        """Returns the variant of a row's or a failure's ``axes``."""
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

    def agrees(self, other: "Variant") -> bool:
        """Returns whether two variants have the same value on every axis (but position) that both have."""
        theirs = dict(other.others)
        return all(theirs.get(key, value) == value for key, value in self.others)


def frame(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """Builds the table of runs that all of a report is computed from.

    Args:
        rows: One JSON object per finished run.
        metric: Key of the rows' ``metrics``, an accuracy.

    Returns:
        One row per run, sorted by variant and seed: ``variant``, ``seed``, ``accuracy`` (percent, NaN where the run has
        none), sizes and costs under the names of the JSON, ``rms_start`` and ``rms_end`` of the position table, and
        ``row``, the JSON itself.

    Raises:
        VitposError: If there are no rows, or two for one variant and seed.
    """
    if not rows:
        raise VitposError("there are no finished runs to analyse; run the study first")
    records: dict[tuple[Variant, int], dict[str, Any]] = {}
    for row in rows:
        variant, seed, table = Variant.of(row["axes"]), int(row["seed"]), row["position"] or {}
        if (variant, seed) in records:
            hashes = f"{records[variant, seed]['row'].get('hash')} and {row.get('hash')}"
            raise VitposError(
                f"two runs of {variant.label} with seed {seed} (hashes {hashes}); keep the rows of one version of the "
                "study"
            )
        records[variant, seed] = {
            "variant": variant,
            "seed": seed,
            "accuracy": accuracy(row, metric),
            **{key: row[key] for key in _NUMBERS},
            **{key: math.nan if table.get(key) is None else table[key] for key in ("rms_start", "rms_end")},
            "row": row,
        }
    return pd.DataFrame([records[key] for key in sorted(records)])


def accuracy(row: Row, metric: str) -> float:
    """Returns a row's accuracy in percent; NaN where the row has none."""
    value = row["metrics"].get(metric)
    return math.nan if value is None else 100 * float(value)


def level_order(value: str) -> tuple[int, float, str]:
    """Returns the sort key of an axis value: the default first, then numbers, then words."""
    try:
        return (1, float(value), "")
    except ValueError:
        return (0 if value == "None" else 2, 0.0, value)


def setting_order(setting: Setting) -> list[tuple[str, tuple[int, float, str]]]:
    """Returns the sort key of a setting."""
    return [(axis, level_order(value)) for axis, value in setting]


def settings(found: Iterable[Setting]) -> list[Setting]:
    """Returns the settings that no other one contains, sorted by value, each once."""
    distinct = set(found)
    return sorted((s for s in distinct if not any(set(s) < set(other) for other in distinct)), key=setting_order)


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """Reduces a table to what can be compared: first its rows, then its columns.

    A row that lacks half of the numbers or more is left out, so that one scheme with few runs does not cost the others
    theirs; of the columns those stay in which all remaining rows have a number.
    """
    return table[2 * table.notna().sum(axis=1) > table.shape[1]].dropna(axis=1)


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


def summarize(values: Sequence[float] | pd.Series, level: float) -> Summary:
    """Computes mean, deviation (n - 1) and the t interval of the mean: mean ± t(n - 1) sd / sqrt(n).

    Args:
        values: One value per seed.
        level: Confidence level, such as 0.95.

    Returns:
        The summary; NaN where too few values or no variance leave a number undefined.
    """
    given = np.asarray(values, dtype=np.float64)
    x = given[np.isfinite(given)]
    mean = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    low, high = t_interval(mean, sd if len(x) and np.ptp(x) > RESOLUTION else math.nan, len(x), level)
    return Summary(len(x), mean, sd, float(low), float(high), len(given) - len(x))


def right(row: Row) -> npt.NDArray[np.bool_] | None:
    """Returns which test images a run got right.

    Returns:
        (N,) in the order of the data in memory, which is the same for all runs on the same data; None for a row of an
        earlier version, which does not say. ``row["right"]`` is base64 of their bits, the first the highest of a byte.
    """
    if "right" not in row:
        return None
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=sum(row["per_class"]["count"])).astype(bool)


def flags(rows: Sequence[Row]) -> npt.NDArray[np.bool_] | None:
    """Returns which test images each of some runs got right, (runs, N); None unless all say it, of the same images."""
    found = [right(row) for row in rows]
    same = {(row["data"]["fingerprint"], sum((row.get("per_class") or {}).get("count", ()))) for row in rows}
    known = [f for f in found if f is not None]
    return np.array(known) if len(same) == 1 and known and len(known) == len(found) else None


def image_error(candidate: Sequence[Row], reference: Sequence[Row]) -> float:
    """Computes the standard error of a difference of accuracies that comes from which test images there are.

    Image i has a difference d_i: the share of the candidate's runs that get it right, minus that of the reference's.
    With N images the error is ``sd(d) / sqrt(N)``, less than for two accuracies on images of their own. It says how the
    difference would move on other images of the same kind, with these seeds.

    Returns:
        The error in percentage points; NaN where rows do not say which of the same images they got right.
    """
    both = flags([*candidate, *reference])
    if both is None or both.shape[1] < 2:
        return math.nan
    d = both[: len(candidate)].mean(axis=0) - both[len(candidate) :].mean(axis=0)
    return float(100 * np.std(d, ddof=1) / math.sqrt(len(d)))


def accuracy_error(accuracy: float, images: int) -> float:
    """Computes the standard error, in points, that N test images give one accuracy p: sqrt(p (1 - p) / N)."""
    p = accuracy / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def difference_error_bound(one: float, other: float, images: int) -> float:
    """Bounds the standard error that N test images give a difference: sqrt((p (1 - p) + q (1 - q)) / N).

    That is the error for images of their own. On the same images it is less, unless an image that one scheme gets right
    is less likely than others to be right with the other. `image_error` computes the error itself.
    """
    return math.hypot(accuracy_error(one, images), accuracy_error(other, images))


def class_differences(candidate: Sequence[Row], reference: Sequence[Row]) -> dict[str, tuple[int, float]]:
    """Computes the mean difference of paired runs for each class.

    Returns:
        Number of images and difference in points by class; nothing where a row does not count by class or has others.
    """
    counted = [row.get("per_class") for row in (*candidate, *reference)]
    known = [c for c in counted if c]
    if not known or len(known) < len(counted):
        return {}
    if any(c[key] != known[0][key] for c in known for key in ("names", "count")):
        return {}
    images = np.array(known[0]["count"])
    correct = np.array([c["correct"] for c in known], dtype=float)
    ours, theirs = correct[: len(candidate)].mean(axis=0), correct[len(candidate) :].mean(axis=0)
    means = 100 * (ours - theirs) / np.maximum(images, 1)
    return {str(k): (int(n), float(x)) for k, n, x in zip(known[0]["names"], images, means, strict=True) if n}


def by_epoch(rows: Iterable[Row], metric: str) -> tuple[Floats, Floats]:
    """Collects a history over seeds.

    Args:
        rows: Rows of one variant, one per seed.
        metric: Key of the rows' ``history``, such as ``"val/accuracy"``.

    Returns:
        Epochs that every seed has, shape (E,), and values, shape (seeds, E).
    """
    tables = [{h["epoch"]: h[metric] for h in row["history"] if h.get(metric) is not None} for row in rows]
    epochs = sorted(set.intersection(*map(set, tables)))
    return np.array(epochs, dtype=float), np.array([[t[e] for e in epochs] for t in tables], dtype=float)


def similarity_mosaic(rows: Iterable[Row]) -> Floats | None:
    """Lays out the mean similarity of position vectors, (N, N), as rows x columns small maps with NaN between them."""
    tables = [row["position"] for row in rows if row["position"] is not None]
    if not tables:
        return None
    height, width = tables[0]["grid"]
    mean = np.mean([np.array(table["similarity"], dtype=float) for table in tables], axis=0)
    cells = np.full((height, width, height + 1, width + 1), np.nan)
    cells[..., :height, :width] = mean.reshape(height, width, height, width)
    return cells.transpose(0, 2, 1, 3).reshape(height * (height + 1), width * (width + 1))[:-1, :-1]


def curves(runs: pd.DataFrame, metric: str) -> dict[Variant, pd.DataFrame]:
    """Returns ``epoch``, ``mean``, ``low``, ``high`` (over seeds, percent) and ``n`` of each variant with a history."""
    found = {}
    for variant, own in runs.groupby("variant", sort=True):
        epochs, y = by_epoch(own["row"], metric)
        if len(epochs):
            y = 100 * y
            columns = {"epoch": epochs, "mean": y.mean(0), "low": y.min(0), "high": y.max(0), "n": len(own)}
            found[variant] = pd.DataFrame(columns)
    return found


def similarity(runs: pd.DataFrame) -> dict[Variant, Floats]:
    """Returns the mosaic of similarity maps of each variant that adds a table (see `similarity_mosaic`)."""
    found = {variant: similarity_mosaic(own["row"]) for variant, own in runs.groupby("variant", sort=True)}
    return {variant: mosaic for variant, mosaic in found.items() if mosaic is not None}
