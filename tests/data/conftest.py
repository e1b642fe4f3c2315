"""A cache of its own for each test, and a small CIFAR-10 in both of its layouts."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
from parquet_files import write_parquet

from vitpos.data import cifar, images, sources

COUNTS = {"train": 200, "test": 40}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITPOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_memo", {})
    images.say.cache_clear()


@pytest.fixture
def pixels():
    """(images (N, 3, 32, 32), labels) of each part; every class has a tenth."""
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.permutation(np.arange(count) % 10))
        for part, count in COUNTS.items()
    }


@pytest.fixture
def small(monkeypatch):
    """Makes 200 + 40 images the full size of CIFAR-10."""
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", replace(cifar.LAYOUTS["cifar10"], counts=COUNTS))


@pytest.fixture
def archive(tmp_path, pixels, small, monkeypatch):
    """A root with the official archive's folder: five training batches and a test batch."""
    import torchvision.datasets

    root = tmp_path / "archive"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = pixels["train"]
    batches = {f"data_batch_{i + 1}": (images[i::5], labels[i::5]) for i in range(5)}
    checksums = {}
    for file, (data, targets) in (batches | {"test_batch": pixels["test"]}).items():
        content = pickle.dumps({"data": data.reshape(-1, 3072), "labels": targets.tolist()})
        (folder / file).write_bytes(content)
        checksums[file] = hashlib.md5(content).hexdigest()
    lists = [[file, checksum] for file, checksum in checksums.items()]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", lists[5:])
    return root


@pytest.fixture
def parquet(tmp_path, pixels, small):
    """A root with the parquet copy, the training part in two files."""
    root = tmp_path / "parquet"
    images, labels = pixels["train"]
    write_parquet(root / "cifar10/train-00000-of-00002.parquet", images[:70], labels[:70])
    write_parquet(root / "cifar10/train-00001-of-00002.parquet", images[70:], labels[70:])
    write_parquet(root / "cifar10/test-00000-of-00001.parquet", *pixels["test"])
    return root
