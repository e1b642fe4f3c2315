"""Tuning: what is tried, what is chosen, that it never sees the test images, and that a choice in use stands."""

import dataclasses
import json
import re
import shutil

import pytest
from whole import row_of

from vitpos.cli import main
from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.study import plan, tuning
from vitpos.study.results import Results, write
from vitpos.study.run import execute
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
    """Writes a result as a run would, or, without an accuracy, a failure."""
    folder = results.of(run)
    folder.mkdir(parents=True, exist_ok=True)
    record = row_of(run, **fields)
    if accuracy is None:
        write(folder / "failure.json", json.dumps({**record, "error": "it broke", "traceback": "at line 1"}))
    else:
        write(folder / "result.json", json.dumps({**record, "metrics": {"val/accuracy": accuracy}}))


def put_all(study, results, accuracy):
    for trial in study.trials:
        put(results, trial, accuracy(trial))


def values(study, results):
    return [choice.values for choice in tuning.choices(study, results)]


def test_every_variant_tries_every_value_on_the_same_seeds(study):
    tune = {"model.lr": [0.1, 0.2], "model.weight_decay": [0, 1, 2]}
    found = study(tune=tune, tune_seeds=[7, 8], axes={"position": ["none", "learned"], "model.patch_size": [2, 4]})
    assert len(found.trials) == 2 * 6 * 4
    tried = {}
    for trial in found.trials:
        config = plan.flatten(trial.config)
        assert {key: config[key] for key in tune} == trial.trial
        assert (config["seed_everything"], config["position"]) == (trial.seed, trial.axes["position"])
        tried.setdefault(repr(trial.axes), set()).add((trial.seed, *trial.trial.values()))
    assert len(tried) == 4
    everything = {(seed, lr, decay) for seed in (7, 8) for lr in (0.1, 0.2) for decay in (0, 1, 2)}
    assert all(each == everything for each in tried.values())


def test_a_trial_is_never_taken_for_a_run_and_a_run_without_its_choice_for_neither(study):
    found = study(overrides={"model.lr": 0.005})
    trial, run = found.trials[0], found.runs[0]
    plain = dataclasses.replace(trial, trial={})
    assert trial.hash != plain.hash
    assert trial.folder.startswith("none-trial-0.0001-s1000-")
    assert trial.label == "none, trial of model.lr=0.0001, seed 1000"
    chosen = run.with_choice({"model.lr": 0.005})
    assert chosen.config == run.config  # which says the same by chance
    assert chosen.hash != run.hash
    assert chosen.hash == dataclasses.replace(run, tuned={}).hash  # the computation is that of a study without tuning
    hashes = [each.hash for each in (*found.runs, *found.trials, chosen, plain)]
    assert len(set(hashes)) == len(hashes)


def test_the_default_seed_is_none_of_the_studys(study):
    assert {trial.seed for trial in study().trials} == {1000}
    assert {trial.seed for trial in study(seeds=[1000, 1001]).trials} == {1002}


def test_a_study_that_tunes_nothing_is_as_it_was(study_file, results):
    plain = plan.load(study_file())
    assert (plain.trials, plain.tune) == ((), {})
    assert tuning.settle(plain, results) is plain
    assert all(run.tuned == {} for run in plain.runs)


def test_the_best_mean_over_the_seeds_is_chosen_for_each_variant(study, results):
    found = study(tune={"model.lr": [0.1, 0.2, 0.3]}, tune_seeds=[7, 8])
    scores = {("none", 0.1): (0.2, 0.4), ("none", 0.2): (0.5, 0.3), ("none", 0.3): (0.9, 0.0),
              ("learned", 0.1): (0.1, 0.9), ("learned", 0.2): (0.1, 0.1), ("learned", 0.3): (0.6, 0.6)}  # fmt: skip
    put_all(found, results, lambda t: scores[t.axes["position"], t.trial["model.lr"]][t.seed - 7])
    none, learned = tuning.choices(found, results)
    assert (none.values, none.edge) == ({"model.lr": 0.3}, ("model.lr",))
    assert [score for _, score in none.scores] == [0.3, 0.4, 0.45]
    assert learned.values == {"model.lr": 0.3}
    settled = tuning.settle(found, results)
    assert {run.config["model"]["lr"] for run in settled.runs} == {0.3}
    assert [run.axes for run in settled.runs] == [run.axes for run in found.runs]
    assert settled.runs[0].tuned == {"model.lr": 0.3}
    assert settled.runs[0].edge == ("model.lr",)


