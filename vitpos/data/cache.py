"""On-disk cache of decoded data sets: one file a source, valid as long as the source's files stay as they were."""

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitpos.data.images import Images, Split
from vitpos.paths import cache as folder

_FORMAT = 2  # raise it when the contents of a cache file, the canonical order or the split change
_PARTS = ("train", "val", "test")
_ABANDONED = 600  # seconds without a byte more in a file that is being written
_log = logging.getLogger(__name__)


def stamp(files: Iterable[Path]) -> str:
    """Hashes what changes whenever one of the files does: path, inode, size and both times.

    Archives and rsync restore the time of modification, but not that of the inode's change; renaming does not touch
    either on every file system, but gives the path another inode.
    """
    total = hashlib.blake2b(str(_FORMAT).encode(), digest_size=16)
    for file in files:
        state = file.stat()
        times = f"{state.st_mtime_ns}\0{state.st_ctime_ns}"
        # not resolved: a link to a class folder names the class
        total.update(
            os.fsencode(file.absolute()) + f"\0{state.st_dev}\0{state.st_ino}\0{state.st_size}\0{times}\0".encode()
        )
    return total.hexdigest()


def path_for(kind: str, files: Iterable[Path]) -> Path:
    """The cache file of a source; it depends on the paths alone, so that a changed source replaces its old file."""
    paths = b"\0".join(os.fsencode(file.absolute()) for file in files)
    return folder() / f"{kind}-{hashlib.blake2b(paths, digest_size=8).hexdigest()}.npz"


def read(path: Path, stamp: str) -> Images | None:
    """Reads a cache file; None where there is none, or it is of another stamp, or it is damaged (logged)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            parts = [[torch.from_numpy(arrays[f"{part}_{what}"]) for what in ("images", "labels")] for part in _PARTS]
            train, val, test = (Split(*part) for part in parts)
            name, fingerprint = str(arrays["name"]), str(arrays["fingerprint"])
            once, again = map(int, arrays["repeated"])
            return Images(name, tuple(map(str, arrays["classes"])), fingerprint, train, val, test, (once, again))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # whatever damage does to a zip file of arrays, the source is still there
        _log.warning("ignoring the damaged cache %s (%s)", path, error)
        return None


def write(path: Path, stamp: str, images: Images) -> None:
    """Writes a cache file in one step, so that other processes see it whole or not at all; logs where it cannot.

    What killed processes left half-written in the folder is removed.
    """
    arrays: dict[str, Any] = {
        "stamp": stamp,
        "name": images.name,
        "fingerprint": images.fingerprint,
        "classes": list(images.classes),
        "repeated": images.repeated,
    }
    splits = {"train": images.train, "val": images.val, "test": images.test}
    for part, split in splits.items():
        arrays |= {f"{part}_images": split.images.numpy(), f"{part}_labels": split.labels.numpy()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(".*.npz.*.tmp"):
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        _log.warning("cannot write the cache %s (%s): the images are decoded again next time", path, error)
    finally:  # an interrupt too; after the replacement nothing is there
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
