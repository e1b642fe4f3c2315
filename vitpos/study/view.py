"""What people see of a study at work: a live view in a terminal, plain lines elsewhere."""

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import rich.live
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from vitpos.study import heartbeat
from vitpos.study.heartbeat import Beat
from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.text import duration

NARROWEST = 60  # columns that a live view takes
EVERY = 2.0  # seconds between two looks at the heartbeats
READS = 50  # heartbeats read a second at most


def remaining(lefts: Sequence[float], waiting: int, mean: float, slots: int) -> float:
    """Estimates the seconds until all runs are through.

    Args:
        lefts: Seconds left of each run in progress.
        waiting: Runs not begun.
        mean: Seconds that a run takes.
        slots: Runs at a time.
    """
    return max([0.0, *lefts, (sum(lefts) + waiting * mean) / slots])


class View:
    """Plain lines: one when a run starts, one when it ends, and now and then one of how far it is.

    Args:
        results: Where the results are.
    """

    def __init__(self, results: Results) -> None:
        self.results, self.slots = results, 1
        self.total = self.done = self.failed = 0
        self.running: dict[str, tuple[Run, float]] = {}
        self.beats: dict[str, Beat] = {}
        self.seconds: deque[float] = deque(maxlen=1000)
        self.looked, self.told = 0.0, dict[str, float]()

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

    def start(self, run: Run, checkpoint: bool) -> None:
        """Shows that an attempt starts, from a checkpoint or from the first step."""
        self.running[run.hash] = run, time.monotonic()
        self.starts(run, "goes on from its checkpoint" if checkpoint else "starts")

    def starts(self, run: Run, how: str) -> None:
        """Shows a start."""
        self.told[run.hash] = time.monotonic()
        self.say(f"{run.label}: {how}")

    def end(self, run: Run, error: str | None) -> None:
        """Shows how a run came out."""
        self.done, self.failed = self.done + 1, self.failed + (error is not None)
        self.seconds.append(time.monotonic() - self.running.pop(run.hash)[1])
        self.beats.pop(run.hash, None)
        outcome = f"failed: {error}" if error else summary(self.results, run)
        self.say(f"[{self.done}/{self.total}] {run.label}: {outcome}{self.left}")

    def again(self, run: Run, error: str, attempt: int, most: int) -> None:
        """Shows that a run is tried again."""
        self.running.pop(run.hash)
        self.beats.pop(run.hash, None)
        self.say(f"{run.label}: {error}; tried again ({attempt} of {most})")

    def tick(self, slots: int) -> None:
        """Looks at the heartbeats, not too often, and shows how far the runs are.

        Args:
            slots: Runs at a time, now.
        """
        self.slots, now = slots, time.monotonic()
        if now - self.looked < max(EVERY, len(self.running) / READS):
            return
        self.looked = now
        for hash_, (run, _) in self.running.items():
            if beat := heartbeat.read(self.results.of(run)):
                self.beats[hash_] = beat
        self.show()

    def show(self) -> None:
        """Shows how far the runs are, each at most once a minute, all together at most six times."""
        now = time.monotonic()
        for hash_, (run, _) in self.running.items():
            if now - self.told[hash_] >= max(60, 10 * len(self.running)) and hash_ in self.beats:
                self.told[hash_] = now
                self.say(f"{run.label}: {self.beats[hash_].progress}")

    @property
    def left(self) -> str:
        """The time until all runs are through, as the end of a line; nothing while it is not known."""
        known = [beat for beat in self.beats.values() if beat.left >= 0]
        lasts = self.seconds or [beat.beat - beat.started + beat.left for beat in known]
        if not lasts:
            return ""
        mean, now = sum(lasts) / len(lasts), time.monotonic()
        lefts = [
            beat.left if (beat := self.beats.get(hash_)) and beat.left >= 0 else max(0.0, mean - (now - began))
            for hash_, (_, began) in self.running.items()
        ]
        waiting = self.total - self.done - len(self.running)
        return f"; {duration(remaining(lefts, waiting, mean, self.slots))} left"


class Live(View):
    """A bar for each run in progress and one for all, below the lines that stay.

    Args:
        results: Where the results are.
        console: The terminal.
    """

    def __init__(self, results: Results, console: Console) -> None:
        super().__init__(results)
        self.console, self.rows = console, list[str]()  # hashes; empty where a worker waits
        err = sys.stderr.isatty()
        self.live = rich.live.Live(console=console, auto_refresh=False, transient=True, redirect_stderr=err)

    def __enter__(self) -> Self:
        """Shows the bars."""
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes them away, and gives the terminal back as it was."""
        self.live.stop()

    def say(self, line: str) -> None:
        """Shows a line above the bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def starts(self, run: Run, how: str) -> None:
        """Shows a start by its bar alone."""
        self.show()

    def end(self, run: Run, error: str | None) -> None:
        """Shows how a run came out, and takes its bar away."""
        super().end(run, error)
        self.show()

    def show(self) -> None:
        """Draws the bars."""
        self.live.update(self.bars(), refresh=True)

    def bars(self) -> Table:
        """Makes the bars, as many as there is room for; a run keeps its line."""
        most = max(1, self.console.height - 4)
        self.rows = [hash_ if hash_ in self.running else "" for hash_ in self.rows[:most]]
        have = set(self.rows)
        others = (hash_ for hash_ in self.running if hash_ not in have)
        self.rows = [hash_ or next(others, "") for hash_ in self.rows]
        self.rows += itertools.islice(others, most - len(self.rows))
        table = Table.grid(Column(no_wrap=True), Column(ratio=1, min_width=8), Column(no_wrap=True), padding=(0, 1))
        table.expand = True
        for hash_ in self.rows:
            if not hash_:
                table.add_row()
                continue
            beat = self.beats.get(hash_)
            bar = ProgressBar(1.0, beat.share if beat else 0.0)
            table.add_row(Text(self.running[hash_][0].label), bar, Text(beat.progress if beat else "starts"))
        hidden = len(self.running) - sum(map(bool, self.rows))
        name = f"all runs (and {hidden} more in progress)" if hidden else "all runs"
        through = self.done + sum(beat.share for beat in self.beats.values())
        failed = f", {self.failed} failed" if self.failed else ""
        text = f"{self.done - self.failed} done{failed}, {self.total - self.done} to go{self.left}"
        table.add_row(Text(name), ProgressBar(max(1, self.total), through), Text(text))
        return table


def open_view(results: Results) -> View:
    """Returns the live view where the terminal can show it, else plain lines."""
    if not sys.stdout.isatty() or os.environ.get("CI") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return View(results)
    console = Console()
    if not console.is_terminal or console.width < NARROWEST or not console.encoding.startswith("utf"):
        return View(results)
    return Live(results, console)


def summary(results: Results, run: Run) -> str:
    """Says in a few words how a finished run came out."""
    row = results.row(run)
    if row is None:
        return "left no whole result"
    part = "test" if run.test else "val"
    accuracy = row["metrics"].get(f"{part}/accuracy")
    found = "no accuracy" if accuracy is None else f"{accuracy:.2%}"
    return f"{part} {found} in {duration(row['seconds'])} ({row['images_per_second']:.0f} img/s)"
