"""Sources of images by name: found, decoded once, cached on disk and in the process."""

import logging
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from vitpos.data import cache, cifar, folder
from vitpos.data.images import Images, Raw, Split, canonical
from vitpos.errors import VitposError, unknown

__all__ = ["SOURCES", "Images", "Split", "load"]

SOURCES = ("cifar10", "cifar100", "digits", "folder")
_log = logging.getLogger(__name__)


def load(name: str, root: str | Path | None = None, *, download: bool = False) -> Images:
    """Loads a data set as uint8 tensors in canonical order and split (see `vitpos.data.images.canonical`).

    ``digits`` comes with scikit-learn: 1,797 images of 8x8, 0..16 stretched to 0..255. CIFAR is looked for below the
    root as the official archive's folder, then as the Hugging Face parquet copy. What was decoded stays in a cache on
    disk (see `vitpos.data.cache.folder`) and in the process.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits`` or ``folder``.
        root: Where the data lies; ``$VITPOS_DATA``, else ``./data``, where not given. ``folder`` needs it.
        download: Whether CIFAR may be downloaded into the root where it is not there.

    Returns:
        The data set. It is shared with other callers in the process, so it must not be written to.

    Raises:
        VitposError: The name is unknown, or data is missing, damaged or foreign.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    if name == "digits":
        return _digits()
    if name == "folder":
        if root is None:
            raise VitposError("folder: needs --data.root, a folder with one folder of images for each class")
        files = folder.locate(Path(root))
        return _prepare(name, "folder", files, cache.stamp(files), _FolderReader(files))
    where = Path(root or os.environ.get("VITPOS_DATA") or "data")
    reader, place, files = cifar.locate(name, where, download)
    return _prepare(name, f"{name}-{reader.__name__}", files, cache.stamp(files), partial(reader, name, place))
