"""Absolute positions that are learned."""

import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.positions.base import Geometry, Grid, PositionEmbedding, positive, register


@register("learned")
class Learned(PositionEmbedding):
    """One free vector a position, added to the patch tokens before block 0.

    ``x + table``, with table (1, rows * columns, embed_dim) drawn from a normal distribution. On another grid the table
    is resized, bicubic with antialiasing, as timm does (``timm.layers.resample_abs_pos_embed``).

    Source: Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words), section 3.1 and appendix D.4, as timm's
    ``VisionTransformer(pos_embed="learn", no_embed_class=True)``.
    """

    def __init__(self, geometry: Geometry, *, scale: float = 0.02) -> None:
        """Draws the table.

        Args:
            geometry: The host's.
            scale: Root mean square of the table at the start (timm 0.02, CCT 0.2, many tutorials 1).

        Raises:
            VitposError: `scale` is not a finite number above 0.
        """
        super().__init__(geometry)
        self.scale = positive(self.scheme, "scale", scale)
        rows, columns = geometry.grid
        self.table = nn.Parameter(empty(1, rows * columns, geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        # timm's truncation at +-2, 100 deviations of its 0.02, changes nothing there but would lower a larger RMS.
        nn.init.normal_(self.table, std=self.scale)

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the table, resized to `grid`, before block 0."""
        return x + self._resized(grid).to(x.dtype) if layer == 0 else x

    def _resized(self, grid: Grid) -> Tensor:
        if tuple(grid) == self.geometry.grid:
            return self.table
        # In float32 as timm: interpolation of half precision is missing on some devices.
        maps = self.table.float().reshape(1, *self.geometry.grid, -1).permute(0, 3, 1, 2)
        return F.interpolate(maps, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
