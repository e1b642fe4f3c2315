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

from vitpos import style
from vitpos.analysis import breakdowns, pictures, tables, wording
from vitpos.analysis.runs import Row, Variant, curves, frame, similarity
from vitpos.analysis.terms import Terms, metric_label
from vitpos.analysis.verdict import verdicts
from vitpos.errors import VitposError, visible
from vitpos.page import page
from vitpos.text import code, columns, interval, minus, number, p_value, paragraph, plural, ranges, slug, write_whole

_PACKAGES = ("torch", "timm", "lightning")
_CURVES = "val/accuracy"
_PLAIN = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")


@dataclass(frozen=True)
class Background:
    """What the report shows of a study besides its terms and runs; all of it may be empty.

    Attributes:
        planned: ``axes`` and ``seed`` of all planned runs.
        text: The study file.
        tuning: What tuning chose for each variant and seed: ``axes``, ``seed``, ``values``, ``scores``, ``edge``,
            ``error``, as in `vitpos.study.plan.Choice`.
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

    Each file is replaced whole or not at all; figures and tables of an earlier report are removed. Rows are finished
    runs; failures have ``axes``, ``seed`` and ``error``.

    Returns:
        The answer and the table of verdicts as text of at most 100 columns.

    Raises:
        VitposError: There are no rows, two for one run, no such metric, or the folder cannot be written.
    """
    if not rows:
        raise VitposError(
            f"study {terms.name!r} has no finished runs to report on ({len(failures)} failed); run it first"
        )
    runs = frame(rows, terms.metric)
    found = verdicts(runs, terms, failures, background.planned)
    effects = {axis: breakdowns.effects(runs, axis, 1 - terms.alpha) for axis in runs.attrs["axes"]}
    by_class = breakdowns.classes(runs, found)
    # tables and figures by the name of their files; those without content are neither shown nor written
    written = {
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
    shown = {name: table for name, table in written.items() if len(table.frame)}
    leaders = tables.leaders(runs, found)
    near = runs[runs["variant"].isin(leaders)]
    near_found = found[found["candidate"].isin(leaders)] if len(found) else found
    history, maps = curves(near, _CURVES), similarity(near)
    variants = [*runs["variant"], *(found["candidate"] if len(found) else ())]  # some may have no finished run
    looks = style.styles({v.position: v.kind for v in variants})
    at = breakdowns.by_setting(near, near_found)
    drawn = {
        "forest": pictures.forest(near_found, terms, looks),
        "curves": pictures.curves(history, at, looks, metric_label(_CURVES)),
        "ranking": pictures.ranking(breakdowns.ranking(near, near_found), looks),
        "pareto": pictures.pareto(breakdowns.cost(near, near_found, terms), terms, looks),
        "per_class": pictures.classes(tables.led(by_class, near), terms.reference),
        "similarity": pictures.similarity(maps),
        **{_factor(axis): pictures.factor(effect, axis, terms, looks) for axis, effect in effects.items()},
    }
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    given = {"terms": terms, "runs": runs, "found": found, "effects": effects, "written": written, "figures": figures}
    text = _render(background, failures, **given, near=near, history=history, maps=maps)
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
    lines = [re.sub(r"[*`\\]", "", line).translate(_PLAIN) for line in wording.answer(found, terms)]
    said = "\n".join(textwrap.fill(line, 100, break_on_hyphens=False) for line in lines)
    if found.empty:
        return said
    header = ["scheme", "difference", f"{terms.confidence} interval", "p (diff.)", "p (equiv.)", "n", "verdict"]
    cells, notes = [], []
    for d in found.itertuples():
        label = ", ".join(filter(None, (d.scheme, tables.setting_label(d.setting))))
        p = ["-", "-"] if d.reason == "too few seeds" else [p_value(d.p), p_value(d.p_equivalence)]
        ends = interval(d.low, d.high, sign=True)
        cells.append([label, number(d.mean, sign=True), ends, *p, str(d.n), d.verdict])
        notes.append("; ".join(filter(None, (tables.detail(d), d.note))).translate(_PLAIN))
    return f"As good as {terms.reference}?\n{said}\n\n{columns(header, cells, notes)}"


def _factor(axis: str) -> str:
    return f"factor_{slug(axis).replace('.', '_')}"


def _listing(text: str) -> str:
    """Formats text as a fenced block, with a fence longer than any in the text."""
    fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", text)), 3)
    return f"{fence}\n{visible(text.strip())}\n{fence}"


def _render(background: Background, failures: Sequence[Row], **given: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitpos.analysis"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"code": code, "text": paragraph, "plural": plural, "names": wording.listing, "p": p_value}
    environment.filters |= {"factor": _factor, "listing": _listing, "setting": tables.setting_label, "ranges": ranges}
    environment.filters |= {"number": lambda value, sign=False: minus(number(value, sign=sign))}
    runs, near, written = given["runs"], given["near"], given["written"]
    rows = runs["row"].tolist()
    done = {*zip(runs["variant"], runs["seed"], strict=True)} | {(Variant.of(f["axes"]), f["seed"]) for f in failures}
    made = [row["environment"] for row in rows]
    installs = Counter(" ".join(f"{k}=={e[k]}" for k in _PACKAGES if k in e) for e in made).most_common()
    shared = wording.common([row["config"] for row in rows])
    text = environment.get_template("report.md.j2").render(
        **given,
        background=background,
        wording=wording,
        table=lambda name: tables.on_page(written[name], name, near),
        seeds=sorted(set(runs["seed"])),
        variants=list(dict.fromkeys(near["variant"])),
        failures=[{**f, "label": Variant.of(f["axes"]).label} for f in failures],
        missing=sum((Variant.of(p["axes"]), p["seed"]) not in done for p in background.planned),
        facts={name: table.facts for name, table in written.items()},
        installs=installs,
        commits=[e.get("commit") for e in made],
        ran_on=wording.ran_on(rows, _PACKAGES),
        shared=yaml.safe_dump(shared, default_flow_style=None, sort_keys=False, width=110),
    )
    return re.sub(r"(^(`{3,})\n.*?^\2$)|\n{3,}", lambda m: m[1] or "\n\n", text, flags=re.M | re.S).strip() + "\n"
