"""A run goes on as the run that it was, or is refused; a checkpoint is whole, and knows what its weights belong to."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitpos.cli.main import main
from vitpos.train import checkpoint as checkpoints
from vitpos.train.checkpoint import CheckpointError, WholeFiles, previous
from vitpos.train.task import Classifier

SMALL = ["--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "2", "--data.name", "digits",
         "--data.batch_size", "32", "--trainer.limit_train_batches", "8", "--trainer.precision", "32-true"]  # fmt: skip
HARD = ["--position", "learned", "--model.mixup", "0.8", "--model.drop_path_rate", "0.2",
        "--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "0.5"]  # fmt: skip


def fit(folder, *words, code=0):
    assert main(["fit", *map(str, words), "--trainer.default_root_dir", str(folder)]) == code
    return folder


def saving(at, stop=False):
    """Makes all runs save after the batches ``at``, counted over epochs, as ``<batch>.ckpt``, and maybe stop there."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        on_end(self, outputs, batch, batch_idx)
        count = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if count in at:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / f"{count}.ckpt")
            if stop:
                raise ConnectionError("power cut")

    on_end, patch = Classifier.on_train_batch_end, pytest.MonkeyPatch()
    patch.setattr(Classifier, "on_train_batch_end", on_train_batch_end)
    return patch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs that was never interrupted, with checkpoints inside epochs."""
    patch = saving([2, 10, 12, 16])
    try:
        return fit(tmp_path_factory.mktemp("whole") / "run", *SMALL, *HARD, "--trainer.max_epochs", 3)
    finally:
        patch.undo()


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def state(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    moments = checkpoint["optimizer_states"][0]["state"]
    return {**checkpoint["state_dict"], **{f"{i}{k}": v for i, s in moments.items() for k, v in s.items()}}


def rows(folder, *, timed=False):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return read if timed else [{key: v for key, v in row.items() if key != "images_per_second"} for row in read]


def curve(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    # files that one process began in one second are read by the number at their end, 10 before 9
    return [event.step for event in sorted(events.Scalars("train/loss"), key=lambda event: event.wall_time)]


def same(one, two):
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    return rows(one) == rows(two) and all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


@pytest.mark.parametrize(
    "batch", [2, 10, 12]
)  # in a window of accumulation, and after one; before and after validation
def test_a_run_goes_on_inside_an_epoch(whole, tmp_path, batch):
    # nothing is given but the checkpoint: it brings the options along
    fit(tmp_path / "run", "--ckpt_path", whole / f"{batch}.ckpt")
    assert same(whole, tmp_path / "run")
    rates = [row["images_per_second"] for row in rows(tmp_path / "run", timed=True)]
    assert max(rates) < 50 * min(rates)
    assert curve(tmp_path / "run")[-1] == 3


@pytest.mark.slow
def test_one_that_went_on_goes_on_again(whole, tmp_path):
    patch = saving([13], stop=True)
    try:
        fit(tmp_path / "run", "--ckpt_path", whole / "10.ckpt", code=2)
    finally:
        patch.undo()
    fit(tmp_path / "run", "--ckpt_path", tmp_path / "run" / "13.ckpt")
    assert same(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "batches",
    [
        [10, 11],  # 11 is the first batch after going on
        pytest.param([3], marks=pytest.mark.slow),
        pytest.param([12], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_cut_inside_an_epoch_goes_on_from_its_checkpoint_by_time(whole, tmp_path, batches):
    every_batch = ["--checkpoint_minutes", "1e-9"]
    for cut in batches:
        patch = saving([cut], stop=True)
        try:
            fit(tmp_path / "run", *SMALL, *HARD, "--trainer.max_epochs", 3, *every_batch, "--ckpt_path", "last", code=2)
        finally:
            patch.undo()
        saved = cut - (cut == 12)  # after which a validation comes
        assert checkpoints.done(checkpoints.read(tmp_path / "run" / "last.ckpt")) == divmod(saved, 8)
    fit(tmp_path / "run", "--ckpt_path", "last")
    assert same(whole, tmp_path / "run")


def test_between_the_last_batch_of_an_epoch_and_its_end_nothing_goes_on(whole, tmp_path, refused):
    refused("fit", "--ckpt_path", whole / "16.ckpt", "--trainer.default_root_dir", tmp_path / "run",
            expected=["after the last batch of an epoch", "last.ckpt"])  # fmt: skip
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_steps_that_end_inside_an_epoch_go_on_there(tmp_path):
    fit(tmp_path / "run", *SMALL, "--trainer.max_steps", 12)
    assert len(rows(tmp_path / "run")) == 2
    fit(tmp_path / "run", "--trainer.max_steps", 20, "--ckpt_path", "last")
    assert [row["epoch"] for row in rows(tmp_path / "run")] == curve(tmp_path / "run") == [1, 2, 3]
    assert rows(tmp_path / "run")[-1]["lr"] == 0


@pytest.mark.slow
def test_with_a_limit_in_steps_an_interrupted_run_ends_bit_equal(tmp_path):
    long = [*SMALL, "--trainer.max_steps", "20"]
    fit(tmp_path / "long", *long)
    patch = saving([12], stop=True)
    try:
        fit(tmp_path / "run", *long, code=2)
    finally:
        patch.undo()
    fit(tmp_path / "run", *long, "--ckpt_path", "last")
    assert same(tmp_path / "long", tmp_path / "run")
    assert curve(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("data.batch_size", 64, ["data.batch_size is 64", "with 32"]),
        pytest.param("data.train_fraction", 0.5, ["data.train_fraction is 0.5", "with 1.0"], marks=pytest.mark.slow),
        pytest.param("data.flip", "false", ["data.flip is False", "with True"], marks=pytest.mark.slow),
        ("trainer.accumulate_grad_batches", 2, ["accumulate_grad_batches is 2", "with 3"]),
        ("trainer.limit_train_batches", 4, ["limit_train_batches is 4", "with 8"]),
        ("trainer.limit_train_batches", 1.0, ["limit_train_batches is 1.0", "with 8"]),
        pytest.param("trainer.overfit_batches", 4, ["limit_train_batches is 4", "with 8"], marks=pytest.mark.slow),
        pytest.param(
            "trainer.gradient_clip_val", 1.0, ["gradient_clip_val is 1.0", "with None"], marks=pytest.mark.slow
        ),
        ("trainer.precision", "bf16-mixed", ["precision is 'bf16-mixed'", "'32-true'"]),
        ("trainer.max_epochs", 2, ["trainer.max_epochs is 2", "has trained 3 epochs"]),
        pytest.param("trainer.max_steps", 5, ["trainer.max_steps is 5", "has trained 9 steps"], marks=pytest.mark.slow),
        ("position", "rope_axial", ["position is 'rope_axial'", "'learned'"]),
        ("model.lr", 0.5, ["model.lr is 0.5", "0.001"]),
        ("model.lr", 0.001, None),
        pytest.param("seed_everything", 7, ["seed_everything is 7", "with 0"], marks=pytest.mark.slow),
    ],
)
def test_options_that_contradict_the_checkpoint(copy, refused, capsys, option, value, expected):
    words = ["fit", f"--{option}", value, "--ckpt_path", copy, "--trainer.default_root_dir", copy]
    before = [(file, file.read_bytes()) for file in copy.rglob("*") if file.is_file() and "log" not in file.name]
    if expected is None:
        assert main(list(map(str, words))) == 0
        assert "nothing left to do after 9 steps" in capsys.readouterr().out
        assert curve(copy) == [1, 2, 3]
    else:
        refused(*words, expected=expected)
        assert before == [(file, file.read_bytes()) for file, _ in before]


def test_more_epochs_follow_a_schedule_of_the_new_length(copy, capsys):
    fit(copy, "--ckpt_path", "last", "--trainer.max_epochs", 5)
    assert "trainer.max_epochs is 5, it was 3" in capsys.readouterr().out
    rates = [row["lr"] for row in rows(copy)]
    assert rates[2] == rates[4] == 0 < rates[3]
    assert curve(copy) == [1, 2, 3, 4, 5]


def test_another_run_is_not_overwritten(copy, tmp_path, refused):
    fit(tmp_path / "other", *SMALL, "--trainer.max_epochs", 1)
    before = (copy / "last.ckpt").read_bytes()
    refused("fit", "--ckpt_path", tmp_path / "other", "--trainer.max_epochs", 2, "--trainer.default_root_dir", copy,
            expected=["already holds a run of 3 epochs", "name another folder"])  # fmt: skip
    assert (copy / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_the_config_of_a_run_that_went_on_repeats_it(copy, whole, tmp_path):
    fit(copy, "--ckpt_path", whole / "10.ckpt")
    config = yaml.safe_load((copy / "tensorboard" / "config.yaml").read_text())
    assert config["ckpt_path"] is None
    assert config["position"] == "learned"
    assert config["trainer"]["accumulate_grad_batches"] == 3
    fit(tmp_path / "again", "--config", copy / "tensorboard" / "config.yaml", "--ckpt_path", "last")
    assert same(whole, tmp_path / "again")


def test_a_fresh_start_has_one_curve_and_no_leavings(tmp_path):
    folder = tmp_path / "run"
    patch = saving([9], stop=True)
    try:
        fit(folder, *SMALL, "--trainer.max_epochs", 2, code=2)
    finally:
        patch.undo()
    (folder / "last.ckpt").unlink()  # as if killed before it
    (folder / "last.ckpt.99.part").touch()
    fit(folder, *SMALL, "--trainer.max_epochs", 2)
    assert curve(folder) == [1, 2]
    assert not list(folder.glob("*.part"))


def test_every_damage_is_found(copy):
    file = copy / "last.ckpt"
    good, tensors = file.read_bytes(), torch.load(file, weights_only=True)["state_dict"]
    draw = random.Random(0)
    damaged = [b"", good[: len(good) // 2], good[:-9], bytes(len(good)), good[:99999] + bytes(4096) + good[104095:]]
    for _ in range(40):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    found = 0
    for data in damaged:
        file.unlink()  # torch maps it
        file.write_bytes(data)
        try:
            read = checkpoints.read(file)["state_dict"]
        except CheckpointError:
            found += 1
        else:  # in the padding between the tensors
            assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert found > 40


def test_a_damaged_last_checkpoint_costs_one_epoch(copy, whole, capsys, refused):
    (copy / "last.ckpt").unlink()
    (copy / "last.ckpt").write_bytes(b"half")
    refused("test", "--ckpt_path", copy / "last.ckpt", expected=["last.ckpt is damaged"])
    refused("fit", "--trainer.default_root_dir", copy, expected=["already holds", "--ckpt_path last"])
    fit(copy, "--ckpt_path", "last")
    assert "taking the one before" in capsys.readouterr().out
    assert same(whole, copy)
    assert checkpoints.done(checkpoints.read(previous(copy / "last.ckpt"))) == (2, 0)
    for file in checkpoints.candidates(copy):
        file.unlink()
        file.write_bytes(b"half")
    refused(
        "fit", "--ckpt_path", "last", "--trainer.default_root_dir", copy, expected=["damaged", "to start over, remove"]
    )


def test_a_folder_stands_for_its_last_checkpoint(copy, refused, capsys):
    assert main(["test", "--ckpt_path", str(copy)]) == 0
    refused("test", "--ckpt_path", copy.parent, expected=["is a folder without a last.ckpt"])
    torch.save({"epoch": 1, "hyper_parameters": {}, "a": Path("x")}, copy / "objects.ckpt")
    refused("test", "--ckpt_path", copy / "objects.ckpt", expected=["holds objects beside tensors"])
    old = torch.load(copy / "last.ckpt", weights_only=True)
    del old["vitpos"]
    torch.save(old, copy / "old.ckpt")
    for command in ("fit", "test"):
        refused(command, "--ckpt_path", copy / "old.ckpt", expected=["of an older version of vitpos"])


def test_a_checkpoint_knows_what_it_belongs_to(whole):
    belongs = checkpoints.read(whole / "last.ckpt")["vitpos"]
    assert belongs["position"] == "learned"
    assert belongs["geometry"]["grid"] == (4, 4)
    assert belongs["hash"] is None
    assert belongs["sources"] == checkpoints.trail([])
    assert belongs["data"]["classes"] == list("0123456789")
    assert belongs["data"]["name"] == "digits"
    assert belongs["data"]["train_fraction"] == 1
    assert len(belongs["data"]["mean"]) == len(belongs["data"]["deviation"]) == 1


def test_evaluation_takes_data_and_normalisation_of_training(tmp_path, refused, capsys):
    draws = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(40):
            noise = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / name / f"{i}.png")
    root, folder = ["--data.root", str(tmp_path / "data")], tmp_path / "run"
    small = [*SMALL, "--data.name", "folder", *root, "--data.batch_size", 8, "--data.train_fraction", 0.2]
    fit(folder, *small, "--trainer.max_epochs", 1)
    row = rows(folder)[-1]
    evaluate = ["validate", "--ckpt_path", str(folder), *root]

    def losses(*words):
        capsys.readouterr()
        assert main([*evaluate, *words]) == 0
        return float(capsys.readouterr().out.split()[1])

    assert losses() == pytest.approx(row["val/loss"], abs=6e-5)
    assert losses("--data.train_fraction", "1.0") == losses()  # given, it wins; the normalisation is that of training
    on = ["fit", *evaluate[1:], "--trainer.default_root_dir", folder, "--trainer.max_epochs", "2"]
    (tmp_path / "data" / "a" / "1.png").rename(tmp_path / "data" / "b" / "99.png")
    refused(*on, expected=["the contents of the data folder are"])
    losses()  # other images of the same classes may be evaluated
    (tmp_path / "data" / "a").rename(tmp_path / "data" / "zebra")
    for words in (evaluate, on):
        refused(*words, expected=["['b', 'c', 'zebra']", "['a', 'b', 'c']"])
    refused(*evaluate, "--data.name", "digits", expected=["['0', '1', '2'", "['a', 'b', 'c']"])
    refused(*evaluate, "--position", "learned", expected=["position is 'learned'", "'none'"])


def test_a_file_that_only_the_checkpoint_names_is_not_run(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    code = "from vitpos import PositionEmbedding\nclass Mine(PositionEmbedding): pass\n"
    Path("mine.py").write_text(code)
    fit(tmp_path / "run", *SMALL, "--trainer.max_epochs", 1, "--position", "mine.py:Mine")
    Path("mine.py").write_text(f"open('run_it', 'w').close()\n{code}")
    for command in ("fit", "validate", "test"):
        for words in ([], ["--position", "none"]):
            refused(
                command,
                "--ckpt_path",
                "run",
                *words,
                expected=["runs only if you name it", "--position 'mine.py:Mine'"],
            )
    assert not Path("run_it").exists()
    more = ["--ckpt_path", "run", "--position", "mine.py:Mine"]
    refused(
        "fit", *more, "--trainer.max_epochs", 2, "--trainer.default_root_dir", "run", expected=["mine.py:Mine changed"]
    )
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.py").write_text(code)
    assert main(["test", "--ckpt_path", "run", "--position", "elsewhere/mine.py:Mine"]) == 0


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files, target = WholeFiles(), tmp_path / "new" / "last.ckpt"
    files.save_checkpoint({"a": 1}, target)
    files.save_checkpoint({"a": 2}, target)
    assert [torch.load(file)["a"] for file in checkpoints.candidates(target.parent)] == [2, 1]

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.save_checkpoint({"a": 3}, target)
    assert caught.value.filename == str(target)
    assert [torch.load(file)["a"] for file in checkpoints.candidates(target.parent)] == [2, 1]
    assert len(list(target.parent.iterdir())) == 2
    files.remove_checkpoint(target)
    assert not list(target.parent.iterdir())


def test_a_checkpoint_cannot_have_classes_of_its_own_made(copy, tmp_path):
    made = tmp_path / "made"
    hostile = {"class_path": "builtins.open", "init_args": {"file": str(made), "mode": "w"}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(made)}}
    for file in checkpoints.candidates(copy):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["vitpos"]["options"] |= {"trainer.logger": logger, "trainer.callbacks": [hostile], "x.y": hostile}
        torch.save(checkpoint, file)
    fit(copy, *SMALL, *HARD, "--trainer.max_epochs", 4, "--ckpt_path", "last")
    assert not made.exists()
