"""The Lightning data module: images in memory on the trainer's device; order and augmentation follow from the seed."""

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
    """Batches of a part in memory: plain indexing, for which a `DataLoader` would only add overhead.

    Args:
        split: The part.
        batch_size: Images per batch.
        data: If given, its training order is used and the last incomplete batch is dropped; else all images in order.
    """

    def __init__(self, split: Split, batch_size: int, data: "ImageData | None" = None) -> None:
        self.split = split
        self.batch_size = batch_size
        self.data = data

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and self.data is None)

    def __iter__(self) -> Iterator[Batch]:
        """Yields uint8 images (B, C, H, W) and labels (B,)."""
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
        """Returns an empty dict: the method tells Lightning that it can resume an epoch by its own counters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Does nothing."""


class ImageData(LightningDataModule):
    """Training, validation and test images, as float32 normalised to mean 0 and standard deviation 1 per channel.

    The uint8 images are moved to the trainer's device once and stay there. The training order is a pure function of
    (seed, epoch), augmentation of (seed, step), so both are the same for every model and after a restart.

    Attributes:
        epoch: Epoch of the training order if there is no trainer.
    """

    def __init__(
        self,
        *,
        name: str = "cifar10",
        root: str | None = None,
        download: bool = False,
        train_fraction: float = 1.0,
        batch_size: int = 256,
        eval_batch_size: int = 250,
        crop_padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        """Stores the options; nothing is read yet.

        Args:
            name: Data set: ``cifar10``, ``cifar100``, ``digits`` or ``folder``.
            root: Folder with the data; default ``$VITPOS_DATA``, else ``./data``.
            download: Whether CIFAR may be downloaded into the root.
            train_fraction: Share of the training images of each class to use, above 0 and at most 1. The selection
                depends on the images only, and a smaller share is a subset of a larger one.
            batch_size: Images per training step.
            eval_batch_size: Images per validation and test step (larger batches do not fit into a CPU's cache).
            crop_padding: Zero padding around a training image before a random crop; 0 for no crop.
            flip: Whether to mirror training images at random.
            seed: Seed of order and augmentation.

        Raises:
            VitposError: A size, the padding or the share is out of range.
        """
        super().__init__()
        # the options that affect training
        self.save_hyperparameters(ignore=["root", "download", "eval_batch_size"], logger=False)
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
        self.root, self.download, self.train_fraction = root, download, train_fraction
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.crop_padding, self.flip, self.seed = crop_padding, flip, seed
        self.epoch = 0

    @cached_property
    def source(self) -> Images:
        """The data set in host memory, loaded on first use, with the used share of its training part."""
        images = load(self.name, self.root, download=self.download)
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
        """Takes the first training images of each class; the order is by digests, so they are a random subset.

        Raises:
            VitposError: A class would have no image.
        """
        train, kept = images.train, []
        for label in range(len(images.classes)):
            (where,) = torch.nonzero(train.labels == label, as_tuple=True)
            count = round(self.train_fraction * len(where))
            if count < 1 <= len(where):
                raise VitposError(
                    f"data.train_fraction {self.train_fraction} leaves none of the {len(where)} training images of "
                    f"class {images.classes[label]!r} of {self.name}; each class needs at least one"
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
        """Channels per image."""
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
        """Returns the properties of the data that a checkpoint stores."""
        return {
            "name": self.name,
            "train_fraction": self.train_fraction,
            "classes": list(self.classes),
            "shape": [self.in_chans, *self.img_size],
            "fingerprint": self.fingerprint,
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each part."""
        return {part: len(getattr(self.source, part)) for part in ("train", "val", "test")}

    def setup(self, stage: str | None = None) -> None:
        """Loads the data and moves it to the trainer's device.

        Raises:
            VitposError: The data is missing or damaged, there are fewer training images than a batch, or the trainer
                uses several devices.
        """
        device = torch.device("cpu")
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                raise VitposError(f"trainer.devices starts {self.trainer.world_size} processes; a run takes one device")
            device = self.trainer.strategy.root_device
        self._train, self._val, self._test = (
            getattr(self.source, part).to(device) for part in ("train", "val", "test")
        )
        self.moments = self.source.moments

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel in use, each (C, 1, 1); a checkpoint overrides those of the data."""
        return self._mean, self._deviation

    @moments.setter
    def moments(self, moments: tuple[Tensor, Tensor]) -> None:
        device = self._train.images.device
        self._mean, self._deviation = (values.to(device) for values in moments)

    def train_dataloader(self) -> Batches:
        """Training batches, uint8, in the order of (seed, epoch); an incomplete last batch is dropped."""
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
        """Returns the order of the training images in this epoch, a permutation derived from (seed, epoch)."""
        epoch = self.epoch if self.trainer is None else self.trainer.current_epoch
        if getattr(self.trainer, "overfit_batches", 0):
            epoch = 0  # overfit the same part of an epoch every time
        return torch.randperm(len(self._train), generator=generator(self.seed, "order", epoch))

    @property
    def next_batch(self) -> int:
        """Index of the epoch's next batch; above 0 if a run is resumed within an epoch."""
        return 0 if self.trainer is None else int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch | Tensor:
        """Normalises a batch, after augmentation by (seed, step) in training."""
        if isinstance(batch, Tensor):  # the example input of Lightning's model summary
            return batch
        images, labels = batch
        if self.trainer is None:
            return self.normalise(images), labels
        if self.trainer.training:
            # counts batches, not optimizer steps, so that accumulated batches differ; this batch is not counted yet
            images = self.augment(images, self.trainer.fit_loop.epoch_loop.total_batch_idx + 1)
        # Lightning converts a batch to the precision of e.g. bf16-true before this hook, while it is still uint8
        return self.trainer.precision_plugin.convert_input(self.normalise(images)), labels

    def augment(self, images: Tensor, step: int) -> Tensor:
        """Crops and mirrors a batch of uint8 images (B, C, H, W) at random, by (seed, step)."""
        draws = generator(self.seed, "augment", step, device=images.device)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, draws)
        return random_flip(images, draws) if self.flip else images

    def normalise(self, images: Tensor) -> Tensor:
        """Returns ``(images / 255 - mean) / deviation`` per channel of the training part, float32."""
        return images.float().sub_(self._mean).div_(self._deviation)
