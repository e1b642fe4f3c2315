"""One process at a time in a folder, also on file systems that know no locks."""

import contextlib
import errno
import functools
import sys
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from vitpos.errors import VitposError

# What flock answers where the file system has none: Lustre without -o flock, some NFS and FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def hold(file: Path, taken: str, *, wait: float = 0) -> Iterator[None]:
    """Holds a lock for the time of a ``with`` block; it ends with the process, however that ends.

    Where the file system has no locks, a file ``<file>.soft`` stands for one. If its process was killed, the next one
    on the same computer sees that and takes it over.

    Args:
        file: The file that is locked. It stays, since removing it could let two in.
        taken: What to say where another process holds it.
        wait: Seconds to wait for it.

    Raises:
        VitposError: Another process holds it.
        OSError: The file cannot be written.
    """
    lock: BaseFileLock = FileLock(file, timeout=wait, fallback_to_soft=False)
    soft = file.with_name(f"{file.name}.soft")
    with contextlib.ExitStack() as stack:
        try:
            try:
                stack.enter_context(lock)
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                    raise
                _say_once(
                    f"vitpos: warning: the file system of {file.parent} has no locks ({error.strerror}); "
                    "files in it stand for them, which other computers may see late"
                )
                stack.enter_context(SoftFileLock(soft, timeout=wait))
        except Timeout:
            left = f" (if none is at work any more, on any computer, remove {soft})" if soft.exists() else ""
            raise VitposError(f"{taken}{left}") from None
        yield


@functools.cache
def _say_once(text: str) -> None:
    if parent_process() is None:  # the process that started this one has said it
        print(text, file=sys.stderr, flush=True)
