"""Runs as jobs of SLURM: the script that is submitted, jobs that are found again, and preemption."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

pytest.importorskip("submitit")

import submitit
from whole import row_of

from vitpos.errors import VitposError
from vitpos.provenance import versions
from vitpos.study import plan
from vitpos.study.engines import Limits, Options, jobs, make
from vitpos.study.engines import slurm as engine
from vitpos.study.results import Results

# Stands in for SLURM: notes what is asked, and submits nothing.
COMMANDS = {
    "sbatch": 'cp "$1" script.sh; echo x >> submitted; echo Submitted batch job $(wc -l < submitted)',
    "srun": "exit 1",
    "scancel": 'echo "$@" >> cancelled',
    "sacct": 'echo "JobID|State|NodeList"; cat states',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with SLURM, whose answers are in files of the current folder."""
    for name, does in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitit.SlurmJob, "watcher", type(submitit.SlurmJob.watcher)(delay_s=600))  # it remembers jobs
    (tmp_path / "states").write_text("")
    return tmp_path


@pytest.fixture
def runs(study_file):
    return list(plan.load(study_file()).runs)


def ends(results, run, id_, outcome=(None, False), found=None):
    """Makes a job's end: its result, and that of its run where there is no error."""
    if outcome[0] is None:
        results.of(run).mkdir(parents=True, exist_ok=True)
        (results.of(run) / "result.json").write_text(json.dumps(row_of(run)))
    text = pickle.dumps(("success", (found or versions(), *outcome)))
    (results.folder / "jobs" / f"{id_}_0_result.pkl").write_bytes(text)


def test_the_script_that_is_submitted(slurm, runs):
    given = {"partition": "gpu", "account": "me", "time": "1-02:30:00", "array_parallelism": "2", "exclusive": "true"}
    results = Results(slurm / "results")
    with engine.Slurm(results, Limits(cpus=3, gpus=1), None, given) as jobs_:
        for run in runs:
            jobs_.start(run)
        assert jobs_.wait(0) == []
        lines = (slurm / "script.sh").read_text().splitlines()
        for line in ("partition=gpu", "account=me", f"time={26 * 60 + 30}", "array=0-3%2", "exclusive",
                     "cpus-per-task=3", "gpus-per-node=1", "signal=USR2@90", "job-name=results"):  # fmt: skip
            assert f"#SBATCH --{line}" in lines
        command = next(line for line in lines if line.startswith("srun "))
        assert f"{sys.executable} -u -m submitit.core._submit" in command
        assert jobs.Jobs.read(results).ids == {run.hash: f"1_{number}" for number, run in enumerate(runs)}
        for number, run in enumerate(runs):
            ends(results, run, f"1_{number}")
        assert [(each.run, each.error, each.lost) for each in jobs_.wait(0)] == [(run, None, False) for run in runs]
    assert not jobs.Jobs.file(results).exists()
    assert not (slurm / "cancelled").exists()


def test_a_driver_finds_the_jobs_of_the_one_before(slurm, runs):
    results = Results(slurm / "results")

    def interrupted():
        with engine.Slurm(results, Limits(), None, {}) as jobs_:
            for run in runs:
                jobs_.start(run)
            jobs_.wait(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (slurm / "cancelled").exists()
    ends(results, runs[0], "1_0")
    (slurm / "states").write_text("1_0|COMPLETED|a\n1_1|RUNNING|a\n1_[2-3]|PENDING|\n")
    with engine.Slurm(results, Limits(), None, {}) as jobs_:
        for run in runs[1:]:
            jobs_.start(run)
        assert jobs_.wait(0) == []
        assert (slurm / "submitted").read_text() == "x\n"
        assert {run.hash for run in runs[1:]} == set(jobs_.jobs)
    assert (slurm / "cancelled").read_text().split() == ["1_1", "1_2", "1_3"]


def test_a_job_that_vanished_is_submitted_again(slurm, runs):
    results = Results(slurm / "results")
    with engine.Slurm(results, Limits(), None, {}) as jobs_:
        jobs_.start(runs[0])
        jobs_.wait(0)
        (slurm / "states").write_text("1|NODE_FAIL|a\n")
        jobs_.asked = -1e9
        (outcome,) = jobs_.wait(5)
        assert outcome.lost
        assert "NODE_FAIL" in (outcome.error or "")
        jobs_.start(runs[0])
        jobs_.wait(0)
        assert jobs.Jobs.read(results).ids == {runs[0].hash: "2"}


def test_another_engine_ends_the_jobs_first(slurm, runs, monkeypatch):
    results = Results(slurm / "results")
    jobs.Jobs("slurm", {run.hash: f"7_{number}" for number, run in enumerate(runs)}).note(results)
    make(Options("local"), results)
    assert (slurm / "cancelled").read_text().split() == ["7_0", "7_1", "7_2", "7_3"]
    assert not jobs.Jobs.file(results).exists()
    jobs.Jobs("slurm", {"a": "1"}).note(results)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(VitposError, match="no scancel here"):
        make(Options("local"), results)


@pytest.mark.parametrize("name", versions())
def test_other_versions_on_a_machine(slurm, runs, name):
    results = Results(slurm / "results")
    with engine.Slurm(results, Limits(), None, {}) as jobs_:
        jobs_.start(runs[0])
        jobs_.wait(0)
        ends(results, runs[0], "1", ("other", True), {**versions(), name: "0.0"})
        with pytest.raises(VitposError, match=f"{name} 0.0 there, {versions()[name]} here".replace("+", r"\+")):
            jobs_.wait(0)


def test_a_job_does_nothing_where_it_is_not_the_one(runs, tmp_path, monkeypatch):
    results = Results(tmp_path)
    attempt = engine.Attempt(runs[0], results, None)
    monkeypatch.setattr(engine, "Local", None)
    monkeypatch.setattr(engine, "job_id", lambda: "1")
    jobs.Jobs("slurm", {runs[0].hash: "2"}).note(results)
    assert "another job" in (attempt()[1] or "")
    results.of(runs[0]).mkdir(parents=True)
    (results.of(runs[0]) / "result.json").write_text(json.dumps(row_of(runs[0])))
    assert attempt()[1:] == (None, False)
    monkeypatch.setattr(engine, "versions", lambda: {"torch": "0.0"})
    assert attempt() == ({"torch": "0.0"}, "it was submitted by other versions", True)


def processes(word):
    """The processes with this word on their command line, by their parents."""
    shown = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 2) for line in shown.splitlines()[1:])
    return {int(pid): int(parent) for pid, parent, args in lines if word in args}


