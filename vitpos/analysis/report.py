"""A study's report: ``report.md`` from one template, ``report.html`` from that, figures, tables, text for a terminal."""

import base64
import csv
import io
import math
import re
import textwrap
import xml.etree.ElementTree as etree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markdown
import pandas as pd
import yaml
from markdown.treeprocessors import Treeprocessor
from matplotlib.figure import Figure
from markupsafe import Markup

from vitpos.analysis import pictures, style, tables, wording
from vitpos.analysis.runs import Row, Variant, frame
from vitpos.analysis.tables import Table
from vitpos.analysis.terms import Terms, metric_label
from vitpos.analysis.verdict import verdicts
from vitpos.analysis.wording import code, escape, minus
from vitpos.errors import VitposError
from vitpos.text import columns, duration, interval, number, p_value, plural, slug, write_whole

_PACKAGES = ("torch", "timm", "lightning")
_CURVES = "val/accuracy"
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Background:
    """What a study has besides its terms and its runs, as far as the report says it; all of it may be empty.

    Attributes:
        planned: ``axes`` and ``seed`` of all runs of the plan.
        text: The study file, as it stands.
        tuning: What tuning chose for each variant: ``axes``, ``values``, ``scores``, ``edge``, ``error``, as the fields
            of `vitpos.study.tuning.Choice`.
        tuning_seeds: The seeds that it chose by.
    """

    planned: Sequence[Row] = ()
    text: str = ""
    tuning: Sequence[Mapping[str, Any]] = ()
    tuning_seeds: Sequence[int] = ()


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
    all_tables = build_tables(runs, found, terms, background)
    figures = draw(runs, found, terms, all_tables)
    folder = Path(folder)
    try:
        for name, figure in figures.items():
            style.save(figure, folder / "figures" / f"{name}.png")
        images = {name: (folder / "figures" / f"{name}.svg").read_bytes() for name in figures}
        shown = {name: found_ for name, found_ in all_tables.items() if len(found_.frame)}
        text = render(runs, found, terms, failures, background, all_tables, set(figures))
        for name, table in shown.items():
            write_whole(folder / "tables" / f"{name}.csv", to_csv(table))
            write_whole(folder / "tables" / f"{name}.tex", to_latex(table))
        write_whole(folder / "report.md", text)
        write_whole(folder / "report.html", page(terms.name, text, images))
        for part, kept in (("figures", figures), ("tables", shown)):
            for path in (folder / part).glob("*"):  # what an earlier report wrote and this one does not
                if path.suffix in (".png", ".svg", ".csv", ".tex") and path.stem not in kept:
                    path.unlink()
    except OSError as error:
        raise VitposError(f"cannot write the report to {folder}: {error.strerror}; free or change it") from error
    return terminal(found, terms)


def terminal(found: pd.DataFrame, terms: Terms) -> str:
    """Formats the answer and the verdicts for a terminal, notes below their rows."""
    lines = [re.sub(r"[*`\\]", "", line) for line in wording.answer(found, terms)]
    texts = [textwrap.fill(line.replace("\N{MINUS SIGN}", "-"), 100, break_on_hyphens=False) for line in lines]
    if found.empty:
        return "\n".join(texts)
    header = ["scheme", "difference", f"{terms.confidence} interval", "p (diff.)", "p (equiv.)", "n", "verdict"]
    cells, notes = [], []
    for _, d in found.iterrows():
        few = d["reason"] == "too few seeds"
        low, high = (d["low"], d["high"]) if math.isfinite(d["low"]) else (d["single_low"], d["single_high"])
        label = ", ".join([d["scheme"], *(f"{key}={value}" for key, value in d["setting"])])
        p = ["-", "-"] if few else [p_value(d["p"]), p_value(d["p_equivalence"])]
        cells.append([label, number(d["mean"], sign=True), interval(low, high, sign=True), *p, str(d["n"]), d["verdict"]])
        notes.append("; ".join(filter(None, (tables.detail(d), d["note"]))))
    return "\n\n".join(["\n".join([f"As good as {terms.reference}?", *texts]), columns(header, cells, notes)])


def build_tables(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms, background: Background) -> dict[str, Table]:
    """Computes all tables by the name of their files; those without rows are neither shown nor written."""
    effects = {axis: tables.effects(runs, axis, 1 - terms.alpha) for axis in tables.axes(runs)}
    by_class = tables.classes(runs, found)
    return {
        "verdicts": tables.verdict_table(runs, found, terms),
        "tests": tables.tests(runs, found, terms),
        "confounds": tables.confounders(runs, found),
        "errors": tables.errors(runs, found, terms),
        "schemes": tables.schemes(runs, terms),
        "options": tables.options(runs, terms),
        "factors": tables.factors(effects, terms),
        "orders": tables.orders(effects),
        "ranking": tables.ranking(runs, found, terms),
        "cost": tables.cost(runs, found, terms),
        "classes": by_class,
        "classes_extreme": tables.class_extremes(by_class),
        "tuning": tables.tuning(runs, background.tuning),
    }


