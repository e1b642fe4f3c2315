"""The terms of a study, stated before it runs: question, reference, and what counts as a difference."""

from dataclasses import dataclass

from vitpos.errors import VitposError, unknown

METRICS = ("test/accuracy", "val/accuracy", "train/accuracy")
CORRECTIONS = ("max_t", "holm", "bonferroni", "none")


@dataclass(frozen=True)
class Terms:
    """The terms on which a study compares position schemes with a reference.

    Attributes:
        name: Name of the study and of its file, ``configs/studies/<name>.yaml``.
        question: What the study answers, in words.
        reference: Position text that the others are compared with, such as ``"learned"``.
        metric: Key of a row's ``metrics``, one of `METRICS`.
        margin: Percentage points within which two schemes count as equal.
        alpha: Error rate of the verdicts of the whole family, separately for differences and for equivalence; with the
            correction ``none``, of each single verdict.
        correction: How p values are adjusted for the number of comparisons, one of `CORRECTIONS`; ``max_t`` judges all
            jointly (see `vitpos.analysis.signs`).
        start: Number of seeds at first, if seeds are added until every comparison is decided; 0 if it is fixed.
        most: Largest number of seeds in that case.
        family: Number of comparisons that were stated at first, if more than there are now.

    Raises:
        VitposError: A value is out of range.
    """

    name: str
    question: str
    reference: str
    metric: str = "test/accuracy"
    margin: float = 1.0
    alpha: float = 0.05
    correction: str = "max_t"
    start: int = 0
    most: int = 0
    family: int = 0

    def __post_init__(self) -> None:
        for field in ("name", "reference"):
            if not getattr(self, field).strip():
                what = "study" if field == "name" else "scheme"
                raise VitposError(f"comparison.{field} is empty; it must name a {what}")
        if self.metric not in METRICS:  # a margin in percentage points needs an accuracy
            raise unknown("metric", self.metric, METRICS)
        if not 0 <= self.margin <= 100:  # written so that NaN fails too
            raise VitposError(f"comparison.margin is {self.margin}; it must be from 0 to 100 percentage points")
        if not 0 < self.alpha < 1:
            raise VitposError(f"comparison.alpha is {self.alpha}; it must be above 0 and below 1, such as 0.05")
        if self.correction not in CORRECTIONS:
            raise unknown("correction", self.correction, CORRECTIONS)
        if self.start and self.correction != "max_t":
            raise VitposError(
                f"correction {self.correction} does not go with seeds that are added until settled; leave it out"
            )

    @property
    def confidence(self) -> str:
        """Confidence level of intervals: ``95 %``."""
        return f"{100 * (1 - self.alpha):g} %"

    @property
    def margin_label(self) -> str:
        """The margin in words: ``1 point``."""
        return f"{self.margin:g} point{'' if self.margin == 1 else 's'}"

    @property
    def metric_label(self) -> str:
        """The metric in words: ``test accuracy``."""
        return metric_label(self.metric)


def metric_label(metric: str) -> str:
    """Returns a metric's key in words: ``"val/accuracy"`` gives ``"validation accuracy"``."""
    return " ".join({"val": "validation", "train": "training"}.get(part, part) for part in metric.split("/"))
