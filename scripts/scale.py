"""Times the commands of a study on thousands of made-up results: seconds and peak memory of each, as a table.

    python scripts/scale.py /tmp/scale                       # all studies of 10,000 runs, some GB on disk
    python scripts/scale.py /tmp/scale --studies grid --commands status run

Nothing is trained. Rows have the fields and the size of those that CIFAR-10 gives, hashes that fit their configs, and
pass the checks of real ones. Folders that are there already are used again, so that two versions of the code can be
timed on the same rows. Each command is timed twice, in a process of its own: the first time it has to read every row,
the second time it may use what the first one kept in ``$VITPOS_CACHE``.
"""

import argparse
import base64
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vitpos.rows import check_row
from vitpos.study.plan import Run, load

SCHEMES = [
    "learned", "none", "sinusoidal_1d", "sinusoidal_2d", "rope_axial",
    *(f"sinusoidal_2d(temperature={t})" for t in (50, 100, 200, 500, 1000, 2000, 5000, 20000)),
    *(f"learned(scale={s})" for s in (0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0)),
]  # fmt: skip
COMMANDS = ("status", "plan", "report", "run")
IMAGES, EPOCHS, GRID = 10_000, 10, 8
# A process counts the memory of the one that started it as its own peak, so that one has to be small.
LAUNCH = """
import os, signal, sys, time
began = time.perf_counter()
child = os.fork()
if not child:
    os.dup2(2, 1)
    signal.alarm(int(float(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])
status, used = os.wait4(child, 0)[1:]
seconds = time.perf_counter() - began
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def studies(runs: int) -> dict[str, dict[str, Any]]:
    """Returns what differs between the studies, each of about so many runs."""
    seeds = max(2, runs // 100)
    rates = [round(0.0005 * (i + 1), 4) for i in range(5)]
    variants = runs // 5
    many = [round(1e-5 * (i + 1), 5) for i in range(max(1, variants // 20))]
    return {
        "grid": {"axes": {"position": SCHEMES, "model.lr": rates}, "seeds": list(range(seeds))},
        "variants": {
            "axes": {"position": ["learned", *(f"learned(scale={1 + i}e-3)" for i in range(1, variants))]},
            "seeds": list(range(5)),
        },
        "settings": {
            "axes": {"position": SCHEMES, "model.lr": many},
            "seeds": list(range(5)),
        },
        "tuned": {"axes": {"position": SCHEMES}, "tune": {"model.lr": rates}, "seeds": list(range(seeds))},
        "settled": {
            "axes": {"position": SCHEMES, "model.lr": rates},
            "seeds": {"start": 6, "until": "settled", "most": seeds},
        },
    }  # fmt: skip


def make(folder: Path, name: str, keys: dict[str, Any], layout: str) -> Path:
    """Writes a study and its results, ``runs`` or as in a ``clone``, unless they are there; returns the study file."""
    file, results = folder / f"{name}.yaml", folder / layout / name
    base = Path(__file__).parents[1] / "configs" / "vit_cifar10.yaml"
    study = {"question": "How long does it take?", "base": str(base), "reference": "learned", "margin": 0.5, **keys}
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(yaml.safe_dump(study, sort_keys=False, default_flow_style=None))
    if results.exists():
        return file
    print(f"making {results}", file=sys.stderr, flush=True)
    plan, part = load(file), results.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "runs").mkdir(parents=True)
    rows: dict[str, list[str]] = {"rows": [], "tuning": []}
    scores: dict[tuple[str, int], list[tuple[float, Run]]] = {}
    for trial in plan.trials:  # tuning takes the first of the best
        score = round(round(5000 * (truth(trial) - 0.02)) / 5000, 6)
        scores.setdefault((repr(trial.axes), trial.seed), []).append((score, trial))
    best = {max(tried, key=lambda each: each[0])[1].hash for tried in scores.values()}
    for run in plan.trials or plan.runs:
        tested = run.test or run.hash in best
        text = row(run, tested)
        rows["rows" if tested else "tuning"].append(text)
        if tested and run.trial:
            rows["tuning"].append(text)
        if layout == "runs":
            (part / "runs" / run.folder).mkdir()
            (part / "runs" / run.folder / "result.json").write_text(text)
    if layout == "clone":
        for kind, lines in rows.items():
            if lines:
                (part / f"{kind}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    shutil.copy(file, part / "study.yaml")
    part.rename(results)
    return file


def truth(run: Run) -> float:
    """Returns the accuracy of a run: what its scheme, rate, seed and chance make of it."""
    scheme = np.random.default_rng(list(str(run.axes["position"]).encode())).standard_normal()
    rate = math.log(run.config["model"]["lr"] / 0.0015)
    luck = np.random.default_rng([run.seed, *run.hash.encode()]).standard_normal()
    return float(0.7 + 0.01 * scheme - 0.01 * rate**2 + 0.002 * math.sin(run.seed) + 0.003 * luck)


def row(run: Run, tested: bool) -> str:
    """Makes the line of a run."""
    rng = np.random.default_rng([1, run.seed, *run.hash.encode()])
    right = rng.random(IMAGES) < truth(run)
    val = round(5000 * (truth(run) - 0.02)) / 5000
    labels = np.arange(IMAGES) % 10
    metrics = {"val/loss": 1 - val, "val/accuracy": val, "train/loss": 0.9 - val, "train/accuracy": val + 0.05}
    config = {**run.config["model"], "position": run.config["position"]}
    found: dict[str, Any] = {
        "format": 1, "hash": run.hash, "axes": run.axes, "seed": run.seed, "config": run.config,
        "resolved": {
            "model": {"patch_size": None, "mixup": 0.0, "cutmix": 0.0, "attention": "auto", **config},
            "data": {"eval_batch_size": 1000, "seed": run.seed, **run.config["data"]},
            "position": [{"name": "learned", "options": {"scale": 0.02}}],
        },
        "data": {"name": "cifar10", "fingerprint": "0" * 32, "train": 45000, "val": 5000, "test": IMAGES},
        "metrics": metrics,
    }  # fmt: skip
    if tested:
        found["metrics"] = {**metrics, "test/loss": 1 - val, "test/accuracy": float(right.mean())}
        found["per_class"] = {
            "names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            "count": [IMAGES // 10] * 10,
            "correct": np.bincount(labels[right], minlength=10).tolist(),
        }
        found["right"] = base64.b64encode(np.packbits(right).tobytes()).decode()
    else:
        found["tested"] = False
    found |= {
        "history": [
            {
                "epoch": i + 1, "val/loss": 1.0, "val/accuracy": val * (1 - 0.5 ** (i + 1)), "train/loss": 1.0,
                "train/accuracy": val * (1 - 0.5 ** (i + 1)), "lr": 0.001 * (EPOCHS - i),
                "images_per_second": float(rng.normal(500, 10)),
            }
            for i in range(EPOCHS)
        ],
        "parameters": 683050, "position_parameters": 6144, "flops": 94963584,
        "images_per_second": float(rng.normal(500, 1)), "seconds": float(rng.normal(900, 2)), "peak_memory_mb": 1736.3,
        "position": None,
        "environment": {
            "device": "cpu", "hardware": "AMD EPYC, 2 of 2 threads", "precision": "32-true", "python": "3.11.7",
            "torch": "2.14.1", "timm": "1.0.31", "lightning": "2.6.6", "vitpos": "0.1.0", "commit": "0123456789",
            "sources": ["0123456789ab"],
        },
        "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    if not str(run.axes["position"]).startswith(("none", "rope")):
        cells = GRID * GRID
        noise = rng.integers(-30, 31, (cells, cells)) / 100
        table = {"grid": [GRID, GRID], "rms_start": 0.02, "rms_end": 0.04, "similarity": noise.tolist()}
        found["position"] = table
    if rng.random() < 0.01:  # so that a mistake here shows
        check_row(found)
    return json.dumps(found)


def measure(command: str, file: Path, results: Path, limit: float) -> tuple[float, float, float, str]:
    """Carries a command out; returns its seconds, those of processors, its peak memory in MB, and how it ended."""
    words = [sys.executable, "-m", "vitpos", "study", command, str(file), "--results", str(results)]
    with (results / f"{file.stem}.{command}.txt").open("wb") as out:
        done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, str(limit), *words], stdout=subprocess.PIPE,
                              stderr=out, text=True, check=True)  # fmt: skip
    seconds, busy, memory, code = map(float, done.stdout.split())
    return seconds, busy, memory / (1024 if sys.platform == "linux" else 1024**2), f"exit code {code:g}" if code else ""


def main() -> None:
    """Makes the studies and prints a line of a table for each command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--studies", nargs="+", choices=list(studies(100)), default=list(studies(100)))
    parser.add_argument("--layouts", nargs="+", choices=["runs", "clone"], default=["runs", "clone"])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--times", type=int, default=2, help="how often each command is timed")
    parser.add_argument("--limit", type=float, default=1500, help="seconds after which a command is ended")
    given = parser.parse_args()
    print("| study | results as | command | time | seconds | of processors | MB | |")
    print("|---|---|---|---:|---:|---:|---:|---|")
    for name in given.studies:
        for layout in given.layouts:
            file = make(given.folder, name, studies(given.runs)[name], layout)
            for command in given.commands:
                for again in range(given.times):
                    seconds, busy, memory, ended = measure(command, file, given.folder / layout, given.limit)
                    numbers = f"{again + 1} | {seconds:.1f} | {busy:.1f} | {memory:.0f}"
                    print(f"| {name} | {layout} | {command} | {numbers} | {ended} |", flush=True)


if __name__ == "__main__":
    main()
