"""Sections of a report that say what was found: the answer, verdicts, what else differs, and the two kinds of error."""

import math
from collections.abc import Sequence

from vitpos.analysis import figures, images, origins, style, verdict
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.confounds import confounds
from vitpos.analysis.document import Block, Items, Section, picture
from vitpos.analysis.evidence import Evidence, mean
from vitpos.analysis.inference import BCA_PAIRS
from vitpos.analysis.markup import code, strong
from vitpos.analysis.power import MOST, seeds_for_level
from vitpos.analysis.statistics import difference_sampling_error, points, sampling_error
from vitpos.analysis.style import count
from vitpos.analysis.tables import Column, Table, counts, intervals, number, numbers, p_values, texts
from vitpos.analysis.verdict import POWER, VERDICTS, Difference
from vitpos.errors import VitposError

_LISTED = 6  # a sentence with more names is not read
_SPELLED = 8  # nor are more sentences of one kind
_CORRECTED = {"holm": "after Holm", "bonferroni": "after Bonferroni", "none": "not corrected"}


def answer(comparison: Comparison, differences: Sequence[Difference]) -> str:
    """Says the verdicts in one sentence with markup, candidates grouped by verdict."""
    reference = code(comparison.reference)
    within = f"(within {comparison.margin:g})"
    forms = {
        "falls short": ("falls short of it", "fall short of it"),
        "better": ("is better", "are better"),
        "equivalent": (f"is equivalent {within}", f"are equivalent {within}"),
        "undecided": ("is undecided", "are undecided"),
    }
    clauses = []
    for kind in VERDICTS:
        found = [d for d in differences if d.verdict == kind]
        if found:
            more = _settled(found) if kind == "undecided" else ""
            several = len({d.candidate.position for d in found}) > 1
            clauses.append(f"{_listed(found, differences)} {forms[kind][several]}{more}")
    if not clauses:
        return f"There is nothing to compare with {reference} yet."
    return f"Against {reference}, in points of {style.words(comparison.metric)}: {'; '.join(clauses)}."


def _listed(found: Sequence[Difference], all_: Sequence[Difference]) -> str:
    """Lists candidates with their differences; one that was compared in several settings once, with the range."""
    who = []
    for position in dict.fromkeys(d.candidate.position for d in found):
        means = [d.mean for d in found if d.candidate.position == position]
        settings = sum(d.candidate.position == position for d in all_)
        ends = dict.fromkeys(number(mean, sign=True) for mean in (max(means), min(means)))
        where = f" in {len(means)} of {settings} settings" if settings > 1 else ""
        who.append(f"{code(position)} ({' to '.join(ends)}{where})")
    if len(who) > _LISTED:
        return f"{len(who)} schemes, from {who[0]} to {who[-1]},"
    return who[0] if len(who) == 1 else f"{', '.join(who[:-1])} and {who[-1]}"


def _settled(found: Sequence[Difference]) -> str:
    """Says how many seeds would settle what is undecided."""
    known = [d.needed.seeds or MOST + 1 for d in found if d.needed]
    if not known:
        return ""
    ends = dict.fromkeys(f"{n}" if n <= MOST else f"more than {MOST}" for n in (min(known), max(known)))
    have = dict.fromkeys(str(n) for n in (min(d.n for d in found), max(d.n for d in found)))
    which = ("it" if len(found) == 1 else "them") if len(known) == len(found) else f"{len(known)} of them"
    return f", and about {' to '.join(ends)} seeds in all, instead of {' to '.join(have)}, would settle {which}"


def lead(evidence: Evidence) -> list[Block]:
    """Says what was stated beforehand, and what a reader must know before quoting the answer."""
    comparison, family = evidence.comparison, len(evidence.differences)
    over = f" over {count(family, 'comparison')}" if family else ""
    margin = f"{comparison.margin:g} point{'' if comparison.margin == 1 else 's'}"
    stated = (
        f"Stated beforehand: reference {code(comparison.reference)}; {evidence.metric}; a margin of {margin}, "
        f"within which two count as equal; alpha {comparison.alpha:g}, {_CORRECTED[comparison.correction]}{over}. "
        f"Done: {count(len(evidence.rows), 'run')} of {count(len(evidence.variants), 'variant')} with "
        f"{count(len(evidence.seeds), 'seed')}."
    )
    warnings = _warnings(evidence)
    return [stated, Items(warnings)] if warnings else [stated]


