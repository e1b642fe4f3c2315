"""The canonical form of a data set: uint8 images whose order and split depend only on their contents."""

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitpos.errors import visible

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@lru_cache
def say(line: str) -> None:
    """Logs a warning once per process (a study loads the same data for each run), with file names escaped."""
    logging.getLogger(__name__).warning(visible(line))


class Raw(NamedTuple):
    """Decoded images (N, C, H, W) uint8 and labels (N,) int64 in file order; missing parts are split off later."""

    classes: tuple[str, ...]
    images: Array
    labels: Labels
    test_images: Array | None = None
    test_labels: Labels | None = None
    val_images: Array | None = None
    val_labels: Labels | None = None


@dataclass(frozen=True)
class Split:
    """One part of a data set: images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """Returns the part on a device; no copy if it is already there."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """A data set in canonical form (see `canonical`).

    Attributes:
        name: Name of the data set.
        classes: Names of the classes.
        fingerprint: Hash of the contents.
        train: Training part.
        val: Validation part.
        test: Test part.
        repeated: Number of validation images that are also in training, and of test images that are also in training or
            validation, pixel for pixel and whatever their class.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    train: Split
    val: Split
    test: Split
    repeated: tuple[int, int]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of the training part, in units of 0..255, each (C, 1, 1) float32.

        Computed from the counts of the 256 levels, so the sums are exact. A constant channel gets a standard deviation
        of 1.
        """
        levels = torch.arange(256, dtype=torch.float64)
        channels = self.train.images.unbind(1)
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).double()
        shares = counts / counts.sum(1, keepdim=True)
        mean = shares @ levels
        deviation = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
        deviation[deviation == 0] = 1
        return mean.float()[:, None, None], deviation.float()[:, None, None]


def canonical(name: str, raw: Raw) -> Images:
    """Sorts and splits a data set by its contents, so that nothing depends on the layout of its files.

    Each image has a digest, ``BLAKE2b-128(pixels (C, H, W) uint8, label int64 little-endian)``, and each part is sorted
    by it. If validation is missing, it is the first 10 % (rounded half to even) of each class of the training part. If
    test is missing, first 20 % of each class are split off in the same way.

    Args:
        name: Name of the data set.
        raw: Its decoded images, in any order.

    Returns:
        The data set. Its fingerprint is ``BLAKE2b-128`` of the image shape, the number and the sorted digests of train
        and validation images together, and the same of test; if validation is given, of train, test and validation. It
        does not depend on the order of the files.
    """
    train, total = _Ordered.of(raw.images, raw.labels), hashlib.blake2b(digest_size=16)
    total.update(repr(raw.images.shape[1:]).encode())
    if raw.test_images is None or raw.test_labels is None:
        test, train = train.hold_out(0.2)
    else:
        test = _Ordered.of(raw.test_images, raw.test_labels)
    hashed = [train, test]
    if raw.val_images is None or raw.val_labels is None:
        val, train = train.hold_out(0.1)
    else:
        val = _Ordered.of(raw.val_images, raw.val_labels)
        hashed.append(val)
    for part in hashed:
        total.update(len(part.digests).to_bytes(8, "little"))
        total.update(b"".join(part.digests))
    seen: set[bytes] = set()
    repeated = []
    for part in (train, val, test):
        pixels = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part.images]
        repeated.append(sum(digest in seen for digest in pixels))
        seen.update(pixels)
    return Images(
        name=name,
        classes=raw.classes,
        fingerprint=total.hexdigest(),
        train=train.split(),
        val=val.split(),
        test=test.split(),
        repeated=(repeated[1], repeated[2]),
    )


class _Ordered(NamedTuple):
    """A part sorted by the digests of its images."""

    images: Array
    labels: Labels
    digests: list[bytes]

    @classmethod
    def of(cls, images: Array, labels: Labels) -> "_Ordered":
        suffixes = [int(label).to_bytes(8, "little") for label in labels]
        pairs = zip(images, suffixes, strict=True)
        digests = [hashlib.blake2b(i.tobytes() + s, digest_size=16).digest() for i, s in pairs]
        return cls(images, labels, digests).at(np.array(sorted(range(len(labels)), key=digests.__getitem__)))

    def at(self, indices: npt.NDArray[np.intp]) -> "_Ordered":
        return _Ordered(self.images[indices], self.labels[indices], [self.digests[i] for i in indices])

    def hold_out(self, fraction: float) -> tuple["_Ordered", "_Ordered"]:
        """Splits off the first `fraction` of each class; both results stay in order."""
        held = np.zeros(len(self.labels), dtype=bool)
        for label in np.unique(self.labels):
            (where,) = np.nonzero(self.labels == label)
            held[where[: round(fraction * len(where))]] = True
        return self.at(np.nonzero(held)[0]), self.at(np.nonzero(~held)[0])

    def split(self) -> Split:
        return Split(torch.from_numpy(self.images), torch.from_numpy(self.labels))
