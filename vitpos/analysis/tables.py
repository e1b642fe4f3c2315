"""The tables of a report, from which its pictures and prose draw: pure functions of runs and verdicts; and writers."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
from vitpos.analysis.signs import RESOLUTION, Floats
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import by_seed, pair_up
from vitpos.errors import VitposError, visible
from vitpos.text import code, escape, interval, minus, number, p_value, span

_BCA_PAIRS = 10  # with 5 normal differences a nominal 95 % BCa interval covers the true mean only 84 % of the time
_UNDEFINED = (math.nan, math.nan)
_COUNTS = (
    *("n", "seeds", "variants", "not a number", "parameters", "position parameters", "of the reference", "images/s"),
    *("seconds per run", "peak memory, MB", "unpaired seeds", "best", "worst", "times first"),
)
MOST = 30  # variants, beyond which the page shows the best of them
KINDS = {
    **dict.fromkeys(("scheme", "axis", "against", "gains most", "loses most"), "code"),
    **dict.fromkeys(("detail", "seeds needed", "also differs in", "estimate", "schemes, best first"), "text"),
    **dict.fromkeys(("difference", "g", "correlation", "gain", "loss", "minus first", "tau"), "signed"),
    **dict.fromkeys(("RMS at start", "RMS at end"), "number:3"),
    **dict.fromkeys(_COUNTS, "count"),
    **{"verdict": "strong", "value": "value", "MFLOPs per image": "number:1"},
}
"""How columns are formatted: typed names (``code``), ``text``, ``strong``, values of the ``axis`` that the column is
named after or of another (``value``), ``number`` and ``signed`` with digits, ``count``, ``p``, ``interval``."""
_LEFT = ("code", "text", "strong")
_LATEX = {ord(c): f"\\{c}" for c in "&%$#_{}"} | {
    ord(c): f"\\text{name}{{}}"
    for c, name in zip(r"\~^<>|", ("backslash", "asciitilde", "asciicircum", "less", "greater", "bar"), strict=True)
}


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: What it shows.
        frame: Its values; the first column names what a row is about, pairs are intervals.
        facts: Values for the prose or the picture beside it; ``names`` are columns of signed numbers.
    """

    title: str
    frame: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """Heads and kinds of the columns."""

        def kind(head: str) -> str:
            first = self.frame[head].iloc[0] if len(self.frame) else ""
            if isinstance(first, tuple):
                return "interval" if head.endswith("of the mean") else "signed interval"
            if head in self.facts.get("names", ()):
                return "signed"
            return "axis" if isinstance(first, str) else "p" if re.search(r"\bp\b", head) else "number"

        return {head: KINDS.get(head) or kind(head) for head in self.frame}


def build(title: str, rows: Sequence[Mapping[str, Any]], optional: Sequence[str] = (), **facts: Any) -> Table:
    """Builds a table of rows, each a value by column, without the `optional` columns that are empty."""
    frame = pd.DataFrame(rows, dtype=object)
    formats = Table(title, frame, facts).columns
    empty = [h for h in optional if h in frame and {_format(formats[h], x) for x in frame[h]} <= {"-", "0"}]
    return Table(title, frame.drop(columns=empty), facts)


def level(value: str) -> str:
    """Formats the value of an axis; null stands for the default."""
    return "default" if value == "None" else value


def setting_label(setting: Setting) -> str:
    """Formats values of axes: ``model.depth = 3, position.scale = default``."""
    return ", ".join(f"{key} = {level(value)}" for key, value in setting)


def about(runs: pd.DataFrame, position: str, setting: Setting) -> dict[str, str]:
    """Returns the columns that identify a row: the scheme, and the value of each axis."""
    values = dict(setting)
    return {"scheme": position, **{key: level(values.get(key, "-")) for key in runs.attrs["axes"]}}


def each(runs: pd.DataFrame, found: pd.DataFrame) -> list[tuple[Any, dict[str, str]]]:
    """Returns each comparison with the columns that identify it."""
    return [(d, about(runs, d.scheme, d.setting)) for d in found.itertuples()]


