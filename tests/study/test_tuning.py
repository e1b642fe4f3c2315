"""Tuning by seed: what is tried, what is chosen, that nothing is trained twice, and when test images are read."""

import json
import re
import shutil

import pytest
import yaml
from whole import row_of

from vitpos.cli.main import main
from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.study import plan, tuning
from vitpos.study.results import Results, write
from vitpos.study.run import execute
from vitpos.study.seeds import settle
from vitpos.train.task import Classifier

GRID = {"model.lr": [0.0001, 0.005]}


@pytest.fixture
def study(study_file):
    """Returns a function that reads a study which tunes."""

    def make(**changes):
        return plan.load(study_file(**{"tune": GRID, **changes}))

    return make


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results" / "small")


def put(results, run, accuracy, **fields):
    """Writes the result of a trial, or, without an accuracy, a failure."""
    folder = results.of(run)
    folder.mkdir(parents=True, exist_ok=True)
    record = row_of(run, tested=run.test, **fields)
    if accuracy is None:
        write(folder / "failure.json", json.dumps({**record, "error": "it broke", "traceback": "at line 1"}))
    else:
        write(folder / "result.json", json.dumps({**record, "metrics": {"val/accuracy": accuracy}}))


def put_all(study, results, accuracy):
    for trial in study.trials:
        put(results, trial, accuracy(trial))


def values(study, results):
    return [choice.values and choice.values["model.lr"] for choice in settle(study, results).choices]


def test_every_variant_and_seed_tries_every_value(study):
    tune = {"model.lr": [0.1, 0.2], "model.weight_decay": [0, 1, 2]}
    found = study(tune=tune, axes={"position": ["none", "learned"], "model.patch_size": [2, 4]})
    assert len(found.trials) == 2 * 6 * 4
    tried = {}
    for trial in found.trials:
        config = plan.flatten(trial.config)
        assert {key: config[key] for key in tune} == trial.trial
        assert (config["seed_everything"], config["position"]) == (trial.seed, trial.axes["position"])
        tried.setdefault(repr(trial.axes), set()).add((trial.seed, *trial.trial.values()))
    everything = {(seed, lr, decay) for seed in (0, 1) for lr in (0.1, 0.2) for decay in (0, 1, 2)}
    assert list(tried.values()) == [everything] * 4


def test_a_trial_is_the_run_of_a_study_with_that_value(study, study_file, results):
    trials = study().trials
    plain = plan.load(study_file("plain", overrides={"model.lr": 0.005}))
    axis = plan.load(study_file("axis", axes={"position": ["none", "learned"], **GRID}))
    assert {trial.hash for trial in trials} == {run.hash for run in axis.runs} > {run.hash for run in plain.runs}
    assert trials[0].folder.startswith("none-0.0001-s0-")
    assert trials[0].label == "none, trial of model.lr=0.0001, seed 0"
    chosen = trials[0].chosen(())
    assert (chosen.hash, chosen.folder, chosen.label) == (trials[0].hash, trials[0].folder, "none, seed 0")
    pending = study(overrides={"model.lr": 0.005}).runs  # which says the same by chance
    assert not {run.hash for run in pending} & {run.hash for run in plain.runs}
    folder = results.of(plain.runs[0])  # has another name there
    folder.mkdir(parents=True)
    assert Results(results.folder).of(next(trial for trial in trials if trial.hash == plain.runs[0].hash)) == folder


def test_a_study_that_tunes_nothing_is_as_it_was(study_file, results):
    plain = plan.load(study_file())
    assert (plain.trials, plain.tune) == ((), {})
    assert settle(plain, results) is plain
    assert all(run.tuned == {} and run.test for run in plain.runs)


def test_each_seed_chooses_by_its_own_images(study, results):
    found = study(tune={"model.lr": [0.1, 0.2, 0.3]})
    scores = {("none", 0): [0.2, 0.4, 0.3], ("none", 1): [0.5, 0.4, 0.3],
              ("learned", 0): [0.1, 0.1, 0.9], ("learned", 1): [0.7, 0.7, 0.7]}  # fmt: skip
    put_all(found, results, lambda t: scores[t.axes["position"], t.seed][round(10 * t.trial["model.lr"]) - 1])
    settled = settle(found, results)
    assert [(choice.axes["position"], choice.seed) for choice in settled.choices] == [
        ("none", 0), ("learned", 0), ("none", 1), ("learned", 1)]  # fmt: skip
    assert values(found, results) == [0.2, 0.3, 0.1, 0.1]  # of equals the first
    assert [run.config["model"]["lr"] for run in settled.runs] == [0.2, 0.3, 0.1, 0.1]
    assert [run.tuned["model.lr"] for run in settled.runs] == [0.2, 0.3, 0.1, 0.1]
    assert [run.edge for run in settled.runs] == [(), ("model.lr",), ("model.lr",), ("model.lr",)]
    assert [run.axes for run in settled.runs] == [run.axes for run in found.runs]
    assert all(run.test and results.row(run) is None for run in settled.runs)
    assert tuning.to_do(settled, results) == []


def test_last_digits_choose_nothing(study, results):
    found = study(tune={"model.lr": [0.3, 0.1, 0.2]})
    put_all(found, results, lambda t: 0.5 + (1e-8 if t.trial["model.lr"] == 0.2 else 0))
    assert values(found, results) == [0.3] * 4


def test_edge_is_that_of_the_numbers_not_of_the_list():
    tune = {"model.lr": [0.3, 0.1, 0.2], "model.global_pool": ["avg", "token"], "data.flip": [True, False], "a.b": [1],
            "model.weight_decay": ["1e-3", "1e-2"]}  # fmt: skip
    point = {"model.lr": 0.2, "model.global_pool": "avg", "data.flip": True, "a.b": 1, "model.weight_decay": "1e-2"}
    assert tuning.at_edge(point, tune) == ("model.weight_decay",)
    assert tuning.at_edge({"model.lr": 0.1}, tune) == tuning.at_edge({"model.lr": 0.3}, tune) == ("model.lr",)


def test_a_failed_trial_is_not_chosen_and_tried_again_until_the_choice_was_tested(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: None if t.trial["model.lr"] == 0.005 else 0.5)
    settled = settle(found, results)
    assert values(found, results) == [0.0001] * 2
    assert [score for _, score in settled.choices[0].scores] == [0.5, None]
    failed = [trial for trial in found.trials if trial.trial["model.lr"] == 0.005]
    assert tuning.to_do(settled, results) == failed
    put(results, settled.runs[0], 0.5)
    assert tuning.to_do(settled, results) == failed[1:]


def test_nothing_is_chosen_before_all_trials_are_through(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: 0.5)
    shutil.rmtree(results.of(found.trials[0]))
    assert values(found, results) == [None, 0.0001]
    settled = settle(found, results)
    assert [run.tuned is None for run in settled.runs] == [True, False]
    assert not any(run.blocked for run in settled.runs)
    assert tuning.to_do(settled, results) == [found.trials[0]]


def test_where_all_trials_failed_the_run_has_failed_with_the_reason(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: None if t.axes["position"] == "none" else 0.5)
    rows, failures = results.collect(settle(found, results))
    assert rows == []
    reason = "no value of model.lr can be chosen: all 2 trials failed (it broke)"
    assert [(f["axes"], f["seed"], f["error"]) for f in failures] == [({"position": "none"}, 0, reason)]


