"""Absolute positions that are learned."""

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
    """One free vector a position.

    ``x + table``, with table (1, rows * columns, embed_dim), or (depth, rows * columns, embed_dim) for
    ``inject="every"``. It starts from a normal distribution, or, as a control for what the start is worth, from the
    table of ``sinusoidal_2d``. On another grid the table is resized, bicubic with antialiasing, as timm does
    (``timm.layers.resample_abs_pos_embed``).

    Source: Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words), section 3.1 and appendix D.4, as timm's
    ``VisionTransformer(pos_embed="learn", no_embed_class=True)``; the start from 2-D sinusoids is a control of this
    project.
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
        """Draws the table.

        Args:
            geometry: The host's.
            scale: Root mean square of the table at the start (timm 0.02, CCT 0.2, many tutorials 1), whatever `init`
                is: so the starts compare at one amplitude. 0.7071 is the one of ``sinusoidal_2d``.
            init: The start: ``"normal"``, independent numbers; or ``"sinusoidal_2d"``, the table of that scheme, in all
                layers for ``inject="every"``.
            temperature: That of ``init="sinusoidal_2d"``.
            inject: ``"stem"``, ``"every"`` or ``"shared"``: see `Absolute`.

        Raises:
            VitposError: `scale` or `temperature` is not a finite number above 0, `init` or `inject` is another word,
                `temperature` is given for the normal start, or the width does not divide into sines and cosines.
        """
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
        """Draws the table anew."""
        if self.init == "sinusoidal_2d":
            start = Sinusoidal2D(self.geometry, scale=self.scale, temperature=self.temperature)
            with torch.no_grad():
                self.table.copy_(start.compute(self.geometry.grid, self.table.device))
        else:
            # timm's truncation at +-2, 100 deviations of its 0.02, changes nothing there but would lower a larger RMS.
            nn.init.normal_(self.table, std=self.scale)

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Gives a table, resized to `grid`."""
        own = self.table[table : table + 1]
        if self.home(grid):
            return own
        return _resized(own.reshape(1, *self.geometry.grid, -1), grid).flatten(1, 2)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Gives the tables, resized to `grid`."""
        return {"table": torch.cat([self.vectors(grid, table, self.table.device) for table in range(self.tables)])}


@register("learned_axial")
class LearnedAxial(Absolute):
    """A learned vector for the row plus one for the column.

    ``x[r, c] + rows[r] + columns[c]``, both of full width: rows (1, rows, embed_dim) and columns (1, columns,
    embed_dim), with depth in place of 1 for ``inject="every"``. On another grid each is resized along its own axis,
    bicubic with antialiasing; that is the resize of ``learned`` applied to the sum.

    Source: Ho et al. 2019 (Axial Attention in Multidimensional Transformers), which adds one embedding an axis. The
    "2-D" row of the ViT paper (Dosovitskiy et al. 2021, appendix D.4) and the Reformer (Kitaev et al. 2020) concatenate
    two of part of the width instead: the special case of this sum where each vector is zero on the other's channels.
    """

    def __init__(self, geometry: Geometry, *, scale: float = 0.02, inject: str = "stem") -> None:
        """Draws the vectors.

        Args:
            geometry: The host's.
            scale: Root mean square of the sum at the start; each of the two terms has ``scale / sqrt(2)``.
            inject: ``"stem"``, ``"every"`` or ``"shared"``: see `Absolute`.

        Raises:
            VitposError: `scale` is not a finite number above 0, or `inject` is another word.
        """
        super().__init__(geometry, inject=inject)
        self.scale = positive(self.scheme, "scale", scale)
        rows, columns = geometry.grid
        self.rows = nn.Parameter(empty(self.tables, rows, geometry.embed_dim))
        self.columns = nn.Parameter(empty(self.tables, columns, geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the vectors anew."""
        for axis in (self.rows, self.columns):
            nn.init.normal_(axis, std=self.scale / math.sqrt(2))

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Gives the sums, resized to `grid`."""
        row = self.rows[table : table + 1, :, None]
        column = self.columns[table : table + 1, None]
        if not self.home(grid):
            row, column = _resized(row, (grid[0], 1)), _resized(column, (1, grid[1]))
        return (row + column).flatten(1, 2)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Gives the vectors, resized to `grid`."""
        rows, columns = _resized(self.rows[:, :, None], (grid[0], 1)), _resized(self.columns[:, None], (1, grid[1]))
        return {"rows": rows.flatten(1, 2), "columns": columns.flatten(1, 2)}


def _resized(table: Tensor, grid: Grid) -> Tensor:
    """Resizes (1, rows, columns, C) to a grid, bicubic with antialiasing."""
    # In float32 as timm: interpolation of half precision is missing on some devices.
    maps = table.float().permute(0, 3, 1, 2)
    return F.interpolate(maps, size=grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1)
