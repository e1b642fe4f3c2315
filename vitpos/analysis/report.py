"""A study's report: ``report.md`` from a template, ``report.html`` from that, figures, tables, text for a terminal."""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from matplotlib.figure import Figure

from vitpos import style
from vitpos.analysis import breakdowns, pictures, tables, wording
from vitpos.analysis.runs import Row, Variant, curves, frame, similarity
from vitpos.analysis.tables import Table
from vitpos.analysis.terms import Terms, metric_label
from vitpos.analysis.verdict import verdicts
from vitpos.errors import VitposError, visible
from vitpos.page import page
from vitpos.text import code, columns, interval, minus, number, p_value, paragraph, plural, slug, write_whole

_PACKAGES = ("torch", "timm", "lightning")
_CURVES = "val/accuracy"


@dataclass(frozen=True)
class Background:
    """What a study has besides its terms and its runs, as far as the report says it; all of it may be empty.

    Attributes:
        planned: ``axes`` and ``seed`` of all runs of the plan.
        text: The study file, as it stands.
        tuning: What tuning chose for each variant and seed: ``axes``, ``seed``, ``values``, ``scores``, ``edge``,
            ``error``, as the fields of `vitpos.study.plan.Choice`.
        amended: What was added to the study or left out after there were results, in words.
    """

    planned: Sequence[Row] = ()
    text: str = ""
    tuning: Sequence[Mapping[str, Any]] = ()
    amended: Sequence[str] = ()


_NONE = Background()


def write(
    terms: Terms, rows: Sequence[Row], failures: Sequence[Row], folder: Path, background: Background = _NONE
) -> str:
    """Writes ``report.md``, ``report.html``, ``figures/`` (PNG, SVG) and ``tables/`` (CSV, LaTeX) into a folder.

    Each file is replaced whole or not at all; figures and tables of an earlier report are removed.

    Args:
        terms: What the study stated beforehand.
        rows: Its finished runs.
        failures: Its failed runs: ``axes``, ``seed`` and ``error``.
        folder: The study's folder; made where missing.
        background: What else there is of the study.

    Returns:
        The answer and the table of verdicts as text of at most 100 columns.

    Raises:
        VitposError: If there are no rows, two for one run, no such metric, or the folder cannot be written.
    """
    if not rows:
        raise VitposError(
            f"study {terms.name!r} has no finished runs to report on ({len(failures)} failed); run it first"
        )
    runs = frame(rows, terms.metric)
    found = verdicts(runs, terms, failures, background.planned)
    effects = {axis: breakdowns.effects(runs, axis, 1 - terms.alpha) for axis in tables.axes(runs)}
    written = build(runs, found, effects, terms, background)
    figures = draw(runs, found, effects, terms, written)
    text = render(runs, found, effects, terms, failures, background, written, figures)
    shown = {name: table for name, table in written.items() if len(table.frame)}
    folder = Path(folder)
    try:
        for name, figure in figures.items():
            style.save(figure, folder / "figures" / f"{name}.png")
        for name, table in shown.items():
            write_whole(folder / "tables" / f"{name}.csv", tables.to_csv(table))
            write_whole(folder / "tables" / f"{name}.tex", tables.to_latex(table))
        images = {name: (folder / "figures" / f"{name}.svg").read_bytes() for name in figures}
        write_whole(folder / "report.md", text)
        write_whole(folder / "report.html", page(visible(terms.name), text, images))
        for part, kept in (("figures", figures.keys()), ("tables", shown.keys())):
            for path in (folder / part).glob("*"):  # what an earlier report wrote and this one does not
                if path.suffix in (".png", ".svg", ".csv", ".tex") and path.stem not in kept:
                    path.unlink()
    except OSError as error:
        raise VitposError(f"cannot write the report to {folder}: {error.strerror}; free or change it") from error
    return terminal(found, terms)


def terminal(found: pd.DataFrame, terms: Terms) -> str:
    """Formats the answer and the verdicts for a terminal, notes below their rows."""
    lines = [re.sub(r"[*`\\]", "", line).replace("\N{MINUS SIGN}", "-") for line in wording.answer(found, terms)]
    said = "\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in lines)
    if found.empty:
        return said
    header = ["scheme", "difference", f"{terms.confidence} interval", "p (diff.)", "p (equiv.)", "n", "verdict"]
    cells, notes = [], []
    for d in found.itertuples():
        label = ", ".join([d.scheme, *(f"{key}={value}" for key, value in d.setting)])
        p = ["-", "-"] if d.reason == "too few seeds" else [p_value(d.p), p_value(d.p_equivalence)]
        ends = interval(d.low, d.high, sign=True)
        cells.append([label, number(d.mean, sign=True), ends, *p, str(d.n), d.verdict])
        notes.append("; ".join(filter(None, (tables.detail(d), d.note))))
    return f"As good as {terms.reference}?\n{said}\n\n{columns(header, cells, notes)}"


