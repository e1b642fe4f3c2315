import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vitpos.data import cifar, sources
from vitpos.data.images import Raw, canonical
from vitpos.data.sources import load
from vitpos.errors import VitposError

PARTS = ("train", "val", "test")
REAL = Path(os.environ.get("VITPOS_DATA") or Path(__file__).parents[3] / "shared" / "data")


def pairs(split):
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def same(a, b):
    return all(
        torch.equal(getattr(getattr(a, part), what), getattr(getattr(b, part), what))
        for part in PARTS
        for what in ("images", "labels")
    )


def test_both_layouts_are_the_same_data(archive, parquet):
    a = load("cifar10", archive)
    b = load("cifar10", parquet)
    assert a.fingerprint == b.fingerprint
    assert a.classes == b.classes == cifar.LAYOUTS["cifar10"].classes
    assert same(a, b)


def test_images_keep_their_labels_and_parts(parquet, pixels):
    data = load("cifar10", parquet)
    expected = {part: {(i.tobytes(), int(n)) for i, n in zip(*pixels[part], strict=True)} for part in pixels}
    assert pairs(data.train) | pairs(data.val) == expected["train"]
    assert pairs(data.test) == expected["test"]
    assert [len(getattr(data, part)) for part in PARTS] == [180, 20, 40]
    assert torch.equal(data.val.labels.bincount(), torch.full((10,), 2))
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64


def test_validation_is_the_tenth_of_each_class_with_the_smallest_digests(parquet, pixels):
    images, labels = pixels["train"]
    expected = set()
    for label in range(10):
        of_class = [image.tobytes() for image in images[labels == label]]
        suffix = label.to_bytes(8, "little")
        of_class.sort(key=lambda image, suffix=suffix: hashlib.blake2b(image + suffix, digest_size=16).digest())
        expected |= {(image, label) for image in of_class[:2]}
    assert pairs(load("cifar10", parquet).val) == expected


def test_fingerprint_follows_contents_only(pixels):
    images, labels = pixels["train"]
    order = np.random.default_rng(1).permutation(len(labels))
    first = canonical("x", Raw(("a",), images, labels))
    assert canonical("y", Raw(("b",), images[order], labels[order])).fingerprint == first.fingerprint
    other = labels.copy()
    other[0] = (other[0] + 1) % 10
    changed = images.copy()
    changed[3, 0, 0, 0] ^= 1
    prints = {
        first.fingerprint,
        canonical("x", Raw(("a",), images, other)).fingerprint,
        canonical("x", Raw(("a",), changed, labels)).fingerprint,
        canonical("x", Raw(("a",), images.reshape(-1, 3, 64, 16), labels)).fingerprint,
        canonical("x", Raw(("a",), images[:100], labels[:100], images[100:], labels[100:])).fingerprint,
        canonical("x", Raw(("a",), images[:101], labels[:101], images[101:], labels[101:])).fingerprint,
    }
    assert len(prints) == 6


def test_moments(pixels):
    data = canonical("x", Raw(("a",), *pixels["train"]))
    values = data.train.images.double()
    mean, deviation = data.moments
    torch.testing.assert_close(mean, values.mean((0, 2, 3))[:, None, None].float())
    torch.testing.assert_close(deviation, values.std((0, 2, 3), correction=0)[:, None, None].float())


def test_moments_of_a_constant_channel():
    raw = Raw(("a",), np.full((20, 1, 4, 4), 7, np.uint8), np.zeros(20, np.int64))
    assert [value.item() for value in canonical("x", raw).moments] == [7, 1]


def test_digits():
    data = load("digits")
    assert load("digits") is data
    parts = [getattr(data, part) for part in PARTS]
    assert sum(map(len, parts)) == 1797
    assert len(set.union(*map(pairs, parts))) == 1797  # all differ, so the parts are disjoint
    assert data.train.images.shape[1:] == (1, 8, 8)
    source = load_digits()
    counts = np.bincount(source.target)
    assert data.test.labels.bincount().tolist() == [round(0.2 * n) for n in counts]
    assert data.val.labels.bincount().tolist() == [round(0.1 * (n - round(0.2 * n))) for n in counts]
    # 0..16 to 0..255 can be undone, and gives scikit-learn's own images back
    images = torch.cat([part.images for part in parts])[:, 0].double().mul(16 / 255).round()
    assert sorted(i.numpy().tobytes() for i in images) == sorted(i.tobytes() for i in source.images)
    assert images.max() == 16


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason=f"no CIFAR-10 parquet copy in {REAL}")
@pytest.mark.slow
def test_real_cifar10():
    raw = cifar.locate("cifar10", REAL, False)[1]()
    for images, expected in (
        (raw.images, "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
        (raw.test_images, "b726c0776fa6529b7083cf65b3fcea9ab2e4609ac1d7632ba4fb80851c88aa62"),
    ):
        assert hashlib.sha256(np.ascontiguousarray(images.transpose(0, 2, 3, 1))).hexdigest() == expected
    data = canonical("cifar10", raw)
    assert data.fingerprint == "2dabd7f07a4e28702d51c286e9d5203b"
    for part, count in zip(PARTS, (4500, 500, 1000), strict=True):
        assert torch.equal(getattr(data, part).labels.bincount(), torch.full((10,), count))
    assert len(set.union(*(pairs(getattr(data, part)) for part in PARTS))) == 60000  # all differ: disjoint
    images = torch.cat([data.train.images, data.val.images])
    mean, deviation = (torch.stack([f(c.float() / 255) for c in images.unbind(1)]) for f in (torch.mean, torch.std))
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)


def test_unknown_name():
    with pytest.raises(VitposError, match=r"unknown data set 'cifar-10'; did you mean 'cifar10'\?"):
        load("cifar-10")


def test_root_from_the_environment(parquet, monkeypatch, tmp_path):
    monkeypatch.setenv("VITPOS_DATA", str(parquet))
    assert len(load("cifar10").test) == 40
    monkeypatch.delenv("VITPOS_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitposError, match=rf"not found, looked for .* in {tmp_path}/data; to get the data"):
        load("cifar10")
    parquet.rename(tmp_path / "data")
    sources._memo.clear()
    assert len(load("cifar10").test) == 40
