"""Runs as jobs of SLURM, by submitit: arrays of jobs that work in the folder of results, which the machines share."""

import math
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import submitit
from submitit.helpers import Checkpointable

from vitpos.errors import VitposError, unknown
from vitpos.provenance import versions
from vitpos.study import heartbeat
from vitpos.study.engines import Limits, Outcome
from vitpos.study.engines.jobs import Jobs, is_job
from vitpos.study.engines.local import Local
from vitpos.study.machine import default_slots
from vitpos.study.plan import Run
from vitpos.study.results import Results, unwritable
from vitpos.study.run import fail
from vitpos.text import plural

SLOTS = 1000  # jobs of an array at most: SLURM's own default is 1001
MINUTES = 60  # of a job, where nothing is said; a run that takes longer goes on from its checkpoint
TIMEOUTS = 100  # times that it may
LOOK = 1.0  # seconds between two looks for results
ASK = 60.0  # seconds between two questions to SLURM
# What vitpos sets itself, and what only Python code could give.
OURS = {
    *("nodes", "ntasks_per_node", "cpus_per_task", "num_gpus", "gpus_per_node", "gpus_per_task", "cpus_per_gpu"),
    *("setup", "teardown", "additional_parameters", "srun_args", "use_srun", "stderr_to_stdout"),
}
NUMBERS = ("array_parallelism", "signal_delay_s")


class Attempt(Checkpointable):
    """What a job does: it carries a run out, and is queued again as it is when its time ends or it has to make room.

    Args:
        run: The run.
        results: Where the runs' folders are.
        timeout: Seconds that the run may take at a time, or None.
    """

    def __init__(self, run: Run, results: Results, timeout: float | None) -> None:
        self.run, self.folder, self.timeout = run, results.folder.absolute(), timeout
        self.versions = versions()

    def __call__(self) -> tuple[dict[str, str], str | None, bool]:
        """Returns the versions that are here, error and loss; where versions differ from the driver's, nothing is done.

        Nor is anything where the result is there, or where a later job of the run is noted.
        """
        found, results = versions(), Results(self.folder)
        if found != self.versions:
            return found, "it was submitted by other versions", True
        if results.row(self.run) is not None:
            return found, None, False
        if Jobs.read(results).ids.get(self.run.hash, job_id()) != job_id():
            return found, "another job was submitted for it", True
        with Local(results, Limits(self.timeout), 1, "submitit") as engine:  # a signal ends this, and so the worker
            engine.start(self.run)
            while not (ended := engine.wait(60)):
                pass
        return found, ended[0].error, ended[0].lost


def job_id() -> str:
    """Returns the id of the job that this process is."""
    return str(submitit.JobEnvironment().job_id)