@pytest.mark.slow
def test_preempted_jobs_go_on_and_outlive_their_driver(study_file, tmp_path, monkeypatch):
    """A real job: it has to make room once, its driver is killed, and the next driver finds it."""
    from vitpos.cli.main import main

    file = study_file(
        axes={"position": ["learned"]},
        seeds=[0],
        overrides={"trainer.max_epochs": 30, "trainer.limit_train_batches": 10},
    )
    words = ["study", "run", str(file), "--results"]
    assert main([*words, str(tmp_path / "here"), "--workers", "1"]) == 0
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    there = str(tmp_path / "there")
    command = [sys.executable, "-m", "vitpos", *words, there, "--engine", "submitit", "--slurm", "cluster=local"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results, (run,) = Results(tmp_path / "there" / file.stem), plan.load(file).runs

    def began():
        file = results.of(run) / "run.log"
        return file.read_text().count("epoch 1/") + file.read_text().count("goes on after") if file.exists() else 0

    try:
        until(lambda: began() == 1 and (results.of(run) / "last.ckpt").exists())
        (controller,) = jobs.Jobs.read(results).ids.values()
        (job,) = (
            pid for pid, parent in processes(f"submitit.core._submit {there}").items() if parent == int(controller)
        )
        os.kill(job, signal.SIGUSR2)
        until(lambda: began() == 2)
        driver.kill()
        driver.wait()
        assert main([*command[3:]]) == 0
        assert len(list((results.folder / "jobs").glob("*_submitted.pkl"))) == 1
        assert not jobs.Jobs.file(results).exists()
    finally:
        driver.kill()
        driver.wait()
        jobs.Jobs.read(results).cancel()
    rows = [Results(tmp_path / place / file.stem).row(run) for place in ("here", "there")]
    timed = {"seconds", "images_per_second", "peak_memory_mb", "finished", "history"}
    here, there = ({key: value for key, value in row.items() if key not in timed} for row in rows)
    assert here == there
    losses = [[(line["train/loss"], line["val/loss"]) for line in row["history"]] for row in rows]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("given", "limits", "wrong"),
    [
        ({"partitoin": "gpu"}, Limits(), "partitoin.*did you mean 'partition'"),
        ({"nodes": "2"}, Limits(), "unknown --slurm key 'nodes'"),
        ({"time": "soon"}, Limits(), "time=soon"),
        ({"time": "0"}, Limits(), "a minute at least"),
        ({"array_parallelism": "many"}, Limits(), "whole number"),
        ({"cluster": "slrum"}, Limits(), "did you mean 'slurm'"),
        ({}, Limits(gpus=0.5), "whole GPUs"),
    ],
)
def test_parameters_that_cannot_be(slurm, given, limits, wrong):
    with pytest.raises(VitposError, match=wrong):
        engine.Slurm(Results(slurm / "results"), limits, None, given)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("1-2", 26 * 60), ("1-2:30", 26 * 60 + 30), ("2-00:00:00", 2880)],
)
def test_times_as_sbatch_reads_them(text, minutes):
    assert engine.minutes(text) == minutes


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VitposError, match="cluster=local"):
        engine.Slurm(Results(tmp_path), Limits(), None, {})


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vitpos.study.engines.slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(VitposError, match=r"vitpos\[slurm\]"):
        make(Options("submitit"), Results(tmp_path))
