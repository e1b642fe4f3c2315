"""On-disk cache of decoded data sets: one file per source, valid until the source's files change."""

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

_FORMAT = 2  # increment when the contents of a cache file, the canonical order or the split change
_PARTS = ("train", "val", "test")
_ABANDONED = 600  # seconds since the last write after which a temporary file is considered abandoned
_log = logging.getLogger(__name__)


def stamp(files: Iterable[Path]) -> str:
    """Hashes path, inode, size and both times of each file, so that the stamp changes if a file does.

    Archives and rsync restore the modification time but not the inode's change time. Some file systems update neither
    when a file is renamed, but then the path has another inode.
    """
    total = hashlib.blake2b(str(_FORMAT).encode(), digest_size=16)
    for file in files:
        state = file.stat()
        times = f"{state.st_mtime_ns}\0{state.st_ctime_ns}"
        # not resolved: the name of a link to a class folder is the name of the class
        total.update(
            os.fsencode(file.absolute()) + f"\0{state.st_dev}\0{state.st_ino}\0{state.st_size}\0{times}\0".encode()
        )
    return total.hexdigest()


def path_for(kind: str, files: Iterable[Path]) -> Path:
    """Returns the cache file of a source; named after the paths only, so that a changed source replaces it."""
    paths = b"\0".join(os.fsencode(file.absolute()) for file in files)
    return folder() / f"{kind}-{hashlib.blake2b(paths, digest_size=8).hexdigest()}.npz"


def read(path: Path, stamp: str) -> Images | None:
    """Reads a cache file; None if it does not exist, has another stamp, or is damaged (logged)."""
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
    except Exception as error:  # damaged in any way; the source still exists
        _log.warning("ignoring the damaged cache %s (%s)", path, error)
        return None


def write(path: Path, stamp: str, images: Images) -> None:
    """Writes a cache file atomically; logs a warning if it cannot be written.

    Also removes temporary files of killed processes.
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
    finally:  # after an interrupt too; a no-op if it was renamed
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
