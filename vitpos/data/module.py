"""The Lightning data module: images in memory on the trainer's device, order and augmentation by seed."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from vitpos.data.augment import random_crop, random_flip
from vitpos.data.sources import Images, Split, load
from vitpos.errors import VitposError
from vitpos.seeding import generator

Batch = tuple[Tensor, Tensor]


class Batches:
    """Batches of a part that lies in memory; a `DataLoader` has nothing to add to an index."""

    def __init__(self, split: Split, batch_size: int, data: "ImageData | None" = None) -> None:
        """Sets up batches of `split`: in order and whole or, with `data` given, in its order of training."""
        self.split = split
        self.batch_size = batch_size
        self.data = data

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and self.data is None)

    def __iter__(self) -> Iterator[Batch]:
        """Yields uint8 images (B, C, H, W) and labels (B,); in training all batches have the same size."""
        images, labels = self.split.images, self.split.labels
        order = None if self.data is None else self.data.order().to(images.device)
        first = 0 if self.data is None else self.data.next_batch
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            if order is None:
                yield images[part], labels[part]
            else:
                yield images.index_select(0, order[part]), labels.index_select(0, order[part])

    def state_dict(self) -> dict[str, int]:
        """Returns nothing: Lightning's counters say where an epoch goes on; this tells it that one can."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes nothing back."""


