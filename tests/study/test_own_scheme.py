"""A study of a scheme in the user's own file notices that the file changes."""

import copy
from pathlib import Path

import pytest

from vitpos import positions
from vitpos.cli.main import main
from vitpos.positions import text as texts
from vitpos.study.plan import load
from vitpos.study.results import Results
from vitpos.study.run import execute

MINE = """
import vitpos

class Shift(vitpos.PositionEmbedding):
    def tokens(self, x, grid, layer):
        return x + {by}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(by=1))
    return file


def test_a_finished_run_is_not_taken_for_one_of_the_changed_file(mine, study_file, in_process, capsys):
    study = study_file(axes={"position": ["none", "mine.py:Shift"]}, seeds=[0], reference="none")
    assert main(["study", "run", str(study)]) == 0
    mine.write_text(MINE.format(by=2))
    assert main(["study", "run", str(study)]) == 2
    error = capsys.readouterr().err
    assert (
        "1 belong to this version, 1 to an earlier one (mine.py:Shift seed 0; the file of its scheme changed)" in error
    )
    assert main(["study", "run", str(study), "--leave-old"]) == 0
    assert "2 runs, 1 done before and skipped, 1 to do" in capsys.readouterr().out


def test_a_run_whose_file_changed_since_the_plan_fails_in_one_line(mine, study_file, tmp_path):
    study = load(study_file(axes={"position": ["mine.py:Shift"]}, seeds=[0], reference="mine.py:Shift"))
    (run,) = study.runs
    kept = copy.copy(run)
    assert run.hash == kept.hash
    mine.write_text(MINE.format(by=2))
    results = Results(tmp_path / "results")
    error = execute(run, results.of(run)).error
    assert error == "the file of mine.py:Shift changed since the study began; start the study again"
    assert results.row(run) is None


NOISY = """
import pathlib
import vitpos

pathlib.Path("ran").touch()

class Scaled(vitpos.PositionEmbedding):
    def __init__(self, geometry, *, scale=1.0):
        super().__init__(geometry)
        self.scale = scale

    def tokens(self, x, grid, layer):
        return x + self.scale
"""


@pytest.mark.slow
def test_status_and_report_run_no_file_and_do_without_it(mine, study_file, in_process, capsys):
    mine.write_text(NOISY)
    axes = {"position": ["none", "mine.py:Scaled"], "position.scale": [0.5]}
    study = study_file(axes=axes, seeds=[0], reference="none")
    assert main(["study", "run", str(study)]) == 0
    assert [run.config["position"] for run in load(study).runs] == ["none", "mine.py:Scaled(scale=0.5)"]
    report = mine.with_name("results") / "small" / "report.md"
    before = report.read_text()
    texts._loaded.clear()
    mine.with_name("ran").unlink()
    for action in ("status", "report"):
        assert main(["study", action, str(study)]) == 0
    assert not mine.with_name("ran").exists()
    mine.unlink()
    report.unlink()
    capsys.readouterr()
    assert main(["study", "status", str(study)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 done"
    assert main(["study", "report", str(study)]) == 0
    assert report.read_text() == before
    more = study_file(axes={**axes, "position.scale": [0.5, 3.0]}, seeds=[0], reference="none")
    assert main(["study", "status", str(more)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 done, 1 missing"
    assert main(["study", "run", str(more)]) == 2
    assert "no file 'mine.py' of a position scheme" in capsys.readouterr().err


def test_the_folder_of_a_study_is_none_of_what_comes_after(mine, study_file, tmp_path, monkeypatch):
    mine.write_text(NOISY)
    study = study_file(
        axes={"position": ["none", "mine.py:Scaled"], "position.scale": [0.5]}, seeds=[0], reference="none"
    )
    assert all(run.hash for run in load(study).runs)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    Path("mine.py").write_text("import vitpos\nclass Other(vitpos.PositionEmbedding): pass\n")
    assert positions.find("mine.py:Other").__name__ == "Other"
