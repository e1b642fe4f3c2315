"""Data sets by name: located, decoded once, cached on disk and in the process."""

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from vitpos.data import cache, cifar, folder, where
from vitpos.data.images import Images, Raw, Split, canonical, say
from vitpos.errors import VitposError, unknown
from vitpos.paths import cache as cache_folder
from vitpos.paths import expand

__all__ = ["SOURCES", "Images", "Split", "load"]

SOURCES = ("cifar10", "cifar100", "digits", "where", "folder")
# Names a file of `lent_file`, which then stands for every name and root: for a worker on a machine without the data.
LENT = "VITPOS_LENT_DATA"
_log = logging.getLogger(__name__)


def load(name: str, root: str | Path | None = None, *, download: bool = False, task: str | None = None) -> Images:
    """Loads a data set as uint8 tensors in canonical order and split (see `vitpos.data.images.canonical`).

    ``digits`` is included in scikit-learn: 1,797 images of 8x8, scaled from 0..16 to 0..255. CIFAR is searched below
    the root, first in the official archive's folder, then in the Hugging Face parquet copy. Decoded images are cached
    on disk (see `vitpos.data.cache.folder`) and in the process. A warning is logged if validation or test images are
    also in training.

    Args:
        name: One of `SOURCES`.
        root: Folder with the data; default ``$VITPOS_DATA``, else ``./data``. Required for ``folder``.
        download: Whether CIFAR may be downloaded into the root if it is missing.
        task: Which of the generated sets of ``where`` (see `vitpos.data.where`). Required for ``where``.

    Returns:
        The data set. It is shared with other callers in the process and must not be modified.

    Raises:
        VitposError: The name is unknown, data is missing, damaged or of another format, or all images are one colour.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    if (name == "where") != (task is not None):
        raise VitposError(
            f"data.task is {task}; data.name where needs one of {', '.join(where.TASKS)}, and {name} takes none"
            if task
            else f"data.name where needs data.task, one of {', '.join(where.TASKS)}"
        )
    if task is not None:
        return where.load(task)
    if lent := os.environ.get(LENT):
        return _lent(Path(lent))
    if name == "digits":
        return _digits()
    if name == "folder":
        if root is None:
            raise VitposError("folder: needs --data.root, a folder with one folder of images for each class")
        files, decode = folder.locate(expand(root))
    else:
        files, decode = cifar.locate(name, expand(root or os.environ.get("VITPOS_DATA") or "data"), download)
    return _prepare(name, files, decode)


_memo: dict[str, tuple[str, Images]] = {}  # stamp and images last loaded, by name


def _prepare(name: str, files: tuple[Path, ...], decode: Callable[[], Raw]) -> Images:
    stamp = cache.stamp(files)
    if name in _memo and _memo[name][0] == stamp:
        return _memo[name][1]
    path = cache.path_for(name, files)
    images = cache.read(path, stamp)
    if images is None:
        _log.info("%s: decoding %d files once, for the cache %s", name, len(files), path)
        images = canonical(name, decode())
        if all(channel.min() == channel.max() for channel in images.train.images.unbind(1)):
            raise VitposError(f"{name}: all training images are the same single colour; there is nothing to learn")
        cache.write(path, stamp, images)
    if any(images.repeated):
        val, test = images.repeated
        say(
            f"{name}: pixel for pixel, {val} of {len(images.val)} validation images are also training images, and "
            f"{test} of {len(images.test)} test images are also training or validation images"
        )
    _memo[name] = (stamp, images)
    return images


def lent_file(fingerprint: str) -> Path:
    """Names the file of the cache for a data set that this machine lacks and was lent."""
    return cache_folder() / f"lent-{fingerprint}.npz"


def has_lent(fingerprint: str) -> bool:
    """Tells whether the file of `lent_file` is there and whole."""
    return cache.read(lent_file(fingerprint), fingerprint) is not None


def keep_lent(images: Images) -> None:
    """Writes the file of `lent_file`; logs where that cannot be done, as every write to the cache."""
    cache.write(lent_file(images.fingerprint), images.fingerprint, images)


@lru_cache(maxsize=1)
def _lent(path: Path) -> Images:
    images = cache.read(path, path.stem.removeprefix("lent-"))
    if images is None:
        raise VitposError(f"the data set that was lent to this machine is not in {path} any more; start the run again")
    return images


@lru_cache
def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return canonical("digits", Raw(tuple(map(str, digits.target_names)), images, digits.target.astype(np.int64)))
