"""One process at a time in a folder, on any file system, also of several computers that share it."""

import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from vitpos.errors import VitposError

# Seconds without a heartbeat after which a process on another computer is taken for dead, and between heartbeats.
TAKEOVER, BEAT = 90.0, 10.0
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the computer sleeps


@contextlib.contextmanager
def hold(file: Path, taken: str, *, wait: float = 0) -> Iterator[None]:
    """Holds a lock for the time of a ``with`` block.

    The lock is a file that names its process and is touched every 10 s; the file system need not know locks. A process
    that is gone is replaced at once on its own computer, and from another one after 90 s without a sign of life, which
    are waited for. A process that was suspended for that long ends as it wakes up, and writes nothing more.

    Args:
        file: The file; it is gone when nothing holds the lock.
        taken: What to say where another process holds it.
        wait: Seconds to wait for it.

    Raises:
        VitposError: Another process holds it: which, on which computer and since when.
        OSError: The file cannot be written.
    """
    lease = _Lease(file, lease_duration=TAKEOVER, heartbeat_interval=BEAT)
    _acquire(lease, file, taken, wait)
    ended = threading.Event()
    try:
        with file.open("a", encoding="utf-8") as text:
            text.write(f"since={time.time():.0f}\n")
        threading.Thread(target=_watch, args=(file, str(lease.token), ended), daemon=True).start()
        yield
    finally:
        ended.set()
        lease.release()


class _Lease(SoftFileLease):
    """A lease that can also be taken over where two names cannot be exchanged, as on NFS and Lustre."""

    def _take_over(self, marker: os.stat_result, breaker_pid: int | None) -> None:
        """Does as filelock does or, where that changes nothing, renames the file away; the next attempt makes it."""
        super()._take_over(marker, breaker_pid)
        file, aside = Path(self.lock_file), Path(f"{self.lock_file}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            if not _same(file.lstat(), marker):
                return
            file.rename(aside)
            if not _same(aside.lstat(), marker):  # another process was faster, and this is its file
                with contextlib.suppress(FileExistsError):
                    os.link(aside, file)
            aside.unlink()


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_mtime_ns) == (other.st_ino, other.st_mtime_ns)


def _acquire(lease: SoftFileLease, file: Path, taken: str, wait: float) -> None:
    """Acquires a lease, or says who holds it once that is certain: on another computer, by a heartbeat."""
    began, first, said = time.monotonic(), None, False
    while True:
        with contextlib.suppress(Timeout, LeaseSettingsMismatch):  # that of another version of vitpos is never stale
            lease.acquire(timeout=0)
            return
        owner = lease.owner
        try:
            state = file.stat()
        except FileNotFoundError:
            continue
        first = first or state
        passed = time.monotonic() - began
        alive = owner is not None and (owner.hostname == _here() or not _same(state, first))
        who = _describe(file)
        if passed >= wait and (alive or passed > 2 * TAKEOVER):
            raise VitposError(f"{taken} ({who})" if alive else f"{taken} ({who}; if it is not at work, remove {file})")
        if not alive and not said:
            said = True
            text = f"waiting up to {TAKEOVER:.0f} s for a sign of life of {who}, which holds {file}"
            print(text, file=sys.stderr, flush=True)
        time.sleep(min(0.2, TAKEOVER / 10))


def _describe(file: Path) -> str:
    """Says which process holds a lock."""
    try:
        found = dict(re.findall(r"^(\w+)=(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError:
        found = {}
    began = found.get("since", "")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(began))) if began.isdigit() else "?"
    host = found.get("host", "?").partition("?")[0]  # without the number of its container
    return f"process {found.get('pid', '?')} on {host} since {since}"


@functools.cache
def _here() -> str:
    """Returns how locks name this computer, or the container that it seems to be."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder, "lock")) as lease:
        return "" if lease.owner is None else lease.owner.hostname


def _watch(file: Path, token: str, ended: threading.Event) -> None:
    """Ends the process once its lock is another's: it looks every 10 s, and at once when it was suspended."""
    looked = time.clock_gettime(_CLOCK)
    while not ended.wait(min(1, BEAT)):
        if time.clock_gettime(_CLOCK) - looked < BEAT:
            continue
        looked = time.clock_gettime(_CLOCK)
        try:
            ours = token in file.read_text(encoding="utf-8")
        except FileNotFoundError:
            ours = False
        except OSError:  # of a network, say; filelock goes on trying
            continue
        if not ours and not ended.is_set():
            change = f"was taken over by {_describe(file)}" if file.exists() else "was removed"
            text = f"vitpos: error: the lock {file} {change}; this process ends and writes nothing more"
            print(text, file=sys.stderr, flush=True)
            os._exit(1)
