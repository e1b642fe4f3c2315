"""Custom data sets: a folder of images per class."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from vitpos.data.decode import decode, suffixes
from vitpos.data.images import Raw, say
from vitpos.errors import VitposError

# Lower-case folder names of each part.
_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_FEWEST = 10  # minimum number of images per class from which other parts are split off
_FEW_LEVELS = 64  # of 256 grey levels

Classes = dict[str, list[Path]]


def locate(root: Path) -> tuple[tuple[Path, ...], Callable[[], Raw]]:
    """Finds images ``root/<class>/*.png``, or ``root/train/<class>/*.png`` next to ``root/val`` and ``root/test``.

    If a folder ``train`` (or ``training``) contains folders, it is the training part, and ``val`` (``valid``,
    ``validation``) and ``test`` (``testing``), with the same classes, are the other parts. Missing parts are split off
    the training part. All suffixes of `vitpos.data.decode.FORMATS` count; hidden files and folders do not.

    Returns:
        The files, and a function that reads them. Ignored files are logged.

    Raises:
        VitposError: There are fewer than two class folders, a class has too few images or images in a subfolder, the
            classes of the parts differ, or a link is broken.
    """
    if not root.is_dir() or not _folders(root):
        raise VitposError(
            f"folder: no class folders in {root}; it needs one folder of images for each class, or train/<class>, "
            "val/<class> and test/<class>"
        )
    places, left = _parts(root)
    parts: dict[str, Classes] = {}
    for part, place in places.items():
        parts[part], more = _classes(place, fewest=1 if len(places) == len(_NAMES) or part != "train" else _FEWEST)
        left += more
        if parts[part].keys() != parts["train"].keys():
            odd = min(parts[part].keys() ^ parts["train"].keys())
            there, gone = (place, places["train"]) if odd in parts[part] else (places["train"], place)
            raise VitposError(f"folder: class {odd!r} is in {there}, but not in {gone}; both need the same classes")
    if len(parts["train"]) < 2:
        raise VitposError(
            f"folder: {places['train']} has the one class {next(iter(parts['train']))!r}; at least 2 are needed"
        )
    if left:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
        say(f"folder: left out in {root}: {listed}")
    return tuple(file for part in parts.values() for files in part.values() for file in files), partial(read, parts)


def _parts(root: Path) -> tuple[dict[str, Path], Counter[str]]:
    """Returns the folder of each part and counts other folders; without parts, all images are training images."""
    found: dict[str, list[Path]] = {part: [] for part in _NAMES}
    others: list[Path] = []
    for folder in _folders(root):
        part = next((part for part, names in _NAMES.items() if folder.name.lower() in names), "")
        (found[part] if part else others).append(folder)
    if not any(_folders(folder) for folder in found["train"]):  # else `train` may be a class (of trains)
        if not others and all(found[part] for part in ("train", "test")):
            raise VitposError(f"folder: {found['train'][0]} is a part, but has no class folders; each part needs them")
        return {"train": root}, Counter()
    for part, folders in found.items():
        if len(folders) > 1:
            raise VitposError(f"folder: both {folders[0]} and {folders[1]} could be the {part} part; keep one")
    return {part: folders[0] for part, folders in found.items() if folders}, Counter(
        f"folder {folder.name}/" for folder in others
    )


def _classes(place: Path, fewest: int) -> tuple[Classes, Counter[str]]:
    """Returns the images of each class of a part, and counts other files by suffix."""
    images = suffixes()
    classes: Classes = {}
    loose = (file.suffix for file in _visible(place) if file.suffix.lower() in images and file.is_file())
    left = Counter(f"{suffix} outside of classes" for suffix in loose)
    for folder in _folders(place):
        for inner in _folders(folder):
            for file in inner.rglob("*"):
                if file.suffix.lower() in images and not file.name.startswith("."):
                    raise VitposError(
                        f"folder: class {folder} has images in a subfolder, such as {file}; move them into the class "
                        "folder (parts of a data set are called train, val and test)"
                    )
        files = [file for file in _visible(folder) if not file.is_dir()]
        classes[folder.name] = [file for file in files if file.suffix.lower() in images and file.is_file()]
        left.update(file.suffix or "without suffix" for file in {*files} - {*classes[folder.name]})
        if len(classes[folder.name]) < fewest:
            number = len(classes[folder.name])
            raise VitposError(f"folder: class {folder} has {number} images; each class needs at least {fewest}")
    return classes, left


def _folders(place: Path) -> list[Path]:
    return [inner for inner in _visible(place) if inner.is_dir()]


def _visible(place: Path) -> list[Path]:
    """Lists a folder, sorted, without hidden files and archive leftovers (._x, __MACOSX)."""
    found = sorted(inner for inner in place.iterdir() if not inner.name.startswith(".") and inner.name != "__MACOSX")
    for inner in found:
        if not inner.exists():
            raise VitposError(f"folder: {inner} is a broken link")
    return found


def read(parts: dict[str, Classes]) -> Raw:
    """Decodes the images of each part to RGB; classes are the sorted folder names.

    Raises:
        VitposError: An image does not decode, or its size differs from that of the first.
    """
    arrays: dict[str, tuple[np.typing.NDArray[np.uint8], np.typing.NDArray[np.int64]]] = {}
    several, deep, first = [], [], None
    for part, classes in parts.items():
        images, labels = [], []
        for label, files in enumerate(classes.values()):
            for file in files:
                try:
                    found = decode(file)
                except ValueError as error:
                    raise VitposError(f"{file}: {error}") from error
                first = first or (file, found.pixels.shape)
                if found.pixels.shape != first[1]:
                    (_, height, width), (_, first_height, first_width) = found.pixels.shape, first[1]
                    raise VitposError(
                        f"{file}: {width}x{height}, but {first[0]} is {first_width}x{first_height}; all must have one "
                        "size"
                    )
                images.append(found.pixels)
                labels.append(label)
                several += [file] if found.frames else []
                deep += [int(found.pixels.max())] if found.deep else []
        arrays[part] = np.stack(images), np.array(labels, dtype=np.int64)
    if several:
        say(f"folder: {len(several)} files hold several frames, such as {several[0]}; the first of each is used")
    if deep and max(deep) < _FEW_LEVELS:
        say(
            f"folder: the 16-bit images use only the lowest {max(deep) + 1} of 256 levels; stretch them to 0..65535 "
            "first to keep their contrast"
        )
    none = (None, None)
    return Raw(tuple(parts["train"]), *arrays["train"], *arrays.get("test", none), *arrays.get("val", none))
