"""Runs as Ray tasks: what travels, what is refused, and a machine that is lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from waiting import until

pytest.importorskip("ray")

from whole import row_of

from vitpos.errors import VitposError
from vitpos.provenance import versions
from vitpos.study import heartbeat, plan
from vitpos.study.engines import Limits, Options, make
from vitpos.study.engines import ray as engine
from vitpos.study.results import Results

OWN_SCHEME = (
    "from vitpos.positions import PositionEmbedding\n\n\n"
    "class Nothing(PositionEmbedding):\n    '''Adds nothing.'''\n\n    def apply(self, x):\n        return x\n"
)


@pytest.fixture
def one(study_file, tmp_path):
    """A run, and the engine that has its task."""
    run = plan.load(study_file()).runs[0]
    return run, engine.Ray(Results(tmp_path / "results"), Limits(), None, None)


def sends(monkeypatch, ray, run, *items):
    """Makes a task that has sent these; an exception stands for what becomes of it."""

    def get(item):
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(engine.ray, "get", get)
    monkeypatch.setattr(engine.ray, "wait", lambda tasks, **options: (list(tasks), []))
    ray.tasks[iter(items)] = run


def test_what_a_task_sends_goes_to_the_run(one, monkeypatch):
    run, ray = one
    row = json.dumps(row_of(run)).encode()
    sends(
        monkeypatch,
        ray,
        run,
        engine.Changes({"last.ckpt": b"1"}),
        engine.Changes({"result.json": row}, (), (None, False)),
    )
    (outcome,) = ray.wait(10)
    assert (ray.results.of(run) / "last.ckpt").read_bytes() == b"1"
    assert (outcome.run, outcome.error, outcome.lost) == (run, None, False)
    assert ray.results.row(run) is not None
    assert ray.tasks == {}


def test_a_lost_machine_is_worth_another_attempt(one, monkeypatch):
    run, ray = one
    folder = ray.results.of(run)
    folder.mkdir(parents=True)
    (folder / heartbeat.FILE).write_text("{}")
    sends(monkeypatch, ray, run, engine.ray.exceptions.NodeDiedError("the node is dead. And more."))
    (outcome,) = ray.wait(1)
    assert outcome.lost
    assert "NodeDiedError" in (outcome.error or "")
    assert ray.results.failure(run)["error"] == outcome.error
    assert not (folder / heartbeat.FILE).exists()


def test_a_result_that_came_before_the_loss_counts(one, monkeypatch):
    run, ray = one
    engine.apply(engine.Changes({"result.json": json.dumps(row_of(run)).encode()}), ray.results.of(run))
    sends(monkeypatch, ray, run, engine.ray.exceptions.WorkerCrashedError())
    assert [outcome.error for outcome in ray.wait(1)] == [None]


@pytest.mark.parametrize("name", versions())
def test_other_versions_on_a_machine(one, monkeypatch, name):
    run, ray = one
    expected = {**versions(), name: "0.0"}
    (line,) = engine.shipped()(expected, b"")
    assert f"{name} {versions()[name]} there, 0.0 here" in line
    sends(monkeypatch, ray, run, line)
    with pytest.raises(VitposError, match="differ"):
        ray.wait(1)


def test_no_vitpos_on_a_machine(monkeypatch):
    monkeypatch.setitem(sys.modules, "vitpos.provenance", None)
    (line,) = engine.shipped()({}, b"")
    assert "cannot be imported" in line


@pytest.mark.parametrize(
    ("limits", "wrong"),
    [
        (Limits(cpus=9), "--cpus-per-run is 9.*more than 8 CPUs"),
        (Limits(gpus=2), "--gpus-per-run is 2.*more than 1 GPUs"),
        (Limits(gpus=1.5), "1.5; Ray gives"),
        (Limits(cpus=8, gpus=1), "8 CPUs and 1 GPUs together"),
    ],
)
def test_more_than_a_machine_has(tmp_path, monkeypatch, limits, wrong):
    monkeypatch.setattr(engine, "nodes", lambda: [{"CPU": 8}, {"CPU": 4, "GPU": 1}])
    with pytest.raises(VitposError, match=wrong):
        engine.Ray(Results(tmp_path), limits, None, None).check_size()


def test_slots_follow_the_machines(tmp_path, monkeypatch):
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}]
    monkeypatch.setattr(engine, "nodes", lambda: machines)
    ray = engine.Ray(Results(tmp_path), Limits(cpus=1, gpus=0.25), None, None)
    assert ray.slots == 8 + 3
    machines.clear()
    assert ray.slots == 11  # asked every few seconds
    ray.counted = -1e9
    assert ray.slots == 1  # waits for one to come
    assert engine.Ray(Results(tmp_path), Limits(), 4, None).slots == 1


def test_an_address_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(engine, "ANSWER", 0.05)
    began = time.monotonic()
    with pytest.raises(VitposError, match="no Ray cluster answers at 127"):
        engine.connect("127.0.0.1:9")
    assert time.monotonic() - began < 30


def test_an_address_that_is_none():
    with pytest.raises(VitposError, match="HOST:PORT"):
        engine.connect("ray://head:10001")


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vitpos.study.engines.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VitposError, match=r"vitpos\[ray\]"):
        make(Options("ray"), Results(tmp_path))


def processes():
    shown = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    return [
        (int(pid), int(parent), args) for pid, parent, args in (line.split(None, 2) for line in shown.splitlines()[1:])
    ]


def descendants(pid):
    found, todo = [], [pid]
    while todo:
        above = todo.pop()
        children = [(child, args) for child, parent, args in processes() if parent == above]
        found += children
        todo += [child for child, _ in children]
    return found


def write_images(folder, count=100):
    """Two classes of random images of 8x8."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.mark.slow
