"""Runs as tasks of a Ray cluster, which needs no folder that its machines share.

A task carries one run out in a scratch folder of its machine, by the same worker process as on this machine, and yields
files as they change: checkpoints, curves, heartbeats, in the end the result. What one machine has sent outlives it.
"""

import contextlib
import logging
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at import; else Ray reports its use to its makers
import ray
from ray.exceptions import RayError, RayTaskError

from vitpos.data import sources
from vitpos.errors import VitposError
from vitpos.positions import text as texts
from vitpos.provenance import versions
from vitpos.study import heartbeat
from vitpos.study.engines import Limits, Outcome
from vitpos.study.engines.scratch import Changes, apply, changes
from vitpos.study.plan import Run
from vitpos.study.results import Results, unwritable
from vitpos.study.run import fail, place_of_data
from vitpos.text import plural

ANSWER = 20.0  # seconds that a cluster has to answer


class Ray:
    """Runs as tasks of a Ray cluster (see `vitpos.study.engines.Engine`).

    Args:
        results: Where the runs' folders are; on this machine alone.
        limits: What one attempt may use.
        workers: Runs at a time at most, or None for as many as the cluster holds.
        address: ``HOST:PORT`` of the cluster's head, ``auto`` for that of this machine, or None to start one here.
    """

    def __init__(self, results: Results, limits: Limits, workers: int | None, address: str | None) -> None:
        self.results, self.limits, self.most, self.address = results, limits, workers, address
        self.tasks: dict[Any, Run] = {}
        self.data: dict[tuple[str, str | None], tuple[str, Any]] = {}
        self.gpus = limits.gpus or 0.0
        self.counted, self.room = -math.inf, 0

    def __enter__(self) -> Self:
        """Connects to the cluster, or starts one.

        Raises:
            VitposError: It does not answer, is of another version of Ray or Python, or has no machine that is large
                enough for a run.
        """
        connect(self.address)
        try:
            if self.limits.gpus is None and any(node.get("GPU") for node in nodes()):
                self.gpus = 1.0
            self.check_size()
            options = {"num_cpus": self.limits.cpus, "num_gpus": self.gpus, "max_retries": 0}
            # a driver that falls behind gets the newest state, not a queue of old ones
            self.task = ray.remote(shipped()).options(
                num_returns="streaming", _generator_backpressure_num_objects=2, **options
            )
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancels what still runs, and leaves the cluster, or stops it where it was started here."""
        for task, run in self.tasks.items():
            with contextlib.suppress(RayError):
                ray.cancel(task, force=False)  # as an interrupt, so that it removes its scratch folder
            with contextlib.suppress(OSError):
                (self.results.of(run) / heartbeat.FILE).unlink(missing_ok=True)
        until = time.monotonic() + 5
        while self.tasks and time.monotonic() < until:
            ready: list[Any] = ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0.2)[0]
            for task in ready:
                try:
                    ray.get(next(task))
                except (RayError, StopIteration):
                    del self.tasks[task]
        self.tasks.clear()
        ray.shutdown()

    def check_size(self) -> None:
        """Stops where no machine can hold a run.

        Raises:
            VitposError: Says what is asked for, and the most that a machine has.
        """
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise VitposError(f"--gpus-per-run is {self.gpus:g}; Ray gives a part of one GPU, or whole ones")
        known = nodes()
        for option, name, wanted in (("cpus", "CPU", self.limits.cpus), ("gpus", "GPU", self.gpus)):
            most = max((node.get(name, 0) for node in known), default=0)
            if wanted > most:
                raise VitposError(
                    f"--{option}-per-run is {wanted:g}, but no machine of the Ray cluster has more than {most:g} "
                    f"{name}s ({plural(len(known), 'machine')})"
                )
        if not self.capacity(known):
            raise VitposError(
                f"no machine of the Ray cluster has {self.limits.cpus:g} CPUs and {self.gpus:g} GPUs together"
            )

    def capacity(self, known: list[dict[str, float]]) -> int:
        """Counts the runs that the machines hold at a time."""
        needs = {name: need for name, need in (("CPU", self.limits.cpus), ("GPU", self.gpus)) if need > 0}
        return sum(
            min((int(node.get(name, 0) / need + 1e-6) for name, need in needs.items()), default=1) for node in known
        )

    @property
    def slots(self) -> int:
        """Runs at a time that the machines of the cluster hold now, or one that waits for a machine to come."""
        if time.monotonic() > self.counted + 5:
            self.counted, self.room = time.monotonic(), max(1, self.capacity(nodes()))
        return min(self.most or self.room, self.room)

    def start(self, run: Run) -> None:
        """Submits an attempt, with what there is of the run: its last checkpoint, its curves (errors as `wait`)."""
        folder = self.results.of(run)
        try:
            (folder / heartbeat.FILE).unlink(missing_ok=True)
            files = changes(folder, {}).files
        except OSError as error:
            raise unwritable(folder, error) from error
        with texts.looking_in(run.study):
            schemes = {name: texts.source(name) for name in run.files or {}}
        place = place_of_data(run)
        if place not in self.data:  # once each: an axis may be of data
            images = sources.load(*place)
            self.data[place] = images.fingerprint, ray.put(images)
        fingerprint, reference = self.data[place]
        given = ray.put((files, schemes))
        # the data in a list: Ray would else fetch it for every task, also where the machine has it
        task = self.task.remote(versions(), pickle.dumps(run), given, fingerprint, [reference], self.limits.timeout)
        self.tasks[task] = run

    def wait(self, seconds: float) -> list[Outcome]:
        """Takes what tasks have sent, and returns the attempts that have ended (see `Engine.wait`).

        Raises:
            VitposError: The results cannot be written, or a machine has other versions than this one.
        """
        until = time.monotonic() + seconds
        while True:
            tasks = list(self.tasks)
            ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
            ended = [outcome for task in ready if (outcome := self.take(task))]
            left = until - time.monotonic()
            if ended or left <= 0 or not self.tasks:
                return ended
            ray.wait(list(self.tasks), num_returns=1, timeout=left)

    def take(self, task: Any) -> Outcome | None:
        """Takes the next that a task has sent; returns the outcome where that is its last (errors as `wait`)."""
        run = self.tasks[task]
        folder = self.results.of(run)
        try:
            sent = ray.get(next(task))
        except (RayError, StopIteration) as error:
            del self.tasks[task]
            if self.results.row(run) is not None:
                return Outcome(run, None)  # it was through
            try:
                (folder / heartbeat.FILE).unlink(missing_ok=True)
                return Outcome(run, fail(run, folder, lost(error), str(error)), lost=True)
            except OSError as problem:
                raise unwritable(folder, problem) from problem
        if isinstance(sent, str):
            raise VitposError(sent)
        try:
            apply(sent, folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        if sent.end is None:
            return None
        del self.tasks[task]
        return Outcome(run, *sent.end)


def connect(address: str | None) -> None:
    """Connects to a cluster that answers, or starts one.

    Raises:
        VitposError: There is none, it does not answer, it does not know this machine, or it has other versions.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise VitposError(
            f"--ray-address is {address!r}; allowed: HOST:PORT of the head, or auto, on one of its machines"
        )
    options: dict[str, Any] = {"include_dashboard": False}
    before = os.umask(0o077)  # Ray before 2.60.1 lets everybody on this machine read the token of a new cluster
    try:
        if address:
            check_answer(address)
            options = {}
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, VitposError):
            raise
        what = f"cannot connect to the Ray cluster at {address}" if address else "cannot start Ray here"
        raise VitposError(f"{what}: {' '.join(str(error).split())}") from error
    finally:
        os.umask(before)
    # printed into the view, a page for each machine that is lost; the study says the same in a line
    setattr(sys.modules["ray._private.worker"], "print_to_stdstream", lambda *args, **options: None)  # noqa: B010


