"""Does the runs of a study that are due: hands them to an engine, and tries again what was lost."""

import contextlib
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from vitpos.errors import VitposError
from vitpos.study import tuning
from vitpos.study.engines import Engine
from vitpos.study.plan import Run, Study
from vitpos.study.results import Results
from vitpos.study.run import prepare
from vitpos.study.seeds import looked, settle
from vitpos.study.view import View, open_view

TICK = 2.0  # seconds between two looks at what runs


class Enough(Exception):  # noqa: N818 (it is no error)
    """Ends a study at its first failed run, by ``--fail-fast``."""


def run_all(runs: Sequence[Run], results: Results, engine: Engine, *, retries: int, fail_fast: bool, view: View) -> int:
    """Runs in order, as many at a time as the engine has slots.

    Args:
        runs: What is to be done.
        results: Where it goes.
        engine: Carries the runs out.
        retries: How often a run is tried again that was lost, or failed for another reason than a user's mistake.
        fail_fast: Whether to stop at the first run that has failed for good.
        view: Shows what happens.

    Returns:
        How many failed.

    Raises:
        Enough: One failed, and `fail_fast` is set.
        VitposError: The results cannot be written.
    """
    waiting, running, attempts, failed = deque(runs), dict[str, Run](), Counter[str](), 0
    view.begin(len(runs))
    while waiting or running:
        while waiting and len(running) < engine.slots:
            run = waiting.popleft()
            checkpoint = (results.of(run) / "last.ckpt").exists()
            engine.start(run)
            running[run.hash] = run
            view.start(run, checkpoint)
        for outcome in engine.wait(TICK):
            run = running.pop(outcome.run.hash)
            attempts[run.hash] += 1
            if outcome.error and outcome.lost and attempts[run.hash] <= retries:
                view.again(run, outcome.error, attempts[run.hash], retries)
                waiting.appendleft(run)
                continue
            view.end(run, outcome.error)
            failed += outcome.error is not None
            if outcome.error and fail_fast:
                raise Enough
        view.tick(engine.slots)
    return failed


def carry_out(study: Study, results: Results, engine: Engine, *, retries: int, fail_fast: bool) -> int:
    """Does what a study lacks; where it tunes, or adds seeds, a few seeds are finished before the next are begun.

    Args:
        study: The study, with all seeds that there may be.
        results: Its results.
        engine: Carries the runs out; not entered yet.
        retries: See `run_all`.
        fail_fast: See `run_all`.

    Returns:
        How many runs failed.

    Raises:
        VitposError: The engine cannot work, or the results cannot be written.
    """
    failed = 0
    with stoppable(), engine, open_view(results) as view:
        view.tick(engine.slots)

        def do(runs: Sequence[Run]) -> int:
            if not runs:
                return 0
            view.say(f"{min(engine.slots, len(runs))} at a time; results go to {results.folder}")
            return run_all(runs, results, engine, retries=retries, fail_fast=fail_fast, view=view)

        try:
            for found in do_seeds(study, results, engine, view, do):
                failed += found
        except Enough:
            view.say("stopped at the first failed run, as --fail-fast asks; the same command goes on")
            failed += 1
    return failed


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a study as Ctrl-C does, by an interrupt, so that the terminal is left as it was."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only that one can
    try:
        for number in numbers:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def do_seeds(
    study: Study, results: Results, engine: Engine, view: View, do: Callable[[Sequence[Run]], int]
) -> Iterator[int]:
    """Does the seeds that are due, a few at a time, and yields how many runs of them failed."""
    each_seed = max(1, sum(run.seed == study.runs[0].seed for run in study.trials or study.runs))
    tried = set[int]()
    while True:
        step = max(1, engine.slots // each_seed)
        settled = settle(study, results, step)
        seeds = [seed for seed in dict.fromkeys(run.seed for run in settled.runs) if seed not in tried]
        open_ = [seed for seed in seeds if any(run.seed == seed and not results.row(run) for run in settled.runs)]
        if not open_:
            return
        now = set(open_[:step] if study.tune else open_)
        tried |= now
        do([trial for trial in tuning.to_do(settled, results) if trial.seed in now])
        settled = settle(study, results, step)
        for choice in settled.choices:
            if choice.seed in now:
                view.say(tuning.chosen(choice))
        missing = [run for run in settled.runs if run.seed in now and results.row(run) is None]
        yield len([run for run in missing if run.tuned is None]) + do([run for run in missing if run.tuned is not None])
        if study.comparison.start:
            view.say(looked(settled, results))


def check(runs: Sequence[Run], study: Study, results: Results) -> None:
    """Prepares each variant and each tried value once, since a mistake should show before hours of training.

    Raises:
        VitposError: Which run, and what is wrong with it.
    """
    first = {**{repr(run.trial): run for run in runs[::-1]}, **{repr(run.axes): run for run in runs[::-1]}}
    for run in {run.hash: run for run in first.values()}.values():
        try:
            prepare(run, results.of(run))
        except VitposError as error:
            raise VitposError(f"{study.path}, {run.label}: {error}") from error
