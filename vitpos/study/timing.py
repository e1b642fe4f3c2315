"""What a run of a study costs in time on this machine: from its finished runs, else from a few steps of training."""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vitpos.positions import text as texts
from vitpos.study.plan import OPTION, Run, Study
from vitpos.study.results import Results
from vitpos.study.run import hardware, prepare
from vitpos.train.callbacks import EpochLines

WARM_UP, STEPS = 3, 12
# Of the time of a training step: what evaluating as many images takes, forward alone.
EVALUATION = 1 / 3


def estimate(study: Study, results: Results) -> tuple[float, str]:
    """Estimates the seconds of one run, the mean over all that are planned, or where the study tunes, of its trials.

    For a variant without a finished run it takes the mean of those that differ in their position alone, else of all.
    Where there are none at all, one position is measured at each point of the other axes.

    Args:
        study: The study.
        results: Its results. Rows from other hardware do not count.

    Returns:
        Seconds, as slow as a run is with as many beside it as there were, and in words where they come from. The study
        takes some ``seconds * runs / runs at a time``.

    Raises:
        VitposError: There is no row, and the data or a config is missing or wrong.
    """
    here = hardware("cuda" if torch.cuda.is_available() else "cpu").split(",")[0]  # without the threads
    planned = study.trials or study.runs
    known: dict[str, list[float]] = {}
    rows = [row for row in results.stored() if row["environment"]["hardware"].split(",")[0] == here]
    for row in rows:
        for key in ("", repr(row["axes"]), repr(besides(row["axes"]))):
            known.setdefault(key, []).append(row["seconds"])
    if rows:
        count = f"{len(rows)} finished run{'s' if len(rows) > 1 else ''}"
        source = f"measured: mean of {count} of this study on this hardware"
    else:
        first = {repr(besides(run.axes)): run for run in reversed(study.runs)}
        known = {key: [measure(run)] for key, run in first.items()}
        source = f"estimated from {STEPS} steps of {study.runs[0].axes['position']}, run alone"

    def seconds(run: Run) -> float:
        keys = (repr(run.axes), repr(besides(run.axes)), "")
        return statistics.mean(next(known[key] for key in keys if key in known))

    return statistics.mean(map(seconds, planned)), source


def besides(axes: dict[str, Any]) -> dict[str, Any]:
    """Returns the axes that are not of the position."""
    return {key: value for key, value in axes.items() if key != "position" and not key.startswith(OPTION)}


class Enough(Exception):  # noqa: N818 (it is no error)
    """Ends a training whose steps have been timed."""


class Clock(L.Callback):
    """Notes the time after each step, and stops the training after enough of them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.images = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self.times.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the time.

        Raises:
            Enough: It has been noted often enough.
        """
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.images = len(batch[1])
        if len(self.times) > WARM_UP + STEPS:
            raise Enough


def measure(run: Run) -> float:
    """Trains a few steps in a folder that is thrown away, one thread as in a study, and scales them up to the run.

    Raises:
        VitposError: A mistake in the config, the scheme or the data.
    """
    threads, clock = torch.get_num_threads(), Clock()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, texts.looking_in(run.study):
            cli = prepare(run, Path(folder))
            trainer: Any = cli.trainer
            trainer.callbacks = [*(c for c in trainer.callbacks if not isinstance(c, EpochLines)), clock]
            with contextlib.suppress(Enough):
                trainer.fit(cli.model, datamodule=cli.datamodule)
            sizes, epochs = cli.datamodule.sizes, trainer.max_epochs
            steps = epochs * trainer.num_training_batches
            held_out = epochs * sizes["val"] + sizes["test"]
    finally:
        torch.set_num_threads(threads)
    times = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    step = statistics.median(times[min(WARM_UP, len(times) - 1) :])
    return step * float(steps + EVALUATION * held_out / clock.images)
