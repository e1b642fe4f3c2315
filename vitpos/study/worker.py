"""What a worker process does: one run after another, each within its time limit."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from vitpos.errors import VitposError

if TYPE_CHECKING:
    from vitpos.study.plan import Run
    from vitpos.study.run import Outcome

OUTPUT, HUNG = "output.log", "hung.txt"


def serve(pipe: Connection, log: Path) -> None:
    """Carries out the runs that come through a pipe, until it is closed or the parent ends.

    A worker has one thread always, so that a run's sums are rounded alike however many workers there are; and two runs
    of one thread are faster than one of two. It leads a process group of its own, so that interrupts reach the parent
    alone, and what a run has forked ends with its worker.

    Args:
        pipe: Brings run, folder, time limit and the engine's name; takes None when ready, then outcomes, or the error
            that no other run would escape.
        log: Where output goes until the first run comes.
    """
    os.setsid()
    threading.Thread(target=end_with_parent, daemon=True).start()
    redirect(log)
    faulthandler.enable()  # says where a run crashed
    import torch

    from vitpos.study.run import execute  # noqa: F401 (loaded before the first run's time begins)

    torch.set_num_threads(1)
    pipe.send(None)
    worker = os.getpid()
    with contextlib.suppress(EOFError):
        while True:
            run, folder, timeout, engine = pipe.recv()
            try:
                answer: Outcome | VitposError = attempt(run, folder, timeout, engine)
            except VitposError as error:
                answer = error
            if os.getpid() != worker:
                os._exit(1)  # a run forked, and its copy came here too
            pipe.send(answer)


def end_with_parent() -> None:
    """Waits for the parent's end, however it comes, and ends this process, which would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def redirect(log: Path) -> None:
    """Appends to a file what this process and its libraries print from here on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a run closed it
            stream.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def attempt(run: Run, folder: Path, timeout: float | None, engine: str) -> Outcome:
    """Carries a run out within its time limit; past it, this process ends.

    Args:
        run: The run.
        folder: Where its files go; what is printed to ``output.log``.
        timeout: Seconds, or None.
        engine: Name of the engine, for the heartbeat.

    Raises:
        VitposError: The folder cannot be written.
    """
    from vitpos.study.results import unwritable
    from vitpos.study.run import execute

    try:
        folder.mkdir(parents=True, exist_ok=True)
        redirect(folder / OUTPUT)
        with limited(folder / HUNG, timeout):
            return execute(run, folder, engine)
    except OSError as error:
        raise unwritable(folder, error) from error


@contextlib.contextmanager
def limited(file: Path, timeout: float | None) -> Iterator[None]:
    """Ends this process after some seconds, with what each thread was doing then in a file.

    It is done by a thread in C, which also works where Python hangs.
    """
    file.unlink(missing_ok=True)
    if timeout is None:
        yield
        return
    with file.open("w") as stream:
        faulthandler.dump_traceback_later(timeout, exit=True, file=stream)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    file.unlink(missing_ok=True)


def where(dump: str) -> str:
    """Says in which line and function the main thread was: the innermost of vitpos's or the user's.

    Args:
        dump: What faulthandler wrote; the main thread comes last.

    Returns:
        ``FILE:LINE function``; nothing where the dump shows no line.
    """
    frames = re.findall(
        r'^  File "(.*)", line (\d+) in (.*)$', re.split(r"\(most recent call first\):", dump)[-1], re.M
    )
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    own = str(Path(__file__).parent.parent)
    ours = [frame for frame in frames if frame[0].startswith(own) or not frame[0].startswith((*installed, "<"))]
    return next((f"{file}:{line} {function}" for file, line, function in [*ours, *frames]), "")
