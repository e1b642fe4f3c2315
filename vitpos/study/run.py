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
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitpos import positions as schemes
from vitpos.data.module import ImageData
from vitpos.errors import VitposError, short, visible
from vitpos.lock import hold
from vitpos.portraits import probes
from vitpos.positions import text as texts
from vitpos.provenance import commit, sources
from vitpos.study.heartbeat import Pulse
from vitpos.study.machine import name
from vitpos.study.plan import CHOSEN_BY, FORMAT, Run
from vitpos.study.reading import Reader, Row, parse, whole, write
from vitpos.study.results import described, untested, unwritable
from vitpos.train import checkpoint as checkpoints
from vitpos.train.callbacks import History, amplitude, scheme_of
from vitpos.train.cli import VitposCLI, listed
from vitpos.train.task import Classifier


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one attempt at a run ended.

    Attributes:
        run: The run.
        error: None where its result is there; else in one line why not, and ``failure.json`` is written.
        lost: Whether another attempt may fare better: its worker was killed, lost or ended by the time limit, or the
            error is none of the user's mistakes.
    """

    run: Run
    error: str | None
    lost: bool = False


sources(), commit()  # kept from here on: files may change while a study runs, the code that is loaded does not
CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the peak of resident memory


def place_of_data(run: Run) -> tuple[str, str | None]:
    """Returns the name of a run's data set and its root, which may be relative to the study."""
    data = {**(ImageData.__init__.__kwdefaults__ or {}), **(run.config.get("data") or {})}
    name, root = str(data["name"]), data["root"]
    return name, str(run.study / root) if root and (run.study / root).exists() else root


def prepare(run: Run, folder: Path, *, checkpoint: Path | None = None) -> VitposCLI:
    """Parses the config of a run and builds trainer, data and network, so that a mistake shows before any training.

    Args:
        run: The run.
        folder: Where its files go.
        checkpoint: What training will go on from.

    Raises:
        VitposError: A mistake in the config, the scheme or the data.
    """
    config = copy.deepcopy(run.config)  # jsonargparse changes what it is given
    config["trainer"] = {**config.get("trainer", {}), "default_root_dir": str(folder)}
    if isinstance(devices := config["trainer"].get("devices"), list) and len(devices) == 1:
        config["trainer"]["devices"] = 1  # which one is the engine's choice
    if config["trainer"].get("fast_dev_run"):
        raise VitposError("trainer.fast_dev_run tries the code out; what comes of it is no result of a study")
    if (root := place_of_data(run)[1]) is not None:
        config["data"]["root"] = root
    for logger in listed(config["trainer"].get("logger")):  # each run's own, for several run at once
        options = logger.get("init_args", {}) if isinstance(logger, dict) else {}
        if options.get("save_dir"):
            options["save_dir"] = str(folder / options["save_dir"])
    with texts.looking_in(run.study):
        cli = VitposCLI(config, run=False, prefix=run.label, checkpoint=checkpoint)
    cli.model.run_hash = run.hash
    every, epochs = cli.trainer.check_val_every_n_epoch, cli.trainer.max_epochs or 0
    if run.trial and every and epochs > 0 and epochs % every:
        raise VitposError(
            f"tuning chooses by {CHOSEN_BY} of the last epoch, but trainer.check_val_every_n_epoch {every} does not "
            f"validate the last of trainer.max_epochs {epochs}"
        )
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    with texts.looking_in(run.study):
        cli.model.build(cli.datamodule)
    return cli


def execute(run: Run, folder: Path, engine: str = "") -> Outcome:
    """Carries a run out, or on from its last checkpoint, and writes ``result.json`` last; or ``failure.json``.

    Args:
        run: The run.
        folder: Where its files go.
        engine: Name of the engine, for the heartbeat.

    Raises:
        VitposError: The folder cannot be written or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # of an interrupted study, say, whose processes end some seconds after it
        with (
            hold(folder / ".lease", f"another process works in {folder}", wait=60),
            texts.looking_in(run.study),
            Pulse(folder, engine) as pulse,
        ):
            (folder / "failure.json").unlink(missing_ok=True)
            text = whole(train(run, folder, pulse))
            parse(text)  # better now than as a result that is never taken
            write(folder / "result.json", [text])
        return Outcome(run, None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise unwritable(folder, error) from error  # no other run would fare better
        return give_up(run, folder, error)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # one run must not end the others
        if isinstance(error, KeyboardInterrupt) and parent_process() is None:
            raise  # a worker never gets that of the keyboard
        return give_up(run, folder, error)


def give_up(run: Run, folder: Path, error: BaseException) -> Outcome:
    """Records the error that ended a run."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__  # Lightning makes an exit code of it
    text = f"{type(error).__name__ if not isinstance(error, VitposError) else ''} {error}"
    trace = "".join(traceback.format_exception(error))
    return Outcome(run, fail(run, folder, text, trace), not isinstance(error, VitposError))


def fail(run: Run, folder: Path, error: str, trace: str = "") -> str:
    """Records why a run has no result, and returns it in one line."""
    text = short(visible(" ".join(error.split())), 1000)
    record = {"format": FORMAT, "hash": run.hash, "axes": run.axes, "seed": run.seed, "error": text}
    if run.trial:
        record["trial"] = run.trial
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "failure.json", json.dumps({**record, "traceback": short(visible(trace), 50_000)}))
    return text


