"""The canonical form of a data set: uint8 images in an order and a split that follow from their contents alone."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Raw(NamedTuple):
    """Decoded images (N, C, H, W) uint8 and labels (N,) int64 in file order; no test part means: split one off."""

    classes: tuple[str, ...]
    images: Array
    labels: Labels
    test_images: Array | None = None
    test_labels: Labels | None = None


@dataclass(frozen=True)
class Split:
    """One part of a data set: images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """Returns the part on a device; itself where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """A data set in canonical form (see `canonical`)."""

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    train: Split
    val: Split
    test: Split

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of the training part, in units of 0..255, each (C, 1, 1) float32.

        They come from the counts of the 256 levels, so the sums are exact; a constant channel has deviation 1.
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
    by it. The first 10 % of each class (rounded half to even) of the training part become the validation part. A
    data set without a test part first gives up 20 % of each class, in the same manner.

    Args:
        name: Name of the data set.
        raw: Its decoded images, in any order.

    Returns:
        The data set; its fingerprint is ``BLAKE2b-128`` over the image shape, the number and the sorted digests of the
        images of train and validation, and the same of test. It does not depend on the order in the files.
    """
    images, labels, digests = raw.images, raw.labels, _digests(raw.images, raw.labels)
    order = _sorted(np.arange(len(labels)), digests)
    if raw.test_images is None or raw.test_labels is None:
        test, order = _hold_out(order, labels, 0.2)
        test_images, test_labels, test_digests = images, labels, digests
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
        test_digests = _digests(test_images, test_labels)
        test = _sorted(np.arange(len(test_labels)), test_digests)
    total = hashlib.blake2b(repr(images.shape[1:]).encode(), digest_size=16)
    for indices, values in ((order, digests), (test, test_digests)):
        total.update(len(indices).to_bytes(8, "little"))
        total.update(b"".join(values[i] for i in indices))
    val, train = _hold_out(order, labels, 0.1)
    return Images(
        name=name,
        classes=raw.classes,
        fingerprint=total.hexdigest(),
        train=_take(images, labels, train),
        val=_take(images, labels, val),
        test=_take(test_images, test_labels, test),
    )


def _digests(images: Array, labels: Labels) -> list[bytes]:
    suffixes = [int(label).to_bytes(8, "little") for label in labels]
    return [hashlib.blake2b(i.tobytes() + s, digest_size=16).digest() for i, s in zip(images, suffixes, strict=True)]


def _sorted(indices: npt.NDArray[np.intp], digests: list[bytes]) -> npt.NDArray[np.intp]:
    return np.array(sorted(indices, key=digests.__getitem__), dtype=np.intp)


def _hold_out(
    order: npt.NDArray[np.intp], labels: Labels, fraction: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Parts an order into the first `fraction` of each class and the rest, both still in order."""
    ordered = labels[order]
    held = np.zeros(len(order), dtype=bool)
    for label in np.unique(ordered):
        (where,) = np.nonzero(ordered == label)
        held[where[: round(fraction * len(where))]] = True
    return order[held], order[~held]


def _take(images: Array, labels: Labels, indices: npt.NDArray[np.intp]) -> Split:
    return Split(torch.from_numpy(images[indices]), torch.from_numpy(labels[indices]))
