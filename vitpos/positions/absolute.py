"""What all absolute schemes share: a vector a position, and the layers at which it is added."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice


class Absolute(PositionEmbedding, ABC):
    """Adds a vector a position to the patch tokens, ``x + table``, before block 0 or before every block.

    Where it is added is the option ``inject``: ``"stem"`` (before block 0), ``"every"`` (before every block, each with
    a table of its own) or ``"shared"`` (one and the same table before every block).

    Source: Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words), appendix D.4 and Table 8, columns "Default/Stem",
    "Every Layer" and "Every Layer-Shared". The paper's class token has a position too; here only patches have.
    """

    injects: tuple[str, ...] = ("stem", "every", "shared")

    def __init__(self, geometry: Geometry, *, inject: str) -> None:
        """Reads the layers of the addition.

        Args:
            geometry: The host's.
            inject: One of `injects`.

        Raises:
            VitposError: `inject` is none of them.
        """
        super().__init__(geometry)
        self.inject = choice(self.scheme, "inject", inject, self.injects)

    @property
    def tables(self) -> int:
        """How many tables of its own the scheme has: one a block for ``inject="every"``, else one."""
        return self.geometry.depth if self.inject == "every" else 1

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the table of `grid` before the blocks that `inject` names."""
        if layer and self.inject == "stem":
            return x
        table = layer if self.inject == "every" else 0
        return x + self.vectors((grid[0], grid[1]), table, x.device).to(x.dtype)

    @abstractmethod
    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Gives the vectors of all positions of a grid.

        Args:
            grid: Rows and columns.
            table: Which of the scheme's tables, from 0.
            device: Where the tokens are.

        Returns:
            (1, rows * columns, embed_dim), on `device`, in row-major order.
        """


def divisible(scheme: str, name: str, value: int, divisor: int) -> int:
    """Checks that a number divides without rest.

    Raises:
        VitposError: It does not; the nearest numbers that do are named.
    """
    if value % divisor:
        below = value - value % divisor
        near = " or ".join(str(v) for v in (below, below + divisor) if v > 0)
        raise VitposError(
            f"position scheme {scheme!r}: {name} {value} is not divisible by {divisor}; nearest allowed: {near}"
        )
    return value