def _warnings(evidence: Evidence) -> list[str]:
    comparison, found = evidence.comparison, evidence.differences
    lines = []
    if len(evidence.seeds) == 1:
        lines.append(
            "There is one seed: no verdict is possible, and no number here says how far another seed would go."
        )
    elif found:
        lines += _too_few(comparison, found)
    done, failed = len(evidence.rows), len(evidence.failures)
    if failed:
        lines.append(f"{failed} run{'s' if failed > 1 else ''} failed: what failed has no verdict (see Caveats).")
    if (missing := evidence.background.planned - done - failed) > 0:
        lines.append(f"{missing} of {evidence.background.planned} planned runs are missing.")
    if bad := sum(not math.isfinite(x) for variant in evidence.variants for x in evidence.values(variant)):
        lines.append(f"{bad} run{'s have' if bad > 1 else ' has'} no number for {evidence.metric}: no verdict there.")
    if same := [d for d in found if d.n > 1 and d.sd == 0]:
        lines.append(
            f"Differences that are the same with every seed have no variance to judge by: {_listed(same, found)}."
        )
    if not comparison.margin:
        lines.append("The margin is 0: no equivalence can be shown.")
    confounded = [d for d in found if any("parameters" not in phrase for phrase in _confounds(evidence, d))]
    if confounded:
        lines.append(
            f"In {len(confounded)} of {count(len(found), 'comparison')} more than the kind of positions differs (see "
            "What else differs)."
        )
    lines += origins.warnings(evidence.rows)
    if edge := sum(bool(choice["edge"]) for choice in evidence.background.tuning):
        lines.append(f"Tuning chose the edge of its grid for {count(edge, 'variant')} (see Tuning).")
    return lines


def _too_few(comparison: Comparison, found: Sequence[Difference]) -> list[str]:
    """Says what so few seeds cannot show, however large it is."""
    most, level = max(d.n for d in found), comparison.level(len(found))
    least = {"a difference": seeds_for_level(level)}
    if comparison.margin:
        least["equivalence"] = seeds_for_level(level, sides=1)
    lacking = [f"{n} pairs for {what}" for what, n in least.items() if most < n]
    if not lacking:
        return []
    return [
        f"{count(most, 'pair')} of seeds cannot decide {count(len(found), 'comparison')}, whatever is found: to reach "
        f"{level:.2g}, the level of each, a sign-flip test takes {' and '.join(lacking)}."
    ]


def verdicts(evidence: Evidence) -> Section:
    """Gives the differences with intervals, tests and verdicts, as picture, table and words."""
    found, comparison = evidence.differences, evidence.comparison
    if not found:
        return Section("Verdicts", ())
    said = [f"{code(d.candidate.label)} {verdict.words(comparison, d)}." for d in found]
    noted: dict[str, list[Difference]] = {}
    for d in found:
        noted.setdefault(d.note, []).append(d)
    notes = [f"{_whose(who, found)}: {note}." for note, who in noted.items() if note]
    alt = f"Differences to {comparison.reference} with their intervals and the margin: "
    numbers_ = "; ".join(f"{d.candidate.label} {number(d.mean, sign=True)}, {d.verdict}" for d in found)
    alt += numbers_ if len(found) <= _SPELLED else "the numbers are in the table"
    shown = picture("forest", figures.forest(comparison, found, evidence.look), alt)
    blocks: list[Block] = [*shown, _table(evidence)]
    blocks += [Items(said)] if len(found) <= _SPELLED else []
    blocks += ["Notes:", Items(notes)] if notes else []
    return Section("Verdicts", [*blocks, _how(evidence), _tests(evidence)])


def _whose(some: Sequence[Difference], found: Sequence[Difference]) -> str:
    """Names those to whom a note belongs: schemes rather than their settings where it belongs to all of these."""
    if len(some) == len(found) > 1:
        return "All comparisons"
    names_ = []
    for d in some:
        others = [other for other in found if other.candidate.position == d.candidate.position]
        all_of_them = len(others) > 1 and all(other in some for other in others)
        names_.append(f"{code(d.candidate.position)} in all settings" if all_of_them else code(d.candidate.label))
    return ", ".join(dict.fromkeys(names_))


def _table(evidence: Evidence) -> Table:
    found, level = evidence.differences, evidence.level
    flips, open_ = any(math.isfinite(d.flip_low) for d in found), any(d.needed for d in found)
    columns = [*evidence.subject, numbers("difference", sign=True), intervals(f"{level} t interval", sign=True)]
    columns += [intervals(f"{level} sign-flip interval", sign=True)] if flips else []
    columns += [p_values("p differs"), p_values("p equal"), counts("n"), Column("verdict", strong, left=True)]
    columns += [Column("seeds to settle", _seeds)] if open_ else []
    rows = [
        [
            *(*evidence.about(d.candidate), d.mean, (d.low, d.high), *([(d.flip_low, d.flip_high)] if flips else [])),
            *(d.p_adjusted, d.p_equivalence_adjusted, d.n, d.verdict, *([_needed(d)] if open_ else [])),
        ]
        for d in found
    ]
    return Table("verdicts", f"Verdicts against {evidence.comparison.reference}", columns, rows)


def _needed(d: Difference) -> float | None:
    return None if d.needed is None else d.needed.seeds or math.inf


def _seeds(needed: float | None) -> str:
    return "-" if needed is None else f"> {MOST}" if math.isinf(needed) else str(needed)


