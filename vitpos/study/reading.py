"""Rows as they are read: checked, without what is large, and kept for the next command, as studies have thousands.

Reading and checking a row takes a millisecond or two. What came of it is therefore kept in the user's own cache, never
beside the results, where somebody else may have written it. It is taken for a file that is the same by inode, size and
times, else for the same bytes; all else is read and checked.
"""

import contextlib
import hashlib
import itertools
import json
import marshal
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vitpos import paths
from vitpos.errors import VitposError
from vitpos.provenance import sources
from vitpos.rows import check_failure, check_row, wrong
from vitpos.study.plan import FORMAT, identify

Row = dict[str, Any]
State = tuple[int, ...]
Cut = tuple[int, int, int, bytes]
"""Of a row in a file: number of the line, start, size, digest."""
MANY = 500  # rows; fewer are read faster than a cache is worth
YOUNG = 2 * 10**9  # nanoseconds in which a file may change once more without another time of change


class Opened:
    """A file that stays open as long as somebody may read a line of it: it may be replaced by then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = os.open(name, os.O_RDONLY)

    def __del__(self) -> None:
        """Closes the file."""
        if hasattr(self, "number"):
            os.close(self.number)


@dataclass(frozen=True)
class Place:
    """Where the bytes of a row are: in a file of its own, or a line of one."""

    file: str | Opened
    start: int
    size: int
    digest: bytes

    def text(self) -> bytes:
        """Reads the bytes again.

        Raises:
            VitposError: They are others now.
        """
        if isinstance(self.file, str):
            text = Path(self.file).read_bytes()
        else:
            text = os.pread(self.file.number, self.size, self.start)
        if digest(text) != self.digest:
            raise VitposError(f"{getattr(self.file, 'name', self.file)} changed while it was read; try again")
        return text


@dataclass(frozen=True)
class Similarity:
    """The similarity matrix of a row, nine tenths of its size: read when an array is made of it."""

    content: bytes
    place: Place = field(compare=False)

    def read(self) -> list[list[float]]:
        """Reads the matrix."""
        found: list[list[float]] = json.loads(self.place.text())["position"]["similarity"]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Returns the matrix as numpy asks for it."""
        import numpy as np

        return np.array(self.read(), dtype=dtype)


class Line(Row):
    """A row that was read and checked, and its place."""

    place: Place


