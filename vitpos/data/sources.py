"""Sources of images by name: found, decoded once, cached on disk and in the process."""

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from vitpos.data import cache, cifar, folder, where
from vitpos.data.images import Images, Raw, Split, canonical, say
from vitpos.errors import VitposError, unknown
from vitpos.paths import expand

__all__ = ["SOURCES", "Images", "Split", "load"]

SOURCES = ("cifar10", "cifar100", "digits", "where", "folder")
_log = logging.getLogger(__name__)


def load(
    name: str, root: str | Path | None = None, *, download: bool = False, task: str | None = None
) -> Images:
    """Loads a data set as uint8 tensors in canonical order and split (see `vitpos.data.images.canonical`).

    ``digits`` comes with scikit-learn: 1,797 images of 8x8, 0..16 stretched to 0..255. CIFAR is looked for below the
    root as the official archive's folder, then as the Hugging Face parquet copy. What was decoded stays in a cache on
    disk (see `vitpos.data.cache.folder`) and in the process. Images of validation or test that are in training too are
    logged.

    Args:
        name: One of `SOURCES`.
        root: Where the data lies; ``$VITPOS_DATA``, else ``./data``, where not given. ``folder`` needs it.
        download: Whether CIFAR may be downloaded into the root where it is not there.
        task: Which of the generated sets of ``where`` (see `vitpos.data.where`), which needs it.

    Returns:
        The data set. It is shared with other callers in the process, so it must not be written to.

    Raises:
        VitposError: The name is unknown, or data is missing, damaged or foreign, or all images are one colour.
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
    if name == "digits":
        return _digits()
    if name == "folder":
        if root is None:
            raise VitposError("folder: needs --data.root, a folder with one folder of images for each class")
        files, decode = folder.locate(expand(root))
    else:
        files, decode = cifar.locate(name, expand(root or os.environ.get("VITPOS_DATA") or "data"), download)
    return _prepare(name, files, decode)


_memo: dict[str, tuple[str, Images]] = {}  # of each name the last one loaded, with its stamp


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
            raise VitposError(f"{name}: all training images are one and the same colour; there is nothing to learn")
        cache.write(path, stamp, images)
    if any(images.repeated):
        val, test = images.repeated
        say(
            f"{name}: pixel for pixel, {val} of {len(images.val)} validation images are among the training images too, "
            f"and {test} of {len(images.test)} test images among those of training or validation"
        )
    _memo[name] = (stamp, images)
    return images


@lru_cache
def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return canonical("digits", Raw(tuple(map(str, digits.target_names)), images, digits.target.astype(np.int64)))
