"""Flags of Lightning's Trainer in a study: what comes of them in its rows."""

import csv
import json

import pytest

from vitpos.cli.main import main
from vitpos.errors import VitposError
from vitpos.study import plan
from vitpos.study.run import execute, prepare

CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
TENSORBOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "tb"}}
OWN = """
from lightning.pytorch.loggers.logger import Logger


class Own(Logger):
    name, version = "own", 0
    seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, sorted(metrics)))

    def log_hyperparams(self, params):
        self.seen.append(params)
"""


@pytest.fixture
def run(study_file, tmp_path):
    """Returns a function that carries out one run of a study with some flags, and gives its row or its failure."""

    def carry_out(overrides, **changes):
        study = plan.load(study_file(overrides=overrides, seeds=[0], axes={"position": ["learned"]}, **changes))
        folder = tmp_path / "run"
        error = execute((study.trials or study.runs)[0], folder).error
        return error or json.loads((folder / "result.json").read_text())

    return carry_out


def test_several_loggers_and_clipped_gradients(run, tmp_path):
    row = run({"trainer.logger": [CSV, TENSORBOARD], "trainer.gradient_clip_val": 1.0})
    assert row["metrics"]["test/accuracy"] > 0
    (file,) = (tmp_path / "run" / "csv").rglob("metrics.csv")  # each run has its own
    with file.open() as lines:
        (final,) = [line["final/test/accuracy"] for line in csv.DictReader(lines) if line["final/test/accuracy"]]
    assert float(final) == pytest.approx(row["metrics"]["test/accuracy"])
    assert list((tmp_path / "run" / "tb").rglob("events.out.*"))


def test_a_logger_of_another_kind(run, tmp_path, monkeypatch):
    (tmp_path / "own_logger.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    row = run({"trainer.logger": {"class_path": "own_logger.Own"}})
    import own_logger

    assert isinstance(row, dict), row

    assert (tmp_path / "run" / "config.yaml").exists()
    assert {"seed": 0, "position": "learned"} in own_logger.Own.seen
    assert own_logger.Own.seen[-1] == (1, sorted(f"final/{key}" for key in row["metrics"]))


def test_a_row_has_no_stale_metrics(run):
    row = run({"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 2})
    assert ["val/loss" in epoch for epoch in row["history"]] == [False, True, False]
    assert not [key for key in row["metrics"] if key.startswith("val/")]


@pytest.mark.parametrize("limit", ["00:00:00:00", "callback"])
def test_what_a_time_limit_cut_short_is_no_result(run, limit):
    timer = {"class_path": "Timer", "init_args": {"duration": {"seconds": 0}, "interval": "epoch"}}
    key = {"trainer.callbacks": [timer]} if limit == "callback" else {"trainer.max_time": limit}
    assert "trainer.max_time ended training after " in run({"trainer.max_epochs": 50, **key})


def test_a_limit_that_is_not_reached_changes_nothing(run):
    assert len(run({"trainer.max_time": "00:01:00:00", "trainer.max_epochs": 2})["history"]) == 2


def test_a_trial_of_the_code_is_no_study(study_file, tmp_path):
    study = plan.load(study_file(overrides={"trainer.fast_dev_run": True}))
    with pytest.raises(VitposError, match=r"trainer.fast_dev_run tries the code out"):
        prepare(study.runs[0], tmp_path / "run")


def test_tuning_needs_a_validated_last_epoch(study_file, tmp_path, capsys, run):
    flags, tune = {"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 2}, {"model.lr": [0.1]}
    file = study_file(overrides=flags, tune=tune)
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 2
    assert "trainer.check_val_every_n_epoch 2 does not validate the last of" in capsys.readouterr().err
    assert "this run has none of its last epoch" in run(
        {"trainer.max_epochs": 2, "trainer.max_steps": 5}, name="steps", tune=tune
    )


def test_a_flag_that_is_refused_shows_before_any_run(study_file, tmp_path, capsys):
    for flags, expected in (
        ({"trainer.max_epochs": -1}, "give trainer.max_epochs"),
        ({"trainer.callbacks": [{"class_path": "Nonsense"}]}, "'Nonsense'"),
        ({"trainer.logger": "WandbLogger"}, "WandbLogger: Requirement 'wandb"),
        ({"trainer.num_nodes": 2}, "a run takes one machine"),
    ):
        file = study_file(overrides=flags)
        assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 2
        assert expected in capsys.readouterr().err


def test_images_of_a_folder_beside_the_study(study_file, tmp_path, monkeypatch):
    from PIL import Image

    for label, shade in (("dark", 0), ("light", 200)):
        for number in range(10):
            (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
            image = Image.new("L", (8, 8), shade)
            image.putpixel((number % 8, number // 8), 255 - shade)
            image.save(tmp_path / "pictures" / label / f"{number}.png")
    monkeypatch.setenv("VITPOS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    overrides = {"data.name": "folder", "data.root": "pictures", "data.batch_size": 4}
    study = plan.load(study_file(overrides=overrides))
    cli = prepare(study.runs[0], tmp_path / "run")
    assert cli.datamodule.classes == ("dark", "light")
    assert study.runs[0].config["data"]["root"] == "pictures"