def test_of_equals_the_first_is_chosen(study, results):
    found = study(tune={"model.lr": [0.3, 0.1, 0.2]})
    # the last digits depend on how batches are averaged
    put_all(found, results, lambda t: 0.5 + (1e-8 if t.trial["model.lr"] == 0.2 else 0))
    assert values(found, results) == [{"model.lr": 0.3}] * 2


def test_edge_is_that_of_the_numbers_not_of_the_list():
    tune = {"model.lr": [0.3, 0.1, 0.2], "model.global_pool": ["avg", "token"], "data.flip": [True, False], "a.b": [1],
            "model.weight_decay": ["1e-3", "1e-2"]}  # fmt: skip
    point = {"model.lr": 0.2, "model.global_pool": "avg", "data.flip": True, "a.b": 1, "model.weight_decay": "1e-2"}
    assert tuning.at_edge(point, tune) == ("model.weight_decay",)
    assert tuning.at_edge({"model.lr": 0.1}, tune) == tuning.at_edge({"model.lr": 0.3}, tune) == ("model.lr",)


def test_a_value_with_a_failed_trial_cannot_be_chosen(study, results):
    found = study(tune_seeds=[7, 8])
    put_all(found, results, lambda t: None if (t.trial["model.lr"], t.seed) == (0.005, 8) else t.trial["model.lr"])
    (choice, _) = tuning.choices(found, results)
    assert choice.values == {"model.lr": 0.0001}
    assert [score for _, score in choice.scores] == [0.0001, None]


def test_nothing_is_chosen_before_all_trials_are_through(study, results):
    found = study()
    put_all(found, results, lambda t: 0.5)
    shutil.rmtree(results.of(found.trials[0]))
    assert values(found, results) == [None, {"model.lr": 0.0001}]
    settled = tuning.settle(found, results)
    assert [run.tuned for run in settled.runs[:2]] == [None, {"model.lr": 0.0001}]
    assert not any(run.blocked for run in settled.runs)
    assert tuning.to_do(found, results) == [found.trials[0]]


def test_where_all_trials_failed_the_runs_have_failed_with_the_reason(study, results):
    found = study()
    put_all(found, results, lambda t: None if t.axes["position"] == "none" else 0.5)
    settled = tuning.settle(found, results)
    rows, failures = results.collect(settled)
    assert rows == []
    reason = "no value of model.lr can be chosen: 2 of 2 trials failed (it broke)"
    assert [(f["axes"], f["seed"], f["error"]) for f in failures] == [
        ({"position": "none"}, seed, reason) for seed in (0, 1)
    ]


def test_a_choice_in_use_stands_and_failed_trials_are_not_tried_again(study, results):
    found = study()
    put_all(found, results, lambda t: None if t.trial["model.lr"] == 0.005 else 0.5)
    failed = [trial for trial in found.trials if trial.trial["model.lr"] == 0.005]
    assert tuning.to_do(found, results) == failed
    run = tuning.settle(found, results).runs[0]
    put(results, run, 0.9, tuned=run.tuned)
    assert tuning.to_do(found, results) == failed[1:]  # those of learned
    for trial in failed:  # tried again nevertheless, and better
        put(results, trial, 0.9)
    assert values(found, results) == [{"model.lr": 0.0001}, {"model.lr": 0.005}]
    shutil.rmtree(results.of(found.trials[0]))  # and without its trials
    assert tuning.choices(found, results)[0].values == {"model.lr": 0.0001}


