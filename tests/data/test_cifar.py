import io
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision.datasets
from parquet_files import encode, write_parquet
from PIL import Image

from vitpos.data import cifar
from vitpos.data.sources import load
from vitpos.errors import VitposError

WAYS = (
    r"to get the data: unpack the official archive as \S+/cifar-10-batches-py, or put the Hugging Face parquet copy "
    r"into \S+/cifar10, or pass --data\.download true$"
)
TRAIN = "cifar10/train-00001-of-00002.parquet"


def refused(root, message):
    with pytest.raises(VitposError, match=f"^{message}; {WAYS}") as caught:
        load("cifar10", root)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    refused(
        tmp_path, rf"cifar10: not found, looked for cifar-10-batches-py/ and cifar10/train-\*\.parquet in {tmp_path}"
    )


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_archive_with_a_file_missing_or_damaged(archive, name):
    file = archive / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-1])
    refused(archive, rf"\S+/{name}: damaged, its MD5 is not [0-9a-f]{{32}}")
    file.unlink()
    refused(archive, rf"\S+/{name}: missing")


def test_a_file_with_a_wrong_checksum_is_not_unpickled(archive):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise AssertionError('unpickled')",)

    (archive / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    refused(archive, r"\S+/data_batch_1: damaged, .*")


def test_parquet_without_one_part(parquet):
    (parquet / "cifar10/test-00000-of-00001.parquet").unlink()
    refused(parquet, r"cifar10: no test-\*\.parquet in \S+/cifar10")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_not_parquet_or_truncated(parquet, content):
    file = parquet / TRAIN
    file.write_bytes(file.read_bytes()[:-5000] if content is None else content)
    refused(parquet, rf"\S+/{TRAIN}: not a parquet file, or a truncated one")


def test_parquet_with_damaged_pages(parquet):
    file = parquet / TRAIN
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)  # the first page's header
    file.write_bytes(content)
    refused(parquet, rf"\S+/{TRAIN}: damaged, its columns cannot be read")


def test_parquet_with_other_columns(parquet, pixels):
    write_parquet(parquet / TRAIN, *pixels["test"], column="fine_label")
    refused(parquet, rf"\S+/{TRAIN}: no column 'label' \(found: img, fine_label\)")
    pq.write_table(pa.table({"image": [1], "label": [1]}), parquet / TRAIN)
    refused(parquet, rf"\S+/{TRAIN}: no column 'img' \(found: image, label\)")
    pq.write_table(pa.table({"img": [b"1"], "label": [1]}), parquet / TRAIN)
    refused(parquet, rf"\S+/{TRAIN}: column 'img' is binary, not a struct with 'bytes'")
    write_parquet(parquet / TRAIN, pixels["test"][0][:1], ["cat"])
    refused(parquet, rf"\S+/{TRAIN}: column 'label' is string, not integer")


def test_parquet_with_another_number_of_images(parquet, pixels):
    images, labels = pixels["train"]
    write_parquet(parquet / TRAIN, images[71:], labels[71:])
    refused(parquet, rf"\S+/cifar10/train-00000-of-00002\.parquet, \S+/{TRAIN}: 199 images, not 200")


def test_parquet_images_of_16_bits_or_with_alpha(parquet, pixels):
    images, labels = pixels["test"]
    clear = Image.new("LA", (32, 32), (255, 0))
    deep = Image.fromarray(images[1][0] * np.uint16(257))
    for image in (clear, deep):
        image.save(buffer := io.BytesIO(), "png")
        write_parquet(parquet / "cifar10/test-00000-of-00001.parquet", [buffer.getvalue(), *images[1:]], labels)
        expected = np.full((32, 32), 128) if image is clear else images[1][0]
        found = load("cifar10", parquet).test
        assert any((image.numpy() == expected).all() for image in found.images[found.labels == labels[0]])


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"not an image", "image 2 does not decode as PNG or WEBP"),
        (encode(np.zeros((3, 32, 32), np.uint8))[:60], "image 2 does not decode as PNG or WEBP"),
        (b"", "image 2 does not decode as PNG or WEBP"),
        (np.zeros((3, 32, 28), np.uint8), "image 2 is 28x32, not 32x32"),
    ],
)
def test_parquet_with_a_bad_image(parquet, pixels, image, problem):
    images, labels = pixels["train"]
    write_parquet(parquet / TRAIN, [*images[:2], image, *images[3:]], labels)
    refused(parquet, rf"\S+/{TRAIN}: {problem}")


@pytest.mark.parametrize("label", [10, -1, None])
def test_parquet_with_a_bad_label(parquet, pixels, label):
    images, labels = pixels["train"]
    write_parquet(parquet / TRAIN, images, [*labels[:5].tolist(), label, *labels[6:].tolist()])
    refused(parquet, rf"\S+/{TRAIN}: image 5 has label {label}, not 0\.\.9")


@pytest.mark.parametrize("place", ["plain_text", "cifar10"])
def test_parquet_in_the_folder_of_its_configuration(parquet, place):
    files = list((parquet / "cifar10").iterdir())
    (parquet / "cifar10" / place).mkdir()
    for file in files:
        file.rename(file.parent / place / file.name)
    assert len(load("cifar10", parquet).train) == 180


def test_lossless_webp(parquet, pixels):
    first = load("cifar10", parquet).fingerprint
    images, labels = pixels["test"]
    webp = [encode(image, "webp", lossless=True) for image in images]
    write_parquet(parquet / "cifar10/test-00000-of-00001.parquet", webp, labels)
    assert load("cifar10", parquet).fingerprint == first


def test_cifar100_reads_fine_labels(tmp_path, monkeypatch):
    layout = cifar.LAYOUTS["cifar100"]
    assert len(set(layout.classes)) == 100
    assert list(layout.classes) == sorted(layout.classes)
    monkeypatch.setitem(cifar.LAYOUTS, "cifar100", replace(layout, counts={"train": 100, "test": 100}))
    images = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    for part, some in (("train", images[:100]), ("test", images[100:])):
        write_parquet(tmp_path / f"cifar100/{part}-00000-of-00001.parquet", some, np.arange(100), column="fine_label")
    data = load("cifar100", tmp_path)
    i = int((data.test.labels == 71).nonzero())
    assert np.array_equal(data.test.images[i], images[171])
    assert data.classes[71] == "sea"


def test_download(archive, tmp_path, monkeypatch):
    asked = []

    def download(dataset):
        asked.append(dataset.root)
        (archive / "cifar-10-batches-py").rename(f"{dataset.root}/cifar-10-batches-py")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda dataset: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda dataset: None)
    root = tmp_path / "new"
    root.mkdir()
    assert len(load("cifar10", root, download=True).train) == 180
    assert [str(path) for path in asked] == [str(root)]


def test_download_that_fails(tmp_path, monkeypatch):
    def download(dataset):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(VitposError, match=rf"^cifar10: download into \S+ failed \(no route to host\); {WAYS}"):
        load("cifar10", tmp_path, download=True)


def test_no_download_where_the_data_is(parquet, monkeypatch):
    monkeypatch.setattr(cifar, "_download", lambda *arguments: pytest.fail("downloaded"))
    assert len(load("cifar10", parquet, download=True).train) == 180
