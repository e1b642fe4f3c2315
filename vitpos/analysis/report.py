"""A study's report: ``report.md`` and ``report.html`` with one content, figures, tables, and text for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitpos.analysis import html, report_conditions, report_factors, report_schemes, report_verdict, style
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.document import Document, Picture, to_markdown_page
from vitpos.analysis.evidence import Background, Evidence, gather
from vitpos.analysis.markup import to_plain
from vitpos.analysis.report_verdict import answer
from vitpos.analysis.statistics import Row
from vitpos.analysis.tables import Table, interval, number, p_value, plain, to_booktabs, to_csv
from vitpos.analysis.verdict import Difference
from vitpos.errors import VitposError

_NONE = Background()


def write(
    comparison: Comparison,
    rows: Sequence[Row],
    failures: Sequence[Row],
    folder: Path,
    background: Background = _NONE,
) -> str:
    """Writes ``report.md``, ``report.html``, ``figures/`` (PNG, SVG) and ``tables/`` (CSV, LaTeX) into a folder.

    Each file is replaced whole or not at all; figures and tables of an earlier report are removed.

    Args:
        comparison: What the study stated beforehand.
        rows: Its finished runs.
        failures: Its failed runs: ``axes``, ``seed`` and ``error``.
        folder: The study's folder; made where missing.
        background: What else there is of the study.

    Returns:
        The answer and the table of verdicts as text of at most 100 columns.

    Raises:
        VitposError: If there are no rows, two for one run, no such metric, or the folder cannot be written.
    """
    evidence = gather(comparison, rows, failures, background)
    document = compose(evidence)
    folder = Path(folder)
    try:
        pictures = _draw(document, folder / "figures")
        texts = {
            f"tables/{table.name}{suffix}": to(table)
            for table in document.blocks
            if isinstance(table, Table)
            for suffix, to in ((".csv", to_csv), (".tex", to_booktabs))
        }
        _clear(folder / "tables", {Path(name).name for name in texts})
        texts |= {"report.md": to_markdown_page(document), "report.html": html.page(document, pictures)}
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        raise VitposError(f"cannot write the report to {folder}: {error.strerror}; free or change it") from error
    sentence = textwrap.fill(to_plain(document.answer), 100, break_on_hyphens=False)
    return f"{sentence}\n\n{verdict_table(comparison, evidence.differences)}".rstrip()


def compose(evidence: Evidence) -> Document:
    """Puts the sections together; one that has nothing to say is empty."""
    return Document(
        title=evidence.comparison.name,
        question=evidence.comparison.question.strip(),
        answer=answer(evidence.comparison, evidence.differences),
        lead=report_verdict.lead(evidence),
        sections=(
            report_verdict.verdicts(evidence),
            report_verdict.differing(evidence),
            report_verdict.two_errors(evidence),
            report_schemes.schemes(evidence),
            report_schemes.kind_or_options(evidence),
            report_factors.factors(evidence),
            report_schemes.curves(evidence),
            report_factors.ranking(evidence),
            report_schemes.cost(evidence),
            report_factors.per_class(evidence),
            report_schemes.similarity(evidence),
            report_conditions.tuning(evidence),
            report_conditions.caveats(evidence),
            report_conditions.provenance(evidence),
            report_conditions.repeat(evidence),
        ),
    )


def verdict_table(comparison: Comparison, differences: Sequence[Difference]) -> str:
    """Lays out the verdicts for a terminal, notes below their rows."""
    if not differences:
        return ""
    level = f"{100 * (1 - comparison.alpha):g} % t interval"
    header = ["scheme", "difference", level, "p differs", "p equal", "n", "verdict"]
    cells = [
        [
            d.candidate.label,
            number(d.mean, sign=True),
            interval(d.low, d.high, sign=True),
            p_value(d.p_adjusted),
            p_value(d.p_equivalence_adjusted),
            str(d.n),
            d.verdict,
        ]
        for d in differences
    ]
    return plain(header, cells, [d.note for d in differences])


def _draw(document: Document, folder: Path) -> Mapping[str, bytes]:
    """Saves all pictures, and returns their SVG by name."""
    drawn = {picture.name: picture for picture in document.blocks if isinstance(picture, Picture)}
    _clear(folder, {f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")})
    for name, picture in drawn.items():
        style.save(picture.figure, folder / f"{name}.png")
    return {name: (folder / f"{name}.svg").read_bytes() for name in drawn}


def _clear(folder: Path, kept: set[str]) -> None:
    """Removes what an earlier report wrote and this one does not."""
    for path in folder.glob("*"):
        if path.suffix in (".png", ".svg", ".csv", ".tex") and path.name not in kept:
            path.unlink()


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