def test_choices_come_out_the_same_in_a_fresh_clone(study, results):
    found = study()
    put_all(found, results, lambda t: None if t.trial["model.lr"] == 0.005 else 0.5)
    results.collect(tuning.settle(found, results))
    shutil.rmtree(results.folder / "runs")
    clone = Results(results.folder)
    assert values(found, clone) == [{"model.lr": 0.0001}] * 2
    lines = [json.loads(line) for line in (clone.folder / "tuning.jsonl").read_text().splitlines()]
    assert [line.get("error") for line in lines] == [None, None, "it broke", "it broke"]
    assert [line["trial"]["model.lr"] for line in lines] == [0.0001, 0.0001, 0.005, 0.005]
    assert not any("traceback" in line for line in lines)
    before = (clone.folder / "tuning.jsonl").read_text()
    Results(results.folder).collect(tuning.settle(found, clone))
    assert (clone.folder / "tuning.jsonl").read_text() == before


def test_trials_of_an_earlier_version_are_refused_as_runs_are(study, results):
    found = study()
    put_all(found, results, lambda t: 0.5)
    results.keep(found)
    changed = study(overrides={"model.weight_decay": 0.5})
    with pytest.raises(
        VitposError, match=r"of 4 results in .*, 0 belong .*, 4 to .*model.weight_decay: None there, 0.5"
    ):
        results.refuse_strays(tuning.settle(changed, results))
    results.refuse_strays(tuning.settle(found, results))


@pytest.mark.parametrize(
    "changes", [{"tune": {"model.lr": [0.0001, 0.006]}}, {"tune_seeds": [7]}, {"tune": None}, {"seeds": [0, 1000]}]
)
def test_what_is_tuned_cannot_change_after_trials(study, results, changes):
    found = study()
    put_all(found, results, lambda t: 0.5)
    results.keep(found)
    with pytest.raises(VitposError, match=r"tune(_seeds)? was stated before the runs as "):
        results.refuse_other_terms(study(**changes))
    results.refuse_other_terms(study(tune_seeds=[1000], seeds=[0, 1, 2]))  # the default, written out, and more seeds


@pytest.fixture
def words(study_file, tmp_path):
    file = study_file(tune=GRID)
    return lambda action: ["study", action, str(file), "--results", str(tmp_path / "results")]


