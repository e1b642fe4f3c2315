"""The GPU kit says so where there is no GPU, survives what fails, goes on where it was, and runs dry on a CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
SECTIONS = """
import sys, time
name = sys.argv[2]
print(f"what {name} found", flush=True)
if name == "bench":
    raise MemoryError("the card is full")
if name == "beside":
    time.sleep(600)
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The script, with sections that are made up: one fails, one never ends."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPTS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "sections.py").write_text(SECTIONS)
    monkeypatch.setattr(module, "DRY", True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "sections.py"))
    monkeypatch.setattr(module, "LIMITS", {**dict.fromkeys(module.LIMITS, 60), "beside": 5.5})
    return module


def test_without_a_gpu_it_says_so_and_installs_nothing(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VITPOS_")}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(["bash", SCRIPTS / "gpu.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no GPU here" in done.stderr


def test_a_section_that_fails_or_hangs_is_on_the_page_and_the_others_go_on(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 1
    text = (tmp_path / "dry.md").read_text()
    for name in gpu.LIMITS:
        assert f"what {name} found" in text
    assert "Speed of one run: failed with exit code 1" in text
    assert "MemoryError: the card is full" in text
    assert "side by side on one GPU: was cut after 6 s" in text
    assert "The quickstart: done" in text

    (tmp_path / "sections.py").write_text("print('mended')")  # it goes on: what is done is not done again
    assert gpu.main() == 0
    text = (tmp_path / "dry.md").read_text()
    assert text.count("mended") == 2
    assert "what tests found" in text


def test_without_time_nothing_is_begun(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--spent", "5998"])
    assert gpu.main() == 1
    assert (tmp_path / "dry.md").read_text().count("no time was left; start scripts/gpu.sh again") == 10


@pytest.mark.slow
def test_it_runs_dry(tmp_path):
    environment = {**os.environ, "VITPOS_GPU_DRY": "1", "VITPOS_PYTHON": sys.executable}
    words = ["bash", SCRIPTS / "gpu.sh", "--out", tmp_path]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    page = (tmp_path / "dry.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + page
    assert page.count(": done, ") == 5
    assert "| d64: runs at a time |" in page
    assert "failed" not in page.replace("0 failed", "")
