"""The command does not depend on what a notebook, a locale or another system has set."""

import io
import os
import subprocess
import sys

import pytest

from vitpos.cli.main import main

QUICK = ["--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "4", "--data.name", "digits",
         "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]  # fmt: skip


def test_windows_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resource", None)  # as where the system has none
    assert main(["positions"]) == 2
    assert "runs on Linux and macOS" in capsys.readouterr().err


def test_a_letter_that_the_terminal_lacks_ends_nothing(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["study", "status", "Fängt.yaml"]) == 2
    sys.stderr.flush()
    assert b"F\\xe4ngt" in raw.getvalue()
    assert os.environ["PYTHONIOENCODING"]


@pytest.mark.slow
def test_a_notebooks_backend_a_slurm_allocation_and_an_ascii_locale(tmp_path):
    (tmp_path / "base.yaml").write_text("trainer: {max_epochs: 1}")
    (tmp_path / "s.yaml").write_text(
        "question: Fängt es an?\nbase: base.yaml\naxes: {position: [none, learned]}\nseeds: [0]\nreference: none\n",
        encoding="utf-8",
    )
    odd = {
        "MPLBACKEND": "module://not_installed.backend", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x",
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", "import sys; from vitpos.cli.main import main; sys.exit(main())"]
    fit = subprocess.run([*command, "fit", *QUICK], cwd=tmp_path, env={**os.environ, **odd}, capture_output=True)
    assert fit.returncode == 0, fit.stderr
    text = (tmp_path / "s.yaml").read_text(encoding="utf-8")
    flags = ", ".join(f"{key.removeprefix('--')}: {value}" for key, value in zip(QUICK[::2], QUICK[1::2], strict=True))
    (tmp_path / "s.yaml").write_text(f"{text}overrides: {{{flags}}}\n", encoding="utf-8")
    study = subprocess.run(
        [*command, "study", "run", "s.yaml", "--workers", "1"],
        cwd=tmp_path, env={**os.environ, **odd}, capture_output=True,
    )  # fmt: skip
    assert study.returncode == 0, study.stderr
    assert "Fängt es an?" in (tmp_path / "results" / "s" / "report.html").read_text(encoding="utf-8")