def draw(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms, all_tables: Mapping[str, Table]) -> dict[str, Figure]:
    """Draws all pictures by the name of their files, without those that have nothing to show."""
    looks = style.styles(runs["variant"])
    at = tables.by_setting(runs, found)
    drawn = {
        "forest": pictures.forest(found, terms, looks),
        "curves": pictures.curves(tables.curves(runs, _CURVES), at, looks, metric_label(_CURVES)),
        "ranking": pictures.ranking(all_tables["ranking"], looks),
        "pareto": pictures.pareto(all_tables["cost"], terms, looks),
        "per_class": pictures.classes(all_tables["classes"], terms.reference),
        "similarity": pictures.similarity(tables.similarity(runs)),
    }
    for axis in tables.axes(runs):
        effects = tables.effects(runs, axis, 1 - terms.alpha)
        drawn[f"factor_{slug(axis)}"] = pictures.factor(effects, axis, terms, looks)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def render(
    runs: pd.DataFrame,
    found: pd.DataFrame,
    terms: Terms,
    failures: Sequence[Row],
    background: Background,
    all_tables: Mapping[str, Table],
    figures: set[str],
) -> str:
    """Renders the Markdown of a report."""

    def figure(name: str, alt: str) -> str:
        return f"![{escape(alt)}](figures/{name}.png)" if name in figures else ""

    def listing(text: str) -> str:
        fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", text)), 3)
        return f"{fence}\n{text.strip()}\n{fence}"

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitpos.analysis"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "code": code, "text": wording.paragraph, "plural": plural, "names": wording.listing, "slug": slug, "p": p_value,
        "number": lambda value: minus(number(value)),
    }  # fmt: skip
    rows = runs["row"].tolist()
    done = {(d["variant"], d["seed"]) for _, d in runs.iterrows()} | {
        (Variant.of(f["axes"]), int(f["seed"])) for f in failures
    }
    missing = sum((Variant.of(p["axes"]), int(p["seed"])) not in done for p in background.planned)
    warnings = wording.warnings(runs, found, terms, len(failures), missing)
    warnings += filter(None, [wording.confounded(found, all_tables["confounds"].facts["phrases"])])
    if edges := all_tables["tuning"].facts["edges"]:
        warnings.append(f"Tuning chose the edge of its grid for {plural(len(edges), 'variant')} (see Tuning).")
    environments = [row["environment"] for row in rows]
    installs = Counter(" ".join(f"{k}=={e[k]}" for k in _PACKAGES if k in e) for e in environments)
    commands = [f"pip install {versions}{f'  # {n} of {len(rows)} runs' if len(installs) > 1 else ''}"
                for versions, n in installs.most_common()]  # fmt: skip
    commands.append(f"vitpos study run {terms.name}.yaml --results repeated")
    curves, most = tables.curves(runs, _CURVES), int(found["n"].max()) if len(found) else 0
    context = {
        "terms": terms,
        "runs": runs,
        "found": found,
        "background": background,
        "answer": wording.answer(found, terms),
        "warnings": warnings,
        "notes": wording.notes(found),
        "corrected": corrected(terms, len(found)),
        "seeds": sorted(set(runs["seed"])),
        "axes": tables.axes(runs),
        "effects": {axis: tables.effects(runs, axis, 1 - terms.alpha) for axis in tables.axes(runs)},
        "facts": {name: table.facts for name, table in all_tables.items()},
        "has": lambda name: len(all_tables[name].frame) > 0,
        "table": lambda name: to_markdown(all_tables[name]),
        "figure": figure,
        "listing": listing,
        "figures": figures,
        "forest_alt": "; ".join(
            f"{d['scheme']}{', ' if d['setting'] else ''}{tables.setting_label(d['setting'])} "
            f"{number(d['mean'], sign=True)}, {d['verdict']}" for _, d in found.head(12).iterrows()
        ),
        "interval_kinds": {"two"} if len(found) and found["low"].notna().any() else set(),
        "reasons": set(found["reason"]) if len(found) else set(),
        "indicated": bool(len(found)) and bool((found["indicated"] != "").any()),
        "needed": "seeds needed" in all_tables["verdicts"].kinds,
        "most": most,
        "floor": floor_p(found, terms),
        "many": len(set(v.position for v in curves)) > 8,
        "no_history": [v.label for v in dict.fromkeys(runs["variant"]) if v not in curves],
        "without_table": list(dict.fromkeys(v.position for v in runs["variant"] if v not in tables.similarity(runs))),
        "failures": [{**f, "label": Variant.of(f["axes"]).label} for f in failures],
        "mixed": wording.mixed(rows),
        "tuning_seeds": background.tuning_seeds,
        "ran_on": ran_on(rows),
        "commits": [e.get("commit") for e in environments],
        "commands": "\n".join(commands),
        "shared": yaml.safe_dump(
            wording.common([row["config"] for row in rows]), default_flow_style=None, sort_keys=False, width=110
        ),
    }
    text = environment.get_template("report.md.j2").render(context)
    return re.sub(r"(^(`{3,})\n.*?^\2$)|\n{3,}", lambda m: m[1] or "\n\n", text, flags=re.M | re.S).strip() + "\n"


