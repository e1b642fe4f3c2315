"""CIFAR-10 and CIFAR-100 from the official archive (torchvision's layout) or the Hugging Face parquet copy.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitpos.data.decode import decode
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

_FORMATS = ("PNG", "WEBP")  # lossless; trying all of Pillow's formats takes 1.5 times as long


@dataclass(frozen=True)
class Layout:
    """Location and contents of a CIFAR data set."""

    torchvision: str  # class in torchvision.datasets, which has the names and checksums of the files
    folder: str  # folder of the official archive
    batch_labels: str  # key of the labels in the official batches
    column: str  # column of the labels in the parquet copy
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


def locate(name: str, root: Path, download: bool) -> tuple[tuple[Path, ...], Callable[[], Raw]]:
    """Finds a CIFAR data set below a root, or downloads the official archive if allowed.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: Folder that contains the folder of the official archive or of the parquet copy.
        download: Whether torchvision may download the archive into `root`.

    Returns:
        The files, and a function that reads them.

    Raises:
        VitposError: Nothing was found, a file is missing, or the download failed.
    """
    layout = LAYOUTS[name]
    archive = root / layout.folder
    folders = [root / name, root / name / "plain_text", root / name / name]
    if not archive.is_dir():
        for folder in folders:
            train, test = (sorted(folder.glob(f"{part}-*.parquet")) for part in ("train", "test"))
            if train and test:
                return (*train, *test), partial(read_parquet, name, root, {"train": train, "test": test})
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
    return files, partial(read_archive, name, root)


def read_archive(name: str, root: Path) -> Raw:
    """Reads the official archive's batches in file order, after checking their checksums."""
    from torchvision.datasets.utils import check_integrity

    layout = LAYOUTS[name]
    parts: dict[str, tuple[list[Array], list[int]]] = {"train": ([], []), "test": ([], [])}
    for file, checksum in _checksums(name):
        path = root / layout.folder / file
        if not check_integrity(path, checksum):
            raise VitposError(f"{path}: damaged, its MD5 is not {checksum}; {_ways(name, root)}")
        batch = pickle.loads(path.read_bytes(), encoding="latin1")  # safe: its checksum is the official one
        images, labels = parts["test" if file.startswith("test") else "train"]
        images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
        labels.extend(batch[layout.batch_labels])
    arrays = [(np.concatenate(images), np.array(labels, dtype=np.int64)) for images, labels in parts.values()]
    return Raw(layout.classes, *arrays[0], *arrays[1])


def read_parquet(name: str, root: Path, files: dict[str, list[Path]]) -> Raw:
    """Reads the Hugging Face parquet copy in file order: columns ``img`` (struct of bytes, path) and the label."""
    layout = LAYOUTS[name]
    parts: list[Any] = []
    for part, count in layout.counts.items():
        tables = []
        for file in files[part]:
            try:
                tables.append(_read_table(file, layout))
            except _ForeignError as error:
                raise VitposError(f"{file}: {error}; {_ways(name, root)}") from error
        images, labels = map(np.concatenate, zip(*tables, strict=True))
        if len(labels) != count:
            where = ", ".join(map(str, files[part]))
            raise VitposError(f"{where}: {len(labels)} images, not {count}; {_ways(name, root)}")
        parts += [images, labels]
    return Raw(layout.classes, *parts)


class _ForeignError(Exception):
    """A parquet file has unexpected contents."""


def _read_table(file: Path, layout: Layout) -> tuple[Array, Labels]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _ForeignError("not a parquet file, or a truncated one") from error
    with source:
        found = source.schema_arrow.names
        for column in ("img", layout.column):
            if column not in found:
                raise _ForeignError(f"no column {column!r} (found: {', '.join(found)})")
        kinds = [source.schema_arrow.field(column).type for column in ("img", layout.column)]
        if not pa.types.is_struct(kinds[0]) or kinds[0].get_field_index("bytes") < 0:
            raise _ForeignError(f"column 'img' is {kinds[0]}, not a struct with 'bytes'")
        if not pa.types.is_integer(kinds[1]):
            raise _ForeignError(f"column {layout.column!r} is {kinds[1]}, not integer")
        try:
            table = source.read(columns=["img", layout.column]).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise _ForeignError("damaged, its columns cannot be read") from error
    labels = table.column(layout.column).to_pylist()
    for i, label in enumerate(labels):
        if label is None or not 0 <= label < len(layout.classes):
            raise _ForeignError(f"image {i} has label {label}, not 0..{len(layout.classes) - 1}")
    images = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
    for i, row in enumerate(table.column("img")):
        images[i] = _decode(i, row["bytes"].as_py() if row.is_valid else None)
    return images, np.array(labels, dtype=np.int64)


def _decode(i: int, data: bytes | None) -> Array:
    try:
        pixels = decode(io.BytesIO(data or b""), _FORMATS).pixels
    except ValueError as error:
        raise _ForeignError(f"image {i} does not decode as {' or '.join(_FORMATS)}") from error
    if pixels.shape != (3, 32, 32):
        raise _ForeignError(f"image {i} is {pixels.shape[2]}x{pixels.shape[1]}, not 32x32")
    return pixels


def _checksums(name: str) -> list[list[str]]:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, LAYOUTS[name].torchvision)
    return [*dataset.train_list, *dataset.test_list]


def _download(name: str, root: Path) -> None:
    import torchvision.datasets

    try:  # does nothing if all files exist and match their checksums
        getattr(torchvision.datasets, LAYOUTS[name].torchvision)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise VitposError(f"{name}: download into {root} failed ({error}); {_ways(name, root)}") from error


def _ways(name: str, root: Path) -> str:
    folder = LAYOUTS[name].folder
    return (
        f"to get the data: unpack the official archive as {root / folder}, or put the Hugging Face parquet copy into "
        f"{root / name}, or pass --data.download true"
    )
