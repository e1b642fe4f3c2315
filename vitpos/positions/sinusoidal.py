"""Fixed absolute positions: sines and cosines of the raster index, or of row and column."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from vitpos.positions.absolute import Absolute, divisible
from vitpos.positions.base import Geometry, Grid, count, positive, register


class Sinusoidal(Absolute):
    """Base class of sinusoidal schemes: a fixed table.

    A table consists of pairs (sin a, cos a), so without `scale` its RMS is exactly sqrt(1/2) on every grid.

    Args:
        scale: RMS of the table; None keeps sqrt(1/2).
        temperature: Approximate ratio of the longest to the shortest wavelength (the paper: 10000).
        inject: ``"stem"`` adds the table before block 0, ``"every"`` before every block. ``"shared"`` is refused: a
            fixed table has no parameters, so it would be the same as ``"every"``.
    """

    table: Tensor
    divisor: int
    injects = ("stem", "every")

    def __init__(
        self, geometry: Geometry, *, scale: float | None = None, temperature: float = 10000.0, inject: str = "stem"
    ) -> None:
        super().__init__(geometry, inject=inject)
        divisible(self.scheme, "embed_dim", geometry.embed_dim, self.divisor)
        self.amplitude = 1.0 if scale is None else positive(self.scheme, "scale", scale) / math.sqrt(0.5)
        self.temperature = positive(self.scheme, "temperature", temperature)
        self.register_buffer("table", self.compute(geometry.grid).float(), persistent=False)

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Returns the table; computed, not resized, for grids other than the training grid."""
        return self.table if self.is_training_grid(grid) else self.compute(grid, device)

    def reset_parameters(self) -> None:
        """Recomputes the table, which is in no state dict (needed e.g. after ``to_empty``)."""
        self.table.copy_(self.compute(self.geometry.grid, self.table.device))

    def compute(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the scaled table of a grid, (1, rows * columns, embed_dim), in float64."""
        return self.amplitude * self.formula(grid, device)

    @abstractmethod
    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the unscaled table of a grid, (1, rows * columns, embed_dim), in float64."""

    def _angles(self, positions: int, bands: int, device: torch.device | None) -> Tensor:
        """Returns ``position / temperature^(band / bands)`` in float64 (bfloat16 is off by 0.17 at 64)."""
        band = torch.arange(bands, dtype=torch.float64, device=device)
        position = torch.arange(positions, dtype=torch.float64, device=device)
        return position[:, None] * self.temperature ** (-band / bands)  # (positions, bands)


@register("sinusoidal_1d")
class Sinusoidal1D(Sinusoidal):
    """The Transformer's sinusoid of the patch index in raster order.

    With d = embed_dim, p = row * columns + column and T = temperature, sines and cosines are interleaved:
    ``table[p, 2i] = sin(p / T^(2i/d))``, ``table[p, 2i+1] = cos(p / T^(2i/d))``, i in [0, d/2).

    Source: Vaswani et al. 2017 (Attention Is All You Need), section 3.5.
    """

    divisor = 2

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the unscaled table."""
        angles = self._angles(grid[0] * grid[1], self.geometry.embed_dim // 2, device)  # (N, d/2)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]  # (1, N, d)


@register("sinusoidal_2d")
class Sinusoidal2D(Sinusoidal):
    """Sinusoids of the row and of the column, half of the channels each.

    With d = embed_dim, T = temperature and w_i = T^(-i / (d/4)), i in [0, d/4), the channels are four runs of d/4:
    ``sin(row * w), sin(column * w), cos(row * w), cos(column * w)``.

    Source: Chen, Xie, He 2021 (MoCo v3), whose wavelengths these are (denominator d/4; big_vision and simple_vit use
    d/4 - 1), in the channel order of timm's ``build_sincos2d_pos_embed``. MoCo v3 orders sin x, cos x, sin y, cos y,
    which on a square grid is a permutation of the same channels with the same similarities. On other grids its code
    lays the table out transposed relative to the patches (its ``meshgrid`` swaps rows and columns); that is not
    reproduced.
    """

    divisor = 4

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the unscaled table."""
        rows, columns = grid
        bands = self.geometry.embed_dim // 4
        row = self._angles(rows, bands, device)[:, None].expand(rows, columns, bands)
        column = self._angles(columns, bands, device).expand(rows, columns, bands)  # (R, C, d/4)
        return torch.cat([row.sin(), column.sin(), row.cos(), column.cos()], dim=-1).flatten(0, 1)[None]


@register("sinusoidal_2d_shuffled")
class Sinusoidal2DShuffled(Sinusoidal2D):
    """A control: the vectors of ``sinusoidal_2d``, assigned to the positions by a fixed permutation.

    ``table[p] = sinusoidal_2d[order(p)]``. The set of vectors is the same, and so are amplitude, rank and spectrum;
    every position still has its own vector; but neighbours are no more similar than any other two positions. The
    accuracy lost relative to ``sinusoidal_2d`` is what the geometry of the table is worth.

    The permutation depends only on the seed and the number of patches. It sorts 31-bit integer hashes of the index,
    computed on the device of the tokens: the same on every device and in every version, with nothing to copy.

    Source: a control of this project. LieRE (Ostmeier et al. 2024) shuffles the patches of trained models at test time;
    here the order is the same in training, so it can be learned.

    Args:
        seed: Selects the permutation; an integer of at least 0.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        scale: float | None = None,
        temperature: float = 10000.0,
        inject: str = "stem",
        seed: int = 0,
    ) -> None:
        self.seed = count(self.scheme, "seed", seed, 0)  # before super().__init__, which computes the table
        super().__init__(geometry, scale=scale, temperature=temperature, inject=inject)

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the unscaled table."""
        return super().formula(grid, device)[:, self.order(grid[0] * grid[1], device)]

    def order(self, patches: int, device: torch.device | None = None) -> Tensor:
        """Returns the permutation: patch indices sorted by their hashes, (patches,), int64."""
        low = 2**31 - 1  # 31-bit hashes times odd 31-bit multipliers fit into int64
        key = (torch.arange(patches, device=device) + self.seed * 0x9E3779B1 % low) & low
        for multiplier in (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39):
            key = ((key ^ (key >> 16)) * multiplier) & low
        return (key ^ (key >> 15)).argsort()  # all hashes differ: every step is invertible