def corrected(terms: Terms, family: int) -> str:
    """Says how p values are corrected over the family."""
    how = {"holm": "corrected by Holm's method", "bonferroni": "corrected by Bonferroni's method", "none": "not corrected"}
    return f"{how[terms.correction]} for {plural(family, 'comparison')}"


def floor_p(found: pd.DataFrame, terms: Terms) -> float | None:
    """Returns the smallest p value for a difference that was within reach, where some verdict has it."""
    return None


def ran_on(rows: Sequence[Row]) -> dict[str, str]:
    """Says on what the runs were made."""

    def either(values: Any) -> str:
        return " / ".join(dict.fromkeys(map(str, values)))

    environments, data = [row["environment"] for row in rows], [row["data"] for row in rows]
    versions = [key for key in ("vitpos", *_PACKAGES, "python") if key in environments[0]]
    return {
        "Hardware": either(e.get("hardware") for e in environments),
        "Precision": either(e.get("precision") for e in environments),
        "Versions": either(", ".join(f"{key} {e.get(key)}" for key in versions) for e in environments),
        "Commit": either(e.get("commit") for e in environments),
        "Data": either(
            f"{d['name']}, {d['train']:,} training, {d['val']:,} validation and {d['test']:,} test images, fingerprint "
            f"{d['fingerprint']}" for d in data
        ),
        "Training time": f"{duration(sum(row['seconds'] for row in rows))} in all, {plural(len(rows), 'run')}",
    }


def _is_text(kind: str) -> bool:
    return kind in ("code", "text", "strong")


def _is_computed(kind: str) -> bool:
    return kind not in ("code", "text", "strong", "axis", "value")


def _format(kind: str, value: Any) -> str:
    """Formats a value of a table as plain text."""
    name, _, digits = kind.partition(":")
    match name:
        case "number" | "signed":
            return number(value, int(digits or 2), sign=name == "signed")
        case "count":
            return "-" if value is None or not math.isfinite(value) else f"{value:,.0f}"
        case "p":
            return p_value(value)
        case "interval" | "signed interval":
            return interval(*value, sign=name == "signed interval")
    return " ".join(str(value).split())


