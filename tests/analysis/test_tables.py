"""What the tables say, and how each format writes them."""

import csv
import io
import math
import re

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from vitpos.analysis import tables
from vitpos.analysis.runs import frame
from vitpos.analysis.terms import Terms
from vitpos.analysis.verdict import verdicts

TERMS = Terms("first", "Is it enough?", "learned", margin=1.5)
OURS, THEIRS = [56.5, 58.0, 57.9, 56.9, 57.2, 57.4], [57.9, 58.3, 57.6, 58.1, 57.4, 57.7]


def analyse(rows, terms=TERMS):
    runs = frame(rows, terms.metric)
    return runs, verdicts(runs, terms)


def pair(row, ours=OURS, theirs=THEIRS, **more):
    return [
        row(p, s, a / 100, **more) for p, values in (("x", ours), ("learned", theirs)) for s, a in enumerate(values)
    ]


def test_tests_equal_scipy_and_statsmodels(row):
    runs, found = analyse(pair(row))
    (t,) = tables.tests(runs, found, TERMS).frame.to_dict("records")
    x = np.subtract(OURS, THEIRS)
    assert t["sd"] == pytest.approx(x.std(ddof=1))
    assert (
        t["sign-flip p"] == stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    )
    expected = stats.ttest_rel(OURS, THEIRS)
    assert t["t-test p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert t["95 % t interval"] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert t["TOST p"] == pytest.approx(ttost_paired(np.array(OURS), np.array(THEIRS), -1.5, 1.5)[0], rel=1e-6)
    assert t["correlation"] == pytest.approx(np.corrcoef(OURS, THEIRS)[0, 1])
    assert "95 % BCa interval" not in t  # six pairs are too few
    runs, found = analyse(pair(row, OURS * 2, THEIRS[::-1] * 2))
    (t,) = tables.tests(runs, found, TERMS).frame.to_dict("records")
    low, high = t["95 % BCa interval"]
    assert low < found["mean"][0] < high


def test_a_p_value_at_its_floor_is_not_shown(row):
    runs, found = analyse(pair(row, [66.0, 66.5, 66.2], THEIRS[:3]))
    table = tables.verdict_table(runs, found, TERMS)
    (shown,) = table.frame.to_dict("records")
    assert list(shown)[:3] == ["scheme", "verdict", "detail"]
    assert (shown["verdict"], shown["detail"].split(";")[0]) == ("undecided", "too few seeds")
    assert "indicated: better" in shown["detail"]
    assert math.isnan(shown["p (difference)"])
    assert "| - | - | 3 |" in tables.to_markdown(table)


def test_errors_over_seeds_and_images(row):
    rows = pair(row)
    for r in rows:
        r["data"] = {**r["data"], "test": 400}
    runs, found = analyse(rows)
    table = tables.errors(runs, found, TERMS)
    (e,) = table.frame.to_dict("records")
    assert e["error over seeds"] == pytest.approx(np.subtract(OURS, THEIRS).std(ddof=1) / math.sqrt(6))
    p, q = np.mean(OURS) / 100, np.mean(THEIRS) / 100
    assert e["error over images"] == pytest.approx(100 * math.sqrt((p * (1 - p) + q * (1 - q)) / 400), rel=1e-6)
    assert (e["estimate"], table.facts["images"]) == ("upper bound", 400)
    for r in rows:
        del r["data"]["test"]
    runs, found = analyse(rows)
    assert tables.errors(runs, found, TERMS).frame.empty


def test_confounders_are_counted_by_the_phrases_that_the_table_shows(study):
    """A number of parameters follows from the kind, and makes no comparison a confounded one."""
    for r in study:
        r["config"]["position"] = r["axes"]["position"]
        if r["axes"]["position"] == "learned":
            r["position"] = {**r["position"], "rms_start": 0.02, "rms_end": 0.04}
    runs, found = analyse(study)
    table = tables.confounders(runs, found)
    said = dict(zip(table.frame["scheme"], table.frame["also differs in"], strict=True))
    assert said["none"] == "nothing found"
    assert said["sinusoidal_2d"] == "starts at RMS 0.71 against 0.02 (ends at 0.7 against 0.04)"
    differing = [(scheme, text) for scheme, text in said.items() if text != "nothing found"]
    assert table.facts["differing"] == differing
    assert len(differing) == 4
    assert table.frame["of the reference"].tolist() == [6144] * 5


def test_schemes_count_what_is_not_a_number(row):
    rows = [*pair(row), row("cpe", 0, math.nan)]
    table = tables.schemes(frame(rows, "test/accuracy"), TERMS)
    assert table.frame["scheme"].tolist() == ["learned", "x", "cpe"]
    assert table.frame["not a number"].tolist() == [0, 0, 1]
    assert "not a number" not in tables.schemes(frame(rows[:-1], "test/accuracy"), TERMS).frame


def test_options_are_compared_with_the_defaults_of_their_kind(study):
    table = tables.options(frame(study, "test/accuracy"), TERMS)
    found = table.frame.set_index("scheme")
    assert found["difference"].to_dict() == pytest.approx(
        {"sinusoidal_2d(scale=0.02)": -5.225, "sinusoidal_2d(temperature=100)": 1.125}
    )
    ((where, across, within),) = table.facts["spreads"]
    assert (where, across[0]) == ("", ["learned", "sinusoidal_1d", "sinusoidal_2d"])
    assert within["sinusoidal_2d"] == (3, pytest.approx(60.075 - 53.725))


EVIL = "a|b`c\\d $x_1$ <i>&*é\n2nd_"


def table(
    rows=((EVIL, EVIL, -1.234, (-2.0, 3.0), 0.0004, 12345), ("b", "-", math.nan, (math.nan,) * 2, math.nan, None)),
):
    heads = ("scheme", "model.depth", "difference", "95 % interval", "p (difference)", "parameters")
    return tables.build("Title", [dict(zip(heads, values, strict=True)) for values in rows])


def test_markdown():
    head, rule, first, second = tables.to_markdown(table()).splitlines()
    assert head == "| scheme | `model.depth` | difference | 95 % interval | p (difference) | parameters |"
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert first == (
        r"| `a\|b'c\d $x_1$ <i>&*é 2nd_` | a\|b\`c\\d $x_1$ &lt;i&gt;&amp;\*é 2nd\_ | −1.23 | [−2.00, +3.00] | <0.001 "
        "| 12,345 |"
    )
    assert second == "| `b` | - | - | - | - | - |"


def test_csv():
    rows = list(csv.reader(io.StringIO(tables.to_csv(table()))))
    low, high = "95 % interval, low", "95 % interval, high"
    assert rows[0] == ["scheme", "model.depth", "difference", low, high, "p (difference)", "parameters"]
    assert rows[1] == [EVIL, EVIL, "-1.234", "-2", "3", "0.0004", "12345"]
    assert rows[2] == ["b", "-", "", "", "", "", ""]


def test_latex():
    lines = tables.to_latex(table()).splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrr}"
    assert lines[3] == r"scheme & model.depth & difference & 95 \% interval & p (difference) & parameters \\"
    assert lines[5].startswith(
        r"\texttt{a\textbar{}b`c\textbackslash{}d \$x\_1\$ \textless{}i\textgreater{}\&*é 2nd\_} & "
    )
    assert lines[5].endswith(r" & $-1.23$ & $[-2.00, +3.00]$ & $<0.001$ & $12{,}345$ \\")
    assert lines[-1] == r"\end{tabular}"


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+A1", "'+A1"), ("-A1", "'-A1"), ("  =1", "'  =1"), ("-", "-"),
     ("-0.5", "-0.5"), ("+1.5e-3", "+1.5e-3"), ("learned+cpe", "learned+cpe"), ("a\x1b[31m", "a\\x1b[31m")],
)  # fmt: skip
def test_no_cell_of_a_csv_is_a_formula(text, cell):
    header, first = csv.reader(io.StringIO(tables.to_csv(tables.build("t", [{text: text, "note": text}]))))
    assert (header[0], first) == (cell, [cell, cell])


def test_of_many_variants_the_page_shows_the_best_and_their_references(row):
    rows = [row(f"learned(scale={i})" if i else "learned", seed, 0.5 + i / 1000) for i in range(40) for seed in (0, 1)]
    terms = Terms("many", "Which?", "learned")
    runs = frame(rows, terms.metric)
    found = verdicts(runs, terms)
    near = runs[runs["variant"].isin(tables.leaders(runs, found))]
    assert {v.position for v in near["variant"]} == {"learned", *(f"learned(scale={i})" for i in range(10, 40))}
    text = tables.on_page(tables.schemes(runs, terms), "schemes", near)
    assert len(re.findall(r"^\| `learned", text, re.M)) == 31
    assert "31 of 40 rows; all are in `tables/schemes.csv`" in text
    few = runs[runs["accuracy"] > 52.5]
    assert tables.leaders(few, found[:0]) == set(few["variant"])
