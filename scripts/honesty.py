"""Simulates studies with known truth, and writes the error rates and power of their verdicts.

python scripts/honesty.py                   # about ten minutes on one core python scripts/honesty.py --studies 200
# a minute
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats
from simulated import (
    ALPHA,
    BATCHES,
    FAMILY,
    LIKE,
    MARGIN,
    SD,
    SHAPES,
    SKEWED,
    UNLIKE,
    Shown,
    World,
    advised,
    bayes_rope,
    bayes_sign,
    beyond,
    covered,
    differs,
    differs_holm,
    equivalent,
    generator,
    hierarchical,
    indicated,
    looking_again,
    moderated_t,
    pooled_dunnett,
    share,
    tuned,
    until_settled,
    world,
    wrong_in_both,
)

from vitpos.analysis import inference, power
from vitpos.analysis.signs import Floats

SEEDS = (6, 8, 12, 20)
HARD = {**LIKE, **UNLIKE}


def table(head: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a Markdown table, numbers with three digits."""
    cells = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def errors(
    worlds: Mapping[str, World],
    shown: Callable[[Floats], Shown],
    studies: int,
    seeds: Sequence[int] = SEEDS,
    sizes: Sequence[int] = (FAMILY,),
    true: Sequence[float] | float = 0,
    null: slice = slice(None),
) -> str:
    """Returns a table of the share of studies with any false finding, by world, family size and number of seeds."""
    rows = []
    for name, draw in worlds.items():
        row: list[object] = [name]
        for m in sizes:
            for n in seeds:
                d = draw(generator(name, m, n), studies, m, n, true)
                row.append(marked(share(shown(d)[:, null]), studies))
        rows.append(row)
    several = len(sizes) > 1
    return table(["runs", *(f"m={m}, n={n}" if several else f"n={n}" for m in sizes for n in seeds)], rows)


def marked(rate: float, studies: int) -> str:
    """Formats a rate, in bold if it exceeds alpha beyond chance: exact binomial test at 0.1 %."""
    above = stats.binomtest(round(rate * studies), studies, ALPHA, alternative="greater").pvalue < 0.001
    return f"**{rate:.3f}**" if above else f"{rate:.3f}"


def old_and_new(studies: int) -> str:
    """Returns a table of error and power of max-T beside Holm."""
    normal = world()
    cases: dict[str, tuple[Sequence[float] | float, bool]] = {
        "error: no difference": (0, False),
        "power: all five differ by 2 sd": (2 * SD, False),
        "power: all five differ by 4 sd": (4 * SD, False),
        "power: one of five differs by 2 sd": ((2 * SD, 0, 0, 0, 0), False),
        "error: all five at the margin": (MARGIN, True),
        "power: five equivalent, margin 1.67 sd": (0, True),
        "power: five equivalent, margin 3 sd": (0, True),
    }
    ways = {False: {"Holm": differs_holm, "max-T": differs},
            True: {"Holm": partial(equivalent, correction="holm"), "max-T": equivalent}}  # fmt: skip
    rows = []
    for name, (true, equal) in cases.items():
        for way, shown in ways[equal].items():
            row: list[object] = [name, way]
            for n in (3, 5, 6, 7, 8, 10, 12):
                d = normal(generator(name, n), studies, FAMILY, n, true) * (MARGIN / (3 * SD) if "3 sd" in name else 1)
                found = shown(d)
                error = name.startswith("error")
                row.append(share(found) if error else float(found[:, 0].mean()))
            rows.append(row)
    return table(["", "", *(f"n={n}" for n in (3, 5, 6, 7, 8, 10, 12))], rows)


def sequential(studies: int) -> str:
    """Returns a table of seeds and errors of studies that add seeds until settled."""
    rows = []
    for name, true in {"0": 0.0, "0.5 sd": 0.5 * SD, "1 sd": SD, "the margin, 1.67 sd": MARGIN, "2 sd": 2 * SD,
                       "4 sd": 4 * SD, "2 sd for one of five, else 0": (2 * SD, 0, 0, 0, 0)}.items():  # fmt: skip
        d = world()(generator("settle", name), studies, FAMILY, 24, true)
        unequal, equal, last = until_settled(d)
        same = np.broadcast_to(true, FAMILY) == 0
        wrong = (unequal & same) | (equal & (np.abs(np.broadcast_to(true, FAMILY)) >= MARGIN))
        rows.append([name, f"{last.mean():.1f}", float((unequal | equal).mean()), marked(share(wrong), studies)])
    return table(["true difference of all five", "mean seeds", "decided", "a wrong verdict"], rows)


def looks(studies: int) -> str:
    """Returns a table of errors of sequential verdicts, and of looking again with a test for one look."""
    rows = []
    for name, draw in {**LIKE, **UNLIKE, **SKEWED}.items():
        d = draw(generator("looks", name), studies, FAMILY, 24)
        few = min(studies, 500)
        at_margin = until_settled(d + MARGIN)[1]
        rows.append([name, marked(share(until_settled(d, margin=0)[0]), studies), marked(share(at_margin), studies),
                     marked(share(looking_again(d[:few, :, :14])), few)])  # fmt: skip
    return table(["runs", "bets: difference", "bets: equivalence", "max-T at every n from 6 to 14"], rows)


