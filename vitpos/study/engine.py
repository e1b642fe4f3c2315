"""Carries the runs of a study out, several at a time on this machine."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.study.run import execute, fail
from vitpos.train.callbacks import duration


def default_workers() -> int:
    """Returns a worker per processor, or a single one for a GPU."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def start_worker() -> None:
    """Gives a worker one thread.

    One thread always, so that a run's sums are rounded alike however many workers there are; and two runs of one thread
    are faster than one of two. An interrupt is the parent's to handle.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(runs: list[Run], results: Results, *, workers: int, say: Callable[[str], None] = print) -> int:
    """Runs in order, ``workers`` at a time, each in a process that is kept for the next run.

    Args:
        runs: What is to be done.
        results: Where it goes.
        workers: Processes.
        say: Takes the lines of progress.

    Returns:
        How many failed.
    """
    began, done, failed = time.perf_counter(), 0, 0
    waiting = list(runs)
    while waiting:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
        futures: dict[Future[str | None], Run] = {}
        try:
            for run in waiting:
                futures[pool.submit(execute, run, results.of(run), run.label)] = run
            for future in as_completed(futures):
                run = futures[future]
                error = future.result()
                waiting.remove(run)
                done, failed = done + 1, failed + (error is not None)
                left = (time.perf_counter() - began) / done * (len(runs) - done)
                outcome = f"failed: {error}" if error else summary(results, run)
                say(f"[{done}/{len(runs)}] {run.label}: {outcome}; {duration(left)} left")
        except BrokenProcessPool:
            # A worker was killed, for want of memory as a rule. Its run cannot be told from those beside it: the first
            # that is not done is given up, the others get a new pool.
            run = waiting.pop(0)
            done, failed = done + 1, failed + 1
            error = "its process was killed (out of memory?)"
            fail(run, results.of(run), error)
            say(f"[{done}/{len(runs)}] {run.label}: failed: {error}")
        except KeyboardInterrupt:
            for process in (pool._processes or {}).values():
                process.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def summary(results: Results, run: Run) -> str:
    """Says in a few words how a finished run came out."""
    row = results.row(run)
    if row is None:
        return "left no whole result"
    accuracy = row["metrics"]["test/accuracy"]
    return f"test {accuracy:.2%} in {duration(row['seconds'])} ({row['images_per_second']:.0f} img/s)"
