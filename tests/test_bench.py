"""The benchmark runs, and counts the operations that are there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("growth", SCRIPTS / "growth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [{"embed_dim": 96, "depth": 6}, {"embed_dim": 48, "depth": 3, "patch_size": 2}])
def test_operations_are_those_that_torch_counts(growth, size):
    model = timm.create_model("vitpos_nano_patch4_32", num_heads=3, **size)
    growth.choose_attention(model, "unfused", "cpu", "32-true")  # the counter does not know the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    # the patch embedding and the head are left out
    assert 0.98 < growth.operations(**size) / 3 / counter.get_total_flops() < 1


def test_growth_as_table_and_picture(growth, tmp_path):
    points = [
        growth.Point("patch_size", 8, 65e6, 0.4),
        growth.Point("embed_dim", 96, 300e6, 1.5),
        growth.Point("depth", 12, 600e6, 3.0),
    ]
    assert growth.table(points, 400.0)[-2:] == [
        "| embed_dim 96 | 64 | 0.300 | 1.500 | 200 | 50% |",
        "| depth 12 | 64 | 0.600 | 3.000 | 200 | 50% |",
    ]
    growth.draw(points, 400.0, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, cifar_root):
    words = ["--models", "d64", "--rounds", "1", "--seconds", "0.1", "--no-growth", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", *words],
        env={**os.environ, "VITPOS_DATA": str(cifar_root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\(\w\) [^|]+|vitpos, [^|]+) \| ([\d,]+) \|", done.stdout, re.MULTILINE)
    assert len(rows) == 7
    assert all(int(rate.replace(",", "")) > 0 for _, rate in rows)
    assert (tmp_path / "bench.md").read_text().startswith("# Training speed")


@pytest.mark.slow
def test_the_benchmark_without_data(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py"],
        env={**os.environ, "VITPOS_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bench.py: error: cifar10: not found")