def train(run: Run, folder: Path, pulse: Pulse) -> Row:
    """Trains and, unless it is a trial that was not chosen, tests, and makes the row.

    A trial that was chosen goes on from the checkpoint after its last epoch, so that nothing is left to train.

    Raises:
        VitposError: Training was cut short or went to a loss that is not finite, or a trial has no validation accuracy
            to choose by.
    """
    cli, last = begin(run, folder)
    pulse.cli = cli
    if dataclasses.replace(run).hash != run.hash:  # a new object reads the file of the scheme again
        raise VitposError(f"the file of {run.axes['position']} changed since the study began; start the study again")
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    device = trainer.strategy.root_device.type  # Lightning takes the model back to the CPU when it is done
    reset_peak_memory(device)
    trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
    history = cli.history
    if cut_short(trainer):
        raise VitposError(f"trainer.max_time ended training after {len(history.rows)} epochs: it is not finished")
    metrics = {key: value for key, value in history.rows[-1].items() if "/" in key}
    if run.trial and CHOSEN_BY not in metrics:
        raise VitposError(
            f"tuning chooses by {CHOSEN_BY}, and this run has none of its last epoch "
            "(trainer.limit_val_batches 0, or max_steps?)"
        )
    outcome: Row = {"tested": False}
    if run.test:
        trainer.test(model, datamodule=data, verbose=False)
        metrics |= {key: float(value) for key, value in trainer.callback_metrics.items()}
        outcome = answers(model, data)
    diverged = [f"{key} {value}" for key, value in metrics.items() if not math.isfinite(value)]
    if diverged:
        raise VitposError(f"the loss is not finite after training ({', '.join(diverged)})")
    before = Reader(folder).file(str(folder / "result.json")) if last else None
    if before and before["hash"] == run.hash and untested(before):  # a trial that was chosen, trained before
        kept = {key: value for key, value in before.items() if key != "tested"}
        made = {**before["environment"], "sources": model.sources}  # of the test too
        return {**kept, **described(run), "metrics": metrics, **outcome, "environment": made}
    row = {
        "format": FORMAT,
        "hash": run.hash,
        **described(run),
        "seed": run.seed,
        "config": run.config,
        **({} if run.files is None else {"files": run.files}),
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
        "environment": environment(str(trainer.precision), device, model.sources),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for logger in trainer.loggers:
        # a name of their own, off the curves; in this order, since TensorBoard's table shows the first five: test first
        final = {f"final/{key}": metrics[key] for key in sorted(metrics)}
        given = {"seed": run.seed, **run.axes, **run.trial}
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(given, final, step=len(history.rows))
        else:
            logger.log_hyperparams(given)
            logger.log_metrics(final, step=len(history.rows))
        logger.finalize("success")
    return row


def cut_short(trainer: Trainer) -> bool:
    """Tells whether a limit of time ended training before its last epoch or step."""
    whole = 0 < (trainer.max_epochs or 0) <= trainer.current_epoch or 0 < trainer.max_steps <= trainer.global_step
    left = [callback.time_remaining() for callback in getattr(trainer, "callbacks", []) if isinstance(callback, Timer)]
    return not whole and any(time is not None and time <= 0 for time in left)


def begin(run: Run, folder: Path) -> tuple[VitposCLI, Path | None]:
    """Prepares a run to go on from its newest whole checkpoint, returned too, or to start over where there is none.

    Raises:
        VitposError: As `prepare`.
    """
    files = checkpoints.candidates(folder)
    for file in files:
        try:
            if (other := checkpoints.read(file)["vitpos"]["hash"]) != run.hash:
                raise checkpoints.CheckpointError(f"{file} is of another run ({other}, not {run.hash})")
            cli = prepare(run, folder, checkpoint=file)
            cli.check_checkpoint()
            return cli, file
        except checkpoints.CheckpointError as error:
            way = "starting over" if file == files[-1] else "trying the one before"
            print(f"{run.label}  {error}; {way}", flush=True)
            file.unlink()
    checkpoints.discard(folder)
    return prepare(run, folder), None


def answers(model: Classifier, data: ImageData) -> Row:
    """Counts the test images of each class and those that were right, and packs which ones were."""
    flags = torch.cat(model.right).cpu()
    labels, classes = data.source.test.labels[: len(flags)], len(data.classes)
    counts = {
        "count": torch.bincount(labels, minlength=classes).tolist(),
        "correct": torch.bincount(labels[flags], minlength=classes).tolist(),
    }
    right = base64.b64encode(np.packbits(flags.numpy()).tobytes()).decode()  # eight images to a byte
    return {"per_class": {"names": [visible(name) for name in data.classes], **counts}, "right": right}


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
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return int(peak[1]) * 1024 / 1e6 if peak else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def environment(precision: str, device: str, used: list[str]) -> dict[str, Any]:
    """Describes what a number was measured on."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "timm", "lightning", "vitpos")}
    return {
        "device": device,
        "hardware": hardware(device),
        "precision": precision,
        "python": platform.python_version(),
        **packages,
        "commit": commit(),
        "sources": used,
    }


def hardware(device: str) -> str:
    """Names the GPU, or the processor with the threads in use and the cores there are."""
    return (
        name(device) if device == "cuda" else f"{name(device)}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )
