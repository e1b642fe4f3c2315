"""The runs of a study as one table, and what their rows hold: results by image and class, curves, position tables.

Accuracies are in percent, differences in percentage points.
"""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from vitpos.analysis.inference import Flags, t_interval
from vitpos.analysis.signs import RESOLUTION, Floats
from vitpos.errors import VitposError

Row = Mapping[str, Any]
Setting = tuple[tuple[str, str], ...]  # values of the axes other than position, sorted by axis

_NUMBERS = ("parameters", "position_parameters", "flops", "images_per_second", "seconds", "peak_memory_mb")


@dataclass(frozen=True, order=True)
class Variant:
    """One cell of a study: a position text and the values of the other axes that apply to this scheme."""

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
        """Checks whether two variants have the same value on every axis (except position) that both have."""
        theirs = dict(other.others)
        return all(theirs.get(key, value) == value for key, value in self.others)


def frame(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """Builds the table of runs from which the whole report is computed.

    Args:
        rows: One JSON object per finished run.
        metric: Key of the rows' ``metrics``, an accuracy.

    Returns:
        One row per run, sorted by variant and seed: ``variant``, ``seed``, ``accuracy`` (percent, NaN if missing),
        sizes and costs under the names of the JSON, ``rms_start`` and ``rms_end`` of the position table, and ``row``,
        the JSON itself. ``attrs["axes"]``: the axes other than position.

    Raises:
        VitposError: There are no rows, or two for one variant and seed.
    """
    if not rows:
        raise VitposError("there are no finished runs to analyse; run the study first")
    records = []
    for row in rows:
        table, accuracy = row["position"] or {}, row["metrics"].get(metric)
        records.append(
            {
                "variant": Variant.of(row["axes"]),
                "seed": int(row["seed"]),
                "accuracy": math.nan if accuracy is None else 100 * float(accuracy),
                **{key: row[key] for key in _NUMBERS},
                **{key: math.nan if table.get(key) is None else table[key] for key in ("rms_start", "rms_end")},
                "row": row,
            }
        )
    records.sort(key=itemgetter("variant", "seed"))
    for one, other in pairwise(records):
        if (one["variant"], one["seed"]) == (other["variant"], other["seed"]):
            hashes = f"{one['row'].get('hash')} and {other['row'].get('hash')}"
            raise VitposError(
                f"two runs of {one['variant'].label} with seed {one['seed']} (hashes {hashes}); keep the rows of one "
                "version of the study"
            )
    runs = pd.DataFrame(records)
    runs.attrs["axes"] = sorted({axis for variant in runs["variant"] for axis, _ in variant.others})
    return runs


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
    """Reduces a table to what can be compared.

    First drops rows that lack half of their numbers or more, so that one scheme with few runs does not cost the others
    theirs; then drops columns in which a remaining row lacks its number.
    """
    return table[2 * table.notna().sum(axis=1) > table.shape[1]].dropna(axis=1)


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and t interval of the mean of n values; NaN where undefined.

    Values that are not finite are counted in ``bad`` and nowhere else.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    bad: int


def summarize(values: Sequence[float] | pd.Series, level: float) -> Summary:
    """Summarizes one value per seed, with a t interval of this confidence level."""
    given = np.asarray(values, dtype=np.float64)
    x = given[np.isfinite(given)]
    mean = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    low, high = t_interval(mean, sd if len(x) and np.ptp(x) > RESOLUTION else math.nan, len(x), level)
    return Summary(len(x), mean, sd, float(low), float(high), len(given) - len(x))


def right(row: Row) -> Flags:
    """Decodes which test images a run classified correctly, (N,), in the order of the data in memory.

    The order is the same for all runs on the same data. ``row["right"]`` is base64 of packed bits, the first image in
    the highest bit of the first byte.
    """
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=sum(row["per_class"]["count"])).astype(bool)


def flags(rows: Sequence[Row]) -> Flags | None:
    """Returns which test images each run classified correctly, (runs, N).

    None unless all rows record it (those of earlier versions do not), for the same images.
    """
    images = {(row["data"]["fingerprint"], sum((row.get("per_class") or {}).get("count", ()))) for row in rows}
    same = len(images) == 1 and all("right" in row for row in rows)
    return np.array([right(row) for row in rows]) if same else None


def image_error(candidate: Flags, reference: Flags) -> float:
    """Computes the standard error, in points, that the sample of test images gives a difference of accuracies.

    Both arguments are `flags` of the same N images. Image i has a difference d_i: the share of the candidate's runs
    that classify it correctly, minus that of the reference's. The error is ``sd(d) / sqrt(N)``, smaller than for
    independent samples. It estimates how the difference would vary over other images of the same kind.
    """
    d = candidate.mean(axis=0) - reference.mean(axis=0)
    return float(100 * np.std(d, ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan


def accuracy_error(accuracy: float, images: int) -> float:
    """Computes the standard error, in points, of one accuracy p on N test images: sqrt(p (1 - p) / N)."""
    p = accuracy / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def difference_error_bound(one: float, other: float, images: int) -> float:
    """Bounds the error of a difference from N test images: sqrt((p (1 - p) + q (1 - q)) / N).

    This is the error for independent samples. On the same images it is smaller, unless images that one scheme gets
    right are less likely than others to be right with the other one. `image_error` computes the error itself.
    """
    return math.hypot(accuracy_error(one, images), accuracy_error(other, images))


def class_differences(candidate: Sequence[Row], reference: Sequence[Row]) -> dict[str, tuple[int, float]]:
    """Computes the mean difference of paired runs for each class.

    Returns:
        Number of images and difference in points by class; empty if a row has no counts by class or other classes.
    """
    counted = [row.get("per_class") or {} for row in (*candidate, *reference)]
    if len({(*c.get("names", ()), *c.get("count", ())) for c in counted}) != 1 or not counted[0]:
        return {}
    images = np.array(counted[0]["count"])
    correct = np.array([c["correct"] for c in counted], dtype=float)
    ours, theirs = correct[: len(candidate)].mean(axis=0), correct[len(candidate) :].mean(axis=0)
    means = 100 * (ours - theirs) / np.maximum(images, 1)
    return {str(k): (int(n), float(x)) for k, n, x in zip(counted[0]["names"], images, means, strict=True) if n}


def by_epoch(rows: Iterable[Row], metric: str) -> tuple[Floats, Floats]:
    """Collects a metric of the rows' ``history``, such as ``"val/accuracy"``, for one variant.

    Returns:
        Epochs that every seed has, shape (E,), and values, shape (seeds, E).
    """
    tables = [{h["epoch"]: h[metric] for h in row["history"] if h.get(metric) is not None} for row in rows]
    epochs = sorted(set.intersection(*map(set, tables)))
    return np.array(epochs, dtype=float), np.array([[t[e] for e in epochs] for t in tables], dtype=float)


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
    """Returns the mean similarity of position vectors, (N, N), of each variant that adds a table.

    It is laid out as a mosaic: rows x columns small maps with NaN between them.
    """
    found = {}
    for variant, own in runs.groupby("variant", sort=True):
        if tables := [row["position"] for row in own["row"] if row["position"] is not None]:
            height, width = tables[0]["grid"]
            mean = np.mean([np.array(table["similarity"], dtype=float) for table in tables], axis=0)
            cells = np.full((height, width, height + 1, width + 1), np.nan)
            cells[..., :height, :width] = mean.reshape(height, width, height, width)
            mosaic = cells.transpose(0, 2, 1, 3).reshape(height * (height + 1), width * (width + 1))
            found[variant] = mosaic[:-1, :-1]
    return found
