"""Many runs by an engine: order, tries, failures."""

import pytest

from vitpos.errors import VitposError
from vitpos.study import driver, plan
from vitpos.study.results import Results
from vitpos.study.run import Outcome
from vitpos.study.view import View


class Made:
    """An engine whose runs end as they are told, by their place in the plan, one after another."""

    slots = 2

    def __init__(self, runs, ends):
        self.runs, self.ends, self.started, self.running = runs, ends, [], []

    def start(self, run):
        assert len(self.running) < self.slots
        self.started.append(self.runs.index(run))
        self.running.append(run)

    def wait(self, seconds):
        run = self.running.pop(0)
        ends = self.ends.get(self.runs.index(run), [])
        error, lost = ends.pop(0) if ends else (None, False)
        if isinstance(error, Exception):
            raise error
        return [Outcome(run, error, lost)]


@pytest.fixture
def carry_out(study_file, tmp_path, capsys, monkeypatch):
    """Carries out the four runs of the small study, with an engine that ends them as told."""
    runs, results = list(plan.load(study_file()).runs), Results(tmp_path / "results")
    monkeypatch.setattr("vitpos.study.view.summary", lambda results, run: "fine")

    def carry_out(ends, retries=1, fail_fast=False):
        engine = Made(runs, ends)
        try:
            failed = driver.run_all(runs, results, engine, retries=retries, fail_fast=fail_fast, view=View(results))
        except driver.Enough:
            failed = "enough"
        return failed, engine.started, capsys.readouterr().out.splitlines()

    return carry_out


def test_runs_start_in_order_and_failures_are_counted(carry_out):
    mistake = ("broken", False)
    failed, started, lines = carry_out({2: [mistake], 3: [mistake]})
    assert failed == 2
    assert started == [0, 1, 2, 3]
    ends = [line for line in lines if line.startswith("[")]
    assert [line[:5] for line in ends] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert [line.split(":")[1].split(";")[0] for line in ends] == [" fine", " fine", " failed", " failed"]
    assert ends[-1].endswith("; 0 s left")
    assert [line.rpartition(": ")[2] for line in lines if line not in ends] == ["starts"] * 4


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_what_was_lost_is_tried_again_first_and_only_so_often(carry_out, retries):
    lost = ("its process was killed", True)
    failed, started, lines = carry_out({1: [lost] * 2}, retries)
    assert failed == (retries < 2)
    assert started[:4] == [0, 1, 2, 1 if retries else 3]
    assert started.count(1) == 1 + min(retries, 2)
    assert sum("tried again" in line for line in lines) == min(retries, 2)


def test_the_first_failure_is_enough_where_it_is_asked_for(carry_out):
    failed, started, _ = carry_out({0: [("broken", True)] * 2}, fail_fast=True)
    assert failed == "enough"
    assert started == [0, 1, 0, 2]


def test_what_no_run_can_mend_ends_the_study(carry_out):
    with pytest.raises(VitposError, match="cannot write"):
        carry_out({1: [(VitposError("cannot write"), False)]})
