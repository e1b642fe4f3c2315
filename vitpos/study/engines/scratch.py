"""What a machine does that shares no folder with the driver: a run in a scratch folder, sent as it changes."""

import contextlib
import math
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitpos.data import sources
from vitpos.errors import VitposError
from vitpos.positions import text as texts
from vitpos.study import heartbeat
from vitpos.study.engines import Limits
from vitpos.study.engines.local import Local
from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.study.run import place_of_data

LOOK = 1.0  # seconds between two looks for changed files
BEAT = 20.0  # seconds between two heartbeats: thousands of runs send theirs to one driver
SCRATCH = "vitpos-ray-"
OWN = (".lease", ".part")  # locks and halves of files, which are a machine's own


@dataclass(frozen=True)
class Changes:
    """What changed in the folder of a run since the last time.

    Attributes:
        files: The contents of new and changed files, by path in the folder, the result last.
        gone: Files that are there no more.
        end: Error and loss of the attempt (see `Outcome`), once it has ended.
    """

    files: dict[str, bytes]
    gone: tuple[str, ...] = ()
    end: tuple[str | None, bool] | None = None


def carry_out(
    fetch: Callable[[Any], Any],
    pickled: bytes,
    given: tuple[dict[str, bytes], dict[str, bytes]],
    fingerprint: str,
    images: list[Any],
    timeout: float | None,
) -> Iterator[Changes]:
    """Carries a run out, on a machine of the cluster, and yields what changes in its folder.

    Args:
        fetch: Gets an object by its reference.
        pickled: The run.
        given: The files of its folder and those of its scheme, by name.
        fingerprint: Hash of the contents of its data set.
        images: Reference to that in the object store.
        timeout: Seconds, or None.
    """
    files, schemes = given
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
        study = Path(scratch, "study")
        study.mkdir()
        for file, content in schemes.items():
            texts.copy_in(study, file).write_bytes(content)
        run: Run = replace(pickle.loads(pickled), study=study)
        results = Results(Path(scratch))
        folder = results.of(run)
        apply(Changes(files), folder)
        seen = {path: state(folder / path) for path in files}
        borrow(*place_of_data(run), fingerprint, lambda: fetch(images[0]))  # the place as the worker will see it
        with Local(results, Limits(timeout), 1, "ray") as engine:
            engine.start(run)
            sent = -math.inf
            while not (ended := engine.wait(LOOK)):
                due = time.monotonic() >= sent + BEAT
                changed = changes(folder, seen, "" if due else heartbeat.FILE)
                if changed != Changes({}):
                    sent = time.monotonic() if due else sent
                    yield changed
        yield replace(changes(folder, seen), end=(ended[0].error, ended[0].lost))


def borrow(name: str, root: str | None, fingerprint: str, fetch: Callable[[], sources.Images]) -> None:
    """Sees to it that workers started here find the data: in a root of this machine, or lent by the driver."""
    os.environ.pop(sources.LENT, None)
    with contextlib.suppress(VitposError):
        if sources.load(name, root).fingerprint == fingerprint:
            return
    if not sources.has_lent(fingerprint):
        sources.keep_lent(fetch())
    os.environ[sources.LENT] = str(sources.lent_file(fingerprint))


def remove_abandoned() -> None:
    """Removes scratch folders of processes that were killed on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(ValueError, PermissionError):
            try:
                os.kill(int(folder.name.removeprefix(SCRATCH).partition("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)


def state(path: Path) -> tuple[int, int]:
    """Returns what changes whenever a file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def changes(folder: Path, seen: dict[str, tuple[int, int]], later: str = "") -> Changes:
    """Reads the files of a folder that are not as they were seen, and notes how they are now; all but one for later."""
    files, there = {}, set()
    for path in sorted(folder.rglob("*"), key=lambda path: (path.name == "result.json", path)):
        relative = path.relative_to(folder).as_posix()
        if path.suffix in OWN or path.name in OWN or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):  # replaced or removed just now
            now = state(path)
            there.add(relative)
            if seen.get(relative) != now and relative != later:
                files[relative] = path.read_bytes()
                seen[relative] = now
    gone = tuple(seen.keys() - there)
    for relative in gone:
        del seen[relative]
    return Changes(files, gone)


def apply(sent: Changes, folder: Path) -> None:
    """Makes the changes in another folder, each file whole or not at all."""
    for relative, content in sent.files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    for relative in sent.gone:
        (folder / relative).unlink(missing_ok=True)