def _how(evidence: Evidence) -> str:
    comparison, found = evidence.comparison, evidence.differences
    few = "" if any(math.isfinite(d.bca_low) for d in found) else f", from {BCA_PAIRS} pairs on, else it is too narrow"
    settle = (
        f"{strong('Seeds to settle')} are those in all that would show a difference, or equivalence, with "
        f"{100 * POWER:g} % power if mean and deviation are as observed: an order of magnitude, and for a new study. "
        if any(d.needed for d in found)
        else ""
    )
    return (
        f"Differences are scheme minus {code(comparison.reference)} in percentage points, paired by seed (n pairs). "
        f"Intervals are not adjusted for the number of comparisons. {strong('p differs')} is the two-sided sign-flip "
        f"test, {strong('p equal')} two one-sided sign-flip tests against the margin ({comparison.margin:g}), "
        f"{_CORRECTED[comparison.correction]} over {count(len(found), 'comparison')}; they decide. Equivalence is "
        "judged first: a difference within the margin was declared beforehand to count as equal. "
        f"{settle}Below, for information: {strong('g')} is Hedges' g_z, the mean in standard deviations of the "
        f"differences; {strong('BCa')} is the bootstrap interval{few}; p values before the correction, and those of "
        "the paired t test and of two one-sided t tests (TOST)."
    )


def _tests(evidence: Evidence) -> Table:
    columns = [*evidence.subject, numbers("sd of differences"), numbers("effect size g", sign=True)]
    columns += [intervals(f"{evidence.level} BCa interval", sign=True), p_values("differs: sign-flip p")]
    columns += [p_values("equal: sign-flip p"), p_values("differs: paired t p"), p_values("equal: TOST p")]
    rows = [
        [*evidence.about(d.candidate), d.sd, d.g, (d.bca_low, d.bca_high), d.p, d.p_equivalence, d.p_t, d.p_tost]
        for d in evidence.differences
    ]
    return Table("tests", "Effect sizes and tests before the correction", columns, rows)


def differing(evidence: Evidence) -> Section:
    """Names what may move a difference beside the kind of positions."""
    if not evidence.differences:
        return Section("What else differs", ())
    found = [_confounds(evidence, d) for d in evidence.differences]
    rows = [
        [*evidence.about(d.candidate), "; ".join(phrases) or "nothing that was looked for"]
        for d, phrases in zip(evidence.differences, found, strict=True)
    ]
    text = (
        f"In {sum(map(bool, found))} of {count(len(rows), 'comparison')} scheme and "
        f"{code(evidence.comparison.reference)} differ in more than the kind of positions, so that the difference may "
        "come from these as well. Looked for: settings and axes, amplitude at the start, temperature and other "
        "options, parameters, tuned values."
    )
    columns = [*evidence.subject, texts(f"against {code(evidence.comparison.reference)}")]
    return Section("What else differs", (text, Table("confounds", "What else differs", columns, rows)))


def _confounds(evidence: Evidence, d: Difference) -> list[str]:
    ours, theirs = evidence.places[d.candidate], evidence.places.get(d.reference, {})
    try:
        return confounds(list(ours.values()), list(theirs.values()))
    except VitposError as error:  # rows of a version that writes schemes in another way are still reported
        return [str(error)]


def two_errors(evidence: Evidence) -> Section:
    """Sets the error that comes from the seeds beside that which comes from the test images."""
    split = style.words(evidence.split)
    many = min((row["data"].get(evidence.split) or 0 for row in evidence.rows), default=0)
    if not many:
        text = f"The size of the {split} split is not in the rows, so its sampling error is not given."
        return Section("Seeds and images", (text,))
    worst = max(
        (sampling_error(x, many) for v in evidence.variants for x in evidence.values(v) if math.isfinite(x)),
        default=math.nan,
    )
    text = (
        "Two errors, given apart. Over seeds a mean difference has the error sd / sqrt(n), and more seeds shrink it. "
        f"Over images it has one since these {many:,} {split} images are not others of the same kind; seeds "
        "do not average it away, and verdicts are about these images. One accuracy has an error over images, "
        f"sqrt(p (1 - p) / N), of up to {number(worst)} points. That of a difference is computed image by image where "
        "rows say which were right, else it is at most that of two accuracies on images of their own."
    )
    columns = [*evidence.subject, numbers("difference", sign=True), numbers("error over seeds")]
    columns += [numbers("error over images"), texts("how")]
    rows = []
    for d in evidence.differences:
        if not d.n:
            continue
        ours, theirs = evidence.pair(d)
        paired = images.sampling_error(ours, theirs) if evidence.split == "test" else math.nan
        both = [mean([points(row, evidence.comparison.metric) for row in group]) for group in (ours, theirs)]
        known = math.isfinite(paired)
        error = paired if known else difference_sampling_error(both[0], both[1], many)
        how = "by image" if known else "at most"
        rows.append([*evidence.about(d.candidate), d.mean, d.sd / math.sqrt(d.n), error, how])
    table = Table("errors", "Error over seeds and over images", columns, rows)
    return Section("Seeds and images", (text, table) if rows else (text,))
