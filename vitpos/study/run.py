"""One run of a study: train, read the test set once, write one row."""

import base64
import copy
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitpos import positions as schemes
from vitpos.data.module import ImageData
from vitpos.errors import VitposError
from vitpos.portraits import probes
from vitpos.provenance import commit, sources
from vitpos.study.plan import FORMAT, Run
from vitpos.study.results import Row, unwritable, write
from vitpos.study.tuning import METRIC
from vitpos.train.callbacks import History, amplitude, scheme_of
from vitpos.train.cli import VitposCLI, finished_epochs
from vitpos.train.task import Classifier

sources(), commit()  # kept from here on: files may change while a study runs, the code that is loaded does not
CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the peak of resident memory


def prepare(run: Run, folder: Path, *, prefix: str = "") -> VitposCLI:
    """Parses the config of a run and builds trainer, data and network, so that a mistake shows before any training.

    Args:
        run: The run.
        folder: Where its files go.
        prefix: What its lines of progress begin with.

    Raises:
        VitposError: A mistake in the config, the scheme or the data.
    """
    config = copy.deepcopy(run.config)  # jsonargparse changes what it is given
    config["trainer"] = {**config.get("trainer", {}), "default_root_dir": str(folder)}
    cli = VitposCLI(config, run=False, prefix=prefix or run.label)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    cli.model.build(cli.datamodule)
    return cli


def execute(run: Run, folder: Path, prefix: str = "") -> str | None:
    """Carries a run out, or on from its last checkpoint, and writes ``result.json`` last; or ``failure.json``.

    Args:
        run: The run.
        folder: Where its files go.
        prefix: What its lines of progress begin with.

    Returns:
        None, or in one line why it failed.

    Raises:
        VitposError: The folder cannot be written or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.json").unlink(missing_ok=True)
        write(folder / "result.json", json.dumps(train(run, folder, prefix)))
        return None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise unwritable(folder, error) from error  # no other run would fare better
        return give_up(run, folder, error)
    except Exception as error:  # whatever happens in one run must not end the others
        return give_up(run, folder, error)


def give_up(run: Run, folder: Path, error: Exception) -> str:
    """Records the error that ended a run, and returns it in one line."""
    text = " ".join(f"{type(error).__name__ if not isinstance(error, VitposError) else ''} {error}".split())
    fail(run, folder, text, "".join(traceback.format_exception(error)))
    return text


def fail(run: Run, folder: Path, error: str, trace: str = "") -> None:
    """Records why a run has no result."""
    record = {"format": FORMAT, "hash": run.hash, "axes": run.axes, "seed": run.seed, "error": error}
    if run.trial:
        record["trial"] = run.trial
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "failure.json", json.dumps({**record, "traceback": trace}))


def train(run: Run, folder: Path, prefix: str) -> Row:
    """Trains and, unless it is a trial, tests, and makes the row.

    Raises:
        VitposError: Training went to a loss that is not finite, or a trial has no validation accuracy to choose by.
    """
    last = folder / "last.ckpt"
    try:
        resumed = last.exists() and finished_epochs(last) > 0
    except VitposError as error:
        print(f"{prefix}  {error}; starting over".lstrip(), flush=True)
        last.unlink()
        resumed = False
    cli = prepare(run, folder, prefix=prefix)
    if dataclasses.replace(run).hash != run.hash:  # a new object reads the file of the scheme again
        raise VitposError(f"the file of {run.axes['position']} changed since the study began; start the study again")
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    device = trainer.strategy.root_device.type  # Lightning takes the model back to the CPU when it is done
    reset_peak_memory(device)
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if resumed else None, weights_only=True)
    history = cli.history
    metrics = {key: value for key, value in history.rows[-1].items() if "/" in key}
    if run.trial:
        if METRIC not in metrics:
            raise VitposError(f"tuning chooses by {METRIC}, and this run has none (trainer.limit_val_batches 0?)")
        outcome: Row = {"trial": run.trial}
    else:
        outcome = {"tuned": run.tuned, "tuned_edge": list(run.edge)} if run.tuned else {}
        trainer.test(model, datamodule=data, verbose=False)
        metrics |= {key: float(value) for key, value in trainer.callback_metrics.items()}
        outcome |= answers(model, data)
    diverged = [f"{key} {value}" for key, value in metrics.items() if not math.isfinite(value)]
    if diverged:
        raise VitposError(f"the loss is not finite after training ({', '.join(diverged)})")
    row = {
        "format": FORMAT,
        "hash": run.hash,
        "axes": run.axes,
        "seed": run.seed,
        "config": run.config,
        "resolved": resolved(cli),
        "data": {"name": data.name, "fingerprint": data.fingerprint, **data.sizes},
        "metrics": metrics,
        **outcome,
        "history": history.rows,
        **cost(model, data.in_chans, data.img_size),
        "images_per_second": sum(row["images_per_second"] for row in history.rows) / len(history.rows),
        "seconds": history.seconds,
        "peak_memory_mb": peak_memory(device),
        "position": positions(model, history),
        "environment": environment(str(trainer.precision), device),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for logger in trainer.loggers:
        # a name of their own, off the curves; in this order, since TensorBoard's table shows the first five: test first
        final = {f"final/{key}": metrics[key] for key in sorted(metrics)}
        given = {"seed": run.seed, **run.axes, **run.trial, **(run.tuned or {})}
        logger.log_hyperparams(given, final, step=len(history.rows))
        logger.finalize("success")
    return row


def answers(model: Classifier, data: ImageData) -> Row:
    """Counts the test images of each class and those that were right, and packs which ones were."""
    flags = torch.cat(model.right).cpu()
    labels, classes = data.source.test.labels[: len(flags)], len(data.classes)
    counts = {
        "count": torch.bincount(labels, minlength=classes).tolist(),
        "correct": torch.bincount(labels[flags], minlength=classes).tolist(),
    }
    right = base64.b64encode(np.packbits(flags.numpy()).tobytes()).decode()  # eight images to a byte
    return {"per_class": {"names": list(data.classes), **counts}, "right": right}


def cost(model: Classifier, in_chans: int, img_size: tuple[int, int]) -> dict[str, int]:
    """Counts parameters, those of the scheme among them, and operations of one image forward (a product counts 2)."""
    scheme, _ = scheme_of(model)
    image = torch.zeros(1, in_chans, *img_size, device=model.device)
    # fused attention is another operation on each device, and the counter does not know that of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "position_parameters": sum(parameter.numel() for parameter in scheme.parameters()),
        "flops": counter.get_total_flops(),
    }


def positions(model: Classifier, history: History) -> dict[str, Any] | None:
    """Describes the trained scheme's table: amplitude at start and end, and similarities to two decimals."""
    scheme, grid = scheme_of(model)
    vectors = probes.table(scheme, grid)
    if vectors is None:
        return None
    similarity = [[round(value, 2) for value in row] for row in probes.similarity(vectors).tolist()]
    return {
        "grid": list(grid),
        "rms_start": history.start_rms,
        "rms_end": amplitude(model),
        "similarity": similarity,
    }


