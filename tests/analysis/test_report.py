"""The report as a whole: one of a study with everything is compared with ``golden/``.

After a change that is meant, ``python tests/analysis/test_report.py`` writes those files anew; read their diff.
"""

import base64
import copy
import dataclasses
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import make_row

from vitpos.analysis import report
from vitpos.analysis.report import Background
from vitpos.analysis.terms import Terms
from vitpos.errors import VitposError

GOLDEN = Path(__file__).parent / "golden"
TERMS = Terms("first", "Are sinusoids enough?", "learned")
MEANS = {
    "learned": 0.60,
    "none": 0.55,
    "sinusoidal_1d": 0.601,
    "sinusoidal_2d": 0.62,
    "sinusoidal_2d(temperature=9)": 0.604,
}


def everything():
    """Terms, rows, failures and background of a study that has all sections."""
    rng, rows, seeds = np.random.default_rng(0), [], 6
    for scale in (0.02, None, 0.7):
        for position, mean in MEANS.items():
            for seed in range(seeds):
                axes = {} if position == "none" else {"position.scale": scale}
                if (position == "none" and scale) or (position, scale, seed) == ("sinusoidal_1d", 0.7, 5):
                    continue
                right = rng.random(400) < mean + 0.05 * (scale or 0) + 0.002 * rng.standard_normal()
                row = make_row(position, seed, float(right.mean()), axes=axes, commit="abc" if seed else "def")
                correct = np.bincount(np.arange(400) % 4, weights=right, minlength=4).astype(int).tolist()
                row["per_class"] = {"names": ["cat", "dog", "owl", "x|y"], "count": [100] * 4, "correct": correct}
                row["right"] = base64.b64encode(np.packbits(right).tobytes()).decode()
                row["data"]["test"] = 400
                if position == "learned":
                    row["position"]["rms_start"] = 0.02
                rows.append(row)
    failures = [{"axes": {"position": "sinusoidal_1d", "position.scale": 0.7}, "seed": 5, "error": "out of <memory>"}]
    planned = [{"axes": row["axes"], "seed": seed} for row in rows for seed in (row["seed"], 6) if not row["seed"] % 5]
    scores = [({"model.lr": 0.1}, 0.5), ({"model.lr": 0.2}, 0.625)]
    tuning = {
        "axes": {"position": "none"},
        "seed": 0,
        "scores": scores,
        "values": {"model.lr": 0.2},
        "edge": ("model.lr",),
    }
    background = Background(
        planned,
        "question: Are sinusoids enough?\n",
        [{**tuning, "error": ""}],
        ["seeds added after there were results: 6"],
    )
    return TERMS, rows, failures, background