def test_from_file_to_rows(words, in_process, results, capsys, monkeypatch):
    assert main(words("status")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [f"missing {name}, trial of model.lr={lr}, seed 1000"
                           for lr in (0.0001, 0.005) for name in ("none", "learned")]  # fmt: skip
    assert printed[4:7] == ["tuning: 4 missing", *(
        f"tuning {name}: not yet chosen, trials are missing" for name in ("none", "learned"))]  # fmt: skip
    assert printed[7:] == [*(f"waiting {name}, seed {seed}  for tuning" for seed in (0, 1) for name in (
        "none", "learned")), "4 waiting"]  # fmt: skip

    # no trial reads the test images, by whichever way
    tested, loader, step = [], ImageData.test_dataloader, Classifier.test_step
    monkeypatch.setattr(ImageData, "test_dataloader", lambda self: tested.append(self.seed) or loader(self))
    monkeypatch.setattr(
        Classifier, "test_step", lambda self, *args: tested.append(self.hparams["seed"]) or step(self, *args)
    )
    assert main(words("run")) == 0
    assert set(tested) == {0, 1}
    printed = capsys.readouterr().out
    assert "small: 4 runs, 0 done before and skipped, 4 to do, after 4 trials of 4 for tuning" in printed
    assert re.search(r"\n\[\d/4\] learned, trial of model.lr=0.005, seed 1000: val \d", printed)
    assert printed.index("tuning learned: ") < printed.index("none, seed 0")

    trials = [json.loads(line) for line in (results.folder / "tuning.jsonl").read_text().splitlines()]
    assert [trial["trial"]["model.lr"] for trial in trials] == [0.0001, 0.0001, 0.005, 0.005]
    for trial in trials:
        assert {"train/accuracy", "val/accuracy"} <= trial["metrics"].keys()
        assert not [key for key in trial["metrics"] if "test" in key]
        assert not trial.keys() & {"per_class", "right", "tuned"}
    scores = {(t["axes"]["position"], t["trial"]["model.lr"]): t["metrics"]["val/accuracy"] for t in trials}
    best = {name: max(GRID["model.lr"], key=lambda lr, name=name: scores[name, lr]) for name in ("none", "learned")}
    rows = [json.loads(line) for line in (results.folder / "rows.jsonl").read_text().splitlines()]
    assert [(row["axes"], row["seed"]) for row in rows] == [
        ({"position": name}, seed) for seed in (0, 1) for name in ("none", "learned")
    ]
    for row in rows:
        chosen = best[row["axes"]["position"]]
        assert f"tuning {row['axes']['position']}: model.lr={chosen}, the edge of its grid\n" in printed
        assert (row["tuned"], row["tuned_edge"]) == ({"model.lr": chosen}, ["model.lr"])
        assert row["resolved"]["model"]["lr"] == chosen
        assert "test/accuracy" in row["metrics"]
        assert "trial" not in row

    tested.clear()
    assert main(words("run")) == 0
    assert tested == []
    assert "small: 4 runs, 4 done before and skipped, 0 to do\n" in capsys.readouterr().out
    shutil.rmtree(results.folder / "runs")
    assert main(words("status")) == 0
    printed = capsys.readouterr().out
    assert "tuning: 4 done" in printed
    assert printed.splitlines()[-1] == "4 done"
    assert "none, trial of model.lr=0.005, seed 1000  val/accuracy 0." in printed
    assert main(words("report")) == 0


def test_a_value_that_diverges_is_not_chosen_and_where_all_do_it_is_said(study_file, in_process, tmp_path, capsys):
    def words(**changes):
        file = study_file(seeds=[0], tune_seeds=[5], **changes)
        return ["study", "run", str(file), "--results", str(tmp_path / "results")]

    assert main(words(name="some", tune={"model.lr": [1e30, 0.001]})) == 0
    printed = capsys.readouterr().out
    assert "none, trial of model.lr=1e+30, seed 5: failed: the loss is not finite" in printed
    # not the edge that nobody could have gone beyond: the other end was tried and is worse
    assert "tuning none: model.lr=0.001, the edge of its grid; no score for 1e+30" in printed
    assert main(words(name="all", tune={"model.lr": [1e30, 2e30]})) == 1
    printed = capsys.readouterr().out
    assert "tuning none: no value of model.lr can be chosen: 2 of 2 trials failed (the loss is not finite" in printed
    assert "no run finished; why: vitpos study status" in printed


def test_an_interrupted_study_goes_on_with_its_trials(words, in_process, results, capsys, monkeypatch):
    calls = []

    def interrupted(run, folder, prefix):
        calls.append(run)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return execute(run, folder, prefix)

    with monkeypatch.context() as patch:
        patch.setattr("vitpos.study.engine.execute", interrupted)
        assert main(words("run")) == 130
    capsys.readouterr()
    assert main(words("run")) == 0
    assert "4 to do, after 2 trials of 4 for tuning" in capsys.readouterr().out


def test_a_mistake_in_a_tuned_value_shows_before_any_training(study_file, in_process, tmp_path, capsys):
    file = study_file(tune={"model.lr": [0.001, "fast"]})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 2
    assert "trial of model.lr=fast, seed 1000: model.lr should be float, got 'fast'" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/*/runs/*/metrics.jsonl"))


def test_a_trial_without_validation_has_failed(study_file, in_process, tmp_path, capsys):
    file = study_file(tune=GRID, seeds=[0], axes={"position": ["learned"]}, overrides={"trainer.limit_val_batches": 0})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 1
    assert "failed: tuning chooses by val/accuracy, and this run has none" in capsys.readouterr().out


def test_options_of_the_schemes_and_tuning_go_together(study_file, results):
    axes = {"position": ["none", "learned"], "position.scale": [0.1, 0.2]}
    found = plan.load(study_file(axes=axes, tune=GRID))
    assert len(found.trials) == 2 * 3
    put_all(found, results, lambda t: abs((t.axes.get("position.scale") == 0.1) - t.trial["model.lr"]))
    assert values(found, results) == [{"model.lr": lr} for lr in (0.005, 0.0001, 0.005)]


def test_the_correction_is_passed_on(study_file):
    for correction in ("holm", "bonferroni", "none"):
        assert plan.load(study_file(correction=correction)).comparison.correction == correction
    with pytest.raises(VitposError, match="correction"):
        plan.load(study_file(correction="holmes"))
