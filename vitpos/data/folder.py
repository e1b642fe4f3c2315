"""A data set of one's own: a folder of images for each class."""

from pathlib import Path

import numpy as np
from PIL import Image

from vitpos.data.images import Raw
from vitpos.errors import VitposError

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_FEWEST = 10  # a class needs some for each of train, validation and test


def locate(root: Path) -> tuple[Path, ...]:
    """Finds the images ``root/<class>/*.png`` (or another of Pillow's usual suffixes), sorted by path.

    Raises:
        VitposError: There is no class folder, or one has fewer than 10 images.
    """
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")) if root.is_dir() else []
    if not folders:
        raise VitposError(f"folder: no class folders in {root}; it needs one folder of images for each class")
    files: list[Path] = []
    for folder in folders:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if len(found) < _FEWEST:
            raise VitposError(f"folder: class {folder} has {len(found)} images; each class needs at least {_FEWEST}")
        files += found
    return tuple(files)


def read(files: tuple[Path, ...]) -> Raw:
    """Decodes images to RGB; the classes are the names of their folders, sorted.

    Raises:
        VitposError: An image does not decode, or its size is not that of the first.
    """
    classes = tuple(sorted({file.parent.name for file in files}))
    images: list[np.typing.NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VitposError(f"{file}: does not decode ({error})") from error
        (_, height, width), (_, first_height, first_width) = images[-1].shape, images[0].shape
        if (height, width) != (first_height, first_width):
            raise VitposError(
                f"{file}: {width}x{height}, but {files[0]} is {first_width}x{first_height}; all must have one size"
            )
    labels = np.array([classes.index(file.parent.name) for file in files], dtype=np.int64)
    return Raw(classes, np.stack(images), labels)
