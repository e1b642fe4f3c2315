import copy
import csv
import dataclasses
import html
import math
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vitpos.analysis import report
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.evidence import Background
from vitpos.analysis.statistics import group
from vitpos.analysis.verdict import compare
from vitpos.errors import VitposError

PLAN = Comparison("first", "Are sinusoids enough?", "learned")


def section(text, title):
    return re.split(r"\n## ", text.split(f"## {title}\n")[1])[0]


@pytest.fixture
def few(study):
    """Two schemes, two seeds: fast to draw."""
    return [row for row in study if row["axes"]["position"] in ("none", "learned") and row["seed"] < 2]


@pytest.fixture
def many(study):
    """Twelve seeds: enough for verdicts."""
    rows = []
    for row in study:
        for i in range(3):
            new = copy.deepcopy(row)
            new["seed"] += 4 * i
            new["metrics"]["test/accuracy"] += 0.0003 * i * (1 if row["seed"] % 2 else -1)
            rows.append(new)
    return rows


def test_whole_report(many, tmp_path):
    failures = [{"axes": {"position": "fourier"}, "seed": 7, "error": "out of <memory>"}]
    background = Background(planned=74, text="question: Are sinusoids enough?\n")
    table = report.write(PLAN, many, failures, tmp_path, background)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# first\n\nAre sinusoids enough?\n\n**Against `learned`, in points of test accuracy: ")
    assert "`sinusoidal_2d(scale=0.02)` (-5.25) and `none` (-5.47) fall short of it" in text
    assert "`sinusoidal_2d` (-0.02) is equivalent (within 1)" in text
    assert "Done: 72 runs of 6 variants with 12 seeds." in text
    assert "- 1 run failed" in text
    assert "- 1 of 74 planned runs are missing." in text
    verdicts = section(text, "Verdicts")
    assert re.search(
        r"\| `none` \| -5\.47 \| .* \| 0\.002 \| 1\.000 \| 12 \| \*\*falls short\*\* \|$", verdicts, re.MULTILINE
    )
    assert "- `none` falls short of learned by 5.47 points (95 % interval" in verdicts
    ours = [100 * row["metrics"]["test/accuracy"] for row in many if row["axes"]["position"] == "learned"]
    low, high = stats.t.interval(0.95, 11, np.mean(ours), stats.sem(ours))
    line = f"| `learned` | 12 | {np.mean(ours):.2f} | {np.std(ours, ddof=1):.2f} | [{low:.2f}, {high:.2f}] "
    assert f"{line}| 684,000 | 6,144 | 0.710 to 0.700 | 310 |" in section(text, "All schemes")
    assert "- Failed: `fourier`, seed 7: `out of <memory>`" in section(text, "Caveats")
    assert "Runs differ" not in text
    ran = section(text, "What it ran on")
    assert "Training time: 30 h 00 min in all, 72 runs" in ran
    repeat = section(text, "How to repeat")
    assert "vitpos study run configs/studies/first.yaml" in repeat
    assert "pip install torch==2.14.1 timm==1.0.31 lightning==2.6.6\n" in repeat
    assert "```\nquestion: Are sinusoids enough?\n```" in repeat
    assert "model: {depth: 6}\nepochs: 9\n" in repeat  # neither position nor seed: those differ
    assert max(map(len, table.splitlines())) <= 100
    assert re.search(r"^none +-5\.47 +\[-5\.53, -5\.42\] +0\.002 +1\.000 +12  falls short$", table, re.MULTILINE)
    for name in ("forest", "curves", "ranking", "pareto", "similarity"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width == 1200
        assert f"](figures/{name}.png)" in text
    assert not list(tmp_path.rglob("*.part"))


def test_both_files_say_the_same(many, tmp_path):
    report.write(PLAN, many, [], tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert re.findall("^## (.*)$", text, re.MULTILINE) == re.findall("<h2[^>]*>(.*?)</h2>", page)
    assert len(re.findall(r"!\[", text)) == page.count("<img ") == page.count("data:image/svg+xml;base64,")
    assert len(re.findall(r"^\| -", text, re.MULTILINE)) == page.count("<table>")
    cells = re.findall(r"^\| `none` \| (.*) \|$", text, re.MULTILINE)
    rows = re.findall(r"<code>none</code></th>(.*)</tr>", page)
    assert [re.sub(r"[*`]", "", line).split(" | ") for line in cells] == [
        [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall("<td[^>]*>(.*?)</td>", row)] for row in rows
    ]


def test_tables_are_files_too(many, tmp_path):
    report.write(PLAN, many, [], tmp_path)
    found = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"verdicts.csv", "verdicts.tex", "schemes.csv", "errors.csv", "tests.tex"} <= found
    with (tmp_path / "tables" / "verdicts.csv").open() as file:
        rows = {row["scheme"]: row for row in csv.DictReader(file)}
    (d,) = (d for d in compare(PLAN, group(many)) if d.candidate.label == "sinusoidal_1d")
    ours = rows["sinusoidal_1d"]
    assert float(ours["difference"]) == pytest.approx(d.mean)
    assert float(ours["95 % t interval, high"]) == pytest.approx(d.high)
    assert float(ours["p differs"]) == d.p_adjusted


def test_one_seed_gives_means_and_no_verdict(few, tmp_path):
    table = report.write(PLAN, [row for row in few if row["seed"] == 0], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| `none` | -5.50 | - | - | - | 1 | **undecided** |\n" in text
    assert "- There is one seed: no verdict is possible" in text
    assert "| `none` | 1 | 53.40 | - | - |" in text
    assert "- `none`: one pair of seeds, no variance to judge by." in text
    assert "    one pair of seeds, no variance to judge by" in table.splitlines()
    assert "- 1 seed (0)" in text


def test_reference_alone(few, tmp_path):
    table = report.write(PLAN, [row for row in few if row["axes"]["position"] == "learned"], [], tmp_path)
    assert table == "There is nothing to compare with learned yet."
    assert not (tmp_path / "figures" / "forest.png").exists()
    assert "## Verdicts" not in (tmp_path / "report.md").read_text()


def test_nothing_broken_is_averaged_away(few, tmp_path):
    few[0]["metrics"]["test/accuracy"] = math.nan
    few[0]["history"][3]["val/accuracy"] = math.nan
    few[1]["environment"]["torch"] = "2.13.0"
    few[2]["data"]["fingerprint"] = "beef"
    report.write(PLAN, few, [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- 1 run has no number for test accuracy" in text
    assert "| `learned` | 1 (+1 not a number) |" in text
    caveats = section(text, "Caveats")
    assert "- Runs differ in torch: 2.14.1 (3), 2.13.0 (1)." in caveats
    assert "- Runs differ in data: cifar10 f00d (3), cifar10 beef (1)." in caveats
    assert "seed 0 no pair: the two runs differ in data" in section(text, "Verdicts")
    assert "pip install torch==2.14.1 timm==1.0.31 lightning==2.6.6  # 3 of 4 runs\npip install torch==2.13.0" in text
    assert "**undecided**" in text


def test_a_margin_of_0_and_equal_runs(row, tmp_path):
    rows = [row(name, seed, 0.5 + 0.01 * seed) for name in ("learned", "x") for seed in range(3)]
    report.write(dataclasses.replace(PLAN, margin=0.0), rows, [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- The margin is 0: no equivalence can be shown." in text
    assert "- Differences that are the same with every seed have no variance to judge by: `x` (+0.00)." in text


def test_rewriting_replaces(few, tmp_path):
    report.write(PLAN, few, [], tmp_path)
    (tmp_path / "tables" / "notes.txt").write_text("a reader's own")
    for row in few:
        row["history"] = []
    report.write(dataclasses.replace(PLAN, question="Another?"), few[:2], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Another?" in text
    assert "curves.png" not in text
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {f"{name}{suffix}" for name in ("similarity",) for suffix in (".png", ".svg")}
    tables = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert "verdicts" not in tables
    assert {"schemes", "notes"} <= tables


def test_the_same_rows_give_the_same_bytes(few, tmp_path):
    for name in ("a", "b"):
        report.write(PLAN, few, [], tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_long_labels_are_whole_and_within_the_width(row):
    axes = {"model.some_long_option_name": "value " * 20, "trainer.max_epochs": 20}
    rows = [row(p, s, 0.5 + 0.01 * s * len(p), axes=axes) for p in ("learned", "x(option=1)") for s in (0, 1)]
    table = report.verdict_table(PLAN, compare(PLAN, group(rows)))
    assert max(map(len, table.splitlines())) <= 100
    assert "trainer.max_epochs=20" in table


def test_refusals(few, tmp_path):
    with pytest.raises(VitposError, match="study 'first' has no finished runs to report on \\(1 failed\\)"):
        report.write(PLAN, [], [{"axes": {"position": "none"}, "seed": 0, "error": "x"}], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitposError, match=r"cannot write the report to .*file"):
        report.write(PLAN, few, [], tmp_path / "file")
