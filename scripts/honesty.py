"""Simulates studies whose truth is known, and writes how often their verdicts are wrong and how often reached.

python scripts/honesty.py                    # some five minutes
python scripts/honesty.py --studies 2000     # a minute or two
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from vitpos.analysis.inference import BCA_PAIRS
from vitpos.analysis.simulation import (
    FAMILY,
    PAIRS,
    SD,
    SHAPES,
    TERMS,
    Rate,
    as_planned,
    coverage,
    second_look,
    wrong_differences,
    wrong_equivalences,
)
from vitpos.analysis.tables import Column, Table, markdown

SKEWED = [shape for shape in SHAPES if "skewed" in shape]
ALPHA = TERMS.alpha


def main() -> None:
    """Simulates and writes ``results/honesty.md``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=5000, help="studies behind each number (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/honesty.md"), help="(%(default)s)")
    options = parser.parse_args()
    if options.studies < 1:
        parser.error(f"--studies is {options.studies}; it must be at least 1")
    text = report(options.studies)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


def report(n: int) -> str:
    """Runs all simulations and returns the page."""
    parts = [
        "# What the verdicts are worth",
        f"Simulated studies, {n:,} behind each number, so that one of 0.050 is good to "
        f"±{1.96 * (ALPHA * (1 - ALPHA) / n) ** 0.5:.3f}. Each has {FAMILY} candidates and one reference that they "
        f"share, a margin of {TERMS.margin:g} point, paired differences with a deviation of {SD:g} points, alpha "
        f"{ALPHA:g}, and Holm over the {FAMILY}. Verdicts are by the functions that judge real studies. **Bold**: "
        "worse than promised, beyond chance (exact binomial test at 0.1 %). Columns are numbers of seeds. "
        "`python scripts/honesty.py` makes this page again.",
        "## Wrong verdicts of a difference",
        "No candidate differs. Share of studies with at least one verdict *better* or *falls short*; promised: at most "
        f"{ALPHA:g}. With 5 seeds it is 0, since no sign-flip p value is below 2/2^5.",
        by_pairs(lambda shape, k: wrong_differences(shape, k, n), SHAPES),
        f"Two of the {FAMILY} differ by 3 points. Share of studies with such a verdict on one of the others; promised: "
        f"at most {ALPHA:g}.",
        by_pairs(lambda shape, k: wrong_differences(shape, k, n, different=2), SHAPES),
        "## Wrong verdicts of equivalence",
        "All candidates differ by exactly the margin. Share of studies with at least one verdict *equivalent*; "
        f"promised: at most {ALPHA:g}. With 5 seeds it is 0, since no p value is below 1/2^5.",
        by_pairs(lambda shape, k: wrong_equivalences(shape, k, n), SHAPES),
        "## Power",
        "Seeds that are planned for one candidate of m, where differences are normal, and the share of studies that "
        "show it. The others do not differ. Planned at alpha / m: Holm finds no less. Other shapes are for "
        "information. Where the true difference is just the margin, a study that shows a difference may show "
        "equivalence too, wrongly and as rarely as the tables above say, and is then judged equivalent.",
        powers(n),
        "## Intervals",
        "Share of studies whose 95 % interval holds the true difference; promised: at least 0.95. The sign-flip "
        "interval holds all that its test does not reject; with 5 seeds it rejects nothing and there is no interval. "
        f"The bootstrap (BCa) is too narrow for few seeds: it is given for information, from {BCA_PAIRS} seeds on.",
        intervals(n, steady=False, shapes=SHAPES),
        "## Where the promise does not hold",
        "All above has runs that vary alike, so that differences are symmetric about their mean, whatever the runs "
        "are. Where runs of a candidate are skewed and those of the reference hardly vary, differences are skewed, and "
        "no test of so few is right about means, neither sign flips nor t. A verdict of a difference then says that "
        "runs differ in distribution (most fall short of the reference, say, and a few are far better), not that their "
        "means do. The worst case is a reference that does not vary at all. Wrong verdicts of a difference:",
        by_pairs(lambda shape, k: wrong_differences(shape, k, n, steady=True), SHAPES),
        "Wrong verdicts of equivalence, all candidates better by the margin, with the long tail above:",
        by_pairs(lambda shape, k: wrong_equivalences(shape, k, n, steady=True), SHAPES),
        "Coverage of the intervals:",
        intervals(n, steady=True, shapes=SKEWED),
        "## Why equivalence is not judged by t tests",
        "Wrong verdicts of equivalence as above, but by t tests (TOST) with Holm. First runs that vary alike:",
        by_pairs(lambda shape, k: wrong_equivalences(shape, k, n, by_t=True), SHAPES, (3, *PAIRS)),
        "A reference that does not vary:",
        by_pairs(lambda shape, k: wrong_equivalences(shape, k, n, steady=True, by_t=True), SHAPES, (3, *PAIRS)),
        "Light tails alone, which leave differences symmetric, make t tests of few seeds wrong too often. Sign flips "
        "are right there, and skewed differences mislead them less. They take more seeds to show anything.",
        "## A second look",
        "No candidate differs. The study is judged, and judged again after as many more seeds. Share of studies with a "
        f"wrong verdict of a difference at either time: more than {ALPHA:g}, so seeds that are added because a verdict "
        "was missing are best judged as a study of their own. Columns: seeds at the first look.",
        by_pairs(lambda shape, k: second_look(shape, k, n), SHAPES, (8, 10, 12)),
    ]
    return "\n\n".join(parts) + "\n"