def written(folder):
    terms, rows, failures, background = everything()
    printed = report.write(terms, rows, failures, folder, background)
    texts = {name: (folder / name).read_text() for name in ("report.md", "tables/verdicts.csv", "tables/verdicts.tex")}
    return {**{Path(name).name: text for name, text in texts.items()}, "terminal.txt": printed + "\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def texts(folder):
    return written(folder)


@pytest.mark.parametrize("name", ["report.md", "verdicts.csv", "verdicts.tex", "terminal.txt"])
def test_the_report_is_the_golden_one(texts, name):
    assert texts[name] == (GOLDEN / name).read_text()


def test_both_files_say_the_same_and_all_is_there(texts, folder):
    text, page = texts["report.md"], (folder / "report.html").read_text()
    heads = [re.sub("&amp;", "&", head) for head in re.findall(r"<(?:h2|summary)[^>]*>(.*?)</", page)]
    assert re.findall("^###? (.*)$", text, re.MULTILINE) == heads
    pictures = re.findall(r"\]\(figures/(\w+)\.png\)", text)
    assert set(pictures) == {path.stem for path in (folder / "figures").iterdir()}
    assert len(pictures) == 7 == page.count("data:image/svg+xml;base64,")
    assert len(re.findall(r"^\| -", text, re.MULTILINE)) == page.count("<table>")
    for name in pictures:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert image.width == 1200
    tables = {path.name for path in (folder / "tables").iterdir()}
    assert len(tables) == 2 * 13
    assert not list(folder.rglob("*.part"))
    assert max(map(len, texts["terminal.txt"].splitlines())) <= 100


@pytest.fixture
def few(study):
    """Two schemes, two seeds: fast to draw."""
    return [row for row in study if row["axes"]["position"] in ("none", "learned") and row["seed"] < 2]


def section(text, title):
    return re.split(r"\n## ", text.split(f"## {title}\n")[1])[0]


def test_one_seed_gives_means_and_no_verdict(few, tmp_path):
    printed = report.write(TERMS, [row for row in few if row["seed"] == 0], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- There is only one seed" in text
    assert "| `none` | **undecided** | too few seeds | −5.50 | - | - | - | 1 |\n" in text
    assert "too few seeds; only one pair of seeds, so no variance" in printed


def test_reference_alone(few, tmp_path):
    printed = report.write(TERMS, [row for row in few if row["axes"]["position"] == "learned"], [], tmp_path)
    assert printed == "There is nothing to compare with learned yet."
    assert not (tmp_path / "figures" / "forest.png").exists()
    assert "## Verdicts" not in (tmp_path / "report.md").read_text()


def test_nothing_broken_is_averaged_away(few, tmp_path):
    few[0]["metrics"]["test/accuracy"] = math.nan
    few[0]["history"][3]["val/accuracy"] = math.nan
    few[1]["environment"]["torch"] = "2.13.0"
    few[2]["data"]["fingerprint"] = "beef"
    report.write(TERMS, few, [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- 1 run has no finite test accuracy" in text
    assert "- Runs differ in torch: 2.14.1 (3), 2.13.0 (1)." in section(text, "Caveats")
    assert "- Runs differ in data: cifar10 f00d (3), cifar10 beef (1)." in text
    assert "seed 0 not paired: the runs differ in data" in section(text, "Verdicts")
    assert "pip install torch==2.14.1 timm==1.0.31 lightning==2.6.6  # 3 of 4 runs\npip install torch==2.13.0" in text


def test_a_margin_of_0_and_equal_runs(row, tmp_path):
    rows = [row(name, seed, 0.5 + 0.01 * seed) for name in ("learned", "x") for seed in range(3)]
    report.write(dataclasses.replace(TERMS, margin=0.0), rows, [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- The margin is 0, so equivalence cannot be shown." in text
    assert "- The difference is the same for every seed, so its variance cannot be estimated: `x`." in text


def test_hostile_names_and_errors_stay_text(few, tmp_path):
    evil = "x</td><script>alert(1)</script>|`[a](http://b)"
    for row in few:
        if row["axes"]["position"] == "none":
            row["axes"]["position"] = row["config"]["position"] = evil
        row["axes"]["a|b"] = "<i>1</i>"
    failure = {"axes": {"position": evil, "a|b": "<i>1</i>"}, "seed": 7, "error": evil}
    report.write(dataclasses.replace(TERMS, question=evil), few, [failure], tmp_path, Background(text=evil))
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "<i>" not in page
    assert 'href="http' not in page
    assert page.count("&lt;script&gt;alert(1)") > 10


def test_rewriting_replaces(few, tmp_path):
    report.write(TERMS, few, [], tmp_path)
    (tmp_path / "tables" / "notes.txt").write_text("a reader's own")
    for row in few:
        row["history"] = []
    report.write(dataclasses.replace(TERMS, question="Another?"), few[:2], [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Another?" in text
    assert "curves.png" not in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"similarity.png", "similarity.svg"}
    tables = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert "verdicts" not in tables
    assert {"schemes", "notes"} <= tables


def test_the_same_rows_give_the_same_bytes(few, tmp_path):
    for name in ("a", "b"):
        report.write(TERMS, copy.deepcopy(few), [], tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_refusals(few, tmp_path):
    with pytest.raises(VitposError, match="study 'first' has no finished runs to report on \\(1 failed\\)"):
        report.write(TERMS, [], [{"axes": {"position": "none"}, "seed": 0, "error": "x"}], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitposError, match=r"cannot write the report to .*file"):
        report.write(TERMS, few, [], tmp_path / "file")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, text in written(Path(place)).items():
            (GOLDEN / name).write_text(text)
