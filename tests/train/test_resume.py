"""A run that was interrupted ends bit-equal to one that was not, with one curve in TensorBoard."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitpos.provenance import sources
from vitpos.study import plan
from vitpos.study.run import execute, prepare

TIMED = {"images_per_second"}


@pytest.fixture
def run(study_file):
    changes = {"trainer.max_epochs": 3, "trainer.limit_train_batches": 4, "model.drop_path_rate": 0.2}
    return plan.load(study_file(overrides={**changes, "model.warmup_epochs": 1, "data.flip": True})).runs[1]


def weights(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return {**checkpoint["state_dict"], **checkpoint["optimizer_states"][0]["state"][0]}


def untimed(rows):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


@pytest.mark.parametrize("moment", ["in an epoch", "before its checkpoint"])
def test_interrupted_run_ends_bit_equal(tmp_path, run, moment):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert execute(run, whole).error is None

    cli = prepare(run, broken)

    step, save = cli.model.training_step, cli.trainer.save_checkpoint

    def crash(*args, **kwargs):
        raise ConnectionError("power cut")

    def training_step(batch, batch_idx):
        cut = moment == "in an epoch" and (cli.trainer.current_epoch, batch_idx) == (2, 2)
        return (crash if cut else step)(batch, batch_idx)

    def save_checkpoint(*args, **kwargs):
        cut = moment == "before its checkpoint" and cli.trainer.current_epoch == 2
        return (crash if cut else save)(*args, **kwargs)

    cli.model.training_step, cli.trainer.save_checkpoint = training_step, save_checkpoint
    with pytest.raises(ConnectionError):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    for logger in cli.trainer.loggers:
        logger.save()
    torch.rand(17)
    assert execute(run, broken).error is None

    one, two = weights(whole), weights(broken)
    assert one.keys() == two.keys()
    assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])) for key in one)
    rows = [json.loads((folder / "result.json").read_text()) for folder in (whole, broken)]
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["position"] == rows[1]["position"]
    assert untimed(rows[0]["history"]) == untimed(rows[1]["history"])
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]

    events = EventAccumulator(str(broken / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    written = sorted(events.Scalars("val/accuracy"), key=lambda event: event.wall_time)
    assert [event.step for event in written] == [1, 2, 3]
    assert events.Tags()["images"] == ["position/similarity"]


def test_a_damaged_checkpoint_starts_over(tmp_path, run, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"half a file")
    assert execute(run, folder).error is None
    assert "last.ckpt is damaged" in capsys.readouterr().out


def test_what_is_damaged_or_of_another_run_is_passed_over(tmp_path, study_file, monkeypatch, capsys):
    runs = plan.load(study_file(overrides={"trainer.max_epochs": 2, "trainer.limit_train_batches": 2})).runs
    run, other = (next(r for r in runs if r.seed == seed and r.axes["position"] == "learned") for seed in (0, 1))
    folder, last = tmp_path / "run", tmp_path / "run" / "last.ckpt"
    assert execute(run, folder).error is None
    whole, good = json.loads((folder / "result.json").read_text()), last.read_bytes()
    assert whole["environment"]["sources"] == [sources()]

    def again(run, data, text):
        last.unlink()
        last.write_bytes(data)
        assert execute(run, folder).error is None
        printed = capsys.readouterr().out
        assert text in printed
        return json.loads((folder / "result.json").read_text()), printed

    row, printed = again(run, good[:-9], "last.ckpt is damaged")
    assert "trying the one before" in printed
    assert "goes on after epoch 1" in printed
    assert untimed(row["history"]) == untimed(whole["history"])
    row, printed = again(other, good, f"is of another run ({run.hash}, not {other.hash})")
    assert "starting over" in printed
    assert len(row["history"]) == 2
    assert row["metrics"] != whole["metrics"]

    monkeypatch.setattr("vitpos.train.checkpoint.sources", lambda: "edited")
    row, _ = again(run, good, "")
    assert row["environment"]["sources"] == [sources(), "edited"]  # in order of use
    assert torch.load(last, weights_only=True)["vitpos"]["sources"] == [sources()]  # nothing was left to train


def test_the_data_that_changed_start_over(tmp_path, study_file, monkeypatch, capsys):
    run = plan.load(study_file(overrides={"trainer.max_epochs": 1, "trainer.limit_train_batches": 2})).runs[1]
    assert execute(run, tmp_path / "run").error is None
    monkeypatch.setattr("vitpos.data.module.ImageData.fingerprint", "other")
    assert execute(run, tmp_path / "run").error is None
    printed = capsys.readouterr().out
    assert "the contents of the data digits are other" in printed
    assert "starting over" in printed
