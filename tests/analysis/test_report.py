import dataclasses
import math
import re

import pytest
from PIL import Image

from vitpos.analysis import report
from vitpos.analysis.comparison import Comparison
from vitpos.analysis.statistics import compare, group
from vitpos.errors import VitposError

PLAN = Comparison("first", "Are sinusoids enough?", "learned")


def section(text, title):
    return re.split(r"\n## ", text.split(f"## {title}\n")[1])[0]


@pytest.fixture
def few(study):
    """Two schemes, two seeds: fast to draw."""
    return [row for row in study if row["axes"]["position"] in ("none", "learned") and row["seed"] < 2]


def test_whole_report(study, tmp_path):
    failures = [{"axes": {"position": "fourier"}, "seed": 7, "error": "out of memory"}]
    table = report.write(PLAN, study, failures, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# first\n\nAre sinusoids enough?\n\n**Against `learned`, in points of test accuracy: ")
    assert "`sinusoidal_2d(scale=0.02)` (-5.25) and `none` (-5.47) fall short of it" in text
    assert "| `sinusoidal_2d` | -0.02 | [-0.18, +0.13] | 0.638 | <0.001 | 4 | **equivalent** |" in text
    line = "| `learned` | 4 | 58.97 | 0.30 | [58.50, 59.45] | 684,000 | 6,144 | 0.710 to 0.700 | 310 |"
    assert line in section(text, "All schemes")
    kind = section(text, "Kind or options?")
    assert "| `sinusoidal_2d(scale=0.02)` | `sinusoidal_2d` | -5.23 | [-6.14, -4.31] | 4 |" in kind
    # 58.975 - 57.325 across kinds; 60.075 - 53.725 within
    assert "1.65 points across kinds at default options (`learned`, `sinusoidal_1d`, `sinusoidal_2d`)" in kind
    assert "6.35 points across 3 forms of `sinusoidal_2d`. In these rows, options moved accuracy more than kind" in kind
    caveats = section(text, "Caveats")
    assert "- Failed: `fourier`, seed 7: out of memory" in caveats
    assert "up to 0.50 points" in caveats
    assert "Runs differ" not in caveats
    ran = section(text, "What it ran on")
    assert "Training time: 10 h 00 min in all, 24 runs" in ran
    assert "model: {depth: 6}\nepochs: 9\n" in ran  # neither position nor seed: those differ
    assert "vitpos study run configs/studies/first.yaml" in text
    assert max(map(len, table.splitlines())) <= 100
    assert re.search(r"^none +-5\.47 +\[-5\.63, -5\.32\] +<0\.001 +1\.000 +4  falls short$", table, re.MULTILINE)
    for name in ("forest", "curves", "similarity"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width == 1200
    assert not list(tmp_path.rglob("*.part"))


def test_options_can_matter_less_than_kind(study, row, tmp_path):
    values = {"learned": 0.6, "sinusoidal_1d": 0.5, "sinusoidal_1d(scale=1)": 0.51}
    text = report._kind_or_options(PLAN, group([row(p, s, a) for p, a in values.items() for s in (0, 1)]))
    assert "over 10.00 points across kinds" in text
    assert "1.00 points across 2 forms of `sinusoidal_1d`. In these rows, kind moved accuracy more" in text


def test_one_seed_gives_means_and_no_verdict(few, tmp_path):
    table = report.write(PLAN, [row for row in few if row["seed"] == 0], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| `none` | -5.50 | - | - | - | 1 | **undecided**: one pair of seeds, no variance to judge by |" in text
    assert "| `none` | 1 | 53.40 | - | - |" in text
    assert "    one pair of seeds, no variance to judge by" in table.splitlines()
    assert "1 seed (0)" in text


def test_reference_alone(few, tmp_path):
    table = report.write(PLAN, [row for row in few if row["axes"]["position"] == "learned"], [], tmp_path)
    assert table == "There is nothing to compare with learned yet."
    assert not (tmp_path / "figures" / "forest.png").exists()


def test_nothing_broken_is_averaged_away(few, tmp_path):
    few[0]["metrics"]["test/accuracy"] = math.nan
    few[0]["history"][3]["val/accuracy"] = math.nan
    few[1]["environment"]["torch"] = "2.13.0"
    few[2]["data"]["fingerprint"] = "beef"
    report.write(PLAN, few, [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| `learned` | 1 (+1 not a number) |" in text
    caveats = section(text, "Caveats")
    assert "- Runs differ in torch: 2.14.1 (3), 2.13.0 (1)." in caveats
    assert "- Runs differ in data: cifar10 f00d (3), cifar10 beef (1)." in caveats
    assert "the two runs differ in data, device or precision" in caveats
    assert "**undecided**" in text


def test_rewriting_replaces(few, tmp_path):
    report.write(PLAN, few, [], tmp_path)
    for row in few:
        row["history"] = []
    report.write(dataclasses.replace(PLAN, question="Another?"), few, [], tmp_path)
    assert "Another?" in (tmp_path / "report.md").read_text()
    assert "curves.png" not in (tmp_path / "report.md").read_text()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["forest.png", "similarity.png"]


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
