"""The jobs that were submitted for a study, noted beside its results, so that whoever comes next finds or ends them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from vitpos.errors import VitposError
from vitpos.study.reading import write
from vitpos.study.results import Results, unwritable
from vitpos.text import plural

KILL = 60.0  # seconds that SLURM may take to end a job: twice its KillWait


@dataclass
class Jobs:
    """The jobs that were submitted, by the hash of their runs.

    Attributes:
        cluster: ``slurm``, or ``local`` for processes of this machine.
        ids: Id of the last job of each run.
    """

    cluster: str = "slurm"
    ids: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def file(results: Results) -> Path:
        """Names the file that they are noted in."""
        return results.folder / "jobs.json"

    @classmethod
    def read(cls, results: Results) -> "Jobs":
        """Reads what was noted; nothing where there is no whole file."""
        try:
            noted = json.loads(cls.file(results).read_text(encoding="utf-8"))
            return cls(str(noted["cluster"]), {str(hash_): str(id_) for hash_, id_ in noted["ids"].items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def note(self, results: Results) -> None:
        """Notes them, in place of those before.

        Raises:
            VitposError: The results cannot be written.
        """
        try:
            results.folder.mkdir(parents=True, exist_ok=True)
            write(self.file(results), json.dumps({"cluster": self.cluster, "ids": self.ids}))
        except OSError as error:
            raise unwritable(results.folder, error) from error

    def cancel(self) -> None:
        """Ends them, where they have not ended.

        Raises:
            VitposError: They are SLURM's, which is not here.
        """
        if self.cluster == "local":
            for id_ in filter(is_job, self.ids.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(id_), signal.SIGINT)
        elif self.ids and not shutil.which("scancel"):
            raise VitposError(
                f"{plural(len(self.ids), 'job')} of SLURM may work for this study, and there is no scancel here: go "
                "on where they were submitted"
            )
        elif self.ids:
            subprocess.run(["scancel", *self.ids.values()], capture_output=True, check=False)  # some may have ended


def is_job(id_: str) -> bool:
    """Tells whether a process of this machine is a job, and not one that has its number now."""
    shown = subprocess.run(["ps", "-ww", "-o", "args=", "-p", id_], capture_output=True, text=True, check=False)
    return "submitit" in shown.stdout


def end_left(results: Results) -> None:
    """Ends the jobs that an earlier driver has left, before another engine carries the same runs out.

    Raises:
        VitposError: As `Jobs.cancel`.
    """
    file = Jobs.file(results)
    if not file.exists():
        return
    jobs = Jobs.read(results)
    jobs.cancel()
    until = time.monotonic() + KILL
    while jobs.cluster == "local" and any(map(is_job, jobs.ids.values())) and time.monotonic() < until:
        time.sleep(0.2)
    file.unlink(missing_ok=True)
    print(
        f"ended what was left of {plural(len(jobs.ids), 'job')} of --engine submitit; the runs go on here", flush=True
    )
