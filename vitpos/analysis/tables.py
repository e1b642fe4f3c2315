"""The tables of a report, on which its pictures and prose draw: pure functions of runs and verdicts; and writers."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from vitpos.analysis import inference
from vitpos.analysis.confounds import confounds
from vitpos.analysis.runs import (
    Setting,
    Variant,
    accuracy_error,
    difference_error_bound,
    flags,
    image_error,
    summarize,
)
from vitpos.analysis.signs import RESOLUTION
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import pair_up
from vitpos.errors import VitposError, visible
from vitpos.text import code, escape, interval, minus, number, p_value

_BCA_PAIRS = 10  # of 5 normal differences a nominal 95 % BCa interval covers the true mean only 84 % of the time
KINDS = {
    **dict.fromkeys(("scheme", "axis", "against", "gains most", "loses most"), "code"),
    **dict.fromkeys(("detail", "seeds needed", "also differs in", "estimate"), "text"),
    **dict.fromkeys(("schemes, best first", "chosen", "at the edge of"), "text"),
    **dict.fromkeys(("difference", "g", "correlation", "gain", "loss", "minus first", "tau"), "signed"),
    **dict.fromkeys(("n", "seeds", "variants", "not a number", "parameters", "position parameters"), "count"),
    **dict.fromkeys(("of the reference", "images/s", "seconds per run", "peak memory, MB", "unpaired seeds"), "count"),
    **dict.fromkeys(("best", "worst", "times first"), "count"),
    **dict.fromkeys(("RMS at start", "RMS at end"), "number:3"),
    "verdict": "strong", "value": "value", "MFLOPs per image": "number:1",
}  # fmt: skip
"""How columns are written: names that are typed (``code``), ``text``, ``strong``, values of an ``axis`` that the column
is named after or of another (``value``), ``number`` and ``signed`` with digits, ``count``, ``p``, ``interval``."""
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: What it shows.
        frame: Its values; the first column says what a row is about, pairs are intervals.
        facts: What prose or a picture says beside it.
        kinds: How columns are written that `KINDS` does not know.
    """

    title: str
    frame: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """Heads and kinds of the columns."""

        def kind(head: str) -> str:
            first = self.frame[head].iloc[0] if len(self.frame) else ""
            if isinstance(first, tuple):
                return "interval" if head.endswith("of the mean") else "signed interval"
            return "axis" if isinstance(first, str) else "p" if re.search(r"\bp\b", head) else "number"

        return {head: self.kinds.get(head) or KINDS.get(head) or kind(head) for head in self.frame}


def build(title: str, rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str] | None = None, **facts: Any) -> Table:
    """Builds a table of rows, each a value by column."""
    return Table(title, pd.DataFrame(rows, dtype=object), facts, kinds or {})


def axes(runs: pd.DataFrame) -> list[str]:
    """Returns the axes beside position that some variant has."""
    return sorted({key for variant in runs["variant"] for key, _ in variant.others})


def level(value: str) -> str:
    """Formats the value of an axis; null stands for the default."""
    return "default" if value == "None" else value


def setting_label(setting: Setting) -> str:
    """Formats values of axes: ``model.depth = 3, position.scale = default``."""
    return ", ".join(f"{key} = {level(value)}" for key, value in setting)


def about(runs: pd.DataFrame, position: str, setting: Setting) -> dict[str, str]:
    """Returns the columns that say what a row is about: the scheme, and the value of each axis."""
    values = dict(setting)
    return {"scheme": position, **{key: level(values[key]) if key in values else "-" for key in axes(runs)}}


def each(runs: pd.DataFrame, found: pd.DataFrame) -> list[tuple[Any, dict[str, str]]]:
    """Returns each comparison with the columns that say what it is about."""
    return [(d, about(runs, d.scheme, d.setting)) for d in found.itertuples()]


