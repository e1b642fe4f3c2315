"""Augmentation of a whole batch on its device, with independent random parameters per sample.

torchvision's transforms draw once for a batch (pytorch/vision#2929). Both functions gather rows by index: no loop over
samples, no copy to the host, and any dtype.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pads images with zeros and crops them back to their size at a random position each.

    ``out[b, c, y, x] = padded[b, c, y + dy[b], x + dx[b]]``, dy and dx uniform in 0..2*padding.

    Args:
        images: (B, C, H, W).
        padding: Pixels of zeros on each side.
        generator: Random generator on the device of the images.

    Returns:
        (B, C, H, W), same dtype.
    """
    batch, channels, height, width = images.shape
    device = images.device
    dy, dx = torch.randint(0, 2 * padding + 1, (2, batch, 1, 1), generator=generator, device=device).unbind()
    padded = F.pad(images, (padding,) * 4)
    plane = torch.arange(batch * channels, device=device).view(batch, channels, 1) * padded.shape[2]
    starts = (plane + dy + torch.arange(height, device=device)) * padded.shape[3] + dx
    # a view of all runs of `width` pixels in memory order: each output row is one of them
    rows = padded.flatten().unfold(0, width, 1).index_select(0, starts.flatten())
    return rows.view(batch, channels, height, width)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: (B, C, H, W).
        generator: Random generator on the device of the images.

    Returns:
        (B, C, H, W), same dtype.
    """
    batch = len(images)
    device = images.device
    flip = torch.randint(0, 2, (batch,), generator=generator, device=device)
    return torch.cat([images, images.flip(3)]).index_select(0, torch.arange(batch, device=device) + batch * flip)
