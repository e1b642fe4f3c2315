"""The contenders of bench.py: each trains the same ViT on the same CIFAR-10 images, in a process that takes turns.

Started as ``python contenders.py NAME MODEL``. A number of seconds on a line of standard input starts a turn of that
length; a line of JSON on standard output ends it. With BENCH_MADE_UP=1 the images are noise, and no data is needed.
"""

import functools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import growth
import lightning as L
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vitpos.data.images import Raw, canonical
from vitpos.data.module import ImageData
from vitpos.train.cli import VitposCLI, fast_bf16
from vitpos.train.speed import choose_attention, keep_memory

BATCH = int(os.environ.get("BENCH_BATCH", 256))
WORKERS = int(os.environ.get("BENCH_WORKERS", 2))
WARM = 3  # steps of a turn before the clock starts, after which a loader's prefetched batches are used up
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


NAME, SIZE = sys.argv[1], growth.SIZES[sys.argv[2]]  # LightningCLI clears the command line


if os.environ.get("BENCH_MADE_UP"):
    _noise = np.random.default_rng(0).integers(0, 256, (50_000, 3, 32, 32), np.uint8)
    ImageData.source = canonical("cifar10", Raw(tuple("abcdefghij"), _noise, np.arange(50_000) % 10))  # type: ignore


@register_model
def bench_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The model given on the command line, under a name that timm can create."""
    return timm.create_model("vitpos_nano_patch4_32", pretrained, **SIZE, **kwargs)  # type: ignore[return-value]


class Turns:
    """Counts steps, measures time, and waits between turns."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # output of libraries goes to stderr
        self.steps, self.began, self.seconds = -1, 0.0, 0.0

    def wait(self, **said: float) -> None:
        """Reports the last turn and waits for the next one."""
        print(json.dumps(said), file=self.out, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.seconds, self.steps = float(line), -WARM

    def step(self, images: int = BATCH) -> None:
        """Counts a step; called after each. The first call only reports that the contender is ready."""
        if self.steps == -1 and not self.seconds:
            return self.wait()
        self.steps += 1
        if self.steps == 0 or (self.steps > 2 and time.perf_counter() - self.began > self.seconds):
            if CUDA:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if self.steps:
                peak = torch.cuda.max_memory_allocated() / 1e9 if CUDA else resource.getrusage(0).ru_maxrss / 1e6
                self.wait(rate=self.steps * images / (now - self.began), gigabytes=peak)
            self.began = time.perf_counter()
        return None


class Paced(L.Callback):
    """Reports each step of a Lightning trainer to the turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(self, *args: Any) -> None:
        """Counts a step of training."""
        self.turns.step()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Counts a step of evaluation."""
        self.turns.step(trainer.val_dataloaders.batch_size)  # type: ignore[union-attr]


class Pictures(Dataset[Any]):
    """CIFAR-10 as in torchvision: a Pillow image, transformed at each access."""

    def __init__(self, transform: Callable[[Image.Image], Any] | None = None) -> None:
        split = ImageData(name="cifar10").source.train
        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index])
        return image if self.transform is None else self.transform(image), self.labels[index]


def vit() -> VisionTransformer:
    """Builds timm's model, with a learned table."""
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=4, num_classes=10, class_token=False, global_pool="avg", **SIZE)  # type: ignore[arg-type]