def verdict_table(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns the verdicts with what they rest on, the largest difference of each setting first."""
    rows = []
    for d, subject in each(runs, found):
        few = d.reason == "too few seeds"  # then p is its floor, which says nothing of the difference
        row = {"scheme": d.scheme, "verdict": d.verdict, "detail": detail(d), **subject, "difference": d.mean}
        row |= {f"{terms.confidence} interval": (d.low, d.high), "p (difference)": math.nan if few else d.p}
        row |= {"p (equivalence)": math.nan if few else d.p_equivalence, "n": d.n, "seeds needed": needed(d)}
        rows.append(row)
    return _without_empty(build("Verdicts", rows), "detail", "seeds needed")


def _without_empty(found: Table, *heads: str) -> Table:
    """Leaves out columns that say nothing."""

    def says(value: Any) -> bool:
        first = value[0] if isinstance(value, tuple) else value
        return bool(first) and not (isinstance(first, float) and math.isnan(first))

    return replace(
        found,
        frame=found.frame.drop(columns=[h for h in heads if h in found.frame and not found.frame[h].map(says).any()]),
    )


def detail(d: Any) -> str:
    """Returns what belongs to a verdict: its reason, whether it exceeds the margin, and what is merely indicated."""
    indicated = f"indicated: {d.indicated}" if d.indicated else ""
    return "; ".join(filter(None, [d.reason, "beyond the margin" if d.beyond else "", indicated]))


def needed(d: Any) -> str:
    """Formats how many seeds an undecided comparison takes in all: ``8 to 21``, ``9 or more``, or nothing."""
    low, high = (None if pd.isna(x) else int(x) for x in (d.needed_low, d.needed_high))
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"


def tests(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns effect sizes, unadjusted tests and intervals, and what pairing bought, for specialists."""
    rows, at = [], terms.confidence
    for d, subject in each(runs, found):
        x = np.array(list(d.by_seed.values()))
        varied = len(x) > 1 and np.ptp(x) > RESOLUTION
        t, tost, bca = math.nan, math.nan, (math.nan, math.nan)
        if varied and d.testable:
            t = float(stats.ttest_1samp(x, 0).pvalue)
            sides = ((terms.margin + x, "greater"), (x - terms.margin, "less"))
            tost = max(float(stats.ttest_1samp(y, 0, alternative=side).pvalue) for y, side in sides)
        if varied and len(x) >= _BCA_PAIRS:
            rng = np.random.default_rng(0)
            found_ = stats.bootstrap((x,), np.mean, confidence_level=1 - terms.alpha, method="BCa", batch=100, rng=rng)
            bca = (float(found_.confidence_interval.low), float(found_.confidence_interval.high))
        pair = np.array(
            [[own[s]["metrics"][terms.metric] for s in d.finished] for own in (d.ours, d.theirs)], dtype=float
        )
        r, unpaired = inference.pairing_gain(100 * pair[0], 100 * pair[1])
        row = {
            **subject,
            "sd": d.sd,
            "g": d.g,
            f"{at} t interval": (d.single_low, d.single_high),
            f"{at} BCa interval": bca,
        }
        row |= {"sign-flip p": d.p_single, "t-test p": t, "TOST p": tost, "p (beyond margin)": d.p_beyond}
        rows.append({**row, "least margin": d.least_margin, "correlation": r, "unpaired seeds": unpaired})
    return _without_empty(build("Effect sizes and unadjusted tests", rows), f"{at} BCa interval")


def confounders(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Names what differs in each comparison besides the kind of positions; fact ``phrases``: the same as lists."""
    phrases, rows = [], []
    for d, subject in each(runs, found):
        both = [list(own.values()) for own in (d.ours, d.theirs)]
        try:
            phrases.append(confounds(*both))
        except VitposError as error:  # rows of a version that writes schemes in another way are still reported
            phrases.append([str(error)])
        counts = [own[0]["position_parameters"] if own else None for own in both]
        row = {**subject, "also differs in": "; ".join(phrases[-1]) or "nothing found"}
        rows.append({**row, "position parameters": counts[0], "of the reference": counts[1]})
    return build("Confounders", rows, phrases=phrases)


def errors(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Sets the error that comes from the seeds beside that from the test images.

    Facts: ``images`` (how many, 0 where rows do not say), ``split``, ``worst`` (largest error of one accuracy).
    """
    split = terms.metric.split("/")[0]
    images = min(row["data"].get(split) or 0 for row in runs["row"])
    worst = (
        max((accuracy_error(x, images) for x in runs["accuracy"].dropna()), default=math.nan) if images else math.nan
    )
    rows = []
    for d, subject in each(runs, found[found["finished"].map(len) > 0] if images and len(found) else found[:0]):
        ours, theirs = ([own[s] for s in d.finished] for own in (d.ours, d.theirs))
        exact = image_error(ours, theirs) if split == "test" else math.nan
        means = [100 * float(np.mean([row["metrics"][terms.metric] for row in own])) for own in (ours, theirs)]
        known, both = math.isfinite(exact), (math.nan, math.nan)
        if known and not d.scored and (right := flags([*ours, *theirs])) is not None:
            both = inference.pigeonhole_interval(right[: len(ours)], right[len(ours) :], 1 - terms.alpha)
        row = {**subject, "difference": d.mean, "error over seeds": d.sd / math.sqrt(d.n)}
        row |= {"error over images": exact if known else difference_error_bound(means[0], means[1], images)}
        row |= {"estimate": "by image" if known else "upper bound", f"{terms.confidence} interval with both": both}
        rows.append(row)
    found_ = build("Sources of error", rows, images=images, split=split, worst=worst)
    return _without_empty(found_, f"{terms.confidence} interval with both")


def schemes(runs: pd.DataFrame, terms: Terms) -> Table:
    """Returns each variant's accuracy over seeds and its size, the highest mean first."""
    rows = []
    for variant, own in best_first(runs):
        s, first = summarize(own["accuracy"], 1 - terms.alpha), own.iloc[0]
        row = {**about(runs, variant.position, variant.others), f"{terms.metric_label}, %": s.mean, "sd": s.sd}
        row |= {f"{terms.confidence} interval of the mean": (s.low, s.high), "n": s.n, "not a number": s.bad}
        row |= {"parameters": first["parameters"], "position parameters": first["position_parameters"]}
        row |= {"RMS at start": own["rms_start"].mean(), "RMS at end": own["rms_end"].mean()}
        rows.append({**row, "images/s": own["images_per_second"].mean()})
    return _without_empty(build("All schemes", rows), "not a number")


def best_first(runs: pd.DataFrame) -> list[tuple[Variant, pd.DataFrame]]:
    """Groups runs by variant, the highest mean first, those without a number last."""
    groups = [(own["accuracy"].mean(), variant, own) for variant, own in runs.groupby("variant", sort=True)]
    return [(v, own) for mean, v, own in sorted(groups, key=lambda g: math.inf if math.isnan(g[0]) else -g[0])]


def options(runs: pd.DataFrame, terms: Terms) -> Table:
    """Compares each variant that sets options with the same scheme at its defaults, paired by seed.

    Fact ``spreads``: for each setting in which a kind has several forms, its label, the spread of the means across
    kinds at default options (names and points; None without two), and within each kind (forms and points by name).
    """
    variants, seeds, rows, spreads = set(runs["variant"]), set(runs["seed"]), [], []
    for variant in sorted(variants):
        default = replace(variant, position=variant.kind)
        if variant.position != variant.kind and default in variants:
            pair = pair_up(runs, variant, default, seeds)
            s = summarize(list(pair["finished"].values()), 1 - terms.alpha)
            row = {**about(runs, variant.position, variant.others), "against": default.position, "difference": s.mean}
            rows.append({**row, f"{terms.confidence} t interval": (s.low, s.high), "n": s.n})
    means = runs.groupby("variant", sort=True)["accuracy"].mean().dropna()
    for others in sorted({v.others for v in means.index}):
        here = {v: mean for v, mean in means.items() if v.others == others}
        kinds = {v.kind: [here[w] for w in here if w.kind == v.kind] for v in here}
        within = {kind: (len(x), float(np.ptp(x))) for kind, x in kinds.items() if len(x) > 1}
        defaults = [v for v in here if v.position == v.kind != "none"]
        across = ([v.kind for v in defaults], float(np.ptp([here[v] for v in defaults]))) if len(defaults) > 1 else None
        if within:
            spreads.append((setting_label(others), across, within))
    return build("Scheme options against defaults", rows, spreads=spreads)


def _is_text(kind: str) -> bool:
    return kind in ("code", "text", "strong")


def _is_number(kind: str) -> bool:
    return not _is_text(kind) and kind not in ("axis", "value")


def _format(kind: str, value: Any) -> str:
    """Formats a value as plain text."""
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
    return " ".join(visible(str(value)).split()) or "-"


def to_markdown(table: Table) -> str:
    """Lays out a table as Markdown."""

    def cell(kind: str, value: Any) -> str:
        if _is_number(kind):
            return minus(_format(kind, value))
        plain = _format(kind, value)
        text = code(plain) if kind == "code" else f"**{escape(plain)}**" if kind == "strong" else escape(plain)
        return text.replace("|", "\\|")

    columns = table.columns
    heads = [cell("code" if kind == "axis" else "text", head) for head, kind in columns.items()]
    lines = [heads, ["---" if _is_text(kind) else "---:" for kind in columns.values()]]
    lines += [[*map(cell, columns.values(), row)] for row in table.frame.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_csv(table: Table) -> str:
    """Writes a table as CSV with a header: numbers to ten digits, nothing where they are not defined."""
    columns: dict[str, Sequence[Any]] = {}

    def harmless(value: Any) -> Any:
        """Puts an apostrophe before text that a spreadsheet would compute as a formula; numbers stay."""
        if not isinstance(value, str) or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|-", value):
            return value
        return f"'{visible(value)}" if re.match(r"\s*[=+@\-]\s*\S|[\t\n]", value) else visible(value)

    for head, kind in table.columns.items():
        if kind.endswith("interval"):
            columns[f"{head}, low"], columns[f"{head}, high"] = zip(*table.frame[head], strict=True)
        else:
            columns[str(harmless(head))] = [harmless(value) for value in table.frame[head]]
    text = io.StringIO()
    pd.DataFrame(columns).to_csv(text, index=False, float_format="%.10g", lineterminator="\n")
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""Writes a table as a LaTeX ``tabular`` with rules of booktabs, to be read with ``\input``."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in text)

    def cell(kind: str, value: Any) -> str:
        text = _format(kind, value)
        if _is_number(kind) and any(map(str.isdigit, text)):
            return f"${re.sub(r'(?<=[0-9]),(?=[0-9])', '{,}', text)}$"  # for a minus that is one
        return {"code": "\\texttt{%s}", "strong": "\\textbf{%s}"}.get(kind, "%s") % escaped(text)

    columns = table.columns
    lines = [map(escaped, columns), *(map(cell, columns.values(), row) for row in table.frame.itertuples(index=False))]
    head, *rows = [" & ".join(line) + r" \\" for line in lines]
    layout = "".join("l" if _is_text(kind) else "r" for kind in columns.values())
    begin = f"% {table.title}; needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{layout}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", "\\end{tabular}\n"])
