"""Runs in worker processes: one that is killed costs its own run alone, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from vitpos.study import plan
from vitpos.study.engines import Limits, Outcome, local
from vitpos.study.results import Results

TASKS = Path("/proc/self/task")


def test_slots_by_default(monkeypatch):
    assert local.default_slots() == len(os.sched_getaffinity(0))
    monkeypatch.setattr("vitpos.study.machine.visible_gpus", lambda: ["0", "1", "2"])
    assert local.default_slots() == 3


class FakeProcess:
    """A worker process that is never started; it notes the GPU that it would see."""

    pid, exitcode = 2**30, None  # of no process

    def __init__(self, seen, pipe):
        self.seen, self.pipe = seen, Connection(os.dup(pipe.fileno()))
        self.sentinel = os.open(os.devnull, os.O_RDONLY)

    def start(self):
        self.seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

    def is_alive(self):
        return True

    def kill(self):
        pass

    def join(self, timeout=None):
        pass


@pytest.fixture
def seen(monkeypatch):
    """What GPU each worker would see; no process is started."""
    seen, context = [], local.get_context("spawn")
    monkeypatch.setattr(context, "Process", lambda target, args: FakeProcess(seen, args[0]), raising=False)
    monkeypatch.setattr(local, "get_context", lambda method: context)
    return seen


@pytest.mark.parametrize("lost", [True, False])
def test_a_worker_whose_run_crashed_gets_no_other(study_file, tmp_path, seen, lost):
    runs = plan.load(study_file()).runs
    with local.Local(Results(tmp_path), Limits(), 1) as engine:
        engine.start(runs[0])
        (first,) = engine.workers
        first.process.pipe.send(Outcome(runs[0], "it broke", lost))
        assert [outcome.error for outcome in engine.wait(60)] == ["it broke"]
        engine.start(runs[1])
        assert (engine.workers == [first]) is not lost


@pytest.mark.parametrize("given", [None, "3,5"])
def test_each_worker_sees_one_gpu_in_turn_and_an_idle_one_is_used_again(study_file, tmp_path, monkeypatch, seen, given):
    runs = plan.load(study_file(seeds=[0, 1, 2])).runs
    monkeypatch.setattr(local, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with local.Local(Results(tmp_path), Limits(), 4) as engine:
        for run in runs[:4]:
            engine.start(run)
        assert seen == ["3", "5", "3", "5"]
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == given
        engine.workers[1].run = None
        engine.start(runs[4])
        assert engine.workers[1].run is runs[4]
        assert len(seen) == 4


def test_workers_are_added_where_it_pays_and_a_fixed_number_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1"])
    assert local.Local(Results(tmp_path), Limits(), 3).sharing is None
    engine = local.Local(Results(tmp_path), Limits())
    assert engine.slots == 2
    monkeypatch.setattr(engine.sharing, "look", lambda beats: 3)
    assert engine.wait(0) == []
    assert engine.slots == 6


def descendants(pid):
    """Processes whose parent is one of `pid`'s, that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(stat.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]  # fmt: skip


def wait(condition, seconds=300):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)
    return value


@pytest.fixture
def started(study_file, tmp_path):
    """Starts a study of long runs in a process group of its own; whatever is left is killed in the end."""
    file = study_file(seeds=[0], overrides={"trainer.max_epochs": 200})
    words = ["study", "run", str(file), "--results", str(tmp_path / "results"), "--workers", "2"]
    command = [sys.executable, "-c", "import sys; from vitpos.cli.main import main; sys.exit(main())", *words]
    processes = []

    def start():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield start, plan.load(file), Results(tmp_path / "results" / "small")
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def trained(results, study, epochs=1):
    def lines(run):
        file = results.of(run) / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    return all(lines(run) >= epochs for run in study.runs)


@pytest.mark.slow
@pytest.mark.skipif(not TASKS.exists(), reason="looks for processes in /proc")
def test_an_interrupt_ends_all_workers_and_the_next_start_goes_on(started):
    start, study, results = started
    process = start()
    wait(lambda: trained(results, study))
    workers = descendants(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == "vitpos: interrupted; the same command again goes on where this one stopped\n"
    assert wait(lambda: not alive(workers), 60)

    again = start()
    wait(lambda: "goes on after epoch " in "".join(
        (results.of(run) / "run.log").read_text() for run in study.runs))  # fmt: skip
    workers = descendants(again.pid)
    again.kill()  # the parent alone: its workers must not outlive it
    again.communicate(timeout=120)
    assert wait(lambda: not alive(workers), 60)


@pytest.mark.slow
@pytest.mark.skipif(not TASKS.exists(), reason="looks for processes in /proc")
def test_an_interrupt_before_the_workers_are_ready_says_one_line(started):
    start, _, _ = started
    process = start()
    workers = wait(lambda: descendants(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error == "vitpos: interrupted; the same command again goes on where this one stopped\n"
    assert wait(lambda: not alive(workers), 60)


def beside(folder):
    """The environment of a process that finds the modules of a folder too."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_a_worker_that_is_killed_does_not_stop_the_others(study_file, tmp_path):
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, signal\n"
        "from lightning.pytorch import Callback\n"
        "class Deadly(Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if pl_module.hparams['position'] == 'none':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = study_file(seeds=[0], overrides={"trainer.callbacks": [{"class_path": "deadly.Deadly"}]})
    command = [sys.executable, "-c", "import sys; from vitpos.cli.main import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "study", "run", str(file), "--results", str(tmp_path / "results"), "--workers", "2"],
        capture_output=True, text=True, check=False, env=beside(tmp_path),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    results, study = Results(tmp_path / "results" / "small"), plan.load(file)
    assert [results.row(run) is not None for run in study.runs] == [False, True]
    assert [results.failure(run) is not None for run in study.runs] == [True, False]
    assert "none, seed 0: failed: its process was killed by SIGKILL (out of memory?)" in done.stdout


ENDS = """
import os, sys, time
from lightning.pytorch import Callback

class Ends(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        match pl_module.hparams["seed"]:
            case 0:
                sys.exit(3)
            case 1:
                raise KeyboardInterrupt
            case 2:
                os._exit(7)
            case 3:
                os.abort()
            case 5:
                time.sleep(1000)
"""


@pytest.mark.slow
def test_however_a_run_ends_the_others_go_on(study_file, tmp_path):
    (tmp_path / "ends.py").write_text(ENDS)
    overrides = {"trainer.callbacks": [{"class_path": "ends.Ends"}]}
    file = study_file(seeds=[0, 1, 2, 3, 4, 5], axes={"position": ["learned"]}, overrides=overrides)
    command = [sys.executable, "-c", "import sys; from vitpos.cli.main import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "study", "run", str(file), "--results", str(tmp_path / "results"), "--workers", "2",
         "--retries", "0", "--run-timeout", "60"],
        capture_output=True, text=True, check=False, env=beside(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    results, study = Results(tmp_path / "results" / "small"), plan.load(file)
    failures = [results.failure(run) for run in study.runs]
    assert [failure and failure["error"] for failure in failures] == [
        "SystemExit 3", "KeyboardInterrupt", "its process ended itself with exit code 7",
        "its process was killed by SIGABRT", None,
        f"ran longer than --run-timeout 60 s; hung in {tmp_path}/ends.py:17 on_train_epoch_start",
    ]  # fmt: skip
    assert "on_train_epoch_start" in failures[3]["traceback"]  # where it crashed
    assert "ends.py" in failures[5]["traceback"]
    assert results.row(study.runs[4])
