"""What people see of a study at work."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.text import duration


class View:
    """Plain lines: one when a run starts, one when it ends.

    Args:
        results: Where the results are.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.total = self.done = self.failed = 0
        self.running: dict[str, float] = {}
        self.seconds: deque[float] = deque(maxlen=1000)

    def __enter__(self) -> Self:
        """Opens the view."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        print(line, flush=True)

    def begin(self, total: int) -> None:
        """Starts counting a batch of runs."""
        self.total, self.done, self.failed = total, 0, 0

    def start(self, run: Run) -> None:
        """Shows that an attempt starts."""
        self.running[run.hash] = time.monotonic()
        again = (self.results.of(run) / "last.ckpt").exists()
        self.say(f"{run.label}: {'goes on from its checkpoint' if again else 'starts'}")

    def end(self, run: Run, error: str | None, slots: int) -> None:
        """Shows how a run came out."""
        self.done, self.failed = self.done + 1, self.failed + (error is not None)
        self.seconds.append(time.monotonic() - self.running.pop(run.hash))
        outcome = f"failed: {error}" if error else summary(self.results, run)
        self.say(f"[{self.done}/{self.total}] {run.label}: {outcome}; {duration(self.left(slots))} left")

    def again(self, run: Run, error: str, attempt: int, most: int) -> None:
        """Shows that a run is tried again."""
        self.running.pop(run.hash)
        self.say(f"{run.label}: {error}; tried again ({attempt} of {most})")

    def left(self, slots: int) -> float:
        """Estimates the seconds until all runs are through."""
        mean = sum(self.seconds) / max(1, len(self.seconds))
        return mean * (self.total - self.done) / slots


def summary(results: Results, run: Run) -> str:
    """Says in a few words how a finished run came out."""
    row = results.row(run)
    if row is None:
        return "left no whole result"
    part = "test" if run.test else "val"
    accuracy = row["metrics"].get(f"{part}/accuracy")
    found = "no accuracy" if accuracy is None else f"{accuracy:.2%}"
    return f"{part} {found} in {duration(row['seconds'])} ({row['images_per_second']:.0f} img/s)"