class Tutorial(L.LightningModule):
    """A LightningModule as in Lightning's tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Computes the loss and logs it with the accuracy."""
        images, labels = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        self.log("train_loss", loss)
        self.log("train_acc", (logits.argmax(1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def lightning(turns: Turns) -> None:
    """Trains with a plain Lightning script: DataLoader, Pillow transforms, float32."""
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    loader = DataLoader(
        Pictures(augment), BATCH, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=WORKERS > 0
    )
    trainer = L.Trainer(
        max_epochs=-1, callbacks=[Paced(turns)], default_root_dir=tempfile.mkdtemp(), enable_progress_bar=False
    )
    trainer.fit(Tutorial(), loader)


def timm_loop(turns: Turns) -> None:
    """Trains with timm's loader and default augmentation, in the loop of its script with --amp-dtype bfloat16."""
    loader = create_loader(
        Pictures(), (3, 32, 32), BATCH, is_training=True, use_prefetcher=CUDA, color_jitter=0.4,
        num_workers=WORKERS, persistent_workers=WORKERS > 0, device=DEVICE,
    )  # fmt: skip
    model = vit().to(DEVICE).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    criterion = LabelSmoothingCrossEntropy(0.1)
    while True:
        for images, labels in loader:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = criterion(model(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            turns.step()


def command(turns: Turns, **model: Any) -> VitposCLI:
    """Creates trainer, model and data as ``vitpos fit`` does with its defaults."""
    config: dict[str, Any] = {
        "position": "learned",
        "model": {"name": "bench_patch4_32", **model},
        "data": {"name": "cifar10", "batch_size": BATCH},
        "trainer": {"max_epochs": 10000, "default_root_dir": tempfile.mkdtemp()},
    }
    if NAME != "evaluation":
        config["trainer"]["limit_val_batches"] = 0
    cli = VitposCLI(config, run=False, prefix="bench")
    cli.trainer.callbacks.append(Paced(turns))  # type: ignore[attr-defined]
    return cli


def vitpos(turns: Turns, **model: Any) -> None:
    """Trains as ``vitpos fit`` does, with its defaults unless options of the model are given."""
    cli = command(turns, **model)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def evaluation(turns: Turns) -> None:
    """Evaluates as ``vitpos validate`` does."""
    cli = command(turns)
    while True:
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)


def bare(turns: Turns, mode: str | None = None) -> None:
    """Trains on one batch repeatedly without any overhead, as fast as possible."""
    keep_memory()
    model = timm.create_model("vitpos_nano_patch4_32", position="learned", **SIZE).to(DEVICE).train()
    bf16 = fast_bf16("auto")
    choose_attention(model, "auto", DEVICE.type, "bf16-mixed" if bf16 else "32-true")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (BATCH,), device=DEVICE)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(images), labels, label_smoothing=0.1)

    step = torch.compile(loss, mode=mode) if CUDA else loss
    while True:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            value = step()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        turns.step()


def study(turns: Turns) -> None:
    """Trains like a worker of a study, on one thread."""
    torch.set_num_threads(1)
    vitpos(turns)


def compiled(turns: Turns) -> None:
    """Trains as ``vitpos fit --model.compile true`` does."""
    vitpos(turns, compile=True)


def eager(turns: Turns) -> None:
    """Trains as ``vitpos fit --model.compile false`` does."""
    vitpos(turns, compile=False)


def unfused(turns: Turns) -> None:
    """Trains as ``vitpos fit --model.attention unfused`` does."""
    vitpos(turns, attention="unfused")


def eager_unfused(turns: Turns) -> None:
    """Trains without what a GPU is given by default."""
    vitpos(turns, compile=False, attention="unfused")


def graphs(turns: Turns) -> None:
    """Trains as ``vitpos fit`` would if it compiled to CUDA graphs."""
    torch.compile = functools.partial(torch.compile, mode="reduce-overhead")  # type: ignore[assignment]
    vitpos(turns)


def bare_graphs(turns: Turns) -> None:
    """Trains as the bare loop does, with CUDA graphs."""
    bare(turns, "reduce-overhead")


CONTENDERS = (lightning, timm_loop, vitpos, compiled, study, bare, evaluation)
VARIANTS = (eager, unfused, eager_unfused, graphs, bare_graphs)

if __name__ == "__main__":
    contender = {f.__name__: f for f in (*CONTENDERS, *VARIANTS)}[NAME]
    contender(Turns())