def test_choices_come_out_the_same_in_a_fresh_clone(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: None if t.trial["model.lr"] == 0.005 else 0.5)
    put(results, settle(found, results).runs[1], 0.5)
    results.collect(settle(found, results))
    shutil.rmtree(results.folder / "runs")
    clone = Results(results.folder)
    assert values(found, clone) == [0.0001] * 2
    lines = [json.loads(line) for line in (clone.folder / "tuning.jsonl").read_text().splitlines()]
    assert [line.get("error") for line in lines] == [None, "it broke", "it broke"]
    assert not any("traceback" in line for line in lines)
    (row,) = [json.loads(line) for line in (clone.folder / "rows.jsonl").read_text().splitlines()]
    assert (row["tuned"], row["tuned_edge"], row["axes"]) == (
        {"model.lr": 0.0001},
        ["model.lr"],
        {"position": "learned"},
    )
    before = (clone.folder / "tuning.jsonl").read_text()
    Results(results.folder).collect(settle(found, clone))
    assert (clone.folder / "tuning.jsonl").read_text() == before


def test_a_tested_row_wins_over_an_untested_one(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: 0.5)
    run = settle(found, results).runs[0]
    row = {**row_of(run), "metrics": {"val/accuracy": 0.5, "test/accuracy": 0.5}}
    for name, line in (("rows.jsonl", row), ("tuning.jsonl", {**row, "tested": False})):
        (results.folder / name).write_text(json.dumps(line) + "\n")
    again = Results(results.folder)
    assert again.row(run)["metrics"]["test/accuracy"] == 0.5
    assert [r.get("tested") for r in again.stored() if r["hash"] == run.hash] == [None]


def test_trials_of_an_earlier_version_are_refused_as_runs_are(study, results):
    found = study(seeds=[0])
    put_all(found, results, lambda t: 0.5)
    results.keep(found)
    changed = study(seeds=[0], overrides={"model.weight_decay": 0.5})
    with pytest.raises(
        VitposError, match=r"of 4 results in .*, 0 belong .*, 4 to .*model.weight_decay: None there, 0.5"
    ):
        results.refuse_strays(changed)
    results.refuse_strays(found)


@pytest.mark.parametrize("changes", [{"tune": {"model.lr": [0.0001, 0.006]}}, {"tune": None}])
def test_what_is_tuned_cannot_change_after_trials(study, results, changes):
    found = study()
    put_all(found, results, lambda t: 0.5)
    results.keep(found)
    with pytest.raises(VitposError, match=r"tune was stated before the runs as "):
        results.refuse_other_terms(study(**changes))
    results.refuse_other_terms(study(seeds=[0, 1, 2]))


@pytest.fixture
def words(study_file, tmp_path):
    file = study_file(tune=GRID, seeds=[0])
    return lambda action: ["study", action, str(file), "--results", str(tmp_path / "results")]