def resolved(cli: VitposCLI) -> dict[str, Any]:
    """Returns the options of model, data and the scheme's parts with all defaults, without the place of the data."""
    model, data = cli.config.model.as_dict(), cli.config.data.as_dict()
    parts = [{"name": n, "options": {**schemes.options(n), **given}} for n, given in schemes.check(model["position"])]
    parts = json.loads(json.dumps(parts, default=repr))  # a set, say: a trained run must not fail for it
    data = {key: value for key, value in data.items() if key not in ("root", "download")}
    return {"model": model, "data": data, "position": parts}


def reset_peak_memory(device: str) -> None:
    """Starts counting the peak anew, where that can be done: a worker carries several runs out."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def peak_memory(device: str) -> float:
    """Returns the most memory held since `reset_peak_memory`, in MB: on the GPU, else resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if CLEAR_PEAK.exists():  # Linux
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(peak[1]) * 1024 / 1e6 if peak else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def environment(precision: str, device: str) -> dict[str, Any]:
    """Describes what a number was measured on."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "timm", "lightning", "vitpos")}
    return {
        "device": device,
        "hardware": hardware(device),
        "precision": precision,
        "python": platform.python_version(),
        **packages,
        "commit": commit(),
        "sources": [sources()],
    }


def hardware(device: str) -> str:
    """Names the GPU, or the processor with the threads in use and the cores there are."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} threads"
