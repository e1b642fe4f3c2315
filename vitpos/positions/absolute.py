"""Base class of absolute schemes: one vector per position, added at one or more layers."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice


class Absolute(PositionEmbedding, ABC):
    """Adds one vector per position to the patch tokens: ``x + table``.

    Source: Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words), appendix D.4 and Table 8, columns "Default/Stem",
    "Every Layer" and "Every Layer-Shared". The paper also gives the class token a position; here only patches have one.

    Args:
        inject: Where the table is added: ``"stem"`` (before block 0), ``"every"`` (before every block, each with its
            own table) or ``"shared"`` (before every block, the same table).

    Attributes:
        injects: The values of `inject` that the scheme supports.
    """

    injects: tuple[str, ...] = ("stem", "every", "shared")

    def __init__(self, geometry: Geometry, *, inject: str) -> None:
        super().__init__(geometry)
        self.inject = choice(self.scheme, "inject", inject, self.injects)

    @property
    def tables(self) -> int:
        """Number of tables: `depth` for ``inject="every"``, else 1."""
        return self.geometry.depth if self.inject == "every" else 1

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the table for `grid` before the blocks selected by `inject`."""
        if layer and self.inject == "stem":
            return x
        table = layer if self.inject == "every" else 0
        return x + self.vectors((grid[0], grid[1]), table, x.device).to(x.dtype)

    @abstractmethod
    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Returns the vectors of all positions of a grid.

        Args:
            grid: Rows and columns.
            table: Index of the table, from 0.
            device: Device of the tokens.

        Returns:
            (1, rows * columns, embed_dim), in row-major order.
        """


def divisible(scheme: str, name: str, value: int, divisor: int) -> int:
    """Returns `value`, or raises a VitposError naming the nearest multiples of `divisor` if it is not one."""
    if value % divisor:
        below = value - value % divisor
        near = " or ".join(str(v) for v in (below, below + divisor) if v > 0)
        raise VitposError(
            f"position scheme {scheme!r}: {name} {value} is not divisible by {divisor}; nearest allowed: {near}"
        )
    return value