@pytest.mark.slow
def test_from_file_to_rows(words, in_process, results, capsys, monkeypatch):
    assert main(words("status")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        *(
            f"missing   {name}, trial of model.lr={lr}, seed 0"
            for lr in (0.0001, 0.005)
            for name in ("none", "learned")
        ),
        "tuning: 4 missing",
        *(f"tuning {name}, seed 0: not yet chosen, trials are missing" for name in ("none", "learned")),
        *(f"waiting   {name}, seed 0  for tuning" for name in ("none", "learned")),
        "2 waiting",
    ]

    read, steps = [], []
    loader, step = ImageData.test_dataloader, Classifier.training_step
    monkeypatch.setattr(
        ImageData, "test_dataloader", lambda self: read.append(self.trainer.lightning_module.run_hash) or loader(self)
    )
    monkeypatch.setattr(
        Classifier, "training_step", lambda self, *args: steps.append(self.run_hash) or step(self, *args)
    )
    assert main(words("run")) == 0
    printed = capsys.readouterr().out
    assert "small: 2 runs, 0 done before and skipped, 2 to do, chosen from 4 trials, 4 to do" in printed
    assert re.search(r"\n\[\d/4\] learned, trial of model.lr=0.005, seed 0: val \d", printed)
    assert re.search(r"\n\[\d/2\] learned, seed 0: test \d", printed)

    rows = [json.loads(line) for line in (results.folder / "rows.jsonl").read_text().splitlines()]
    trials = [json.loads(line) for line in (results.folder / "tuning.jsonl").read_text().splitlines()]
    assert (len(rows), len(trials)) == (2, 2)
    assert sorted(read) == sorted(row["hash"] for row in rows)  # the test images, of the chosen alone, once
    assert len(steps) == 4 * 4  # of four trials; nothing was trained twice
    for trial in trials:
        assert not [key for key in trial["metrics"] if "test" in key]
        assert not trial.keys() & {"per_class", "right", "tuned"}
        (row,) = [row for row in rows if row["axes"] == trial["axes"]]
        assert row["metrics"]["val/accuracy"] >= trial["metrics"]["val/accuracy"]
        assert row["tuned"] == {"model.lr": row["resolved"]["model"]["lr"]}
        assert f"tuning {row['axes']['position']}, seed 0: model.lr={row['tuned']['model.lr']}, the edge" in printed
        assert row["metrics"].keys() >= {"test/accuracy", "val/accuracy", "train/loss"}
        assert row["right"]
        assert "tested" not in row

    read.clear(), steps.clear()
    assert main(words("run")) == 0
    assert "small: 2 runs, 2 done before and skipped, 0 to do\n" in capsys.readouterr().out
    assert read == steps == []
    plain = plan.load(results.folder.parent.parent / "small.yaml")
    (results.of(settle(plain, results).runs[0]) / "result.json").unlink()  # as if only that were lost
    rows_text = (results.folder / "rows.jsonl").read_text()
    (results.folder / "rows.jsonl").write_text(rows_text.splitlines()[1] + "\n")
    for checkpoint in results.folder.glob("runs/*/last*.ckpt"):
        checkpoint.unlink()
    assert main(words("run")) == 0  # it is trained again, to the same numbers
    again = [json.loads(line) for line in (results.folder / "rows.jsonl").read_text().splitlines()]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    capsys.readouterr()
    shutil.rmtree(results.folder / "runs")
    assert main(words("status")) == 0
    printed = capsys.readouterr().out
    assert "tuning: 4 done" in printed
    assert printed.splitlines()[-1] == "2 done"
    assert main(words("report")) == 0


def test_rows_of_a_study_with_the_key_as_an_axis_are_its_trials(
    done, study_file, in_process, tmp_path, capsys, monkeypatch
):
    """Finished runs of the same config and seed are not trained again, whatever study they were made for."""
    axis = plan.load(study_file("axis", axes={"position": ["none", "learned"], **GRID}))
    accuracy = {0.0001: [0.5, 0.6], 0.005: [0.55, 0.5]}  # validation, by seed
    target = Results(tmp_path / "results" / "tuned")
    target.folder.mkdir(parents=True)
    source = json.loads((done.folder / "rows.jsonl").read_text().splitlines()[0])
    with (target.folder / "rows.jsonl").open("w") as file:
        for run in axis.runs:
            own = {"hash": run.hash, "axes": run.axes, "seed": run.seed, "config": run.config}
            lr = run.axes["model.lr"]
            metrics = {"val/accuracy": accuracy[lr][run.seed], "test/accuracy": lr}
            file.write(json.dumps({**source, **own, "metrics": metrics}) + "\n")
    monkeypatch.setattr("vitpos.study.run.execute", lambda *args: pytest.fail("something was trained"))
    file = study_file("tuned", tune=GRID)
    for action in ("run", "report", "status", "plan"):
        assert main(["study", action, str(file), "--results", str(tmp_path / "results"),
                     *(["--sd", "1"] if action == "plan" else [])]) == 0  # fmt: skip
    assert "4 runs, 4 done before and skipped, 0 to do\n" in capsys.readouterr().out
    rows = [json.loads(line) for line in (target.folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["tuned"]["model.lr"], row["metrics"]["test/accuracy"]) for row in rows] == [
        (0, 0.005, 0.005), (0, 0.005, 0.005), (1, 0.0001, 0.0001), (1, 0.0001, 0.0001)]  # fmt: skip
    assert [row["axes"] for row in rows] == [{"position": name} for name in ("none", "learned")] * 2
    assert len((target.folder / "tuning.jsonl").read_text().splitlines()) == 4
    assert yaml.safe_load((target.folder / "rows.jsonl").read_text().splitlines()[0])["tuned_edge"] == ["model.lr"]


