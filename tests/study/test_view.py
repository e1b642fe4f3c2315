"""What is shown of a study at work, in a terminal and elsewhere."""

import io
import sys
import time

import pytest
from rich.console import Console

from vitpos.study import plan, view
from vitpos.study.heartbeat import Beat
from vitpos.study.results import Results
from vitpos.study.view import Live, View, open_view, remaining


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def runs(study_file):
    return list(plan.load(study_file(axes={"position": ["none", "learned"]}, seeds=[0, 1])).runs)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "summary", lambda results, run: "fine")
    return Results(tmp_path)


def beat(**changes):
    now = time.time()
    return Beat(now, now - 60, "here", 1, epoch=2, epochs=4, share=0.5, images_per_second=100.0, **changes)


@pytest.mark.parametrize(
    ("lefts", "waiting", "mean", "slots", "seconds"),
    [([], 0, 0, 2, 0), ([10, 20], 0, 50, 2, 20), ([10, 20], 4, 50, 2, 115), ([10], 3, 40, 1, 130)],
)
def test_the_time_left_is_that_of_all_runs(lefts, waiting, mean, slots, seconds):
    assert remaining(lefts, waiting, mean, slots) == seconds


def test_plain_lines_are_few(results, runs, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(view.heartbeat, "read", lambda folder: beat(left=100.0))
    shown = View(results)
    shown.begin(3)
    shown.start(runs[0], False)
    shown.start(runs[1], True)
    for _ in range(150):
        clock[0] += 1
        shown.tick(2)
    shown.end(runs[0], None)
    shown.again(runs[1], "its process was killed", 1, 2)
    lines = capsys.readouterr().out.splitlines()
    labels = [run.label for run in runs]
    assert lines[:2] == [f"{labels[0]}: starts", f"{labels[1]}: goes on from its checkpoint"]
    assert lines[2:6] == [f"{label}: epoch 2/4, 100 img/s, 1 min 40 s left" for label in labels[:2] * 2]
    assert lines[6:] == [
        f"[1/3] {labels[0]}: fine; 2 min 05 s left", f"{labels[1]}: its process was killed; tried again (1 of 2)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "changes"),
    [({"TERM": "dumb"}, {}), ({"CI": "true"}, {}), ({"COLUMNS": "40"}, {}), ({}, {"encoding": "latin-1"}),
     ({}, {"isatty": lambda: False}), ({"FORCE_COLOR": "1"}, {"isatty": lambda: False})],
)  # fmt: skip
def test_a_terminal_that_cannot_show_bars_gets_lines(results, monkeypatch, environment, changes):
    terminal = Terminal()
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "20"}.items():
        monkeypatch.setenv(name, value)
    assert type(open_view(results)) is Live
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in changes.items():
        monkeypatch.setattr(terminal, name, value, raising=False)
    assert type(open_view(results)) is View


def screen(live, width=100):
    """The bars as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(live.bars())
    return console.file.getvalue().splitlines()


def test_bars_show_each_run_and_all(results, runs):
    live = Live(results, Console(file=Terminal(), force_terminal=True, width=100, height=6))
    live.begin(4)
    for run in runs[:3]:
        live.start(run, False)
    live.beats = {runs[0].hash: beat(left=60.0), runs[1].hash: beat(left=30.0)}
    live.show()
    first, second, last = screen(live)
    assert first.startswith("none, seed 0")
    assert first.endswith("epoch 2/4, 100 img/s, 1 min 00 s left")
    assert second.startswith("learned, seed 0")
    assert last.startswith("all runs (and 1 more")
    assert last.rstrip().endswith("left")
    live.end(runs[0], "[red]it broke")
    first, second, last = screen(live)
    assert first.startswith("none, seed 1")
    assert second.startswith("learned, seed 0")  # on its own line still
    assert "0 done, 1 failed, 3 to go" in last
    assert max(map(len, screen(live, 60))) <= 60
    for run in runs[1:3]:
        live.end(run, None)
    assert len([line for line in screen(live) if line.strip()]) == 1


def test_messages_stand_above_the_bars_and_the_terminal_is_left_whole(results, runs, monkeypatch):
    terminal, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    with Live(results, Console(file=terminal, force_terminal=True, width=80)) as live:
        live.begin(4)
        live.start(runs[0], False)
        print("printed")
        print("vitpos: warning: damaged", file=sys.stderr)
        live.end(runs[0], "[bold]it broke[/bold]")
    assert (sys.stdout, sys.stderr) == (terminal, errors)
    text = terminal.getvalue()
    for expected in ("printed", "vitpos: warning: damaged", "failed: [bold]it broke[/bold]"):
        assert expected in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert errors.getvalue() == ""