class Slurm:
    """Runs as jobs of SLURM (see `vitpos.study.engines.Engine`).

    Args:
        results: Where the runs' folders are; shared with the machines.
        limits: What one attempt may use.
        workers: Jobs at a time at most, or None for `SLOTS`.
        given: Parameters of submitit's executor, such as partition; ``cluster=local`` runs the jobs on this machine.

    Raises:
        VitposError: No SLURM here, or a parameter that is unknown or wrong.
    """

    def __init__(self, results: Results, limits: Limits, workers: int | None, given: Mapping[str, str]) -> None:
        self.results, self.limits = results, limits
        self.cluster, parameters = settings(given, limits)
        self.slots = workers or (SLOTS if self.cluster == "slurm" else default_slots())
        self.executor = submitit.AutoExecutor(
            results.folder / "jobs",
            cluster=self.cluster,
            slurm_max_num_timeout=TIMEOUTS,
            local_max_num_timeout=TIMEOUTS,
        )
        try:
            self.executor.update_parameters(name=results.folder.name, **parameters)
        except (ValueError, TypeError, NameError, AssertionError) as error:
            raise VitposError(f"--slurm: {' '.join(str(error).split())}") from error
        self.waiting: list[Run] = []
        self.jobs: dict[str, tuple[Run, Any]] = {}
        self.asked = time.monotonic()

    def __enter__(self) -> Self:
        """Reads which jobs an earlier driver has left."""
        self.left = Jobs.read(self.results)
        if self.left.cluster != self.cluster:
            self.left = Jobs(self.cluster)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancels the jobs, but leaves them to SLURM on an interrupt: they may have waited for days."""
        running = self.noted()
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.jobs and self.cluster == "slurm":
            print(
                f"{plural(len(self.jobs), 'job')} of SLURM left to go on; the same command finds them again", flush=True
            )
            return
        running.cancel()
        Jobs.file(self.results).unlink(missing_ok=True)

    def noted(self) -> Jobs:
        """Returns the jobs that have not ended."""
        return Jobs(self.cluster, {hash_: str(job.job_id) for hash_, (_, job) in self.jobs.items()})

    def start(self, run: Run) -> None:
        """Takes up the job that an earlier driver has left of a run, or notes the run for the next array."""
        if id_ := self.left.ids.pop(run.hash, None):
            kind: Any = submitit.SlurmJob if self.cluster == "slurm" else submitit.LocalJob
            job = kind(self.results.folder / "jobs", id_)
            if not over(job, ask=True):
                self.jobs[run.hash] = run, job
                return
        self.waiting.append(run)

    def submit(self) -> None:
        """Submits the runs that wait for it as one array, and notes the jobs.

        Raises:
            VitposError: SLURM refuses them, or the results cannot be written.
        """
        runs, self.waiting = self.waiting, []
        if not runs:
            return
        self.noted().note(self.results)  # without those of these runs, which a new job would else take for later ones
        try:
            jobs = self.executor.submit_array([Attempt(run, self.results, self.limits.timeout) for run in runs])
        except OSError as error:
            raise unwritable(self.results.folder, error) from error
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise VitposError(f"SLURM takes no jobs: {' '.join(str(error).split())}") from error
        self.jobs |= {run.hash: (run, job) for run, job in zip(runs, jobs, strict=True)}
        self.noted().note(self.results)

    def wait(self, seconds: float) -> list[Outcome]:
        """Returns the attempts that have ended (see `Engine.wait`).

        Raises:
            VitposError: As `submit`, or a job found other versions than these.
        """
        self.submit()
        until = time.monotonic() + seconds
        while True:
            ask = time.monotonic() > self.asked + ASK
            ended = []
            for run, job in list(self.jobs.values()):
                if over(job, ask):
                    del self.jobs[run.hash]
                    ended.append(self.outcome(run, job))
                if ask:  # the answer is for all jobs
                    ask, self.asked = False, time.monotonic()
            if ended or not self.jobs or time.monotonic() >= until:
                return ended
            time.sleep(min(LOOK, max(0.0, until - time.monotonic())))

    def outcome(self, run: Run, job: Any) -> Outcome:
        """Returns what became of a job that is over (errors as `wait`)."""
        if job.paths.result_pickle.exists():
            try:
                found, error, lost = job.result()
            except submitit.core.utils.UncompletedJobError as problem:  # the traceback of the job is in it
                return self.lost(run, f"its job {job.job_id} failed", str(problem))
            other = [f"{name} {found.get(name)} there, {here} here" for name, here in versions().items()
                     if found.get(name) != here]  # fmt: skip
            if other:
                raise VitposError(f"versions of job {job.job_id} differ: {'; '.join(other)}")
            return Outcome(run, error, lost)
        if self.results.row(run) is not None:
            return Outcome(run, None)
        return self.lost(run, f"its job {job.job_id} ended without a word (state {job.state})", "")

    def lost(self, run: Run, error: str, trace: str) -> Outcome:
        """Records that a job was lost."""
        folder = self.results.of(run)
        try:
            (folder / heartbeat.FILE).unlink(missing_ok=True)
            return Outcome(run, fail(run, folder, error, trace), lost=True)
        except OSError as problem:
            raise unwritable(self.results.folder, problem) from problem


def over(job: Any, ask: bool = False) -> bool:
    """Tells whether a job has ended, by its result or, where there is none, what SLURM said last or says now."""
    if job.paths.result_pickle.exists():
        return True
    if isinstance(job, submitit.LocalJob):
        return not is_job(job.job_id)
    return bool(job.done(force_check=ask))


def settings(given: Mapping[str, str], limits: Limits) -> tuple[str, dict[str, Any]]:
    """Makes the cluster's name and the parameters of submitit's executor.

    Raises:
        VitposError: No SLURM here, an unknown key, a value that cannot be, or a part of a GPU.
    """
    keys = sorted({"cluster", *submitit.SlurmExecutor._valid_parameters()} - OURS)
    parameters: dict[str, Any] = {}
    for key, value in given.items():
        if key not in keys:
            raise unknown("--slurm key", key, keys)
        if key in NUMBERS and not value.isdecimal():
            raise VitposError(f"--slurm {key}={value}: it must be a whole number")
        parameters[f"slurm_{key}"] = int(value) if key in NUMBERS else True if value == "true" else value
    cluster = parameters.pop("slurm_cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise unknown("--slurm cluster", str(cluster), ("slurm", "local"))
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise VitposError(
            "there is no SLURM here (no sbatch and srun on the path): start the study where jobs are submitted, or try "
            "it on this machine with --slurm cluster=local"
        )
    gpus = limits.gpus or 0
    if gpus != int(gpus):
        raise VitposError(f"--gpus-per-run is {gpus:g}; SLURM gives whole GPUs (parts of one: --engine local or ray)")
    parameters["timeout_min"] = minutes(str(parameters.pop("slurm_time", MINUTES)))
    parameters["cpus_per_task"] = math.ceil(limits.cpus)
    if gpus:
        parameters["gpus_per_node"] = int(gpus)
    return cluster, parameters


def minutes(text: str) -> int:
    """Reads a time as sbatch does: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Raises:
        VitposError: It is none of these, or nothing.
    """
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+)(?::(\d+))?)", text)
    if match is None:
        raise VitposError(f"--slurm time={text}: it must be minutes, H:MM:SS or D-HH:MM:SS")
    days, hours, minute, second, *plain = (int(part or 0) for part in match.groups())
    if match[1] is None:
        hours, minute, second = plain
        if text.count(":") == 1:  # MM:SS
            hours, minute, second = 0, *map(int, text.split(":"))
    total = math.ceil(days * 24 * 60 + hours * 60 + minute + second / 60)
    if not total:
        raise VitposError(f"--slurm time={text}: a job needs a minute at least")
    return total