def verdict_table(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns the verdicts and the numbers behind them."""
    rows = []
    for d, subject in each(runs, found):
        # with too few seeds p is its floor, which says nothing about the difference
        p, q = _UNDEFINED if d.reason == "too few seeds" else (d.p, d.p_equivalence)
        row = {"scheme": d.scheme, "verdict": d.verdict, "detail": detail(d), **subject, "difference": d.mean}
        row |= {f"{terms.confidence} interval": (d.low, d.high), "p (difference)": p, "p (equivalence)": q}
        rows.append({**row, "n": d.n, "seeds needed": needed(d)})
    return build("Verdicts", rows, optional=("detail", "seeds needed"))


def detail(d: Any) -> str:
    """Formats the details of a verdict: its reason, whether it exceeds the margin, and what is indicated."""
    indicated = f"indicated: {d.indicated}" if d.indicated else ""
    return "; ".join(filter(None, [d.reason, "beyond the margin" if d.beyond else "", indicated]))


def needed(d: Any) -> str:
    """Formats how many seeds an undecided comparison takes in all: ``8 to 21``, ``9 or more``, or nothing."""
    if pd.isna(d.needed_low):
        return ""
    return f"{d.needed_low} or more" if pd.isna(d.needed_high) else span([d.needed_low, d.needed_high])


def tests(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns effect sizes, unadjusted tests and intervals, and what pairing bought, for specialists."""
    rows, bca_interval = [], f"{terms.confidence} BCa interval"
    for d, subject in each(runs, found):
        x = np.array(list(d.by_seed.values()))
        varied, t, tost, bca = len(x) > 1 and np.ptp(x) > RESOLUTION, math.nan, math.nan, _UNDEFINED
        if varied and d.testable:
            t = float(stats.ttest_1samp(x, 0).pvalue)
            sides = ((terms.margin + x, "greater"), (x - terms.margin, "less"))
            tost = max(float(stats.ttest_1samp(y, 0, alternative=side).pvalue) for y, side in sides)
        if varied and len(x) >= _BCA_PAIRS:
            rng, level = np.random.default_rng(0), 1 - terms.alpha
            ends = stats.bootstrap((x,), np.mean, confidence_level=level, method="BCa", batch=100, rng=rng)
            bca = (float(ends.confidence_interval.low), float(ends.confidence_interval.high))
        ours, theirs = (_accuracies(own, d.finished, terms) for own in (d.ours, d.theirs))
        correlation, unpaired = inference.pairing_gain(ours, theirs)
        row = {**subject, "sd": d.sd, "g": d.g, f"{terms.confidence} t interval": (d.single_low, d.single_high)}
        row |= {bca_interval: bca, "sign-flip p": d.p_single, "t-test p": t, "TOST p": tost}
        row |= {"p (beyond margin)": d.p_beyond, "least margin": d.least_margin}
        rows.append({**row, "correlation": correlation, "unpaired seeds": unpaired})
    return build("Effect sizes and unadjusted tests", rows, optional=[bca_interval])


def _accuracies(rows: Mapping[int, Mapping[str, Any]], seeds: Iterable[int], terms: Terms) -> Floats:
    return 100 * np.array([rows[seed]["metrics"][terms.metric] for seed in seeds], dtype=float)


def confounders(runs: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Lists what differs in each comparison besides the kind of positions; fact ``differing``: scheme and text."""
    rows, differing = [], []
    for d, subject in each(runs, found):
        both = [list(own.values()) for own in (d.ours, d.theirs)]
        try:
            text = "; ".join(confounds(*both))
        except VitposError as error:  # rows of a version that writes schemes in another way are still reported
            text = str(error)
        differing += [(d.scheme, text)] if text else []
        counts = [own[0]["position_parameters"] if own else None for own in both]
        row = {**subject, "also differs in": text or "nothing found"}
        rows.append({**row, "position parameters": counts[0], "of the reference": counts[1]})
    return build("Confounders", rows, differing=differing)


def errors(runs: pd.DataFrame, found: pd.DataFrame, terms: Terms) -> Table:
    """Returns the error over seeds and the error over test images of each difference.

    Facts: ``images`` (how many, 0 if rows do not record it), ``split``, ``worst`` (largest error of one accuracy).
    """
    split, both_errors = terms.metric.split("/")[0], f"{terms.confidence} interval with both"
    images = min(row["data"].get(split) or 0 for row in runs["row"])
    known = runs["accuracy"].dropna() if images else ()
    rows = []
    for d, subject in each(runs, found):
        if not images or not d.finished:
            continue
        ours, theirs = (_accuracies(own, d.finished, terms).mean() for own in (d.ours, d.theirs))
        error, both = difference_error_bound(ours, theirs, images), _UNDEFINED
        row = {**subject, "difference": d.mean, "error over seeds": d.sd / math.sqrt(d.n)}
        right = flags([own[s] for own in (d.ours, d.theirs) for s in d.finished]) if split == "test" else None
        if exact := right is not None and right.shape[1] > 1:
            a, b = np.split(right, 2)
            error = image_error(a, b)
            both = _UNDEFINED if d.scored else inference.pigeonhole_interval(a, b, 1 - terms.alpha)
        row |= {"error over images": error, "estimate": "by image" if exact else "upper bound"}
        rows.append({**row, both_errors: both})
    worst = max((accuracy_error(x, images) for x in known), default=math.nan)
    return build("Sources of error", rows, [both_errors], images=images, split=split, worst=worst)


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
    return build("All schemes", rows, optional=["not a number"])


def best_first(runs: pd.DataFrame) -> list[tuple[Variant, pd.DataFrame]]:
    """Groups runs by variant, the highest mean first, those without a number last."""
    groups = [(own["accuracy"].mean(), variant, own) for variant, own in runs.groupby("variant", sort=True)]
    return [(v, own) for mean, v, own in sorted(groups, key=lambda g: math.inf if math.isnan(g[0]) else -g[0])]


def leaders(runs: pd.DataFrame, found: pd.DataFrame) -> set[Variant]:
    """Returns the variants that the page shows: all, or of more than `MOST` the best and their references."""
    best = [variant for variant, _ in best_first(runs)]
    if len(best) <= MOST:
        return {*best, *(found["candidate"] if len(found) else ())}
    kept = set(best[:MOST])
    return kept | {d.reference for d in found.itertuples() if d.candidate in kept}


def led(table: Table, near: pd.DataFrame) -> Table:
    """Reduces a table of more than `MOST` rows to those of the variants that the page shows, or to the first."""
    frame = table.frame
    if "scheme" not in frame or len(frame) <= MOST:
        return replace(table, frame=frame[:MOST])
    shown = pd.DataFrame([about(near, v.position, v.others) for v in set(near["variant"])])
    heads = list(shown)
    return replace(table, frame=frame[frame.set_index(heads).index.isin(shown.set_index(heads).index)])


def on_page(table: Table, name: str, near: pd.DataFrame) -> str:
    """Formats a table for the page, with a note on where to find rows that are not shown."""
    shown = led(table, near)
    left = len(table.frame) - len(shown.frame)
    rest = f"\n\n*{len(shown.frame)} of {len(table.frame):,} rows; all are in `tables/{name}.csv`.*" if left else ""
    return to_markdown(shown) + rest


def options(runs: pd.DataFrame, terms: Terms) -> Table:
    """Compares each variant that sets options with the same scheme at its defaults, paired by seed.

    Fact ``spreads``: for each setting in which a kind has several forms, its label, the spread of the means across
    kinds at default options (names and points; None without two), and within each kind (forms and points by name).
    """
    variants, seeds, rows, spreads = by_seed(runs), set(runs["seed"]), [], []
    for variant in sorted(variants):
        default = replace(variant, position=variant.kind)
        if variant.position != variant.kind and default in variants:
            pair = pair_up(variants, variant, default, seeds, {}, math.nan)
            s = summarize(list(pair["finished"].values()), 1 - terms.alpha)
            row = {**about(runs, variant.position, variant.others), "against": default.position, "difference": s.mean}
            rows.append({**row, f"{terms.confidence} t interval": (s.low, s.high), "n": s.n})
    means = runs.groupby("variant", sort=True)["accuracy"].mean().dropna()
    forms = pd.DataFrame({"others": [v.others for v in means.index], "kind": [v.kind for v in means.index]})
    forms["default"], forms["mean"] = [v.position == v.kind != "none" for v in means.index], means.to_numpy()
    for others, here in forms.groupby("others", sort=True):
        within = {kind: (len(x), float(np.ptp(x))) for kind, x in here.groupby("kind")["mean"] if len(x) > 1}
        defaults = here[here["default"]]
        across = (defaults["kind"].tolist(), float(np.ptp(defaults["mean"]))) if len(defaults) > 1 else None
        if within:
            spreads.append((setting_label(others), across, within))
    return build("Scheme options against defaults", rows, spreads=spreads)


def _format(kind: str, value: Any) -> str:
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
    """Formats a table as Markdown."""

    def cell(kind: str, value: Any) -> str:
        plain = _format(kind, value)
        if not isinstance(value, str):
            return minus(plain)
        text = code(plain) if kind == "code" else f"**{escape(plain)}**" if kind == "strong" else escape(plain)
        return text.replace("|", "\\|")

    columns = table.columns
    heads = [cell("code" if kind == "axis" else "text", head) for head, kind in columns.items()]
    lines = [heads, ["---" if kind in _LEFT else "---:" for kind in columns.values()]]
    lines += [[*map(cell, columns.values(), row)] for row in table.frame.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_csv(table: Table) -> str:
    """Formats a table as CSV with a header: numbers to ten digits, empty where undefined."""
    columns: dict[str, Sequence[Any]] = {}

    def harmless(value: Any) -> Any:
        """Prefixes text that a spreadsheet would evaluate as a formula with an apostrophe; numbers stay."""
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
    r"""Formats a table as a LaTeX ``tabular`` with booktabs rules, for ``\input``."""

    def cell(kind: str, value: Any) -> str:
        text = _format(kind, value)
        if not isinstance(value, str) and any(map(str.isdigit, text)):
            return f"${re.sub(r'(?<=[0-9]),(?=[0-9])', '{,}', text)}$"  # math mode sets a true minus
        return {"code": "\\texttt{%s}", "strong": "\\textbf{%s}"}.get(kind, "%s") % text.translate(_LATEX)

    columns = table.columns
    lines = [[head.translate(_LATEX) for head in columns]]
    lines += [[*map(cell, columns.values(), row)] for row in table.frame.itertuples(index=False, name=None)]
    head, *rows = [" & ".join(line) + r" \\" for line in lines]
    layout = "".join("l" if kind in _LEFT else "r" for kind in columns.values())
    begin = f"% {table.title}; needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{layout}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", "\\end{tabular}\n"])
