"""Sections of a report that describe the schemes: accuracies, kind or options, curves, cost, similarity."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitpos.analysis import figures
from vitpos.analysis.document import Block, Section, picture
from vitpos.analysis.evidence import Evidence, mean
from vitpos.analysis.markup import code
from vitpos.analysis.ranking import pareto
from vitpos.analysis.statistics import Variant, summarize
from vitpos.analysis.tables import Column, Table, counts, intervals, names, number, numbers, texts
from vitpos.analysis.verdict import difference


def schemes(evidence: Evidence) -> Section:
    """Gives each variant's accuracy over seeds, and its size, the highest mean first."""
    columns = [*evidence.subject, Column("n"), numbers(f"{evidence.metric}, %"), numbers("sd")]
    columns += [intervals(f"{evidence.level} interval of the mean"), counts("parameters")]
    columns += [counts("of these, position"), Column("position RMS, start to end"), counts("images/s")]
    rows = []
    for variant, runs in evidence.variants.items():
        s = summarize(evidence.values(variant), 1 - evidence.comparison.alpha)
        some = next(iter(runs.values()))
        tables = [row["position"] for row in runs.values() if row["position"] is not None]
        ends = [number(mean([table[key] for table in tables]), 3) for key in ("rms_start", "rms_end")]
        n = str(s.n) + (f" (+{s.bad} not a number)" if s.bad else "")
        line = [*evidence.about(variant), n, s.mean, s.sd, (s.low, s.high), some["parameters"]]
        line += [some["position_parameters"], " to ".join(ends) if tables else "-", _speed(evidence, variant)]
        rows.append((s.mean, line))
    return Section("All schemes", (Table("schemes", "All schemes", columns, _best_first(rows)),))


def cost(evidence: Evidence) -> Section:
    """Sets accuracy beside what it costs."""
    columns = [
        *evidence.subject,
        numbers(f"{evidence.metric}, %"),
        numbers("MFLOPs per image", 1),
        counts("parameters"),
    ]
    columns += [counts("images/s"), counts("seconds per run"), counts("peak memory, MB")]
    rows = []
    for variant, runs in evidence.variants.items():
        some = next(iter(runs.values()))
        seconds = mean([row["seconds"] for row in runs.values()])
        mean_ = summarize(evidence.values(variant), 0.95).mean
        line = [*evidence.about(variant), mean_, some["flops"] / 1e6, some["parameters"]]
        memory = max(row["peak_memory_mb"] for row in runs.values())
        rows.append((mean_, [*line, _speed(evidence, variant), seconds, memory]))
    table = Table("cost", "Accuracy and cost", columns, _best_first(rows))
    text = (
        "MFLOPs are those of one forward pass of one image (a product and its sum are 2). images/s, seconds and "
        "memory are those of training, beside whatever else the machine did: no comparison of speed."
    )
    figure = pareto(evidence.comparison, evidence.places, evidence.look)
    alt = "Accuracy of each scheme against its cost relative to the reference; the numbers are in the table"
    return Section("Accuracy and cost", [*picture("pareto", figure, alt), table, text])


def _speed(evidence: Evidence, variant: Variant) -> float:
    return mean([row["images_per_second"] for row in evidence.variants[variant].values()])


def _best_first(rows: Iterable[tuple[float, list[Any]]]) -> list[list[Any]]:
    return [row for _, row in sorted(rows, key=lambda pair: math.inf if math.isnan(pair[0]) else -pair[0])]


def curves(evidence: Evidence) -> Section:
    """Shows how validation accuracy grew."""
    alt = "Validation accuracy by epoch, mean over seeds with a band from lowest to highest"
    return Section("Curves", picture("curves", figures.curves(evidence.variants, evidence.look), alt))


def similarity(evidence: Evidence) -> Section:
    """Shows what the position vectors have in common."""
    alt = "Maps of the cosine similarity between the position vectors of each scheme that adds a table"
    shown = picture("similarity", figures.similarity(evidence.variants), alt)
    text = (
        "Cosine similarity between the position vectors at the end of training, mean over seeds, as in figure 7 of the "
        "ViT paper: one small map per patch position."
    )
    return Section("Similarity", [text, *shown] if shown else ())


def kind_or_options(evidence: Evidence) -> Section:
    """Says how far accuracy moves across kinds, and within a kind across options; computed for each other axis."""
    variants = evidence.variants
    means = {v: summarize(evidence.values(v), 0.95).mean for v in variants}
    pairs = [
        difference(evidence.comparison, variants, v, default)
        for v in variants
        if v.position != v.kind and (default := replace(v, position=v.kind)) in variants
    ]
    blocks: list[Block] = []
    if pairs:
        columns = [*evidence.subject, names("minus default"), numbers("difference", sign=True)]
        columns += [intervals(f"{evidence.level} t interval", sign=True), counts("n"), texts("note")]
        rows = [
            [*evidence.about(d.candidate), d.reference.position, d.mean, (d.low, d.high), d.n, d.note] for d in pairs
        ]
        blocks.append(Table("options", "Options of a scheme against its defaults", columns, rows))
        blocks.append("Intervals are unadjusted, and these pairs are not part of the family that is judged above.")
    for others in sorted({v.others for v in variants}):
        here = [v for v in variants if v.others == others and not math.isnan(means[v])]
        where = f"With {Variant('', others).label[2:]}: " if others else ""
        if text := _spreads(here, means):
            blocks.append(where + text)
    return Section("Kind or options?", blocks)


def _spreads(variants: Sequence[Variant], means: Mapping[Variant, float]) -> str:
    defaults = [v for v in variants if v.position == v.kind and v.kind != "none"]
    families = {v.kind: [w for w in variants if w.kind == v.kind] for v in variants}
    families = {kind: members for kind, members in families.items() if len(members) > 1}

    def spread(members: Sequence[Variant]) -> float:
        values = [means[v] for v in members]
        return max(values) - min(values)

    across = f"kinds at default options ({', '.join(code(v.kind) for v in defaults)})"
    within = [
        f"{number(spread(members))} points across {len(members)} forms of {code(k)}" for k, members in families.items()
    ]
    if not families:
        return ""
    if len(defaults) < 2:
        return f"Means spread over {', '.join(within)}; there are no two kinds at default options to set beside it."
    widest = max(spread(members) for members in families.values())
    more, less = ("options", "kind") if widest > spread(defaults) else ("kind", "options")
    return (
        f"Means spread over {number(spread(defaults))} points across {across}, and over {', '.join(within)}. "
        f"In these rows, {more} moved accuracy more than {less} did (largest minus smallest mean, noise included; "
        "it depends on which options were tried)."
    )
