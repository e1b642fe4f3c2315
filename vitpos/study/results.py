"""Results on disk: which runs are done, which failed, and the rows that the report is made from."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitpos.errors import VitposError
from vitpos.study.plan import FORMAT, File, Run, Study, flatten, read_yaml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Results:
    """The folder of a study.

    Attributes:
        folder: ``results/<study>``; runs lie in ``runs/`` below it.
    """

    folder: Path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder, and keeps a second ``study run`` out of it (where the system has ``flock``).

        Raises:
            VitposError: Another one is at work, or the folder cannot be written.
        """
        try:
            (self.folder / "runs").mkdir(parents=True, exist_ok=True)
            file = (self.folder / "runs" / ".lock").open("w")
        except OSError as error:
            raise unwritable(self.folder, error) from error
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise VitposError(
                        f"another vitpos study run works in {self.folder}; wait for it, "
                        "or name another folder with --results"
                    ) from error
            yield

    def keep(self, study: Study) -> None:
        """Keeps a copy of the study file beside its results.

        Raises:
            VitposError: The folder cannot be written.
        """
        try:
            write(self.folder / "study.yaml", study.path.read_text())
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def of(self, run: Run) -> Path:
        """Returns the folder of a run."""
        return self.folder / "runs" / run.folder

    def row(self, run: Run) -> Row | None:
        """Returns the result of a run, or None where it is missing or ``result.json`` is damaged or another run's.

        Without the run's folder, as in a fresh clone, ``rows.jsonl`` counts.
        """
        path = self.of(run) / "result.json"
        row = read_row(path) if path.exists() else self.collected.get(run.hash)
        return row if row and row["hash"] == run.hash else None

    def failure(self, run: Run) -> Row | None:
        """Returns what a failed run left, until it is done."""
        return read_row(self.of(run) / "failure.json")

    @cached_property
    def collected(self) -> dict[str, Row]:
        """The results in ``rows.jsonl`` by hash, as they were when first asked for.

        Raises:
            VitposError: A line of the file is damaged.
        """
        rows: dict[str, Row] = {}
        path = self.folder / "rows.jsonl"
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
            try:
                row = json.loads(line)
                rows[row["hash"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise VitposError(f"{path} line {number} is damaged ({error}): remove the line") from error
        return rows

    def stored(self) -> list[Row]:
        """Returns every result in the folder: those of ``rows.jsonl``, or of ``result.json`` where there is one."""
        found = [read_row(path) for path in sorted(self.folder.glob("runs/*/result.json"))]
        return list({**self.collected, **{row["hash"]: row for row in found if row}}.values())

    def strays(self, study: Study) -> list[Row]:
        """Returns the results that an earlier version of the study file asked for and this one does not."""
        planned = {run.hash for run in study.runs}
        return [row for row in self.stored() if row["hash"] not in planned]

    def refuse_other_terms(self, study: Study) -> None:
        """Stops where the terms of the comparison changed after results were there to be seen.

        Raises:
            VitposError: Says which term changed, and how.
        """
        kept = self.folder / "study.yaml"
        if not kept.exists() or not self.stored():
            return
        defaults = {field.name: field.default for field in dataclasses.fields(File)}
        old, new = {**defaults, **read_yaml(kept)}, {**defaults, **read_yaml(study.path)}
        for key in ("reference", "metric", "margin", "alpha"):
            if old[key] != new[key]:
                raise VitposError(
                    f"{study.path}: {key} was stated before the runs as {old[key]} (in {kept}) and is {new[key]} "
                    "now; put it back, or give the study another name"
                )

    def refuse_strays(self, study: Study) -> None:
        """Stops where the file changed after some of its runs were made.

        Raises:
            VitposError: Says how many results belong to this version, which to an earlier one, and what differs.
        """
        strays = self.strays(study)
        if not strays:
            return
        kept = len(self.stored()) - len(strays)
        names = ", ".join(f"{row['axes']['position']} seed {row['seed']}" for row in strays[:4])
        more = f" and {len(strays) - 4} more" if len(strays) > 4 else ""
        raise VitposError(
            f"{study.path} changed after runs were made: of {kept + len(strays)} results in {self.folder}, {kept} "
            f"belong to this version, {len(strays)} to an earlier one ({names}{more}; "
            f"{differences(strays[0], study)}); give the study another name, put the file back, "
            "or leave the earlier results out with --leave-old"
        )

    def collect(self, study: Study) -> tuple[list[Row], list[Row]]:
        """Writes ``rows.jsonl`` in the order of the plan, and returns the study's rows and its failures."""
        stored = {row["hash"]: row for row in self.stored()}
        rows = [stored.pop(run.hash) for run in study.runs if run.hash in stored]
        done = {row["hash"] for row in rows}
        failures = [
            failure for run in study.runs if run.hash not in done and (failure := self.failure(run)) is not None
        ]
        try:
            write(self.folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, *stored.values()]))
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return rows, failures


def read_row(path: Path) -> Row | None:
    """Reads a row, or None where the file is missing or not whole."""
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("format") == FORMAT and "hash" in row else None


def differences(row: Row, study: Study) -> str:
    """Names the keys in which a result differs from the nearest run of the plan."""
    old = flatten(row["config"])

    def changed(run: Run) -> list[str]:
        new = flatten(run.config)
        return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]

    nearest = min(study.runs, key=lambda run: len(changed(run)))
    new = flatten(nearest.config)
    return "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed(nearest)[:3])


def unwritable(folder: Path, error: OSError) -> VitposError:
    """Makes the error for a results folder that cannot be written."""
    return VitposError(
        f"cannot write to {folder}: {error.strerror}; free space or name another folder with --results "
        "(finished runs are kept and will be skipped)"
    )
