"""Results on disk: which runs are done, which failed, and the rows that the report is made from."""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitpos.configs import flatten
from vitpos.errors import VitposError
from vitpos.lock import hold
from vitpos.study.plan import FORMAT, File, Run, Study, read
from vitpos.study.reading import Line, Place, Reader, Row, digest, whole, write

CHOICE = ("tuned", "tuned_edge")


@dataclass(frozen=True)
class Results:
    """The folder of a study.

    Attributes:
        folder: ``results/<study>``; runs lie in ``runs/`` below it.
    """

    folder: Path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and keeps a second ``study run`` out of it.

        Raises:
            VitposError: Another one is at work, or the folder cannot be written.
        """
        taken = f"another vitpos study run works in {self.folder}; wait for it, or name another folder with --results"
        with self._held(".lease", taken, "runs/*/*.part"):
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lets one process at a time write the files beside ``runs/``; others wait (errors as `lock`)."""
        with self._held(".report.lease", f"another report is being written to {self.folder}", "*.part", wait=600):
            yield

    @contextlib.contextmanager
    def _held(self, name: str, taken: str, leftovers: str, wait: float = 0) -> Iterator[None]:
        """Holds a lock, and removes first what a process that was killed with it left half written."""
        with contextlib.ExitStack() as stack:
            try:
                (self.folder / "runs").mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(self.folder / "runs" / name, taken, wait=wait))
                for part in filter(Path.is_file, self.folder.glob(leftovers)):
                    part.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.folder, error) from error
            yield

    def keep(self, study: Study) -> None:
        """Keeps a copy of the study file beside its results; once there are some, it is not replaced any more.

        Raises:
            VitposError: The folder cannot be written.
        """
        try:
            with self.writing():
                if not (self.folder / "study.yaml").exists() or not self.stored():
                    write(self.folder / "study.yaml", study.path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def of(self, run: Run) -> Path:
        """Returns the folder of a run, also where an earlier study file called its axes otherwise."""
        own = self.folder / "runs" / run.folder
        return own if not self.folders or own.exists() else self.folders.get(run.mark, own)

    @cached_property
    def looks(self) -> dict[tuple[int, int, int], tuple[int, int]]:
        """The looks of `vitpos.study.seeds.look` at these results."""
        return {}

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The folders of runs, as they were when first asked for, by `Run.mark`."""
        found = ((re.search(r"-s\d+-[0-9a-f]{8}$", path.name), path) for path in self.folder.glob("runs/*"))
        return {mark[0]: path for mark, path in found if mark}

    def row(self, run: Run) -> Row | None:
        """Returns the result of a run, or None where it is missing or ``result.json`` is damaged or another run's.

        Without the run's folder, as in a fresh clone, ``rows.jsonl`` or ``tuning.jsonl`` counts. That of a trial that
        was not tested counts as a trial alone. Its similarity matrix stays on disk until it is asked for.
        """
        path = self.file(run, "result.json")
        row = self.reader.file(path)
        if not row and not os.path.exists(path):  # noqa: PTH110 (Path is slow, and there are thousands)
            row = self.collected.get(run.hash)
        if row and untested(row):
            row = self.collected.get(run.hash, row)
        whole = row and row["hash"] == run.hash and "error" not in row and not (run.test and untested(row))
        return row if whole else None

    def file(self, run: Run, name: str) -> str:
        """Returns the path of a file of a run, as `of` finds its folder."""
        path = f"{self.folder}/runs/{run.folder}/{name}"
        if os.path.exists(path) or run.mark not in self.folders:  # noqa: PTH110
            return path
        return str(self.of(run) / name)

    def failure(self, run: Run) -> Row | None:
        """Returns what a failed run left, until it is done; that of a trial also from ``tuning.jsonl``."""
        failure = self.reader.file(self.file(run, "failure.json"))
        return failure if failure and "error" in failure else self.failed_trials.get(run.hash)

    @cached_property
    def reader(self) -> Reader:
        """Reads files with rows, each once as long as it stays as it is."""
        return Reader(self.folder)

    @cached_property
    def read_lines(self) -> list[tuple[Place, Line | None]]:
        """The lines of ``rows.jsonl`` and ``tuning.jsonl`` as they stand, with what they hold; None: nothing of use."""
        return [each for name in ("rows.jsonl", "tuning.jsonl") for each in self.reader.table(self.folder / name)]

    @property
    def lines(self) -> list[Line]:
        """The rows of ``rows.jsonl`` and ``tuning.jsonl``, as they were when first asked for, without damaged ones."""
        return [row for _, row in self.read_lines if row]

    @cached_property
    def collected(self) -> dict[str, Line]:
        """The results among the `lines`, by hash."""
        return merged(self.lines)

    @cached_property
    def failed_trials(self) -> dict[str, Line]:
        """The failures among the `lines`, by hash: in a fresh clone the choice has to come out the same."""
        return {row["hash"]: row for row in self.lines if "error" in row}

    def stored(self) -> list[Line]:
        """Returns every result in the folder: of `lines`, or of ``result.json`` where there is one."""
        try:
            names = sorted(os.listdir(self.folder / "runs"))  # noqa: PTH208
        except OSError:
            names = []
        found = [self.reader.file(f"{self.folder}/runs/{name}/result.json") for name in names]
        return list(merged([*self.collected.values(), *found]).values())

    def recall(self, study: Study) -> Study:
        """Gives runs the digests that results have of files of schemes, so that a finished study outlives the files."""
        known = {file: digest for row in self.stored() for file, digest in row.get("files", {}).items()}
        runs, trials = (
            tuple(dataclasses.replace(run, recorded=known) for run in each) if known else each
            for each in (study.runs, study.trials)
        )
        return dataclasses.replace(study, runs=runs, trials=trials)

    @property
    def settings(self) -> list[tuple[Row, str]]:
        """The axes of each stored run, and what its config says as position."""
        return [(row["axes"], str(row["config"].get("position"))) for row in self.stored()]

    def strays(self, study: Study) -> list[Line]:
        """Returns the results that an earlier version of the study file asked for and this one does not."""
        planned = {run.hash for run in (*study.runs, *study.trials)}
        return [row for row in self.stored() if row["hash"] not in planned]

    def refuse_other_terms(self, study: Study) -> None:
        """Stops where the terms of the comparison changed after results were there to be seen.

        Raises:
            VitposError: Says which term changed, and how.
        """
        kept = self.folder / "study.yaml"
        if not kept.is_file() or not self.stored():
            return
        old, new = terms(read(kept)), terms(read(study.path))
        for key in new:
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
        """Writes ``rows.jsonl`` and, where there are trials, ``tuning.jsonl``, in the order of the plan.

        A row that says the same as it did is written as it stands.

        Args:
            study: The study, settled (see `vitpos.study.seeds.settle`).

        Returns:
            Its rows and its failures, among them those for which tuning could not choose.

        Raises:
            VitposError: The folder cannot be written.
        """
        rows, failures, lines = self.gather(study)
        damaged = [place for place, row in self.read_lines if not row]
        try:
            if damaged:  # a hand may yet mend them
                with (self.folder / "damaged.jsonl").open("ab") as file:
                    file.writelines(place.text() + b"\n" for place in damaged)
                self.read_lines[:] = [(place, row) for place, row in self.read_lines if row]
            for name, content in lines.items():
                if content or name == "rows.jsonl":
                    self.reader.write(self.folder / name, [self.written(row) for row in content])
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return rows, failures

    def written(self, row: Row) -> Place | bytes:
        """Returns the line of a row: where it stands already, or its text."""
        for line in (row, self.collected.get(row["hash"])):
            if isinstance(line, Line) and line == row and [*line] == [*row]:
                return line.place
        return whole(row)

    def digests(self, rows: list[Row]) -> list[bytes]:
        """Returns the digest of the line of each row."""
        lines = (self.written(row) for row in rows)
        return [line.digest if isinstance(line, Place) else digest(line) for line in lines]

    def gather(self, study: Study) -> tuple[list[Row], list[Row], dict[str, list[Row]]]:
        """Returns rows and failures as `collect`, and what it writes."""
        stored = {row["hash"]: row for row in self.stored()}
        # the hash does not see axes, and an earlier version of the file may have had others for the same run
        rows, trials = (
            [
                placed(stored.pop(run.hash), run)
                for run in runs
                if run.hash in stored and not (run.test and untested(stored[run.hash]))
            ]
            for runs in (study.runs, study.trials)
        )
        done, finished = ({row["hash"] for row in made} for made in (rows, [*rows, *trials]))
        failures, failed_trials = (
            [
                {**failure, "axes": run.axes}
                for run in runs
                if run.hash not in through and (failure := self.failure(run)) is not None
            ]
            for runs, through in ((study.runs, done), (study.trials, finished))
        )
        failures += [
            {"format": FORMAT, "hash": run.hash, "axes": run.axes, "seed": run.seed, "error": run.blocked}
            for run in study.runs
            if run.blocked
        ]
        rest = list(stored.values())
        lines = {
            "rows.jsonl": [*rows, *(row for row in rest if "trial" not in row and not untested(row))],
            "tuning.jsonl": [*trials, *(row for row in rest if "trial" in row or untested(row))]
            + [{key: value for key, value in failure.items() if key != "traceback"} for failure in failed_trials],
        }
        return rows, failures, lines


def placed(line: Line, run: Run) -> Row:
    """Returns a row with its place in the study, which its hash does not see: the same run may be in others."""
    row = {**{key: value for key, value in line.items() if key not in CHOICE}, **described(run)}
    return line if row == line and [*row] == [*line] else row


def terms(file: File) -> dict[str, Any]:
    """Returns what a study file states that must not change once there are results, with all defaults."""
    keys = ("reference", "metric", "margin", "alpha", "correction", "tune")
    seeds = file.seeds if isinstance(file.seeds, dict) else "a list"
    return {**{key: getattr(file, key) for key in keys}, "seeds": seeds}


def untested(row: Row) -> bool:
    """Tells whether a result is of a trial that has not read the test set."""
    return row.get("tested") is False


def merged(rows: Iterable[Line | None]) -> dict[str, Line]:
    """Returns the results among rows by hash: the last of each, but one that was tested before one that was not."""
    found: dict[str, Line] = {}
    for row in rows:
        if row and "error" not in row and not (row["hash"] in found and untested(row)):
            found[row["hash"]] = row
    return found


def described(run: Run) -> Row:
    """Returns what a row says of its place in the study, which its hash does not see: the same run may be in others."""
    return {"axes": run.axes, **({"tuned": run.tuned, "tuned_edge": list(run.edge)} if run.tuned else {})}


def differences(row: Row, study: Study) -> str:
    """Names the keys in which a result differs from the nearest run of the plan."""
    old = flatten(row["config"])
    runs = study.trials or study.runs

    def changed(run: Run) -> list[str]:
        new = flatten(run.config)
        return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]

    nearest = min(runs, key=lambda run: len(changed(run)))
    new = flatten(nearest.config)
    keys = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed(nearest)[:3]]
    return "; ".join(keys) or "the file of its scheme changed"


def unwritable(folder: Path, error: OSError) -> VitposError:
    """Makes the error for a results folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "there is a file or a broken link of this name" if isinstance(error, FileExistsError) else error.strerror
    return VitposError(
        f"cannot write to {folder}: {reason}; {'free space or ' if full else ''}name another folder with --results "
        "(finished runs are kept and will be skipped)"
    )