def to_markdown(table: Table) -> str:
    """Lays out a table as Markdown."""

    def cell(kind: str, value: Any) -> str:
        if kind == "code":
            return code(value).replace("|", "\\|")
        if kind == "strong":
            return f"**{escape(value)}**"
        written = minus(_format(kind, value))
        return written if _is_computed(kind) else escape(_format(kind, value)).replace("|", "\\|")

    heads = [(code(head) if kind == "axis" else escape(head)).replace("|", "\\|") for head, kind in table.kinds.items()]
    lines = [heads, ["---" if _is_text(kind) else "---:" for kind in table.kinds.values()]]
    lines += [
        [cell(kind, value) for kind, value in zip(table.kinds.values(), row, strict=True)]
        for row in table.frame.itertuples(index=False)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_csv(table: Table) -> str:
    """Writes a table as CSV with a header: numbers to ten digits, nothing where they are not defined."""

    def raw(value: Any) -> str:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return ""
        return f"{value:.10g}" if isinstance(value, float) else str(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [kind.endswith("interval") for kind in table.kinds.values()]
    writer.writerow([name for head, pair in zip(table.kinds, ends, strict=True)
                     for name in ([f"{head}, low", f"{head}, high"] if pair else [head])])  # fmt: skip
    for row in table.frame.itertuples(index=False):
        writer.writerow([raw(v) for value, pair in zip(row, ends, strict=True) for v in (value if pair else [value])])
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""Writes a table as a LaTeX ``tabular`` with rules of booktabs, to be read with ``\input``."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def cell(kind: str, value: Any) -> str:
        text = _format(kind, value) if _is_computed(kind) else escaped(_format(kind, value))
        if kind in ("code", "strong"):
            return f"\\text{'tt' if kind == 'code' else 'bf'}{{{text}}}"
        if not any(map(str.isdigit, text)) or not (_is_computed(kind) or _is_number(text)):
            return text
        return f"${re.sub(r'(?<=[0-9]),(?=[0-9])', '{,}', text)}$"  # for a minus that is one

    body = [[cell(kind, v) for kind, v in zip(table.kinds.values(), row, strict=True)]
            for row in table.frame.itertuples(index=False)]  # fmt: skip
    head, *rows = [" & ".join(line) + r" \\" for line in [[escaped(head) for head in table.kinds], *body]]
    layout = "".join("l" if _is_text(kind) else "r" for kind in table.kinds.values())
    title = f"% {table.title}; needs \\usepackage{{booktabs}}"
    lines = [title, f"\\begin{{tabular}}{{{layout}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, "\\end{tabular}\n"])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def page(title: str, text: str, images: Mapping[str, bytes]) -> str:
    """Turns the Markdown of a report into one HTML page that needs nothing beside it.

    Args:
        title: Title of the page.
        text: The Markdown; HTML in it is shown, not obeyed.
        images: SVG of each picture, by name.

    Returns:
        The page: no script, no font, no file, no network; a policy in its head forbids all else to be loaded.
    """
    converter = markdown.Markdown(extensions=["tables", "fenced_code", "sane_lists"], output_format="html")
    converter.preprocessors.deregister("html_block")
    for name in ("html", "autolink", "automail"):
        converter.inlinePatterns.deregister(name)
    converter.treeprocessors.register(_Page(images), "page", 15)  # after inline code, before indentation
    environment = jinja2.Environment(loader=jinja2.PackageLoader("vitpos.analysis"), autoescape=True)
    css = environment.loader.get_source(environment, "report.css")[0] if environment.loader else ""
    template = environment.get_template("report.html.j2")
    return template.render(title=title, style=Markup(css), body=Markup(converter.convert(text))) + "\n"  # noqa: S704


class _Page(Treeprocessor):
    """Gives the elements of a report their places: figures, scroll boxes, row headers, sections, an appendix that folds."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        super().__init__()
        self.images = images

    def run(self, root: etree.Element) -> None:
        """Rearranges the children of the page."""
        items = list(root)
        for item in items:
            root.remove(item)
        place, sections = root, []
        for item in items:
            if item.tag == "h2":
                sections.append(item)
                item.set("id", slug("".join(item.itertext()).lower()))
                place = section = etree.SubElement(root, "section", {"aria-labelledby": item.get("id", "")})
            elif item.tag == "h3":
                place = etree.SubElement(section, "details")
                item.tag = "summary"
            elif not sections:
                if names := {"blockquote": "answer", "ul": "warnings"}.get(item.tag):
                    item.set("class", names)
            if item.tag == "p" and len(item) == 1 and item[0].tag == "em" and len(place) and place[-1].tag == "figure":
                item.tag = "figcaption"
                place[-1].append(item)
            else:
                place.append(self.boxed(item))
        nav = etree.Element("nav", {"aria-label": "Sections"})
        listed = etree.SubElement(nav, "ul")
        for heading in sections:
            etree.SubElement(etree.SubElement(listed, "li"), "a", {"href": f"#{heading.get('id')}"}).text = "".join(heading.itertext())
        root.insert(next((i for i, item in enumerate(root) if item.tag == "section"), len(root)), nav)

    def boxed(self, item: etree.Element) -> etree.Element:
        """Puts what may be wider than the page into a box that scrolls by itself, also by the keyboard."""
        if item.tag == "pre":
            item.set("tabindex", "0")
        if item.tag == "p" and len(item) == 1 and item[0].tag == "img":
            image = item[0]
            data = base64.b64encode(self.images[Path(image.get("src", "")).stem]).decode()
            image.set("src", f"data:image/svg+xml;base64,{data}")
            item.tag = "figure"
        if item.tag == "table":
            head, body = item
            for cell in head.iter("th"):
                cell.set("scope", "col")
            for row in body:
                row[0].tag = "th"
                row[0].set("scope", "row")
            for cell in item.iter("code"):
                cell.text = (cell.text or "").replace("\\|", "|")
            label = ", ".join("".join(cell.itertext()) for cell in list(head.iter("th"))[:3])
            box = etree.Element("div", {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": f"Table: {label}"})
            box.append(item)
            return box
        return item
