"""CIFAR-10 and CIFAR-100 from the official archive (torchvision's layout) or the Hugging Face parquet copy.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitpos.data.images import Array, Labels, Raw
from vitpos.errors import VitposError

_CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CLASSES_100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""


@dataclass(frozen=True)
class Layout:
    """Where a CIFAR lies and what it holds."""

    torchvision: str  # class in torchvision.datasets, which has the names and checksums of the files
    folder: str  # of the official archive
    batch_labels: str  # key of the labels in the official batches
    column: str  # of the labels in the parquet copy
    classes: tuple[str, ...]
    counts: dict[str, int]


LAYOUTS = {
    "cifar10": Layout(
        "CIFAR10", "cifar-10-batches-py", "labels", "label", tuple(_CLASSES_10.split()), {"train": 50000, "test": 10000}
    ),
    "cifar100": Layout(
        "CIFAR100",
        "cifar-100-python",
        "fine_labels",
        "fine_label",
        tuple(_CLASSES_100.split()),
        {"train": 50000, "test": 10000},
    ),
}

Reader = Callable[[str, Path], Raw]


def locate(name: str, root: Path, download: bool) -> tuple[Reader, Path, tuple[Path, ...]]:
    """Finds a CIFAR below a root, and downloads the official archive where that is allowed and needed.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: Folder that holds the official archive's folder or the parquet copy's.
        download: Whether torchvision may download the archive into `root`.

    Returns:
        The reader, the folder for it, and the files in it that it will read.

    Raises:
        VitposError: Nothing is there, or a file is missing, or the download failed.
    """
    layout = LAYOUTS[name]
    archive = root / layout.folder
    folders = [root / name, root / name / "plain_text", root / name / name]
    if not archive.is_dir():
        for folder in folders:
            train, test = (sorted(folder.glob(f"{part}-*.parquet")) for part in ("train", "test"))
            if train and test:
                return read_parquet, folder, (*train, *test)
            if train or test:
                gone = "test" if train else "train"
                raise VitposError(f"{name}: no {gone}-*.parquet in {folder}; {_ways(name, root)}")
        if not download:
            looked = f"looked for {layout.folder}/ and {name}/train-*.parquet in {root.absolute()}"
            raise VitposError(f"{name}: not found, {looked}; {_ways(name, root)}")
    if download:
        _download(name, root)
    files = tuple(archive / file for file, _ in _checksums(name))
    for file in files:
        if not file.is_file():
            raise VitposError(f"{file}: missing; {_ways(name, root)}")
    return read_archive, archive, files


def read_archive(name: str, folder: Path) -> Raw:
    """Reads the official archive's batches, after their checksums, in file order."""
    from torchvision.datasets.utils import check_integrity

    layout = LAYOUTS[name]
    parts: dict[str, tuple[list[Array], list[int]]] = {"train": ([], []), "test": ([], [])}
    for file, checksum in _checksums(name):
        path = folder / file
        if not check_integrity(path, checksum):
            raise VitposError(f"{path}: damaged, its MD5 is not {checksum}; {_ways(name, folder.parent)}")
        batch = pickle.loads(path.read_bytes(), encoding="latin1")  # noqa: S301 (its checksum is the official one)
        images, labels = parts["test" if file.startswith("test") else "train"]
        images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
        labels.extend(batch[layout.batch_labels])
    (train, train_labels), (test, test_labels) = parts.values()
    as_labels = (np.array(values, dtype=np.int64) for values in (train_labels, test_labels))
    train_array, test_array = as_labels
    return Raw(layout.classes, np.concatenate(train), train_array, np.concatenate(test), test_array)


def read_parquet(name: str, folder: Path) -> Raw:
    """Reads the Hugging Face parquet copy in file order: columns ``img`` (struct of bytes, path) and the label."""
    layout = LAYOUTS[name]
    parts: list[Any] = []
    for part, count in layout.counts.items():
        images, labels, files = [], [], sorted(folder.glob(f"{part}-*.parquet"))
        for file in files:
            try:
                values = _read_table(file, layout)
            except _Foreign as error:
                raise VitposError(f"{file}: {error}; {_ways(name, _root(name, folder))}") from error
            images.append(values[0])
            labels.append(values[1])
        parts += [np.concatenate(images), np.concatenate(labels)]
        if (found := len(parts[-1])) != count:
            where = ", ".join(map(str, files))
            raise VitposError(f"{where}: {found} images, not {count}; {_ways(name, _root(name, folder))}")
    return Raw(layout.classes, *parts)


class _Foreign(Exception):
    """What is wrong with a parquet file."""


def _read_table(file: Path, layout: Layout) -> tuple[Array, Labels]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _Foreign("not a parquet file, or a truncated one") from error
    with source:
        found = source.schema_arrow.names
        for column in ("img", layout.column):
            if column not in found:
                raise _Foreign(f"no column {column!r} (found: {', '.join(found)})")
        kinds = [source.schema_arrow.field(column).type for column in ("img", layout.column)]
        if not pa.types.is_struct(kinds[0]) or kinds[0].get_field_index("bytes") < 0:
            raise _Foreign(f"column 'img' is {kinds[0]}, not a struct with 'bytes'")
        if not pa.types.is_integer(kinds[1]):
            raise _Foreign(f"column {layout.column!r} is {kinds[1]}, not integer")
        try:
            table = source.read(columns=["img", layout.column]).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise _Foreign("damaged, its columns cannot be read") from error
    labels = table.column(layout.column).to_pylist()
    for i, label in enumerate(labels):
        if label is None or not 0 <= label < len(layout.classes):
            raise _Foreign(f"image {i} has label {label}, not 0..{len(layout.classes) - 1}")
    images = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
    for i, row in enumerate(table.column("img")):
        images[i] = _decode(i, row["bytes"].as_py() if row.is_valid else None)
    return images, np.array(labels, dtype=np.int64)


def _decode(i: int, data: bytes | None) -> Array:
    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            if image.size == (32, 32):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            size = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _Foreign(f"image {i} does not decode") from error
    raise _Foreign(f"image {i} is {size[0]}x{size[1]}, not 32x32")


def _checksums(name: str) -> list[list[str]]:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, LAYOUTS[name].torchvision)
    return [*dataset.train_list, *dataset.test_list]


def _download(name: str, root: Path) -> None:
    import torchvision.datasets

    try:  # does nothing where all files are there and have their checksums
        getattr(torchvision.datasets, LAYOUTS[name].torchvision)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise VitposError(f"{name}: download into {root} failed ({error}); {_ways(name, root)}") from error


def _root(name: str, folder: Path) -> Path:
    return folder.parent if folder.parent.name != name else folder.parent.parent


def _ways(name: str, root: Path) -> str:
    folder = LAYOUTS[name].folder
    return (
        f"to get the data: unpack the official archive as {root / folder}, or put the Hugging Face parquet copy into "
        f"{root / name}, or pass --data.download true"
    )
