"""Conditional positions, computed from the tokens by a convolution over the grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, not_negative, register


@register("cpe")
class CPE(PositionEmbedding):
    """Adds a depthwise convolution of the patch tokens over the grid, after the first blocks.

    ``x + conv(x) + bias``, with a (kernel_size, kernel_size) kernel and a bias per channel and layer, and zero padding.
    The padding is what tells a patch where it is: a convolution alone is the same everywhere. Nothing depends on the
    grid.

    Source: Chu et al. 2021 (Conditional Positional Encodings for Vision Transformers), its position encoding generator.
    It comes after block 0, where the paper reports 72.4 % accuracy, against 70.6 % before it.

    Args:
        layers: Number of convolutions, after blocks 0 to layers - 1, each with its own kernel. A model with a single
            block has it before that block, because no block would follow it otherwise.
        kernel_size: Side of the kernel in patches; odd.
        std: Initial standard deviation of the kernels, with zero biases; 0 starts as the identity. None draws kernels
            and biases uniformly within 1 / kernel_size, as ``nn.Conv2d`` and the source do.
    """

    def __init__(self, geometry: Geometry, *, layers: int = 1, kernel_size: int = 3, std: float | None = None) -> None:
        super().__init__(geometry)
        self.layers, most = count(self.scheme, "layers", layers), max(geometry.depth - 1, 1)
        if layers > most:
            raise VitposError(
                f"position scheme {self.scheme!r}: layers={layers} with {geometry.depth} blocks; at most {most}, "
                "because each comes between two blocks"
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
        """Re-initialises the kernels and biases."""
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
        # A view of the tokens in channels-last layout, in which a depthwise convolution is several times as fast.
        maps = x.transpose(1, 2).view(x.shape[0], x.shape[2], *grid)  # (B, C, rows, columns)
        moved = F.conv2d(maps, kernel, bias, padding=kernel.shape[-1] // 2, groups=x.shape[2])
        return x + moved.flatten(2).transpose(1, 2)
