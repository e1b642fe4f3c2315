"""Learned absolute positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.errors import VitposError
from vitpos.positions.absolute import Absolute, divisible
from vitpos.positions.base import Geometry, Grid, choice, positive, register
from vitpos.positions.sinusoidal import Sinusoidal2D

TEMPERATURE = 10000.0


@register("learned")
class Learned(Absolute):
    """One free vector per position.

    ``x + table``, with a table of (1, rows * columns, embed_dim), or (depth, rows * columns, embed_dim) for
    ``inject="every"``. It is initialised from a normal distribution or, as a control for the effect of the
    initialisation, from the table of ``sinusoidal_2d``. On other grids the table is resized, bicubic with antialiasing,
    as in timm (``timm.layers.resample_abs_pos_embed``).

    Source: Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words), section 3.1 and appendix D.4, as timm's
    ``VisionTransformer(pos_embed="learn", no_embed_class=True)``; the sinusoidal initialisation is a control of this
    project.

    Args:
        scale: Initial RMS of the table (timm 0.02, CCT 0.2, many tutorials 1) for either `init`, so both can be
            compared at one amplitude. 0.7071 is the RMS of ``sinusoidal_2d``.
        init: ``"normal"`` (independent numbers) or ``"sinusoidal_2d"`` (the table of that scheme, in all layers for
            ``inject="every"``).
        temperature: Temperature of ``init="sinusoidal_2d"``.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        scale: float = 0.02,
        init: str = "normal",
        temperature: float = TEMPERATURE,
        inject: str = "stem",
    ) -> None:
        super().__init__(geometry, inject=inject)
        self.scale = positive(self.scheme, "scale", scale)
        self.init = choice(self.scheme, "init", init, ("normal", "sinusoidal_2d"))
        self.temperature = positive(self.scheme, "temperature", temperature)
        if self.init == "normal" and self.temperature != TEMPERATURE:
            raise VitposError(
                f"position scheme {self.scheme!r}: temperature={temperature!r} does nothing with init='normal'; "
                "it belongs to init='sinusoidal_2d'"
            )
        if self.init == "sinusoidal_2d":
            divisible(self.scheme, "embed_dim", geometry.embed_dim, Sinusoidal2D.divisor)
        rows, columns = geometry.grid
        self.table = nn.Parameter(empty(self.tables, rows * columns, geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the table."""
        if self.init == "sinusoidal_2d":
            start = Sinusoidal2D(self.geometry, scale=self.scale, temperature=self.temperature)
            with torch.no_grad():
                self.table.copy_(start.compute(self.geometry.grid, self.table.device))
        else:
            # timm truncates at +-2: no effect at its std of 0.02, but with a larger std it would lower the RMS.
            nn.init.normal_(self.table, std=self.scale)

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Returns one table, resized to `grid`."""
        own = self.table[table : table + 1]
        if self.is_training_grid(grid):
            return own
        return _resized(own.reshape(1, *self.geometry.grid, -1), grid).flatten(1, 2)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Returns the tables, resized to `grid`."""
        return {"table": torch.cat([self.vectors(grid, table, self.table.device) for table in range(self.tables)])}


@register("learned_axial")
class LearnedAxial(Absolute):
    """A learned vector for the row plus one for the column.

    ``x[r, c] + rows[r] + columns[c]``, both of full width: rows (1, rows, embed_dim) and columns (1, columns,
    embed_dim), or depth in place of 1 for ``inject="every"``. On other grids each is resized along its own axis,
    bicubic with antialiasing, which equals the resize of ``learned`` applied to the sum.

    Source: Ho et al. 2019 (Axial Attention in Multidimensional Transformers), which adds one embedding per axis. The
    "2-D" row of the ViT paper (Dosovitskiy et al. 2021, appendix D.4) and the Reformer (Kitaev et al. 2020) instead
    concatenate two narrower embeddings: the special case of this sum where each is zero on the other's channels.

    Args:
        scale: Initial RMS of the sum; each of the two terms has ``scale / sqrt(2)``.
    """

    def __init__(self, geometry: Geometry, *, scale: float = 0.02, inject: str = "stem") -> None:
        super().__init__(geometry, inject=inject)
        self.scale = positive(self.scheme, "scale", scale)
        rows, columns = geometry.grid
        self.rows = nn.Parameter(empty(self.tables, rows, geometry.embed_dim))
        self.columns = nn.Parameter(empty(self.tables, columns, geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the vectors."""
        for axis in (self.rows, self.columns):
            nn.init.normal_(axis, std=self.scale / math.sqrt(2))

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Returns the sums, resized to `grid`."""
        row = self.rows[table : table + 1, :, None]  # (1, R, 1, embed_dim)
        column = self.columns[table : table + 1, None]  # (1, 1, C, embed_dim)
        if not self.is_training_grid(grid):
            row, column = _resized(row, (grid[0], 1)), _resized(column, (1, grid[1]))
        return (row + column).flatten(1, 2)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Returns the vectors, resized to `grid`."""
        rows, columns = _resized(self.rows[:, :, None], (grid[0], 1)), _resized(self.columns[:, None], (1, grid[1]))
        return {"rows": rows.flatten(1, 2), "columns": columns.flatten(1, 2)}


def _resized(table: Tensor, grid: Grid) -> Tensor:
    """Resizes (1, rows, columns, C) to a grid, bicubic with antialiasing."""
    # In float32 like timm: some devices cannot interpolate in half precision.
    maps = table.float().permute(0, 3, 1, 2)
    return F.interpolate(maps, size=grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
