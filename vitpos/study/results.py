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
from vitpos.study.tuning import tuning_seeds

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

        Without the run's folder, as in a fresh clone, ``rows.jsonl`` or ``tuning.jsonl`` counts.
        """
        path = self.of(run) / "result.json"
        row = read_row(path) if path.exists() else self.collected.get(run.hash)
        return row if row and row["hash"] == run.hash else None

    def failure(self, run: Run) -> Row | None:
        """Returns what a failed run left, until it is done; that of a trial also from ``tuning.jsonl``."""
        return read_row(self.of(run) / "failure.json") or self.failed_trials.get(run.hash)

    @cached_property
    def lines(self) -> list[Row]:
        """The lines of ``rows.jsonl`` and ``tuning.jsonl``, as they were when first asked for.

        Raises:
            VitposError: A line is damaged.
        """
        rows = []
        for path in (self.folder / "rows.jsonl", self.folder / "tuning.jsonl"):
            for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
                try:
                    row = json.loads(line)
                    rows.append({**row, "hash": row["hash"]})
                except (ValueError, KeyError, TypeError) as error:
                    raise VitposError(f"{path} line {number} is damaged ({error}): remove the line") from error
        return rows

    @cached_property
    def collected(self) -> dict[str, Row]:
        """The results among the `lines`, by hash."""
        return {row["hash"]: row for row in self.lines if "error" not in row}

    @cached_property
    def failed_trials(self) -> dict[str, Row]:
        """The failures among the `lines`, by hash: in a fresh clone the choice has to come out the same."""
        return {row["hash"]: row for row in self.lines if "error" in row}

    def stored(self) -> list[Row]:
        """Returns every result in the folder: of `lines`, or of ``result.json`` where there is one."""
        found = [read_row(path) for path in sorted(self.folder.glob("runs/*/result.json"))]
        return list({**self.collected, **{row["hash"]: row for row in found if row}}.values())

    def strays(self, study: Study) -> list[Row]:
        """Returns the results that an earlier version of the study file asked for and this one does not."""
        planned = {run.hash for run in (*study.runs, *study.trials)}
        return [row for row in self.stored() if row["hash"] not in planned]

    def refuse_other_terms(self, study: Study) -> None:
        """Stops where the terms of the comparison changed after results were there to be seen.

        Raises:
            VitposError: Says which term changed, and how.
        """
        kept = self.folder / "study.yaml"
        if not kept.exists() or not self.stored():
            return
        old, new = terms(read_yaml(kept)), terms(read_yaml(study.path))
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

        Args:
            study: The study, settled (see `vitpos.study.tuning.settle`).

        Returns:
            Its rows and its failures, among them those for which tuning could not choose.

        Raises:
            VitposError: The folder cannot be written.
        """
        stored = {row["hash"]: row for row in self.stored()}
        # the hash does not see axes, and an earlier version of the file may have had others for the same run
        rows = [{**stored.pop(run.hash), "axes": run.axes} for run in study.runs if run.hash in stored]
        trials = [{**stored.pop(run.hash), "axes": run.axes} for run in study.trials if run.hash in stored]
        done = {row["hash"] for row in (*rows, *trials)}
        failures, failed_trials = (
            [
                {**failure, "axes": run.axes}
                for run in runs
                if run.hash not in done and (failure := self.failure(run)) is not None
            ]
            for runs in (study.runs, study.trials)
        )
        failures += [
            {"format": FORMAT, "hash": run.hash, "axes": run.axes, "seed": run.seed, "error": run.blocked}
            for run in study.runs
            if run.blocked
        ]
        rest = list(stored.values())
        lines = {
            "rows.jsonl": [*rows, *(row for row in rest if "trial" not in row)],
            "tuning.jsonl": [*trials, *(row for row in rest if "trial" in row)]
            + [{key: value for key, value in failure.items() if key != "traceback"} for failure in failed_trials],
        }
        try:
            for name, content in lines.items():
                if content or name == "rows.jsonl":
                    write(self.folder / name, "".join(json.dumps(row) + "\n" for row in content))
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return rows, failures


def terms(given: dict[str, Any]) -> dict[str, Any]:
    """Returns what a study file states that must not change once there are results, with all defaults."""
    stated = {}
    for field in dataclasses.fields(File):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        stated[field.name] = given.get(field.name, default)
    keys = ("reference", "metric", "margin", "alpha", "correction", "tune")
    seeds = tuning_seeds(stated["seeds"], stated["tune_seeds"]) if stated["tune"] else []
    return {**{key: stated[key] for key in keys}, "tune_seeds": seeds}


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
    runs = study.trials if "trial" in row else study.runs

    def changed(run: Run) -> list[str]:
        new = flatten(run.config)
        return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]

    nearest = min(runs or study.runs, key=lambda run: len(changed(run)))
    new = flatten(nearest.config)
    keys = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in changed(nearest)[:3]]
    return "; ".join(keys) or "the file of its scheme changed"


def unwritable(folder: Path, error: OSError) -> VitposError:
    """Makes the error for a results folder that cannot be written."""
    return VitposError(
        f"cannot write to {folder}: {error.strerror}; free space or name another folder with --results "
        "(finished runs are kept and will be skipped)"
    )