def check_answer(address: str) -> None:
    """Asks a cluster for its status, in a process that can be ended: Ray itself waits much longer.

    Raises:
        VitposError: It does not answer in time, or not as Ray does.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise VitposError(
            f"no Ray cluster answers at {address} within {ANSWER:g} s; start one there with: ray start --head"
        ) from None
    if done.returncode:
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
        raise VitposError(f"no Ray cluster answers at {address}: {''.join(last).partition('Error: ')[2] or last}")


def nodes() -> list[dict[str, float]]:
    """Returns the resources of each machine of the cluster that is up."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in known if node["Alive"]]


def lost(error: BaseException) -> str:
    """Says in a line how a task was lost."""
    if isinstance(error, RayTaskError):
        return f"its Ray task failed: {error.cause!s}"
    return f"its Ray worker was lost: {type(error).__name__}: {str(error).partition('.')[0]}"


def shipped() -> Callable[..., Iterator[Changes | str]]:
    """Makes the function that Ray carries to a machine as it stands here, so that it can say what is other there."""

    def carry(expected: dict[str, str], run: bytes, *rest: Any) -> Iterator[Any]:
        import socket

        import ray

        try:
            from vitpos.provenance import versions
            from vitpos.study.engines.scratch import carry_out

            found = versions()
        except Exception as error:
            yield f"vitpos cannot be imported on {socket.gethostname()}, a machine of the Ray cluster: {error}"
            return
        other = [f"{name} {found.get(name)} there, {here} here" for name, here in expected.items()
                 if found.get(name) != here]  # fmt: skip
        if other:
            yield f"versions on {socket.gethostname()}, a machine of the Ray cluster, differ: {'; '.join(other)}"
            return
        yield from carry_out(ray.get, run, *rest)

    return carry
