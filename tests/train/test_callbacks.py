"""When a run writes its checkpoint."""

import pytest

from vitpos.cli.main import main
from vitpos.train.checkpoint import WholeFiles

SMALL = ["--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "2", "--data.name", "digits",
         "--data.batch_size", "32", "--trainer.limit_train_batches", "8", "--trainer.precision", "32-true"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ([], 2),
        (["--checkpoint_minutes", 1e-9], 16),
        pytest.param(["--checkpoint_minutes", 0], 2, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_an_epoch_unless_it_is_long(tmp_path, monkeypatch, words, written):
    files, save = [], WholeFiles.save_checkpoint
    monkeypatch.setattr(
        WholeFiles, "save_checkpoint", lambda *args, **given: (files.append(args), save(*args, **given))
    )
    words = [*SMALL, "--trainer.max_epochs", 2, *words, "--trainer.default_root_dir", tmp_path]
    assert main(["fit", *map(str, words)]) == 0
    assert len(files) == written


@pytest.mark.parametrize("minutes", ["-1", "nan", "often"])
def test_minutes_that_are_no_time(tmp_path, refused, minutes):
    refused("fit", *SMALL, "--checkpoint_minutes", minutes, "--trainer.default_root_dir", tmp_path,
            expected=["checkpoint_minutes", minutes])  # fmt: skip
    assert not (tmp_path / "metrics.jsonl").exists()