def by_pairs(rate: Callable[[str, int], Rate], shapes: Iterable[str], pairs: tuple[int, ...] = PAIRS) -> str:
    """Lays out a share of wrong verdicts by shape and number of pairs."""
    cells = []
    for shape in shapes:
        found = [rate(shape, k) for k in pairs]
        cells.append([shape, *(mark(r, r.above(ALPHA)) for r in found)])
    return layout(["runs"], map(str, pairs), cells)


def powers(n: int) -> str:
    """Lays out planned and found power."""
    shapes = ["normal", "heavy tails (t, 3 df)", *SKEWED]
    cells = []
    for family in (1, FAMILY):
        for true in (TERMS.margin, 2 * TERMS.margin, 0.0):
            for planned in (0.80, 0.95):
                found = [as_planned(shape, family, true, planned, n) for shape in shapes]
                goal = f"a difference of {true:g}" if true else f"equivalence within {TERMS.margin:g}"
                # seeds come from a simulation too, which is good to a point
                normal = mark(found[0].found, found[0].found.below(planned - 0.01))
                others = [mark(p.found, bad=False) for p in found[1:]]
                cells.append([goal, str(family), f"{planned:.2f}", str(found[0].pairs), normal, *others])
    return layout(["to show"], ["m", "planned", "seeds", *shapes], cells)


def intervals(n: int, *, steady: bool, shapes: Iterable[str]) -> str:
    """Lays out coverage by shape, kind of interval and number of pairs."""
    cells = []
    for shape in shapes:
        found = [coverage(shape, k, n, steady=steady) for k in PAIRS]
        for kind in ("t", "sign-flip", "BCa"):
            cells.append([shape, kind, *(mark(rates[kind], rates[kind].below(0.95)) for rates in found)])
    return layout(["runs", "interval"], map(str, PAIRS), cells)


def layout(words: Iterable[str], numbers: Iterable[str], cells: list[list[str]]) -> str:
    """Lays out a table whose columns are words, then numbers."""
    return markdown(Table("", "", [*(Column(head, left=True) for head in words), *map(Column, numbers)], cells))


def mark(rate: Rate, bad: bool) -> str:
    """Writes a share, bold where it breaks a promise."""
    return f"**{rate.share:.3f}**" if bad else f"{rate.share:.3f}"


if __name__ == "__main__":
    main()
