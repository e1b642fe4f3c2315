"""Heartbeats: what they say, and that a dead run is not called running."""

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from vitpos.cli.main import main
from vitpos.study import heartbeat, plan
from vitpos.study.heartbeat import Beat, Pulse
from vitpos.study.results import Results


def beat(**changes):
    now = time.time()
    given = {"beat": now, "started": now - 600, "host": socket.gethostname(), "pid": os.getpid(), "engine": "local",
             "device": "GPU 1", "epoch": 3, "epochs": 10, "share": 0.25, "images_per_second": 1234.4, "window": 15.0,
             "left": 125.0}  # fmt: skip
    return Beat(**{**given, **changes})


def put(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(vars(value))
    (folder / heartbeat.FILE).write_text(text)


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_status_tells_running_from_abandoned(study_file, tmp_path, capsys):
    file, results = study_file(), Results(tmp_path / "results" / "small")
    folders = [results.of(run) for run in plan.load(file).runs]
    put(folders[0], beat())
    put(folders[1], beat(pid=dead()))
    put(folders[2], beat(host="another", pid=1, beat=time.time() - 3600))
    put(folders[3], beat(host="another", pid=1, epoch=0))
    assert main(["study", "status", str(file), "--results", str(tmp_path / "results")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "2 running, 2 abandoned"
    assert [line.split()[0] for line in lines] == ["running", "abandoned", "abandoned", "running"]
    assert "epoch 3/10, 1234 img/s, 2 min 05 s left; since " in lines[0]
    assert lines[0].endswith(f" on {socket.gethostname()} (GPU 1, pid {os.getpid()})")
    assert "prepares" in lines[3]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"beat": 1}', json.dumps({**vars(beat()), "beat": "now"}), "[" * 10_000,
     json.dumps({**vars(beat()), "beat": float("nan")}), json.dumps({**vars(beat()), "pid": 1.5}),
     json.dumps({**vars(beat()), "pid": True}), json.dumps({**vars(beat()), "started": 1e300}),
     json.dumps({**vars(beat()), "host": 7}), json.dumps({**vars(beat()), "more": 7})],
)  # fmt: skip
def test_what_is_no_heartbeat_is_none(tmp_path, text):
    put(tmp_path, text)
    assert heartbeat.read(tmp_path) is None


def test_a_heartbeat_cannot_steer_the_terminal(tmp_path):
    put(tmp_path, beat(host="\x1b[2J" + "x" * 1000))
    assert heartbeat.read(tmp_path).host.startswith("\\x1b[2J")
    assert len(heartbeat.read(tmp_path).host) == 100


def trainer(batches, epoch, **changes):
    total = SimpleNamespace(completed=batches)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total)))
    given = {"training": True, "fit_loop": loop, "num_training_batches": 10, "max_epochs": 4, "max_steps": -1,
             "accumulate_grad_batches": 1, "current_epoch": epoch,
             "strategy": SimpleNamespace(root_device=SimpleNamespace(type="cpu"))}  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


def test_a_run_says_how_far_it_is_and_the_first_batch_does_not_count(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    pulse = Pulse(tmp_path, "local")
    assert (pulse.now().epoch, pulse.now().left) == (0, -1)
    pulse.cli = SimpleNamespace(trainer=trainer(0, 0, training=False), datamodule=SimpleNamespace(batch_size=32))
    assert pulse.now().epoch == 0
    found = []
    for seconds, batches, epoch in ((50, 10, 1), (5, 10, 1), (100, 11, 1), (5, 13, 1), (5, 15, 1)):
        clock[0] += seconds  # it goes on after epoch 1, and compiles for 100 seconds
        pulse.cli.trainer = trainer(batches, epoch)
        found.append(pulse.now())
    assert [each.images_per_second for each in found] == pytest.approx([0, 0, 0, 2 * 32 / 5, 4 * 32 / 10])
    assert [each.left for each in found] == pytest.approx([-1, -1, -1, 27 * 5 / 2, 25 * 10 / 4])
    assert (found[-1].epoch, found[-1].epochs, found[-1].share) == (2, 4, 15 / 40)
    pulse.cli.trainer = trainer(15, 1, max_steps=20)
    assert (pulse.now().epochs, pulse.now().share) == (2, 0.75)


def test_the_file_is_there_as_long_as_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    with Pulse(tmp_path, "local") as pulse:
        first = heartbeat.read(tmp_path)
        assert first.alive
        while heartbeat.read(tmp_path).beat == first.beat:
            time.sleep(0.01)
        assert pulse.thread.is_alive()
    assert list(tmp_path.iterdir()) == []
