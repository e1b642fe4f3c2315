"""Runs in worker processes on this machine."""

import contextlib
import os
import signal
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from types import TracebackType
from typing import Self

from vitpos.errors import VitposError
from vitpos.study import heartbeat, worker
from vitpos.study.engines import Limits, Outcome
from vitpos.study.engines.sharing import Sharing
from vitpos.study.machine import VISIBLE, default_slots, visible_gpus
from vitpos.study.plan import Run
from vitpos.study.results import Results, unwritable
from vitpos.study.run import fail

START_UP = 300.0  # seconds that a worker may take to import what it needs
GRACE = 30.0  # seconds after which a worker is killed that has not ended itself at its limit


class Worker:
    """A worker process, kept for one run after another.

    Args:
        log: Where its output goes until it has a run.
        gpu: The only GPU that it sees, as ``CUDA_VISIBLE_DEVICES`` names it; None where there is none.
    """

    def __init__(self, log: Path, gpu: str | None = None) -> None:
        self.gpu = gpu
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=worker.serve, args=(theirs, log))
        self.run: Run | None = None
        self.ready = False
        self.deadline = float("inf")
        ensure_running()  # else the first start does, and lets the signals through that are blocked here
        blocked = {signal.SIGINT, signal.SIGHUP}  # inherited: until the worker has a process group of its own
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        given = os.environ.get(VISIBLE)
        try:
            if gpu is not None:
                os.environ[VISIBLE] = gpu
            self.process.start()
        finally:
            if given is not None:
                os.environ[VISIBLE] = given
            elif gpu is not None:
                del os.environ[VISIBLE]
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.pid = int(self.process.pid or -1)

    def kill(self) -> None:
        """Ends the process and what it has started."""
        self.process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has no group yet, or nobody is left in it
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


class Local:
    """Runs in worker processes on this machine (see `vitpos.study.engines.Engine`).

    Args:
        results: Where the runs' folders are.
        limits: What one attempt may use; here the time.
        workers: Runs at a time; None for one a processor or, where there are GPUs, as many as are found to pay.
        name: What heartbeats call the engine, for another one that uses this one on its machines.
    """

    def __init__(self, results: Results, limits: Limits, workers: int | None = None, name: str = "local") -> None:
        self.results, self.limits, self.name = results, limits, name
        self.slots = workers or default_slots()
        self.gpus = visible_gpus()
        self.sharing = None if workers or not self.gpus else Sharing(len(self.gpus))
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        """Does nothing yet: a worker is started with its first run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kills the workers that have a run, or all after an error; the others end by themselves."""
        for each in self.workers:
            if each.run is None and error is None:
                each.pipe.close()
                continue
            each.kill()
            if each.run is not None:
                with contextlib.suppress(OSError):
                    (self.results.of(each.run) / heartbeat.FILE).unlink(missing_ok=True)
        until = time.monotonic() + GRACE
        for each in self.workers:
            each.process.join(max(0.0, until - time.monotonic()))
            each.kill()
        self.workers.clear()

    def start(self, run: Run) -> None:
        """Hands a run to a worker without one, or to a new one (errors as `wait`)."""
        folder = self.results.of(run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        busy = Counter(each.gpu for each in self.workers if each.run is not None)
        gpu = min(self.gpus, key=lambda name: busy[name], default=None)
        job = run, folder, self.limits.timeout, self.name
        for each in [each for each in self.workers if each.run is None and each.gpu == gpu]:
            try:
                each.pipe.send(job)
                break
            except OSError:  # killed while it waited
                each.kill()
                self.workers.remove(each)
        else:
            each = Worker(folder / worker.OUTPUT, gpu)
            self.workers.append(each)
            with contextlib.suppress(OSError):  # it is dead already, as `look` will find
                each.pipe.send(job)
        each.run = run
        self.set_deadline(each)

    def set_deadline(self, each: Worker) -> None:
        """Notes when a worker is killed, since it has not ended itself: one that hangs so that its own watch fails."""
        if self.limits.timeout is not None:
            seconds = self.limits.timeout if each.ready else max(START_UP, self.limits.timeout)
            each.deadline = time.monotonic() + seconds + GRACE

    def wait(self, seconds: float) -> list[Outcome]:
        """Returns the attempts that have ended, as soon as there is one, or none after so many seconds.

        Raises:
            VitposError: The results cannot be written.
        """
        until = time.monotonic() + seconds
        while True:
            busy = [each for each in self.workers if each.run is not None]
            next_ = min([until, *(each.deadline for each in busy)])
            wait([*(each.pipe for each in busy), *(each.process.sentinel for each in busy)], next_ - time.monotonic())
            if self.sharing is not None:
                beats = [heartbeat.read(self.results.of(each.run)) for each in busy if each.run]
                self.slots = len(self.gpus) * self.sharing.look(beats)
            ended = [outcome for each in busy if each.run and (outcome := self.look(each, each.run))]
            if ended or not busy or time.monotonic() >= until:
                return ended

    def look(self, each: Worker, run: Run) -> Outcome | None:
        """Returns what became of a worker's run, or None where it goes on (errors as `wait`)."""
        dead = not each.process.is_alive()  # asked first: what it sent before its end is then in the pipe
        try:
            while each.pipe.poll():
                answer = each.pipe.recv()
                if isinstance(answer, VitposError):
                    raise answer
                if answer is not None:
                    each.run = None
                    if answer.lost:  # a GPU's context that is broken, or a limit that was set, would fail the next too
                        each.kill()
                        self.workers.remove(each)
                    return answer  # type: ignore[no-any-return]
                each.ready = True
                self.set_deadline(each)
        except (EOFError, OSError):
            dead = True
        if dead:
            return self.lost(each, run, "")
        if time.monotonic() >= each.deadline:
            limit = f"--run-timeout {self.limits.timeout:g} s"
            return self.lost(each, run, f"ran longer than {limit} and did not end itself; it was killed")
        return None

    def lost(self, each: Worker, run: Run, error: str) -> Outcome:
        """Records that a worker was lost with its run, and why."""
        if not error:
            each.process.join(1)  # its pipe may close a moment before it ends
        each.kill()
        self.workers.remove(each)
        folder = self.results.of(run)
        try:
            (folder / heartbeat.FILE).unlink(missing_ok=True)
            if self.results.row(run) is not None:
                return Outcome(run, None)  # it was through
            hung = read_end(folder / worker.HUNG)
            if hung and not error:
                error = f"ran longer than --run-timeout {self.limits.timeout:g} s; hung in {worker.where(hung)}"
            (folder / worker.HUNG).unlink(missing_ok=True)
            trace = hung or read_end(folder / worker.OUTPUT)
            return Outcome(run, fail(run, folder, error or death(each.process), trace), lost=True)
        except OSError as problem:
            raise unwritable(folder, problem) from problem


def read_end(file: Path, most: int = 20_000) -> str:
    """Returns the last characters of a file; nothing where there is none."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - most))
        return stream.read().decode(errors="replace")


def death(process: BaseProcess) -> str:
    """Says how a process ended."""
    code = process.exitcode or 0
    if code >= 0:
        return f"its process ended itself with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
