"""What a report says something about: the runs of a study, sorted, with verdicts and with how each scheme is drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitpos.analysis import style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.markup import code
from vitpos.analysis.statistics import Groups, Row, Variant, group, points
from vitpos.analysis.tables import Column, names
from vitpos.analysis.verdict import Difference, compare
from vitpos.errors import VitposError


@dataclass(frozen=True)
class Background:
    """What a study has beside its comparison and its runs, as far as the report says it; all of it may be empty.

    Attributes:
        planned: How many runs it plans; 0 where that is not known.
        text: Its file, as it stands.
        tuning: What tuning chose for each variant: ``axes``, ``values``, ``scores``, ``edge``, ``error``, as the fields
            of `vitpos.study.tuning.Choice`.
        tuning_seeds: The seeds that it chose by.
    """

    planned: int = 0
    text: str = ""
    tuning: Sequence[Mapping[str, Any]] = ()
    tuning_seeds: Sequence[int] = ()


@dataclass(frozen=True)
class Evidence:
    """The runs of a study and what follows from them.

    Attributes:
        comparison: What the study stated beforehand.
        background: What else there is of the study.
        places: Rows by variant and seed as they are compared: a run whose scheme lacks an option that is an axis stands
            once for each comparison that it takes part in.
        variants: The same with each run once, without the axes that its scheme lacks.
        failures: Failed runs, each once.
        differences: The verdicts, from `vitpos.analysis.verdict.compare`.
        look: How each position is drawn, in all pictures.
    """

    comparison: Comparison
    background: Background
    places: Groups
    variants: Groups
    failures: Sequence[Row]
    differences: Sequence[Difference]
    look: dict[str, style.Style]

    @property
    def rows(self) -> list[Row]:
        """All finished runs, each once."""
        return [row for runs in self.variants.values() for row in runs.values()]

    @property
    def seeds(self) -> list[int]:
        """All seeds that have a run."""
        return sorted({seed for runs in self.variants.values() for seed in runs})

    @property
    def axes(self) -> list[str]:
        """The axes beside position that some variant has."""
        return sorted({key for variant in self.variants for key, _ in variant.others})

    @property
    def level(self) -> str:
        """The level of intervals in words: ``95 %``."""
        return f"{100 * (1 - self.comparison.alpha):g} %"

    @property
    def metric(self) -> str:
        """The metric in words."""
        return style.words(self.comparison.metric)

    @property
    def split(self) -> str:
        """The images that the metric is about: ``test``."""
        return self.comparison.metric.split("/")[0]

    @property
    def subject(self) -> list[Column]:
        """The columns that say what a row of a table is about: the scheme, and one for each axis."""
        return [names("scheme"), *(Column(code(key)) for key in self.axes)]

    def about(self, variant: Variant) -> list[str]:
        """Gives the values of `subject` for a variant."""
        values = dict(variant.others)
        return [variant.position, *(style.level(values[key]) if key in values else "-" for key in self.axes)]

    def values(self, variant: Variant) -> list[float]:
        """Gives the accuracies of a variant in percent, one a run."""
        return [points(row, self.comparison.metric) for row in self.variants[variant].values()]

    def pair(self, d: Difference) -> tuple[list[Row], list[Row]]:
        """Gives the rows of candidate and reference for the seeds of a difference."""
        ours, theirs = self.places[d.candidate], self.places[d.reference]
        return [ours[seed] for seed in d.seeds], [theirs[seed] for seed in d.seeds]


def gather(comparison: Comparison, rows: Sequence[Row], failures: Sequence[Row], background: Background) -> Evidence:
    """Sorts rows and judges.

    Args:
        comparison: What the study stated beforehand.
        rows: Its finished runs.
        failures: Its failed runs: ``axes``, ``seed`` and ``error``.
        background: What else there is of the study.

    Raises:
        VitposError: If there are no rows, two for one run, or no such metric.
    """
    if not rows:
        raise VitposError(
            f"study {comparison.name!r} has no finished runs to report on ({len(failures)} failed); run it first"
        )
    places, variants = group(rows), group(distinct(rows))
    return Evidence(
        comparison,
        background,
        places,
        variants,
        distinct(failures),
        compare(comparison, places, failures),
        style.styles(variants),
    )


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Gives each run once, without the axes that its scheme lacks."""
    found: dict[str, Row] = {}
    for row in rows:
        axes = {key: value for key, value in row["axes"].items() if key not in row.get("idle", ())}
        found.setdefault(repr((sorted(axes.items()), row["seed"], row.get("hash"))), {**row, "axes": axes})
    return list(found.values())


def mean(values: Sequence[float | None]) -> float:
    """Computes the mean of what is known; NaN where nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan
