"""Positions that the tokens make themselves: a convolution over the grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, not_negative, register


@register("cpe")
class CPE(PositionEmbedding):
    """Adds to the patch tokens their depthwise convolution over the grid, after the first blocks.

    ``x + conv(x) + bias``, with a kernel (kernel_size, kernel_size) and a bias for each channel and place, and zeros
    around the grid. The zeros are what tells a patch where it is: a convolution alone is the same everywhere. Nothing
    depends on the grid.

    Source: Chu et al. 2021 (Conditional Positional Encodings for Vision Transformers), its position encoding generator.
    It comes after block 0, where the paper finds an accuracy of 72.4 %, against 70.6 % before it.
    """

    def __init__(self, geometry: Geometry, *, layers: int = 1, kernel_size: int = 3, std: float | None = None) -> None:
        """Draws the kernels.

        Args:
            geometry: The host's.
            layers: How many convolutions: one after each of the blocks 0 to layers - 1, each with a kernel of its own.
                A host of a single block takes its one before that block, for after the last no token is left to move.
            kernel_size: Side of the kernel in patches; odd, so that it has a centre.
            std: Deviation of the kernels at the start, with zero bias; 0 begins as if there were no scheme. None for
                uniform numbers within 1 / kernel_size, bias too, the start of ``nn.Conv2d`` and of the source.

        Raises:
            VitposError: `layers` is no whole number from 1 or more than there are blocks to follow, `kernel_size` no
                odd whole number from 3, or `std` no finite number from 0.
        """
        super().__init__(geometry)
        self.layers, most = count(self.scheme, "layers", layers), max(geometry.depth - 1, 1)
        if layers > most:
            raise VitposError(
                f"position scheme {self.scheme!r}: layers={layers} with {geometry.depth} blocks; at most {most}, for "
                "each comes between two blocks"
            )
        if count(self.scheme, "kernel_size", kernel_size, 3) % 2 == 0:
            raise VitposError(f"position scheme {self.scheme!r}: kernel_size={kernel_size} must be odd")
        self.std = None if std is None else not_negative(self.scheme, "std", std)
        self.first = min(1, geometry.depth - 1)
        self.kernels = nn.Parameter(empty(layers, geometry.embed_dim, 1, kernel_size, kernel_size))
        self.biases = nn.Parameter(empty(layers, geometry.embed_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the kernels anew."""
        if self.std is None:
            bound = 1 / self.kernels.shape[-1]
            self.kernels.uniform_(-bound, bound)
            self.biases.uniform_(-bound, bound)
        else:
            self.kernels.normal_(std=self.std)
            self.biases.zero_()

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the convolution after the blocks that have one."""
        number = layer - self.first
        if not 0 <= number < self.layers:
            return x
        kernel, bias = self.kernels[number].to(x.dtype), self.biases[number].to(x.dtype)
        # A view of the tokens: channels last, the layout in which a depthwise convolution is several times as fast.
        maps = x.transpose(1, 2).view(x.shape[0], x.shape[2], *grid)
        moved = F.conv2d(maps, kernel, bias, padding=kernel.shape[-1] // 2, groups=x.shape[2])
        return x + moved.flatten(2).transpose(1, 2)
