"""A study's report: ``report.md`` with its figures, and the table of verdicts for the terminal."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vitpos.analysis import figures
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import (
    VERDICTS,
    Difference,
    Groups,
    Row,
    Variant,
    compare,
    difference,
    group,
    points,
    summarize,
)
from vitpos.analysis.tables import duration, interval, markdown, number, p_value, plain
from vitpos.errors import VitposError

Failure = Mapping[str, Any]


def write(comparison: Comparison, rows: Sequence[Row], failures: Sequence[Failure], folder: Path) -> str:
    """Writes ``report.md`` and ``figures/*.png`` into a folder; each file is replaced whole or not at all.

    Args:
        comparison: What the study stated beforehand.
        rows: Its finished runs.
        failures: Its failed runs: ``axes``, ``seed`` and ``error``.
        folder: The study's folder; made where missing.

    Returns:
        The answer and the table of verdicts as text of at most 100 columns.

    Raises:
        VitposError: If there are no rows, two for one run, no such metric, or the folder cannot be written.
    """
    if not rows:
        raise VitposError(
            f"study {comparison.name!r} has no finished runs to report on ({len(failures)} failed); run it first"
        )
    groups = group(rows)
    differences = compare(comparison, groups, failures)
    look = figures.styles(list(groups))
    pictures = {
        "forest": figures.forest(comparison, differences, look) if differences else None,
        "curves": figures.curves(groups, look),
        "similarity": figures.similarity(groups),
    }
    folder = Path(folder)
    try:
        for name, figure in pictures.items():
            path = folder / "figures" / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)  # a picture of an earlier state
            else:
                figures.save(figure, path)
        part = folder / ".report.md.part"
        part.write_text(_markdown(comparison, groups, differences, failures, pictures), encoding="utf-8")
        part.replace(folder / "report.md")
    except OSError as error:
        raise VitposError(f"cannot write the report to {folder}: {error.strerror}; free or change it") from error
    sentence = textwrap.fill(answer(comparison, differences, code=""), 100, break_on_hyphens=False)
    return f"{sentence}\n\n{verdict_table(comparison, differences)}".rstrip()


def answer(comparison: Comparison, differences: Sequence[Difference], code: str = "`") -> str:
    """Says the verdicts in one sentence, candidates grouped by verdict."""
    reference = f"{code}{comparison.reference}{code}"
    forms = {
        "falls short": ("falls short of it", "fall short of it"),
        "better": ("is better", "are better"),
        "equivalent": (
            f"is equivalent (within {comparison.margin:g})",
            f"are equivalent (within {comparison.margin:g})",
        ),
        "undecided": ("is undecided", "are undecided"),
    }
    clauses = []
    for verdict in VERDICTS:
        who = [
            f"{code}{d.candidate.label}{code} ({number(d.mean, sign=True)})"
            for d in differences
            if d.verdict == verdict
        ]
        if who:
            listed = who[0] if len(who) == 1 else f"{', '.join(who[:-1])} and {who[-1]}"
            clauses.append(f"{listed} {forms[verdict][len(who) > 1]}")
    if not clauses:
        return f"There is nothing to compare with {reference} yet."
    return f"Against {reference}, in points of {figures.words(comparison.metric)}: {'; '.join(clauses)}."


def verdict_table(comparison: Comparison, differences: Sequence[Difference]) -> str:
    """Lays out the verdicts for a terminal, notes below their rows."""
    if not differences:
        return ""
    header, cells = _verdicts(comparison, differences)
    return plain(header, cells, [d.note for d in differences])


def _verdicts(comparison: Comparison, differences: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    level = f"{100 * (1 - comparison.alpha):g} % interval"
    header = ["scheme", "difference", level, "p differs", "p equal", "n", "verdict"]
    cells = [
        [
            d.candidate.label,
            number(d.mean, sign=True),
            interval(d.low, d.high, sign=True),
            p_value(d.p_holm),
            p_value(d.p_equivalence_holm),
            str(d.n),
            d.verdict,
        ]
        for d in differences
    ]
    return header, cells


def _markdown(
    comparison: Comparison,
    groups: Groups,
    differences: Sequence[Difference],
    failures: Sequence[Failure],
    pictures: Mapping[str, object],
) -> str:
    header, cells = _verdicts(comparison, differences)
    for line, d in zip(cells, differences, strict=True):
        line[0] = f"`{line[0]}`"
        line[-1] = f"**{d.verdict}**" + (f": {d.note}" if d.note else "")
    parts = [f"# {comparison.name}", comparison.question.strip(), f"**{answer(comparison, differences)}**"]
    if differences:
        parts += ["## Verdicts", markdown(header, cells, left=(0, 6)), _how(comparison, len(differences))]
        parts += ["![Differences to the reference](figures/forest.png)"]
    parts += ["## All schemes", _schemes(comparison, groups)]
    parts += ["## Kind or options?", _kind_or_options(comparison, groups)]
    if pictures["curves"]:
        parts += ["## Curves", "![Validation accuracy by epoch](figures/curves.png)"]
    parts += [
        "## Similarity",
        "Cosine similarity between the position vectors at the end of training, mean over seeds: "
        "one small map per patch position (ViT paper, figure 7).",
        "![Similarity of positions](figures/similarity.png)",
        "## Caveats",
        _caveats(comparison, groups, differences, failures),
        "## What it ran on",
        _provenance(groups),
        "## How to repeat",
        f"```\nvitpos study run configs/studies/{comparison.name}.yaml --results repeated\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _how(comparison: Comparison, family: int) -> str:
    return (
        f"Differences are scheme minus `{comparison.reference}` in percentage points, paired by seed (n pairs), with "
        f"the unadjusted t interval. *p differs* is the two-sided paired t test, *p equal* the two one-sided tests "
        f"against the margin ({comparison.margin:g}), each after Holm over {family} "
        f"comparison{'s' if family > 1 else ''}; alpha is {comparison.alpha:g}. Equivalence is judged first: a "
        "difference within the margin was declared beforehand to count as equal."
    )


def _schemes(comparison: Comparison, groups: Groups) -> str:
    level = f"{100 * (1 - comparison.alpha):g} %"
    header = ["scheme", "n", f"{figures.words(comparison.metric)}, %", "sd", f"{level} interval of the mean"]
    header += ["parameters", "of these, position", "position RMS, start to end", "images/s"]
    cells = []
    for variant, runs in groups.items():
        rows = list(runs.values())
        s = summarize([points(row, comparison.metric) for row in rows], 1 - comparison.alpha)
        tables = [row["position"] for row in rows if row["position"] is not None]
        start, end = (_mean([table[key] for table in tables]) for key in ("rms_start", "rms_end"))
        line = [f"`{variant.label}`", str(s.n) + (f" (+{s.bad} not a number)" if s.bad else "")]
        line += [number(s.mean), number(s.sd), interval(s.low, s.high), f"{rows[0]['parameters']:,}"]
        line += [f"{rows[0]['position_parameters']:,}", f"{number(start, 3)} to {number(end, 3)}" if tables else "-"]
        cells.append((s.mean, [*line, f"{_mean([row['images_per_second'] for row in rows]):,.0f}"]))
    cells.sort(key=lambda cell: math.inf if math.isnan(cell[0]) else -cell[0])
    return markdown(header, [line for _, line in cells])


def _kind_or_options(comparison: Comparison, groups: Groups) -> str:
    """Says how far accuracy moves across kinds, and within a kind across options; computed for each other axis."""
    mean = {
        v: summarize([points(row, comparison.metric) for row in runs.values()], 0.95).mean for v, runs in groups.items()
    }
    pairs = [
        difference(comparison, groups, v, default)
        for v in groups
        if v.position != v.kind and (default := replace(v, position=v.kind)) in groups
    ]
    parts = []
    if pairs:
        level = f"{100 * (1 - comparison.alpha):g} % interval"
        cells = [
            [
                f"`{d.candidate.label}`",
                f"`{d.reference.label}`",
                number(d.mean, sign=True),
                interval(d.low, d.high, sign=True),
                str(d.n),
                d.note,
            ]
            for d in pairs
        ]
        parts.append(markdown(["options", "minus default", "difference", level, "n", "note"], cells, left=(0, 1, 5)))
        parts.append("Intervals are unadjusted, and these pairs are not part of the family that is judged above.")
    for others in sorted({v.others for v in groups}):
        here = [v for v in groups if v.others == others and not math.isnan(mean[v])]
        where = f"With {Variant('', others).label[2:]}: " if others else ""
        parts.append(where + _spreads(here, mean))
    return "\n\n".join(parts)


def _spreads(variants: Sequence[Variant], mean: Mapping[Variant, float]) -> str:
    defaults = [v for v in variants if v.position == v.kind and v.kind != "none"]
    families = {v.kind: [w for w in variants if w.kind == v.kind] for v in variants}
    families = {kind: members for kind, members in families.items() if len(members) > 1}

    def spread(members: Sequence[Variant]) -> float:
        values = [mean[v] for v in members]
        return max(values) - min(values)

    across = f"kinds at default options ({_names(v.kind for v in defaults)})"
    within = [
        f"{number(spread(members))} points across {len(members)} forms of `{k}`" for k, members in families.items()
    ]
    if len(defaults) < 2 and not families:
        return "The rows have neither two kinds at default options nor two forms of one kind to set side by side."
    if len(defaults) < 2:
        return f"Means spread over {', '.join(within)}; there are no two kinds at default options to set beside it."
    if not families:
        return f"Means spread over {number(spread(defaults))} points across {across}; no kind was run in two forms."
    widest = max(spread(members) for members in families.values())
    more, less = ("options", "kind") if widest > spread(defaults) else ("kind", "options")
    return (
        f"Means spread over {number(spread(defaults))} points across {across}, and over {', '.join(within)}. "
        f"In these rows, {more} moved accuracy more than {less} did (largest minus smallest mean, noise included; "
        "it depends on which options were tried)."
    )


def _caveats(
    comparison: Comparison, groups: Groups, differences: Sequence[Difference], failures: Sequence[Failure]
) -> str:
    rows = [row for runs in groups.values() for row in runs.values()]
    seeds = sorted({seed for runs in groups.values() for seed in runs})
    lines = [
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))}). A t interval assumes "
        "normally distributed differences, which so few seeds cannot check."
        if len(seeds) < 20
        else f"{len(seeds)} seeds. A t interval assumes normally distributed differences.",
        f"Schemes within a margin of {comparison.margin:g} (percentage points) count as equal: stated before the runs.",
        _sampling(comparison, rows),
        "images/s are as the runs went, beside each other and whatever else the machine did: no comparison of speed.",
    ]
    lines += [f"`{d.candidate.label}`: {d.note}." for d in differences if d.note]
    lines += [
        f"Failed: `{Variant.of(failure['axes']).label}`, seed {failure['seed']}: {failure['error']}"
        for failure in failures
    ]
    lines += [
        f"Runs differ in {what}: {', '.join(f'{value} ({count})' for value, count in counts.items())}."
        for what, counts in _mixed(rows).items()
    ]
    return "\n".join(f"- {line}" for line in lines)


def _sampling(comparison: Comparison, rows: Sequence[Row]) -> str:
    split = comparison.metric.split("/")[0]
    shares = [points(row, comparison.metric) / 100 for row in rows]
    errors = [
        100 * math.sqrt(p * (1 - p) / row["data"][split])
        for p, row in zip(shares, rows, strict=True)
        if math.isfinite(p) and row["data"].get(split)
    ]
    if not errors:
        return f"The size of the {split} split is not in the rows, so its sampling error is not given."
    return (
        f"Sampling error of one accuracy, sqrt(p (1 - p) / N) on the {figures.words(split)} images: up to "
        f"{number(max(errors))} points. It is apart from the deviation over seeds in the tables: all runs see the same "
        "images, so seeds do not average it away, and verdicts are about these images."
    )


def _mixed(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Finds what should be the same in all rows and is not, with the count of rows for each value."""
    getters: dict[str, Callable[[Row], Any]] = {
        key: lambda row, key=key: row["environment"].get(key)  # type: ignore[misc]
        for key in dict.fromkeys(key for row in rows for key in row["environment"])
    }
    getters["data"] = lambda row: f"{row['data']['name']} {row['data']['fingerprint']}"
    getters["format of the rows"] = lambda row: row.get("format")
    found = {}
    for what, get in getters.items():
        counts: dict[str, int] = {}
        for row in rows:
            counts[str(get(row))] = counts.get(str(get(row)), 0) + 1
        if len(counts) > 1:
            found[what] = counts
    return found


def _provenance(groups: Groups) -> str:
    rows = [row for runs in groups.values() for row in runs.values()]
    environments = [row["environment"] for row in rows]
    versions = [key for key in ("python", "torch", "timm", "lightning", "vitpos") if key in environments[0]]
    data = [
        f"{d['name']}, {d['train']:,} training, {d['val']:,} validation and {d['test']:,} test images, "
        f"fingerprint `{d['fingerprint']}`"
        for d in (row["data"] for row in rows)
    ]
    lines = [
        f"Hardware: {_either(str(e.get('hardware')) for e in environments)}",
        f"Precision: {_either(str(e.get('precision')) for e in environments)}",
        f"Versions: {_either(', '.join(f'{key} {e.get(key)}' for key in versions) for e in environments)}",
        f"Commit: {_either(str(e.get('commit')) for e in environments)}",
        f"Data: {_either(data)}",
        f"Training time: {duration(sum(row['seconds'] for row in rows))} in all, {len(rows)} runs",
    ]
    config = yaml.safe_dump(
        _common([row["config"] for row in rows]), default_flow_style=None, sort_keys=False, width=110
    )
    listed = "\n".join(f"- {line}" for line in lines)
    return f"{listed}\n\nConfiguration that all runs share:\n\n```yaml\n{config.strip()}\n```"


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keeps what is the same in all configurations, nested."""
    result: dict[str, Any] = {}
    for key, first in configs[0].items():
        values = [config.get(key) for config in configs]
        if all(isinstance(value, Mapping) for value in values):
            if nested := _common([value for value in values if isinstance(value, Mapping)]):
                result[key] = nested
        elif all(key in config for config in configs) and all(value == first for value in values):
            result[key] = first
    return result


def _either(values: Any) -> str:
    return " / ".join(dict.fromkeys(values))


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan
