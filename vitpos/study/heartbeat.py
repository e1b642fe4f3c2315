"""The sign of life of a run: where it runs and how far it is, in ``heartbeat.json`` while it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vitpos.errors import visible
from vitpos.study.reading import write
from vitpos.text import duration

if TYPE_CHECKING:
    from vitpos.train.cli import VitposCLI

FILE = "heartbeat.json"
EVERY = 5.0  # seconds between two beats
FRESH = 90.0  # seconds after which a run without a beat counts as abandoned
WINDOW = 15.0  # seconds that the rate is a mean of


@dataclass(frozen=True)
class Beat:
    """One heartbeat.

    Attributes:
        beat: When it was written, in seconds since 1970.
        started: When this attempt began.
        host: Name of the computer.
        pid: Number of the process there.
        engine: Name of the engine.
        device: ``cpu``, or ``GPU 0``.
        epoch: The epoch in progress, from 1; 0 before training.
        epochs: Epochs in all.
        share: Batches trained, of all.
        images_per_second: Images trained a second, with the time of validation; 0 where not known yet.
        window: Seconds that it is a mean of.
        left: Seconds until training ends; negative where not known yet.
        free: Bytes of memory of the GPU that nobody uses; 0 without one.
        memory: Bytes of memory that it has.
    """

    beat: float
    started: float
    host: str
    pid: int
    engine: str = ""
    device: str = ""
    epoch: int = 0
    epochs: int = 0
    share: float = 0.0
    images_per_second: float = 0.0
    window: float = 0.0
    left: float = -1.0
    free: int = 0
    memory: int = 0

    @property
    def alive(self) -> bool:
        """Whether the run still goes on, as far as can be seen from here."""
        if abs(time.time() - self.beat) > FRESH:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return True

    @property
    def progress(self) -> str:
        """How far the run is: ``epoch 3/10, 1234 img/s, 2 min 05 s left``."""
        if not self.epoch:
            return "prepares"
        rate = f", {self.images_per_second:.0f} img/s" if self.images_per_second else ""
        return f"epoch {self.epoch}/{self.epochs}{rate}" + (f", {duration(self.left)} left" if self.left >= 0 else "")

    @property
    def place(self) -> str:
        """Where the run is: ``since 14:05 on node1 (GPU 0, pid 123)``."""
        began = time.localtime(self.started)
        day = "" if time.localtime()[:3] == began[:3] else f"{began.tm_year}-{began.tm_mon:02d}-{began.tm_mday:02d} "
        device = f"{self.device}, " if self.device else ""
        return f"since {day}{began.tm_hour:02d}:{began.tm_min:02d} on {self.host} ({device}pid {self.pid})"


def read(folder: Path) -> Beat | None:
    """Returns the last heartbeat of the run in a folder; None where there is none, or none that is whole."""
    try:
        with (folder / FILE).open("rb") as file:
            given = json.loads(file.read(10_000))
        beat = Beat(**given)
        for field in dataclasses.fields(beat):
            value, default = getattr(beat, field.name), field.type
            text, whole = isinstance(value, str), type(value) is int
            if text != (default == "str") or (default == "int" and not whole):
                return None
            if not text and not (math.isfinite(value) and abs(value) < 1e15):
                return None
        time.localtime(beat.started)
        return dataclasses.replace(beat, host=visible(beat.host)[:100], device=visible(beat.device)[:100])
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return None


class Pulse:
    """Writes the heartbeat of a run from a thread, which reads what the trainer counts anyway: steps cost nothing.

    Args:
        folder: Folder of the run.
        engine: Name of the engine.
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder = folder
        self.first = Beat(0.0, time.time(), socket.gethostname(), os.getpid(), engine)
        self.cli: VitposCLI | None = None
        self.began: tuple[float, int] | None = None
        self.untrained = 0
        self.marks: deque[tuple[float, int]] = deque(maxlen=1 + round(WINDOW / EVERY))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self) -> Self:
        """Starts beating."""
        write(self.folder / FILE, json.dumps(dataclasses.asdict(self.now())))
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends, and removes the file."""
        self.ended.set()
        self.thread.join()
        (self.folder / FILE).unlink(missing_ok=True)

    def beat(self) -> None:
        """Beats until the run ends."""
        while not self.ended.wait(EVERY):
            with contextlib.suppress(OSError, RuntimeError):  # of a full disk or a lost GPU the run itself will tell
                write(self.folder / FILE, json.dumps(dataclasses.asdict(self.now())))

    def now(self) -> Beat:
        """Returns how far the run is."""
        beat = dataclasses.replace(self.first, beat=time.time())
        if self.cli is None or (self.began is None and not self.cli.trainer.training):
            return beat
        trainer, clock = self.cli.trainer, time.monotonic()
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        an_epoch = trainer.num_training_batches
        if not an_epoch or not math.isfinite(an_epoch):
            return beat
        limits = (trainer.max_epochs or 0, math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / an_epoch))
        epochs = min((limit for limit in limits if limit > 0), default=1)
        if self.began is None:
            self.untrained = batches
        if self.began is None or self.began[1] == self.untrained:
            self.began = clock, batches  # the first batch, which may wait for a compiler, does not count
            self.marks.clear()
        self.marks.append((clock, batches))
        device = trainer.strategy.root_device
        beat = dataclasses.replace(
            beat,
            device=f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', device.index)}"
            if device.type == "cuda"
            else device.type,
            epoch=min(trainer.current_epoch + 1, epochs),
            epochs=epochs,
            share=min(1.0, batches / (epochs * an_epoch)),
        )
        if device.type == "cuda":
            import torch

            free, memory = torch.cuda.mem_get_info(device)
            beat = dataclasses.replace(beat, free=free, memory=memory)
        (then, before), (start, first) = self.marks[0], self.began
        if len(self.marks) < 2 or batches == first:
            return beat
        seconds = clock - then
        return dataclasses.replace(
            beat,
            images_per_second=(batches - before) * self.cli.datamodule.batch_size / seconds,
            window=seconds,
            left=max(0.0, (epochs * an_epoch - batches) * (clock - start) / (batches - first)),
        )