class Reader:
    """Reads the rows of a study.

    Args:
        folder: The folder of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, tuple[State, Line | None]] = {}  # files with one row
        self.cuts: dict[
            str, tuple[State, list[tuple[int, int, int, bytes]]]
        ] = {}  # of all: number, start, size, digest
        self.lines: dict[bytes, Line] = {}
        self.shared: dict[str, Any] = {}
        self.news = 0

    def file(self, path: str) -> Line | None:
        """Reads a file with one row, or None where it is missing or not as it should be, which is said once."""
        try:
            known = os.stat(path)  # noqa: PTH116 (Path takes three times as long, and there are thousands)
            state = state_of(known)
            if path not in self.seen or self.seen[path][0] != state:
                place = self.known(path, state)
                if not place:
                    # a pipe or a device would never end
                    text = Path(path).read_bytes() if stat.S_ISREG(known.st_mode) else b""
                    place = Place(path, 0, len(text), digest(text))
                    self.cuts[path] = state, [(0, 0, len(text), place.digest)]
                    self.seen[path] = state, self.line(place, path, text)
                else:
                    self.seen[path] = state, self.line(place, path)
        except OSError:
            return None
        return self.seen[path][1]

    def known(self, path: str, state: State) -> Place | None:
        """Returns the place of a file's row where it has been read in that state."""
        then, cuts = self.cuts.get(path) or self.kept["files"].get(path) or (None, [])
        if then != state:
            return None
        self.cuts[path] = then, cuts
        return Place(path, 0, cuts[0][2], cuts[0][3])

    def table(self, path: Path) -> Iterator[tuple[Place, Line | None]]:
        """Reads a file with a row in each line; None for one that is damaged, which is said."""
        if not path.is_file():
            return
        file, name = Opened(str(path)), str(path)
        state = state_of(os.fstat(file.number))
        then, known = self.kept["files"].get(name) or (None, [])
        if then == state:
            self.cuts[name] = state, known
            for number, *where in known:
                yield (place := Place(file, *where)), self.line(place, f"{path} line {number}")
            return
        start, cuts = 0, list[Cut]()
        with open(os.dup(file.number), "rb") as lines:  # noqa: PTH123 (of what is open)
            for number, line in enumerate(lines, 1):
                if line.strip():
                    text = line.removesuffix(b"\n")
                    place = Place(file, start, len(text), digest(text))
                    cuts.append((number, start, place.size, place.digest))
                    yield place, self.line(place, f"{path} line {number}", text)
                start += len(line)
        self.cuts[name] = state, cuts

    def write(self, path: Path, content: Sequence[Place | bytes]) -> None:
        """Writes a file with a row in each line, unless it has just these lines."""
        digests = [each.digest if isinstance(each, Place) else digest(each) for each in content]
        state, cuts = self.cuts.get(str(path)) or ((), [])
        with contextlib.suppress(OSError):
            if state == state_of(path.stat()) and [cut[-1] for cut in cuts] == digests:
                return
        write(path, ((each.text() if isinstance(each, Place) else each) + b"\n" for each in content))
        starts = itertools.accumulate((_size(each) + 1 for each in content), initial=0)
        self.cuts[str(path)] = (
            state_of(path.stat()),
            [
                (number, start, _size(each), found)
                for number, (start, each, found) in enumerate(zip(starts, content, digests, strict=False), 1)
            ],
        )

    def line(self, place: Place, where: str, text: bytes | None = None) -> Line | None:
        """Reads and checks a row, unless it is known; or says on standard error what is wrong with it: None."""
        if place.digest in self.lines:
            return self.lines[place.digest]
        row = self.kept["rows"].pop(place.digest, None)
        if row is None:
            try:
                row = self.light(parse(place.text() if text is None else text))
            except VitposError as error:
                print(f"vitpos: warning: {where}: {error}; left out", file=sys.stderr, flush=True)
                return None
            self.news += 1
        line = Line(row)
        line.place = place
        if "error" not in line and line["position"]:
            table = line["position"]
            line["position"] = {**table, "similarity": Similarity(table["similarity"], place)}
        self.lines[place.digest] = line
        return line

    def light(self, row: Row) -> Row:
        """Returns a row without its similarity matrix, and with one object for what many rows say alike."""
        if "error" in row:
            return row
        if row["position"]:
            row["position"]["similarity"] = digest(marshal.dumps(row["position"]["similarity"]))
        for group in ("config", "resolved", "per_class"):
            if group in row:
                row[group] = {sys.intern(key): self.share(value) for key, value in row[group].items()}
        for group in ("axes", "data", "environment"):
            row[group] = self.share(row[group])
        for group in (row["metrics"], *row["history"]):
            group |= {sys.intern(key): group.pop(key) for key in list(group)}
        return {sys.intern(key): value for key, value in row.items()}

    def share(self, value: Any) -> Any:
        """Returns what stands for all equal values."""
        return self.shared.setdefault(repr(value), value)

    @cached_property
    def store(self) -> Path:
        """The file that is kept."""
        return paths.cache() / "rows" / digest(os.fsencode(self.folder.absolute())).hex()

    @cached_property
    def kept(self) -> dict[str, dict[Any, Any]]:
        """What an earlier command with the same code kept."""
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
            text = self.store.read_bytes()
            if text[:16] == seal(text[16:]):
                found: dict[str, dict[Any, Any]] = marshal.loads(text[16:])
                return found
        return {"files": {}, "rows": {}}

    def keep(self) -> None:
        """Keeps what was read for the next command, where that spares it something."""
        now = time.time_ns()
        files = {path: (state, cuts) for path, (state, cuts) in self.cuts.items() if max(state[3:]) < now - YOUNG}
        spared = sum(
            len(cuts) for path, (state, cuts) in files.items() if self.kept["files"].get(path, [0])[0] != state
        )
        if max(spared, self.news) < MANY:
            return
        rows = {}
        for key, line in self.lines.items():
            rows[key] = dict(line)
            if "error" not in line and line["position"]:
                rows[key]["position"] = {**line["position"], "similarity": line["position"]["similarity"].content}
        text = marshal.dumps({"files": files, "rows": rows})
        with contextlib.suppress(OSError):  # one that cannot be written is none
            self.store.parent.mkdir(parents=True, exist_ok=True)
            write(self.store, [seal(text), text])
            self.kept["files"], self.news = files, 0


def whole(row: Row) -> bytes:
    """Writes a row as JSON, with its similarity matrix."""
    return json.dumps(row, default=lambda similarity: similarity.read()).encode()


def _size(content: Place | bytes) -> int:
    return content.size if isinstance(content, Place) else len(content)


def state_of(known: os.stat_result) -> State:
    """Returns what changes with a file."""
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


def digest(text: bytes) -> bytes:
    """Returns a short digest of bytes."""
    return hashlib.blake2b(text, digest_size=16).digest()


def seal(text: bytes) -> bytes:
    """Returns the digest of what is kept, which another version of the code or of Python does not take."""
    return hashlib.blake2b(text, digest_size=16, key=digest(f"{sources()} {sys.version}".encode())).digest()


def write(path: Path, text: str | Iterable[bytes]) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.writelines([text.encode()] if isinstance(text, str) else text)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def parse(text: bytes) -> Row:
    """Reads a row or failure, and checks it by itself: no file that it names is touched.

    Raises:
        VitposError: It is not whole, of another version, has a field that is out of its range, or a config that is not
            the one of its hash.
    """
    try:
        row: Row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VitposError(f"it is not whole, or no JSON ({error})") from error
    version = row.get("format") if isinstance(row, dict) else None
    if type(version) is not int or version != FORMAT:
        raise wrong("format", version, f"{FORMAT}; results of another version are made again")
    if "error" in row:
        check_failure(row)
        return row
    check_row(row)
    if "files" in row or ".py:" not in str(row["config"].get("position")):  # earlier versions did not record the files
        hash_ = identify(row["config"], row.get("trial"), row.get("files"))
        if hash_ != row["hash"]:
            raise wrong("hash", row["hash"], f"that of its config, {hash_}")
    return row
