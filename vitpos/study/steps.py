"""A few steps of training, timed and scaled up to a whole run."""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vitpos.positions import text as texts
from vitpos.study.plan import Run
from vitpos.study.run import prepare
from vitpos.train.callbacks import EpochLines

WARM_UP, STEPS = 3, 12
# Of the time of a training step: what evaluating as many images takes, forward alone.
EVALUATION = 1 / 3


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