def planning(studies: int) -> str:
    """Returns a table of the power of studies that were planned from a few seeds."""
    rows = []
    for n in (3, 5, 8):
        for true in (0.0, SD, MARGIN, 2 * SD):
            row: list[object] = [str(n), f"{true / SD:.2g} sd"]
            for limit in (False, True):
                mean, low, seeds = advised(n, true, studies, limit=limit)
                row += [mean, low, f"{seeds:.0f}"]
            rows.append(row)
    columns = ("mean power", "power < 0.5", "median seeds")
    return table(
        [
            "first seeds",
            "true difference",
            *(f"as found: {c}" for c in columns),
            *(f"upper limit: {c}" for c in columns),
        ],
        rows,
    )


def intervals(studies: int) -> str:
    """Returns a table of the coverage of t intervals, single and simultaneous."""
    rows = []
    for shape in SHAPES:
        row: list[object] = [shape]
        for n in (3, 5, 8, 20):
            d = world(shape)(generator("intervals", n, shape), studies, FAMILY, n)
            for level in (1 - ALPHA, 1 - power.sidak(ALPHA, FAMILY)):
                low, high = inference.t_interval(d.mean(axis=-1), d.std(axis=-1, ddof=1), n, level)
                row.append(1 - share((low > 0) | (high < 0)))
        rows.append(row)
    return table(["runs", *(f"n={n}, {kind}" for n in (3, 5, 8, 20) for kind in ("single", "simultaneous"))], rows)


def alternatives(studies: int) -> str:
    """Returns a table of errors of tests that were rejected."""
    worlds = {"normal": LIKE["normal runs"], "deviations 1:16": UNLIKE["deviations of candidates 1:16"],
              "noisy reference": UNLIKE["a noisy reference (4 times)"]}  # fmt: skip
    ways: dict[str, tuple[Callable[[Floats], Shown], float]] = {
        "max-T sign flips": (differs, 0),
        "second tier (n <= 5)": (partial(indicated, what="differs"), 0),
        "Dunnett, pooled deviation": (pooled_dunnett, 0),
        "moderated t (limma), Holm": (moderated_t, 0),
        "Bayes, flat prior: sign, P > .975": (bayes_sign, 0),
        "Bayes, hierarchical: sign, P > .975": (partial(bayes_sign, of=hierarchical), 0),
        "Bayes, flat prior: equivalence, P > .95, all at the margin": (bayes_rope, MARGIN),
        "Bayes, hierarchical: the same": (partial(bayes_rope, of=hierarchical), MARGIN),
    }
    rows = []
    for name, (shown, true) in ways.items():
        rates = [share(shown(draw(generator("other", world, n), studies, FAMILY, n, true)))
                 for world, draw in worlds.items() for n in (3, 5, 8)]  # fmt: skip
        rows.append([name, *(marked(rate, studies) for rate in rates)])
    return table(["test", *(f"{world}, n={n}" for world in worlds for n in (3, 5, 8))], rows)


def report(n: int) -> str:
    """Runs all simulations and returns the page, with `n` studies behind each number."""
    few = max(n // 20, 5)
    rows = [
        [name, *(marked(share(differs(tuned(n, k, t))), n) for k in (8, 12, 20))]
        for name, t in (("one seed chooses for all", 1), ("five seeds choose for all", 5), ("each seed for itself", 0))
    ]
    tuning = table(["rate chosen by", "n=8", "n=12", "n=20"], rows)
    held = table(
        ["seeds, images", "t over seeds alone", "seeds and images"],
        [
            [f"{k}, {images}", *covered(k, images, n // 2).values()]
            for k, images in ((3, 400), (6, 400), (12, 400), (6, 2000))
        ],
    )
    both = table(["m", *(f"n={k}" for k in SEEDS)], [[m, *(wrong_in_both(n, m, k) for k in SEEDS)] for m in (2, 6, 12)])
    second = partial(indicated, what="differs"), partial(indicated, what="equivalent")
    strength = table(
        ["true difference of all five", "n=3", "n=4", "n=5"],
        [
            [
                f"{x:g} sd",
                *(
                    float(second[0](world()(generator("tier", x, k), n, FAMILY, k, x * SD))[:, 0].mean())
                    for k in (3, 4, 5)
                ),
            ]
            for x in (2, 4, 8)
        ],
    )
    pages = [
        "# Error rates and power of the verdicts",
        f"{n:,} simulated studies behind each number unless said otherwise, so that 0.050 is good to "
        f"±{1.96 * (ALPHA * (1 - ALPHA) / n) ** 0.5:.3f}. Each study has m candidates that share one reference (m = "
        f"{FAMILY} unless said otherwise) and n seeds; the margin is {MARGIN:g} point, a paired difference has a "
        f"standard deviation of {SD:g} points, and alpha is {ALPHA:g}. Studies are judged by the functions that "
        "judge real ones. **Bold**: above alpha beyond chance (exact binomial test at 0.1 %). `python "
        "scripts/honesty.py` makes this page again.",
        "What decides is the step-down max-T of Westfall and Young over sign flips of whole seeds. It assumes that "
        "seeds are independent and that the vector of differences of a seed is as likely with the other sign "
        "(joint symmetry). Runs that are exchangeable within a seed fulfil this whatever their distribution.",
        "## Holm and max-T",
        "Error: share of studies with any wrong verdict. Power: share of studies that show the first comparison. "
        "Normal runs. With max-T six seeds can show differences and five equivalence, whatever the number of "
        "comparisons; with Holm over five it takes eight and seven.",
        old_and_new(n),
        "## Family-wise error: differences",
        "No candidate differs; share of studies with any verdict *better* or *worse*.",
        errors(HARD, differs, n),
        "One comparison, and twelve:",
        errors(HARD, differs, n, (6, 8, 12), (1, 12)),
        "Two of five candidates differ by 5 sd; share of studies with a verdict on another:",
        errors(LIKE, differs, n, (6, 8, 12), true=(5 * SD, 5 * SD, 0, 0, 0), null=slice(2, None)),
        "## Family-wise error: equivalence",
        "All candidates differ by exactly the margin; share of studies with any verdict *equivalent*.",
        errors(HARD, equivalent, n, (5, 6, 8, 12), true=MARGIN),
        "One comparison, and twelve:",
        errors(HARD, equivalent, n, (5, 8), (1, 12), true=MARGIN),
        "## Family-wise error: more than the margin",
        "All candidates differ by exactly the margin; share of studies with any *by more than the margin*.",
        errors(HARD, beyond, n, (6, 8, 12), true=MARGIN),
        "## Both families together",
        "Half of the candidates do not differ and vary much (3 sd), so that they are not called equivalent; half "
        "differ by the margin. Share of studies with any wrong verdict. Differences and equivalence keep alpha "
        f"each, so both together are promised at {2 * ALPHA:g} only.",
        both,
        "## Adding seeds until settled",
        "Sign bets with the closed mean of e-values, looked at after each seed from 6 to 24. Share of comparisons "
        "decided; share of studies with any wrong verdict.",
        sequential(n),
        "Errors with other runs. First, no candidate differs and the margin is 0, so that no equivalence ends a study "
        "early; second, all differ by the margin. Last, for comparison, what is not valid: judging again after each "
        "new seed by the test for a fixed number of seeds (500 studies).",
        looks(n),
        "## Where the promise does not hold",
        "*Skewed runs of unequal spread.* If runs are skewed and a candidate varies much more or less than the "
        "reference, differences are skewed and not symmetric, and no test of so few seeds is right about means. A "
        "verdict then says that runs differ in distribution. The worst case is a reference that hardly varies.",
        errors(SKEWED, differs, n),
        "*Seeds of two batches* (two commits, two machines) that schemes react to. Seeds of a batch are then not "
        "independent. More seeds make it worse.",
        errors(BATCHES, differs, n, (8, 12, 20)),
        "*Tuning by seeds that all runs share.* Equal schemes, three learning rates whose accuracies differ by one "
        "sd, noisy validation. One noisy choice moves all seeds alike. If each seed chooses for itself, the noise "
        "of the choice is part of the noise between seeds, and alpha holds.",
        tuning,
        "## Three to five seeds: indicated, not decided",
        "t tests of each comparison by its own standard deviation, adjusted as the step-down maximum of independent t, "
        "for normal differences. Withheld where all differences of a comparison are equal, as coarse accuracies make "
        "them: counting those as infinite t is wrong in .13 of studies at n=3 and a deviation of one image. Share of "
        "studies with any wrong indication of a difference:",
        errors(HARD, second[0], n, (3, 4, 5)),
        "Of equivalence, all at the margin:",
        errors(HARD, second[1], n, (3, 4, 5), true=MARGIN),
        "Power:",
        strength,
        "## Alternatives that were rejected",
        "Share of studies with any wrong verdict. A pooled deviation, or one shrunk to a common value, is wrong "
        "where deviations are unequal, as they are in real studies; posterior probabilities do not account for the "
        "number of comparisons.",
        alternatives(n),
        "## Intervals",
        "Share of studies in which all five 95 % t intervals hold the true differences.",
        intervals(n),
        f"One comparison, runs that vary by seed and by test image ({n // 2} studies): share of intervals that hold "
        "the difference that other seeds and other images would show.",
        held,
        "## Seeds needed, from a few seeds",
        f"A study of n seeds says how many would decide one of five comparisons with {100 * power.POWER:g} % power; "
        f"power that this number really has ({few} studies). Planned with the deviation as found, and with its "
        f"upper {100 * power.CONFIDENCE:g} % limit, the upper end of the range that reports state.",
        planning(few),
    ]  # fmt: skip
    return "\n\n".join(pages) + "\n"


def main() -> None:
    """Runs the simulations and writes ``results/honesty.md``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000, help="studies behind each number (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/honesty.md"), help="(%(default)s)")
    options = parser.parse_args()
    if options.studies < 1:
        parser.error(f"--studies is {options.studies}; it must be at least 1")
    text = report(options.studies)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