def build(
    runs: pd.DataFrame,
    found: pd.DataFrame,
    effects: Mapping[str, pd.DataFrame],
    terms: Terms,
    background: Background,
) -> dict[str, Table]:
    """Computes all tables by the name of their files; those without rows are neither shown nor written."""
    by_class = breakdowns.classes(runs, found)
    return {
        "verdicts": tables.verdict_table(runs, found, terms),
        "tests": tables.tests(runs, found, terms),
        "confounds": tables.confounders(runs, found),
        "errors": tables.errors(runs, found, terms),
        "schemes": tables.schemes(runs, terms),
        "options": tables.options(runs, terms),
        "factors": breakdowns.factors(effects, terms),
        "orders": breakdowns.orders(effects),
        "ranking": breakdowns.ranking(runs, found),
        "cost": breakdowns.cost(runs, found, terms),
        "classes": by_class,
        "classes_extreme": breakdowns.class_extremes(by_class),
        "tuning": breakdowns.tuning(runs, background.tuning),
    }


def draw(
    runs: pd.DataFrame,
    found: pd.DataFrame,
    effects: Mapping[str, pd.DataFrame],
    terms: Terms,
    written: Mapping[str, Table],
) -> dict[str, Figure]:
    """Draws all pictures by the name of their files, without those that have nothing to show."""
    variants = [*runs["variant"], *(found["candidate"] if len(found) else ())]  # of some no run may be done
    looks = style.styles({v.position: v.kind for v in variants})
    at = breakdowns.by_setting(runs, found)
    drawn = {
        "forest": pictures.forest(found, terms, looks),
        "curves": pictures.curves(curves(runs, _CURVES), at, looks, metric_label(_CURVES)),
        "ranking": pictures.ranking(written["ranking"], looks),
        "pareto": pictures.pareto(written["cost"], terms, looks),
        "per_class": pictures.classes(written["classes"], terms.reference),
        "similarity": pictures.similarity(similarity(runs)),
    }
    drawn |= {_factor(axis): pictures.factor(effect, axis, terms, looks) for axis, effect in effects.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _factor(axis: str) -> str:
    return f"factor_{slug(axis).replace('.', '_')}"


def render(
    runs: pd.DataFrame,
    found: pd.DataFrame,
    effects: Mapping[str, pd.DataFrame],
    terms: Terms,
    failures: Sequence[Row],
    background: Background,
    written: Mapping[str, Table],
    figures: Mapping[str, Figure],
) -> str:
    """Renders the Markdown of a report."""

    def figure(name: str, alt: str) -> str:
        return f"![{paragraph(alt)}](figures/{name}.png)" if name in figures else ""

    def listing(text: str) -> str:
        fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", text)), 3)
        return f"{fence}\n{visible(text.strip())}\n{fence}"

    loader = jinja2.PackageLoader("vitpos.analysis")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "code": code, "text": paragraph, "plural": plural, "names": wording.listing, "factor": _factor, "p": p_value,
        "number": lambda value: minus(number(value)),
    }  # fmt: skip
    rows, history = runs["row"].tolist(), curves(runs, _CURVES)
    done = {*zip(runs["variant"], runs["seed"], strict=True)} | {(Variant.of(f["axes"]), f["seed"]) for f in failures}
    missing = sum((Variant.of(p["axes"]), p["seed"]) not in done for p in background.planned)
    environments = [row["environment"] for row in rows]
    installs = Counter(" ".join(f"{k}=={e[k]}" for k in _PACKAGES if k in e) for e in environments)
    several = len(installs) > 1
    commands = [
        f"pip install {what}{f'  # {n} of {len(rows)} runs' if several else ''}" for what, n in installs.most_common()
    ]
    shared = wording.common([row["config"] for row in rows])
    text = environment.get_template("report.md.j2").render(
        terms=terms, runs=runs, found=found, effects=effects, background=background, figures=figures, figure=figure,
        listing=listing, wording=wording, seeds=sorted(set(runs["seed"])),
        written=written,
        facts={name: table.facts for name, table in written.items()},
        has=lambda name: len(written[name].frame) > 0,
        table=lambda name: tables.to_markdown(written[name]),
        needed=len(found) and "seeds needed" in written["verdicts"].columns,
        warnings=wording.amended(background.amended) + wording.warnings(runs, found, terms, failures, missing, written),
        reasons={*found["reason"], "indicated" if found["indicated"].any() else ""} if len(found) else set(),
        no_history=[v.label for v in dict.fromkeys(runs["variant"]) if v not in history],
        untabled=[v.position for v in dict.fromkeys(runs["variant"]) if v not in similarity(runs)],
        failures=[{**f, "label": Variant.of(f["axes"]).label} for f in failures],
        mixed=wording.mixed(rows), ran_on=wording.ran_on(rows, _PACKAGES),
        commits=[e.get("commit") for e in environments],
        commands="\n".join([*commands, f"vitpos study run {terms.name}.yaml --results repeated"]),
        shared=yaml.safe_dump(shared, default_flow_style=None, sort_keys=False, width=110),
    )  # fmt: skip
    return re.sub(r"(^(`{3,})\n.*?^\2$)|\n{3,}", lambda m: m[1] or "\n\n", text, flags=re.M | re.S).strip() + "\n"
