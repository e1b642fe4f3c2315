"""One run of a study: what it leaves, what it skips, and how it fails."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from vitpos import provenance
from vitpos.analysis import runs
from vitpos.cli.main import main
from vitpos.data.sources import load
from vitpos.study import plan, run
from vitpos.study.results import Results
from vitpos.study.run import execute
from vitpos.train.task import Classifier


def command(done, *words):
    return main(["study", words[0], str(done.file), "--results", str(done.results), *words[1:]])


def test_a_result_holds_all_that_a_report_needs(done_once):
    study, results = plan.load(done_once.file), Results(done_once.folder)
    none, learned = (results.row(run) for run in study.runs[:2])
    assert learned.keys() == {
        "format", "hash", "axes", "seed", "config", "resolved", "data", "metrics", "history", "parameters",
        "position_parameters", "flops", "images_per_second", "seconds", "peak_memory_mb", "position", "environment",
        "finished", "per_class", "right",
    }  # fmt: skip
    assert learned["axes"] == {"position": "learned"}
    assert learned["config"]["trainer"]["max_epochs"] == 1
    assert learned["resolved"]["model"]["weight_decay"] == 0.05  # not in the config: a default
    assert learned["resolved"]["data"].keys() & {"root", "download", "batch_size"} == {"batch_size"}
    defaults = {"scale": 0.02, "init": "normal", "temperature": 10000.0, "inject": "stem"}
    assert learned["resolved"]["position"] == [{"name": "learned", "options": defaults}]
    digits = load("digits")
    sizes = {part: len(getattr(digits, part)) for part in ("train", "val", "test")}
    assert learned["data"] == {"name": "digits", "fingerprint": digits.fingerprint, **sizes}
    parts = [f"{part}/{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")]
    assert learned["metrics"].keys() == set(parts)
    assert all(0 <= learned["metrics"][key] <= 1 for key in parts if key.endswith("accuracy"))
    (epoch,) = learned["history"]
    assert epoch["epoch"] == 1
    assert epoch.keys() >= {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second"}
    assert learned["position_parameters"] == 16 * 64
    assert learned["parameters"] == none["parameters"] + 16 * 64
    products = 16 * (4 * 64 + 6 * 12 * 64 * 64) + 6 * 2 * 16 * 16 * 64 + 64 * 10  # patches, blocks, attention, head
    assert learned["flops"] == pytest.approx(2 * products, rel=1e-6)
    assert learned["environment"].keys() == {
        "device", "hardware", "precision", "python", "torch", "timm", "lightning", "vitpos", "commit", "sources",
    }  # fmt: skip
    assert none["position"] is None
    assert learned["position"]["grid"] == [4, 4]
    assert learned["position"]["rms_start"] == pytest.approx(0.02, rel=0.1)
    similarity = np.array(learned["position"]["similarity"])
    assert similarity.shape == (16, 16)
    assert similarity[3, 3] == 1.0
    assert 0 < learned["images_per_second"] < 1e6
    assert learned["peak_memory_mb"] > 100


def test_a_result_says_which_test_images_were_right(done_once, tmp_path):
    study, results, test = plan.load(done_once.file), Results(done_once.folder), load("digits").test
    for each in study.runs:  # of two seeds
        cli = run.prepare(each, tmp_path / each.folder)
        state = torch.load(results.of(each) / "last.ckpt", weights_only=True)["state_dict"]
        cli.model.load_state_dict(state)
        with torch.no_grad():
            logits = cli.model.eval()(cli.datamodule.normalise(test.images))
        expected, row = (logits.argmax(1) == test.labels).numpy(), results.row(each)
        # training precision may be bfloat16, here it is float32: an image on the edge may come out differently
        assert (runs.right(row) != expected).mean() < 0.02
        assert runs.right(row).mean() == pytest.approx(row["metrics"]["test/accuracy"], rel=0, abs=1e-6)
        assert row["per_class"]["names"] == list("0123456789")
        assert row["per_class"]["count"] == test.labels.bincount().tolist()
        assert row["per_class"]["correct"] == test.labels[torch.from_numpy(runs.right(row))].bincount(
            minlength=10).tolist()  # fmt: skip
        assert len(row["right"]) == 60  # 359 bits in base64


def test_a_part_of_the_test_images_is_said_to_be_one(study_file, tmp_path):
    each = plan.load(study_file(overrides={"trainer.limit_test_batches": 2, "data.eval_batch_size": 50})).runs[0]
    assert execute(each, tmp_path / "run").error is None
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert sum(row["per_class"]["count"]) == len(runs.right(row)) == 100


def test_a_run_leaves_its_files_and_one_curve(done_once):
    folder = Results(done_once.folder).of(plan.load(done_once.file).runs[1])
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "metrics.jsonl", "run.log", "last.ckpt", "tensorboard"
    }  # fmt: skip
    row = json.loads((folder / "result.json").read_text())
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == row["history"]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for key in ("val/accuracy", "train/loss"):
        assert [event.step for event in events.Scalars(key)] == [1]
        assert events.Scalars(key)[0].value == pytest.approx(row["metrics"][key])
    assert [event.step for event in events.Images("position/similarity")] == [0, 1]

    # the hparams tab: the session's values, and the final metrics by the tags it names
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(session).session_start_info.hparams
    assert values["position"].string_value == "learned"
    assert values["seed"].number_value == 0
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    infos = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert {info.name.tag for info in infos} == {f"final/{key}" for key in row["metrics"]}
    assert infos[0].name.tag == "final/test/accuracy"  # the tab shows the first five
    assert events.Scalars("final/test/accuracy")[0].value == pytest.approx(row["metrics"]["test/accuracy"])


def test_study_prints_plain_lines(done_once):
    lines = done_once.printed.splitlines()
    assert lines[0] == "small: 4 runs, 0 done before and skipped, 4 to do"
    assert "none, seed 0  epoch 1/1  loss " in done_once.printed
    assert sum(" test " in line and line.startswith("[") for line in lines) == 4
    assert "[4/4] " in done_once.printed
    assert not [line for line in lines if "Lightning" in line or "Warning" in line or "\r" in line]
    assert re.match(r"curves +\S*tensorboard --logdir ", lines[-1])


def test_second_start_skips_and_a_damaged_result_is_made_again(done, in_process, monkeypatch, capsys):
    assert command(done, "run") == 0
    assert "4 runs, 4 done before and skipped, 0 to do" in capsys.readouterr().out

    results, study = Results(done.folder), plan.load(done.file)
    file = results.of(study.runs[2]) / "result.json"
    before = json.loads(file.read_text())
    file.write_text(file.read_text()[:-10])
    assert command(done, "run") == 0
    printed = capsys.readouterr().out
    assert "3 done before and skipped, 1 to do" in printed
    assert "none, seed 1: result.json is damaged or of another version; it is made again" in printed
    assert results.row(study.runs[2])["metrics"] == before["metrics"]


def test_a_run_that_was_killed_after_training_is_only_tested_again(done, capsys):
    results, study = Results(done.folder), plan.load(done.file)
    file = results.of(study.runs[1]) / "result.json"
    before = json.loads(file.read_text())
    file.unlink()
    assert execute(study.runs[1], file.parent).error is None
    after = json.loads(file.read_text())
    assert "epoch" not in capsys.readouterr().out
    for key in ("metrics", "history", "position", "hash", "images_per_second"):
        assert after[key] == before[key]


def test_result_is_written_last(study_file, tmp_path, monkeypatch):
    seen = []

    def spy(path, text):
        seen.append((path.name, sorted(file.name for file in path.parent.iterdir())))

    monkeypatch.setattr(run, "write", spy)
    assert execute(plan.load(study_file()).runs[0], tmp_path / "run").error is None
    assert seen == [
        ("result.json", [".lease", "heartbeat.json", "last.ckpt", "metrics.jsonl", "run.log", "tensorboard"])
    ]


def test_a_failing_run_is_recorded_the_others_go_on_and_it_is_tried_again(
    study_file, in_process, tmp_path, monkeypatch, capsys
):
    file = study_file(seeds=[0])
    results, study = Results(tmp_path / "results" / "small"), plan.load(file)
    step = Classifier.training_step

    def broken(self, batch, batch_idx):
        if self.hparams["position"] == "none":
            raise RuntimeError("a tensor\nof the wrong shape")
        return step(self, batch, batch_idx)

    words = ["study", "run", str(file), "--results", str(tmp_path / "results")]
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", broken)
        assert main(words) == 1
    printed = capsys.readouterr().out
    assert "none, seed 0: failed: RuntimeError a tensor of the wrong shape" in printed
    failure = json.loads((results.of(study.runs[0]) / "failure.json").read_text())
    assert failure["axes"] == {"position": "none"}
    assert failure["error"] == "RuntimeError a tensor of the wrong shape"
    assert "in broken" in failure["traceback"]
    assert results.row(study.runs[0]) is None
    assert results.row(study.runs[1]) is not None
    assert results.collect(study)[1] == [failure]
    assert "RuntimeError a tensor of the wrong shape" in (results.folder / "report.md").read_text()

    assert main([words[0], "status", *words[2:]]) == 0
    printed = capsys.readouterr().out
    assert "failed    none, seed 0  RuntimeError a tensor of the wrong shape" in printed
    assert "1 failed, 1 done" in printed

    assert main(words) == 0
    assert "2 runs, 1 done before and skipped, 1 to do" in capsys.readouterr().out
    assert not (results.of(study.runs[0]) / "failure.json").exists()
    assert results.row(study.runs[0]) is not None


def test_a_loss_that_is_not_finite_is_a_failure(study_file, tmp_path):
    error = execute(plan.load(study_file(overrides={"model.lr": 1e30})).runs[0], tmp_path / "run").error
    assert error.startswith("the loss is not finite after training")
    assert not (tmp_path / "run" / "result.json").exists()
    record = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert record["error"] == error


def test_status_of_a_study_that_never_ran(study_file, tmp_path, capsys):
    file = study_file()
    words = ["study", "status", str(file), "--results", str(tmp_path / "results")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 missing"
    assert not (tmp_path / "results").exists()
    folder = Results(tmp_path / "results" / "small").of(plan.load(file).runs[0])
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 started, 3 missing"


def test_finished_runs_do_not_depend_on_their_place(done_once):
    rows = [Results(done_once.folder).row(run) for run in plan.load(done_once.file).runs]
    assert all(math.isfinite(value) for row in rows for value in row["metrics"].values())
    text = (done_once.folder / "rows.jsonl").read_text()
    assert str(done_once.folder) not in text
    assert shutil.which("git") is None or all(row["environment"]["commit"] for row in rows)
    assert all(row["environment"]["sources"] == [provenance.sources()] for row in rows)


def test_preparing_leaves_the_config_as_it_is(study_file, tmp_path):
    callbacks = [{"class_path": "lightning.pytorch.callbacks.LambdaCallback"}]
    runs = plan.load(study_file(overrides={"trainer.callbacks": callbacks})).runs
    before, code = json.dumps(runs[0].config), runs[0].hash
    run.prepare(runs[0], tmp_path / "run")
    assert json.dumps(runs[0].config) == before
    assert runs[0].hash == code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), "SystemExit 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (RuntimeError("\x1b[31m" + "x" * 5000), "RuntimeError \\x1b[31mxxx"),
    ],
)
def test_whatever_ends_a_run_is_recorded(study_file, tmp_path, monkeypatch, error, said):
    def train(*args):
        raise error

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "parent_process", lambda: "the study")
    each, results = plan.load(study_file()).runs[0], Results(tmp_path)
    text = execute(each, results.of(each)).error
    assert text.startswith(said)
    assert len(text) < 1100
    assert results.failure(each)["error"] == text


def test_the_keyboard_ends_the_study(study_file, tmp_path, monkeypatch):
    def train(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(KeyboardInterrupt):
        execute(plan.load(study_file()).runs[0], tmp_path / "run")


def test_a_result_that_would_not_be_taken_is_a_failure(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", lambda *args: {"format": 1})
    assert execute(plan.load(study_file()).runs[0], tmp_path / "run").error == "hash is missing"
