"""Carries the runs of a study out, several at a time on this machine."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

import torch

from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.study.run import execute, fail
from vitpos.text import duration


def default_workers() -> int:
    """Returns a worker per processor, or up to four that share a GPU, which a small ViT alone does not fill."""
    # macOS has no sched_getaffinity
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // 4)) if torch.cuda.is_available() else cores


def start_worker() -> None:
    """Gives a worker one thread, and lets it end with its parent.

    One thread always, so that a run's sums are rounded alike however many workers there are; and two runs of one thread
    are faster than one of two.
    """
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Waits for the parent's end, however it comes, and ends this process, which would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_all(runs: list[Run], results: Results, *, workers: int, say: Callable[[str], None] = print) -> int:
    """Runs in order, ``workers`` at a time, each in a process that is kept for the next run.

    Where a process is killed, for want of memory as a rule, the runs in progress are tried again one at a time, from
    their last epoch; the one that is killed when alone has failed.

    Args:
        runs: What is to be done.
        results: Where it goes.
        workers: Processes.
        say: Takes the lines of progress.

    Returns:
        How many failed.

    Raises:
        VitposError: The results cannot be written.
    """
    began, done, failed = time.perf_counter(), 0, 0
    waiting, suspects = list(runs), list[Run]()

    def finished(run: Run, error: str | None) -> None:
        nonlocal done, failed
        waiting.remove(run)
        done, failed = done + 1, failed + (error is not None)
        rounds = math.ceil(done / workers)
        left = (time.perf_counter() - began) / rounds * (math.ceil(len(runs) / workers) - rounds)
        outcome = f"failed: {error}" if error else summary(results, run)
        say(f"[{done}/{len(runs)}] {run.label}: {outcome}; {duration(left)} left")

    while waiting:
        batch, count = (suspects, 1) if suspects else (list(waiting), workers)
        pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start_worker)
        try:
            futures = submit(pool, batch, results)
            processes = list((pool._processes or {}).values())
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    finished(futures[future], future.result())
            left = [run for run in batch if run in waiting]  # a worker was killed while they ran or waited
            if left and count == 1:
                run = left.pop(0)
                finished(run, fail(run, results.of(run), death(processes)))
            suspects = left[:workers]
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def death(processes: Sequence[BaseProcess]) -> str:
    """Says how the process of a run ended that was alone."""
    for process in processes:
        process.join()
        code = process.exitcode or 0
        if code >= 0:
            return f"its process ended itself with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return "its process was killed"


def submit(pool: ProcessPoolExecutor, runs: list[Run], results: Results) -> dict[Future[str | None], Run]:
    """Hands runs to a pool, which starts its processes here; they leave interrupts to their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: it holds from their first moment
    try:
        return {pool.submit(execute, run, results.of(run), run.label): run for run in runs}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def summary(results: Results, run: Run) -> str:
    """Says in a few words how a finished run came out."""
    row = results.row(run)
    if row is None:
        return "left no whole result"
    part = "test" if run.test else "val"
    accuracy = row["metrics"].get(f"{part}/accuracy")
    found = "no accuracy" if accuracy is None else f"{accuracy:.2%}"
    return f"{part} {found} in {duration(row['seconds'])} ({row['images_per_second']:.0f} img/s)"
