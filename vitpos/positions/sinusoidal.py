"""Absolute positions that are fixed sines and cosines, over the raster order or over rows and columns."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from vitpos.positions.absolute import Absolute, divisible
from vitpos.positions.base import Geometry, Grid, count, positive, register


class Sinusoidal(Absolute):
    """What the sinusoids share: a fixed table.

    Every table consists of pairs (sin a, cos a), so its RMS is exactly sqrt(1/2) on every grid.
    """

    table: Tensor
    divisor: int
    # Without parameters nothing can be shared: the same fixed table before every block has one name, "every".
    injects = ("stem", "every")

    def __init__(
        self, geometry: Geometry, *, scale: float | None = None, temperature: float = 10000.0, inject: str = "stem"
    ) -> None:
        """Computes the table of the training grid.

        Args:
            geometry: The host's.
            scale: Root mean square of the table; None leaves the formula's, sqrt(1/2).
            temperature: The ratio of the longest to the shortest wavelength, nearly (the paper: 10000).
            inject: ``"stem"`` adds the table before block 0, ``"every"`` before every block. ``"shared"`` would be the
                same as ``"every"``, since a fixed table has no parameters, and is refused.

        Raises:
            VitposError: `scale` or `temperature` is not a finite number above 0, `inject` is another word, or the width
                does not divide into sines and cosines.
        """
        super().__init__(geometry, inject=inject)
        divisible(self.scheme, "embed_dim", geometry.embed_dim, self.divisor)
        self.amplitude = 1.0 if scale is None else positive(self.scheme, "scale", scale) / math.sqrt(0.5)
        self.temperature = positive(self.scheme, "temperature", temperature)
        self.register_buffer("table", self.compute(geometry.grid).float(), persistent=False)

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Gives the table; for another grid than that of training it is computed, not resized."""
        return self.table if self.home(grid) else self.compute(grid, device)

    def reset_parameters(self) -> None:
        """Computes the table anew (after ``to_empty``, say: it is in no state dict)."""
        self.table.copy_(self.compute(self.geometry.grid, self.table.device))

    def compute(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table of a grid at the amplitude asked for, (1, rows * columns, embed_dim), in float64."""
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
    on a square the same channels permuted, so the same similarities. On other grids its code lays the table out
    transposed to the patches (its ``meshgrid`` has rows and columns exchanged), which is not reproduced.
    """

    divisor = 4

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table at its own amplitude, (1, rows * columns, embed_dim), in float64."""
        rows, columns = grid
        bands = self.geometry.embed_dim // 4
        row = self._angles(rows, bands, device)[:, None].expand(rows, columns, bands)
        column = self._angles(columns, bands, device).expand(rows, columns, bands)
        return torch.cat([row.sin(), column.sin(), row.cos(), column.cos()], dim=-1).flatten(0, 1)[None]


@register("sinusoidal_2d_shuffled")
class Sinusoidal2DShuffled(Sinusoidal2D):
    """A control: the vectors of ``sinusoidal_2d``, dealt to the positions by a fixed permutation.

    ``table[p] = sinusoidal_2d[order(p)]``. The set of vectors, so amplitude, rank and spectrum, is the same; every
    position still has its own vector; but neighbours are no more alike than any two. What a model loses against
    ``sinusoidal_2d`` is what the geometry of the table is worth.

    The order depends on the seed and on the number of patches alone. It is that of 31-bit integer hashes of the index,
    computed on the device of the tokens: the same on every device and in every version, with no list to copy there.

    Source: a control of this project. LieRE (Ostmeier et al. 2024) shuffles the patches of trained models at test time;
    here the order is the same in training, so it can be learned.
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
        """Computes the table of the training grid.

        Args:
            geometry: The host's.
            scale: As for ``sinusoidal_2d``.
            temperature: As for ``sinusoidal_2d``.
            inject: As for ``sinusoidal_2d``.
            seed: Selects the permutation; a whole number from 0.

        Raises:
            VitposError: As for ``sinusoidal_2d``, or `seed` is not a whole number from 0.
        """
        self.seed = count(self.scheme, "seed", seed, 0)  # first, for the table is made by the constructor above
        super().__init__(geometry, scale=scale, temperature=temperature, inject=inject)

    def formula(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the table at its own amplitude, (1, rows * columns, embed_dim), in float64."""
        return super().formula(grid, device)[:, self.order(grid[0] * grid[1], device)]

    def order(self, patches: int, device: torch.device | None = None) -> Tensor:
        """Gives the permutation: the indices of `patches` patches sorted by their hashes, int64."""
        low = 2**31 - 1  # hashes of 31 bits times odd multipliers of 31 bits stay within int64
        key = (torch.arange(patches, device=device) + self.seed * 0x9E3779B1 % low) & low
        for multiplier in (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39):
            key = ((key ^ (key >> 16)) * multiplier) & low
        return (key ^ (key >> 15)).argsort()  # no two are equal: each step can be undone
