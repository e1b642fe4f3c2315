"""Absolute positions that are fixed sines and cosines, over the raster order or over rows and columns."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, positive, register


class Sinusoidal(PositionEmbedding, ABC):
    """What both sinusoids share: a fixed table, added to the patch tokens before block 0.

    Every table consists of pairs (sin a, cos a), so its RMS is exactly sqrt(1/2) on every grid.
    """

    table: Tensor
    divisor: int

    def __init__(self, geometry: Geometry, *, scale: float | None = None, temperature: float = 10000.0) -> None:
        """Computes the table of the training grid.

        Args:
            geometry: The host's.
            scale: Root mean square of the table; None leaves the formula's, sqrt(1/2).
            temperature: The ratio of the longest to the shortest wavelength, nearly (the paper: 10000).

        Raises:
            VitposError: `scale` or `temperature` is not a finite number above 0, or the width does not divide into
                sines and cosines.
        """
        super().__init__(geometry)
        width = geometry.embed_dim
        if width % self.divisor:
            below = width - width % self.divisor
            near = " or ".join(str(w) for w in (below, below + self.divisor) if w > 0)
            rule = f"embed_dim {width} is not divisible by {self.divisor}; nearest allowed: {near}"
            raise VitposError(f"position scheme {self.scheme!r}: {rule}")
        self.amplitude = 1.0 if scale is None else positive(self.scheme, "scale", scale) / math.sqrt(0.5)
        self.temperature = positive(self.scheme, "temperature", temperature)
        self.register_buffer("table", self._compute(geometry.grid, None).float(), persistent=False)

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the table of `grid` before block 0; another grid than that of training is computed, not resized."""
        if layer != 0:
            return x
        table = self.table if tuple(grid) == self.geometry.grid else self._compute(grid, x.device)
        return x + table.to(x.dtype)

    def reset_parameters(self) -> None:
        """Computes the table anew (after ``to_empty``, say: it is in no state dict)."""
        self.table.copy_(self._compute(self.geometry.grid, self.table.device))

    def _compute(self, grid: Grid, device: torch.device | None) -> Tensor:
        return self.amplitude * self.formula(grid, device)

    @abstractmethod
    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table at its own amplitude, (1, rows * columns, embed_dim), in float64."""

    def _angles(self, positions: int, bands: int, device: torch.device | None) -> Tensor:
        """``position / temperature^(band / bands)``, (positions, bands), in float64 (bfloat16 errs by 0.17 at 64)."""
        band = torch.arange(bands, dtype=torch.float64, device=device)
        position = torch.arange(positions, dtype=torch.float64, device=device)
        return position[:, None] * self.temperature ** (-band / bands)


@register("sinusoidal_1d")
class Sinusoidal1D(Sinusoidal):
    """The sinusoid of the Transformer over the index of the patch in raster order.

    With d = embed_dim, p = row * columns + column and T = temperature, sines and cosines interleaved:
    ``table[p, 2i] = sin(p / T^(2i/d))``, ``table[p, 2i+1] = cos(p / T^(2i/d))``, i in [0, d/2).

    Source: Vaswani et al. 2017 (Attention Is All You Need), section 3.5.
    """

    divisor = 2

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table at its own amplitude, (1, rows * columns, embed_dim), in float64."""
        angles = self._angles(grid[0] * grid[1], self.geometry.embed_dim // 2, device)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


@register("sinusoidal_2d")
class Sinusoidal2D(Sinusoidal):
    """Sinusoids of the row and of the column, half of the channels each.

    With d = embed_dim, T = temperature and w_i = T^(-i / (d/4)), i in [0, d/4), the channels are four runs of d/4:
    ``sin(row * w), sin(column * w), cos(row * w), cos(column * w)``.

    Source: Chen, Xie, He 2021 (MoCo v3), whose wavelengths these are (denominator d/4; big_vision and simple_vit use
    d/4 - 1), in the channel order of timm's ``build_sincos2d_pos_embed``. MoCo v3 orders sin x, cos x, sin y, cos y:
    the same channels permuted, so the same similarities.
    """

    divisor = 4

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table at its own amplitude, (1, rows * columns, embed_dim), in float64."""
        rows, columns = grid
        bands = self.geometry.embed_dim // 4
        row = self._angles(rows, bands, device)[:, None].expand(rows, columns, bands)
        column = self._angles(columns, bands, device).expand(rows, columns, bands)
        return torch.cat([row.sin(), column.sin(), row.cos(), column.cos()], dim=-1).flatten(0, 1)[None]