@pytest.mark.slow
def test_a_value_that_diverges_is_not_chosen_and_where_all_do_it_is_said(study_file, in_process, tmp_path, capsys):
    def words(**changes):
        file = study_file(seeds=[0], **changes)
        return ["study", "run", str(file), "--results", str(tmp_path / "results")]

    assert main(words(name="some", tune={"model.lr": [1e30, 0.001]})) == 0
    printed = capsys.readouterr().out
    assert "none, trial of model.lr=1e+30, seed 0: failed: the loss is not finite" in printed
    # not the edge that nobody could have gone beyond: the other end was tried and is worse
    assert "tuning none, seed 0: model.lr=0.001, the edge of its grid; no score for 1e+30" in printed
    assert main(words(name="all", tune={"model.lr": [1e30, 2e30]})) == 1
    printed = capsys.readouterr().out
    assert "tuning none, seed 0: no value of model.lr can be chosen: all 2 trials failed (the loss is not" in printed
    assert "no run finished; why: vitpos study status" in printed


@pytest.mark.parametrize("after", [2, 5])
@pytest.mark.slow
def test_an_interrupted_study_goes_on_with_its_trials_and_tests(words, in_process, results, capsys, monkeypatch, after):
    calls = []

    def interrupted(run, folder):
        calls.append(run)
        if len(calls) > after:
            raise KeyboardInterrupt
        return execute(run, folder)

    with monkeypatch.context() as patch:
        patch.setattr("vitpos.study.run.execute", interrupted)
        assert main(words("run")) == 130
    capsys.readouterr()
    if after == 5:
        assert main(words("status")) == 0
        assert capsys.readouterr().out.splitlines()[-2:] == ["missing   learned, seed 0  its test", "1 done, 1 missing"]
    assert main(words("run")) == 0
    printed = capsys.readouterr().out
    assert ("2 runs, 0 done before and skipped, 2 to do, chosen from 4 trials, 2 to do" if after == 2 else
            "2 runs, 1 done before and skipped, 1 to do\n") in printed  # fmt: skip


def test_a_mistake_in_a_tuned_value_shows_before_any_training(study_file, in_process, tmp_path, capsys):
    file = study_file(tune={"model.lr": [0.001, "fast"]})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 2
    assert "trial of model.lr=fast, seed 0: model.lr should be float, got 'fast'" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/*/runs/*/metrics.jsonl"))


def test_a_trial_without_validation_has_failed(study_file, in_process, tmp_path, capsys):
    file = study_file(tune=GRID, seeds=[0], axes={"position": ["learned"]}, overrides={"trainer.limit_val_batches": 0})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 1
    assert "failed: tuning chooses by val/accuracy, and this run has none" in capsys.readouterr().out


def test_options_of_the_schemes_and_tuning_go_together(study_file, results):
    axes = {"position": ["none", "learned"], "position.scale": [0.1, 0.2]}
    found = plan.load(study_file(axes=axes, tune=GRID, seeds=[0]))
    assert len(found.trials) == 2 * 3
    put_all(found, results, lambda t: abs((t.axes.get("position.scale") == 0.1) - t.trial["model.lr"]))
    assert values(found, results) == [0.005, 0.0001, 0.005]


def test_the_correction_is_passed_on(study_file):
    for correction in ("holm", "bonferroni", "none"):
        assert plan.load(study_file(correction=correction)).comparison.correction == correction
    with pytest.raises(VitposError, match="correction"):
        plan.load(study_file(correction="holmes"))