def test_the_machine_that_works_is_killed(study_file, tmp_path, monkeypatch):
    """Two machines without data or schemes of their own; what is left of the run goes on on the other one."""
    from ray.cluster_utils import Cluster

    from vitpos.cli.main import main

    (tmp_path / "mine.py").write_text(OWN_SCHEME)
    write_images(tmp_path / "pictures")
    file = study_file(
        axes={"position": ["mine.py:Nothing"]},
        seeds=[0],
        reference="mine.py:Nothing",
        overrides={"data.name": "folder", "data.root": "pictures", "data.batch_size": 16, "trainer.max_epochs": 80},
    )
    words = ["study", "run", str(file), "--workers", "1", "--results"]
    assert main([*words, str(tmp_path / "here")]) == 0
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("VITPOS_CACHE", str(tmp_path / "cache of the machines"))
        small = {"object_store_memory": 100_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        machines = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    command = [sys.executable, "-m", "vitpos", *words, str(tmp_path / "there"), "--engine", "ray"]
    driver = subprocess.Popen(
        [*command, "--ray-address", cluster.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        (run,) = plan.load(file).runs
        folder = Results(tmp_path / "there" / file.stem).of(run)
        until(lambda: driver.poll() is not None or (folder / "last.ckpt").exists())
        assert driver.poll() is None, driver.communicate()[0]
        raylets = {machine.all_processes["raylet"][0].process.pid: machine for machine in machines}
        works = [raylet for raylet in raylets if any("spawn_main" in args for _, args in descendants(raylet))]
        assert len(works) == 1
        cluster.remove_node(raylets[works[0]], allow_graceful=False)
        printed = driver.communicate(timeout=900)[0]
        assert driver.returncode == 0, printed
        assert "NodeDiedError" in printed
        assert "goes on after epoch" in (folder / "run.log").read_text()
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
        cluster.shutdown()
    assert list((tmp_path / "cache of the machines").glob("lent-*"))
    rows = [Results(tmp_path / place / file.stem).row(run) for place in ("here", "there")]
    timed = {"seconds", "images_per_second", "peak_memory_mb", "finished", "history"}
    here, there = ({key: value for key, value in row.items() if key not in timed} for row in rows)
    assert here == there
    losses = [[(line["train/loss"], line["val/loss"]) for line in row["history"]] for row in rows]
    assert losses[0] == losses[1]
