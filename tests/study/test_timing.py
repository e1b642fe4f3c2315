"""What a run costs in time: from rows of this hardware, else from a few steps."""

import json

import pytest
import torch
from whole import row_of

from vitpos.errors import VitposError
from vitpos.study import plan, steps, timing
from vitpos.study.results import Results
from vitpos.study.run import hardware


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "results" / "small")
    results.folder.mkdir(parents=True)
    return results


def put(results, *runs, where=None):
    """Writes rows of (run, seconds)."""
    environment = {"device": "cpu", "hardware": where or hardware("cpu")}
    rows = [row_of(run, seconds=seconds, environment=environment) for run, seconds in runs]
    (results.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_finished_runs_count_for_their_variant_and_the_nearest_others(study_file, results):
    axes = {"position": ["none", "learned"], "trainer.max_epochs": [1, 2, 3]}
    study = plan.load(study_file(axes=axes, seeds=[0, 1]))
    # none and learned of one epoch, none of two; in the order of the plan position is fastest
    put(results, (study.runs[0], 10.0), (study.runs[6], 20.0), (study.runs[1], 30.0), (study.runs[2], 100.0))
    seconds, source = timing.estimate(study, results)
    one_epoch, two_epochs, three = 15 + 30, 100 + 100, 2 * (10 + 20 + 30 + 100) / 4
    assert seconds == pytest.approx((one_epoch + two_epochs + three) / 6)
    assert source == "measured: mean of 4 finished runs of this study on this hardware"


def test_threads_are_not_the_hardware_and_other_hardware_does_not_count(study_file, results, monkeypatch):
    monkeypatch.setattr(steps, "measure", lambda run: 7.0)
    study = plan.load(study_file())
    put(results, (study.runs[0], 10.0), where=hardware("cpu").split(",")[0] + ", 9 of 99 threads")
    assert timing.estimate(study, results)[0] == 10
    put(results, (study.runs[0], 10.0), where="Abacus, 1 of 2 threads")
    found = timing.estimate(study, Results(results.folder))
    assert found == (7, "estimated from 12 steps of none, run alone")


def test_trials_are_planned_runs_too(study_file, results, monkeypatch):
    study = plan.load(study_file(tune={"model.lr": [1, 2]}, axes={"position": ["none", "learned"]}, seeds=[0]))
    put(results, (study.trials[0], 10.0), (study.trials[1], 40.0))
    assert timing.estimate(study, results)[0] == 25


def test_without_rows_each_point_of_the_other_axes_is_measured_once(study_file, results, monkeypatch):
    measured = []
    monkeypatch.setattr(steps, "measure", lambda run: measured.append(run) or 10.0 * run.axes["trainer.max_epochs"])
    axes = {"position": ["none", "learned"], "position.scale": [0.1, 0.2], "trainer.max_epochs": [1, 4]}
    study = plan.load(study_file(axes=axes))
    assert timing.estimate(study, results)[0] == 25
    assert sorted(run.axes["trainer.max_epochs"] for run in measured) == [1, 4]


def test_steps_are_scaled_up_to_the_whole_run(study_file, monkeypatch, capsys):
    now = [0.0]

    def clock():
        now[0] += 1.0 if now[0] > 20 else 10.0  # the first steps are slow
        return now[0]

    monkeypatch.setattr(steps.time, "perf_counter", clock)
    changes = {"trainer.max_epochs": 30, "trainer.limit_train_batches": 8, "data.batch_size": 50}
    threads = torch.get_num_threads()
    # every call moves the clock, and others than the one at the end of a step make some
    found = steps.measure(plan.load(study_file(overrides=changes)).runs[0])
    step = found / (30 * 8 + (30 * 143 + 359) / 3 / 50)
    assert step == pytest.approx(round(step))
    assert 1 <= step <= 5
    assert torch.get_num_threads() == threads
    assert capsys.readouterr().out == ""


def test_a_training_of_one_step_can_be_measured(study_file):
    changes = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 1}
    assert 0 < steps.measure(plan.load(study_file(overrides=changes)).runs[0]) < 60


def test_mistakes_show(study_file, results):
    with pytest.raises(VitposError, match="unknown position scheme 'lerned'"):
        timing.estimate(plan.load(study_file(axes={"position": ["lerned", "learned"]})), results)