class ImageData(LightningDataModule):
    """Images for training, validation and test, as float32 of mean 0 and deviation 1 by channel.

    The uint8 images are moved to the trainer's device once and stay there. The order of training is a pure function of
    (seed, epoch), its augmentation of (seed, step), so both are the same for every model and after a restart.

    Attributes:
        epoch: Epoch of the training order where there is no trainer.
    """

    def __init__(
        self,
        *,
        name: str = "cifar10",
        task: str | None = None,
        root: str | None = None,
        download: bool = False,
        train_fraction: float = 1.0,
        batch_size: int = 256,
        eval_batch_size: int = 250,
        crop_padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        """Takes the options; nothing is read yet.

        Args:
            name: Data set: ``cifar10``, ``cifar100``, ``digits``, ``where`` or ``folder``.
            task: For ``where``: ``place``, ``relation``, ``distance``, ``count`` or ``shape``.
            root: Where the data lies; ``$VITPOS_DATA``, else ``./data``, where not given.
            download: Whether CIFAR may be downloaded into the root.
            train_fraction: Share of the training images of each class that is used, above 0 and at most 1. Which ones
                follows from the images alone, and those of a smaller share are among those of a larger one.
            batch_size: Images a step of training.
            eval_batch_size: Images a step of validation and test (larger ones leave a CPU's cache).
            crop_padding: Zeros around a training image before it is cropped at random; 0 for no crop.
            flip: Whether training images are mirrored at random.
            seed: Seed of order and augmentation.

        Raises:
            VitposError: A size, the padding or the share is out of range.
        """
        super().__init__()
        self.save_hyperparameters(ignore=["root", "download", "eval_batch_size"], logger=False)  # what enters training
        if not 0 < train_fraction <= 1:  # written so that NaN fails too
            raise VitposError(f"data.train_fraction is {train_fraction}; it must be above 0 and at most 1")
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("crop_padding", crop_padding, 0),
        ):
            if value < least:
                raise VitposError(f"data.{option} is {value}; it must be at least {least}")
        self.name: str = name
        self.task, self.root, self.download, self.train_fraction = task, root, download, train_fraction
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.crop_padding, self.flip, self.seed = crop_padding, flip, seed
        self.epoch = 0

    @cached_property
    def source(self) -> Images:
        """The data set in the host's memory, loaded at first use; of its training part the share that is used."""
        images = load(self.name, self.root, download=self.download, task=self.task)
        share = ""
        if self.train_fraction < 1:
            images = replace(images, train=self.first_of_each_class(images))
            share = f" at data.train_fraction {self.train_fraction}"
        if len(images.train) < self.batch_size:
            raise VitposError(
                f"data.batch_size is {self.batch_size}, but {self.name} has only {len(images.train)} training images"
                f"{share}"
            )
        return images

    def first_of_each_class(self, images: Images) -> Split:
        """Takes the first training images of each class: the canonical order is one by digests, as good as random.

        Raises:
            VitposError: A class would be left without an image.
        """
        train, kept = images.train, []
        for label in range(len(images.classes)):
            (where,) = torch.nonzero(train.labels == label, as_tuple=True)
            count = round(self.train_fraction * len(where))
            if count < 1 <= len(where):
                raise VitposError(
                    f"data.train_fraction {self.train_fraction} leaves none of the {len(where)} training images of "
                    f"class {images.classes[label]!r} of {self.name}; each class needs one at least"
                )
            kept.append(where[:count])
        order = torch.cat(kept).sort().values
        return Split(train.images[order], train.labels[order])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.source.classes)

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.source.train.images.shape[1]

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.source.train.images.shape[2:]
        return height, width

    @property
    def fingerprint(self) -> str:
        """Hash of the contents (see `vitpos.data.images.canonical`)."""
        return self.source.fingerprint

    def describe(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of the data."""
        return {
            "name": self.name,
            "train_fraction": self.train_fraction,
            "classes": list(self.classes),
            "shape": [self.in_chans, *self.img_size],
            "fingerprint": self.fingerprint,
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each part."""
        return {part: len(getattr(self.source, part)) for part in ("train", "val", "test")}

    def setup(self, stage: str | None = None) -> None:
        """Loads the data and moves it to the trainer's device.

        Raises:
            VitposError: The data is missing or damaged, has fewer training images than a batch, or the trainer uses
                several devices.
        """
        device = torch.device("cpu")
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                raise VitposError(f"trainer.devices gives {self.trainer.world_size} processes; a run takes one device")
            device = self.trainer.strategy.root_device
        self._train, self._val, self._test = (
            getattr(self.source, part).to(device) for part in ("train", "val", "test")
        )
        self.moments = self.source.moments

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation by channel, each (C, 1, 1), in use: a checkpoint that is evaluated brings its own."""
        return self._mean, self._deviation

    @moments.setter
    def moments(self, moments: tuple[Tensor, Tensor]) -> None:
        device = self._train.images.device
        self._mean, self._deviation = (values.to(device) for values in moments)

    def train_dataloader(self) -> Batches:
        """Training batches, uint8, in the order of (seed, epoch); what is left of the last batch is left out."""
        batches = Batches(self._train, self.batch_size, self)
        if not len(batches):  # a callback may have changed the size
            raise VitposError(f"data.batch_size is {self.batch_size}, but there are {len(self._train)} training images")
        return batches

    def val_dataloader(self) -> Batches:
        """Validation batches, uint8, always in the same order."""
        return Batches(self._val, self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        """Test batches, uint8, always in the same order."""
        return Batches(self._test, self.eval_batch_size)

    def order(self) -> Tensor:
        """The order of the training images in this epoch, a permutation that follows from (seed, epoch)."""
        epoch = self.epoch if self.trainer is None else self.trainer.current_epoch
        if getattr(self.trainer, "overfit_batches", 0):
            epoch = 0  # a part of an epoch, always the same
        return torch.randperm(len(self._train), generator=generator(self.seed, "order", epoch))

    @property
    def next_batch(self) -> int:
        """Number of the epoch's batch that comes next: above 0 where a run goes on inside an epoch."""
        return 0 if self.trainer is None else int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """Augments a batch where the trainer trains, and normalises it; the step is that of the trainer."""
        if isinstance(batch, Tensor):  # the example of Lightning's model summary
            return batch
        images, labels = batch
        if self.trainer is None:
            return self.normalise(images), labels
        if self.trainer.training:
            # counts batches, not optimizer steps, so that accumulated batches differ; this one is not counted in yet
            images = self.augment(images, self.trainer.fit_loop.epoch_loop.total_batch_idx + 1)
        # Lightning converts a batch to the precision of e.g. bf16-true before this hook, when it still is uint8
        return self.trainer.precision_plugin.convert_input(self.normalise(images)), labels

    def augment(self, images: Tensor, step: int) -> Tensor:
        """Crops and mirrors a batch of uint8 images (B, C, H, W) at random, by (seed, step)."""
        draws = generator(self.seed, "augment", step, device=images.device)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, draws)
        return random_flip(images, draws) if self.flip else images

    def normalise(self, images: Tensor) -> Tensor:
        """Returns ``(images / 255 - mean) / deviation`` by channel of the training part, float32."""
        return images.float().sub_(self._mean).div_(self._deviation)
