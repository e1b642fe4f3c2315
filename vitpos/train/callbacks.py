"""What a run writes while it trains: metrics per epoch, TensorBoard curves, and lines for people without a terminal."""

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from vitpos.portraits import probes
from vitpos.text import duration
from vitpos.train.task import Classifier


class History(L.Callback):
    """Keeps the metrics of each epoch, in ``metrics.jsonl`` and in TensorBoard with the epoch as the step.

    The rows travel in the checkpoint, so a run that goes on after a crash has the same file and one curve.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows: list[dict[str, float]] = []
        self.start_rms: float | None = None
        self.began = self.ended = 0.0
        self.images, self.busy = 0, 0.0
        self.validation: dict[str, float] = {}
        self.made, self.spent = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Time since this was made, and before that up to the checkpoint that the run goes on from."""
        return self.spent + time.perf_counter() - self.made

    def state_dict(self) -> dict[str, Any]:
        """Returns what the checkpoint keeps."""
        epoch = {"images": self.images, "busy": self.ended - self.began, "validation": self.validation}
        return {"rows": self.rows, "start_rms": self.start_rms, "seconds": self.seconds, **epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the epochs up to the checkpoint back; later ones are trained again."""
        self.rows, self.start_rms = list(state_dict["rows"]), state_dict["start_rms"]
        self.spent, self.images, self.busy = (state_dict[key] for key in ("seconds", "images", "busy"))
        self.validation = state_dict["validation"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the epochs that the checkpoint brought, and notes the table's amplitude at the start."""
        if trainer.global_step == 0:
            self.start_rms = amplitude(pl_module)
        del self.rows[trainer.current_epoch :]  # of an epoch that was cut short and now goes on
        self.began = time.perf_counter() - self.busy
        self.ended = self.began + self.busy
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of the epoch."""
        self.began, self.images, self.validation = time.perf_counter(), 0, {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the epoch's metrics of validation; in the trainer's own they stay where a later epoch has none."""
        found = {} if trainer.sanity_checking else trainer.callback_metrics
        self.validation = {key: float(value) for key, value in found.items() if key.startswith("val/")}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images; the clock stops with the last batch, before validation."""
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the host runs ahead of the GPU
        self.ended = time.perf_counter()
        self.images += len(batch[1])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the row of the epoch; validation has run by now, if it does in this epoch."""
        others = {key: float(value) for key, value in trainer.callback_metrics.items() if not key.startswith("val/")}
        metrics = {**self.validation, **others}
        metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        metrics["images_per_second"] = self.images / (self.ended - self.began)
        row = {"epoch": trainer.current_epoch + 1, **metrics}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.current_epoch + 1)


class Similarity(L.Callback):
    """Adds a picture of the scheme's cosine similarities to TensorBoard, at the start and at the end of training."""

    def draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the picture for the epochs trained so far."""
        scheme, grid = scheme_of(pl_module)
        vectors = probes.table(scheme, grid)
        if vectors is None or not vectors.isfinite().all():
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                picture = probes.mosaic(probes.similarity(vectors), grid)
                picture = picture.repeat_interleave(4, 0).repeat_interleave(4, 1)
                logger.experiment.add_image("position/similarity", picture, trainer.current_epoch, dataformats="HW")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the start, unless a checkpoint goes on."""
        if trainer.global_step == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the end."""
        self.draw(trainer, pl_module)


class Last(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which a run goes on: after each epoch, and inside of long ones by time.

    Of a class of its own, so that users can add a ModelCheckpoint beside it.

    Args:
        folder: Folder of the run.
        minutes: Minutes of training since the last checkpoint after which one is written inside an epoch; 0 is never.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        super().__init__(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.file, self.seconds = folder / "last.ckpt", 60 * minutes
        self.began = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock: an epoch ends with a checkpoint."""
        self.began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time, except before a validation, which Lightning would skip on resuming, and at the end."""
        loop, trial = trainer.fit_loop, trainer.fast_dev_run  # type: ignore[attr-defined]
        if trial or not self.seconds or time.monotonic() - self.began < self.seconds:
            return
        validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        if batch_idx + 1 < trainer.num_training_batches and not validates:
            trainer.save_checkpoint(self.file)
            self.began = time.monotonic()


class SaveConfig(SaveConfigCallback):
    """Saves the config where the logger writes or, where it writes no files, in the folder of the run."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves it, once."""
        self.save_to_log_dir = trainer.log_dir is not None
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves it where Lightning would not."""
        if not self.save_to_log_dir:
            path = Path(trainer.default_root_dir) / self.config_filename
            self.parser.save(self.config, str(path), skip_unset=False, overwrite=True, multifile=self.multifile)


class Bar(TQDMProgressBar):
    """Lightning's progress bar, without the version of the logger, which is a word here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Returns what stands behind the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class EpochLines(L.Callback):
    """Prints a line per epoch with metrics, rate and time left; meant for logs and for runs side by side.

    Args:
        folder: Folder of the run; the lines also go to its ``run.log``.
        prefix: What each line begins with, such as the name of the run.
        history: Gives the rows.
    """

    def __init__(self, folder: Path, prefix: str, history: History) -> None:
        self.path, self.prefix, self.history = folder / "run.log", prefix, history
        self.began, self.first = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self.began, self.first = time.perf_counter(), trainer.current_epoch
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.first or batches:
            self.say(f"goes on after epoch {self.first}" + (f" and {batches} batches" if batches else ""))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the epoch's line."""
        row, done = self.history.rows[-1], trainer.current_epoch + 1
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)  # an epoch
        ends = (trainer.max_epochs or done, math.ceil(trainer.max_steps / steps))
        epochs = min(end for end in ends if end > 0)
        left = (time.perf_counter() - self.began) / (done - self.first) * (epochs - done)
        parts = [f"epoch {done}/{epochs}", f"loss {row['train/loss']:.3f}"]
        if "val/accuracy" in row:
            parts.append(f"val {row['val/accuracy']:.2%}")
        parts += [f"{row['images_per_second']:.0f} img/s", f"{duration(left)} left" if left else "done"]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line and keeps it in the log."""
        line = f"{self.prefix}  {text}"
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {line}\n")


def scheme_of(module: L.LightningModule) -> tuple[Any, tuple[int, int]]:
    """Returns the scheme of a classifier that is built, and the grid it was built for."""
    if not isinstance(module, Classifier) or module.net is None:
        raise TypeError("expected a Classifier that is built")
    scheme: Any = module.net.pos_embed
    return scheme, scheme.geometry.grid


def amplitude(module: L.LightningModule) -> float | None:
    """Computes the RMS of what the scheme adds to the tokens, or None where it adds nothing."""
    vectors = probes.table(*scheme_of(module))
    return None if vectors is None else float(torch.sqrt(torch.mean(vectors**2)))
