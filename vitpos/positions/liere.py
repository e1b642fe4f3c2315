"""Rotary positions with learned rotations of more than two channels."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, empty, nn

from vitpos.positions.absolute import divisible
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice, count, flag, register


class Rotations(PositionEmbedding, ABC):
    """Base class: queries and keys at (y, x) are multiplied by ``R = expm(y A_row + x A_column)``.

    The generators A are skew-symmetric, so R is a rotation, of `block_size` channels together. Each head and each block
    of the model has its own, unless `shared`: then the exponentials are computed once per forward pass. R(p)^T R(q)
    equals R(q - p) only if the generators commute.

    Args:
        block_size: Channels that rotate together; None for a whole head, or one of its `parts`.
        shared: Whether all blocks of the model have the same generators.
        axes: Number of learned generators: one per axis, or one for both.
        parts: Number of parts, each of whole blocks of channels, that a head is divided into.
    """

    precise: tuple[str, ...] = ("generators",)

    def __init__(self, geometry: Geometry, *, block_size: int | None, shared: bool, axes: int, parts: int = 1) -> None:
        super().__init__(geometry)
        least = max(geometry.head_dim // parts, 2)
        self.block_size = least if block_size is None else count(self.scheme, "block_size", block_size, 2)
        divisible(self.scheme, "head_dim", geometry.head_dim, parts * self.block_size)
        self.shared = flag(self.scheme, "shared", shared)
        self.layers = 1 if self.shared else geometry.depth
        self.blocks = geometry.head_dim // self.block_size
        entries = self.block_size * (self.block_size - 1) // 2
        self.generators = nn.Parameter(empty(axes, self.layers, geometry.num_heads, self.blocks, entries))

    @abstractmethod
    def entries(self, dtype: torch.dtype) -> Tensor:
        """Returns the generators' entries above the diagonal, (2 axes, layers, heads, blocks, entries)."""

    @abstractmethod
    def coordinates(self, side: int, home: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns the coordinates along an axis, (side,); the training grid has `home` patches along it."""

    def prepare(self, grid: Grid, device: torch.device) -> Tensor | None:
        """Computes the rotations if all blocks share them; otherwise computing them all at once is not faster."""
        return self.rotations(grid, 0, device) if self.shared else None

    def rotations(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Computes the rotations of a grid's patches in a block.

        Returns:
            (heads, blocks, rows * columns, block_size, block_size), in at least float32.
        """
        size = self.block_size
        exact = torch.promote_types(self.generators.dtype, torch.float32)
        row, column = (
            self.coordinates(side, home, exact, device) for side, home in zip(grid, self.geometry.grid, strict=True)
        )
        position = torch.stack([row.repeat_interleave(grid[1]), column.repeat(grid[0])])  # (2, N)
        with torch.autocast(device.type, enabled=False):
            entries = torch.einsum("an,ahbe->hbne", position, self.entries(exact)[:, 0 if self.shared else layer])
            above, below = torch.triu_indices(size, size, 1, device=device)
            upper = entries.new_zeros(*entries.shape[:-1], size, size)
            upper[..., above, below] = entries
            return torch.matrix_exp(upper - upper.transpose(-2, -1))

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """Multiplies queries and keys by the rotations."""
        rotations = (self.rotations(grid, layer, q.device) if prepared is None else prepared).to(q.dtype)
        q, k = (
            torch.einsum("hbnij,zhnbj->zhnbi", rotations, torch.unflatten(x, -1, (-1, self.block_size))).flatten(-2)
            for x in (q, k)
        )
        return q, k


@register("liere")
class LieRE(Rotations):
    """Multiplies queries and keys by a learned rotation, a separate one in each block and head.

    A block of b = block_size channels at position (y, x) is multiplied by ``R = expm(y A_row + x A_column)``, with
    skew-symmetric generators A (b, b). Along an axis of n patches coordinates go from 0 to 1 on the training grid, and
    to n' / n on a grid of n' patches. For b = 2 this is ``rope_mixed``. Larger rotations do not commute, so the logit
    depends on more than the offset: R(p)^T R(q) equals R(q - p) only if the generators commute.

    Source: Ostmeier et al. 2025 (LieRE: Lie Rotational Positional Encodings), section 4; coordinates and initialisation
    are those of the authors' code. Class and register tokens are not rotated, as there. In the paper every block has
    its own generators, and the released code declares them; but it overwrites the list of rotations in the loop over
    the blocks, so that those of the first block rotate all of them and the others never learn. ``shared=True``
    reproduces that and is needed for its checkpoints: `generators` is then that of its first block.

    Args:
        block_size: Channels that rotate together (LieRE_8: 8); None for the whole head (LieRE_64 with head_dim 64).
        shared: Whether all blocks of the model have the same generators, as in effect in the released code.
        init: ``"random"`` (entries uniform in [0, 2 pi), as in the source) or ``"zero"``, the identity, so that a
            pretrained model starts from its own function.
    """

    def __init__(
        self, geometry: Geometry, *, block_size: int | None = None, shared: bool = False, init: str = "random"
    ) -> None:
        super().__init__(geometry, block_size=block_size, shared=shared, axes=2)
        self.init = choice(self.scheme, "init", init, ("random", "zero"))
        self.by_offset = self.block_size == 2  # larger rotations do not commute
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialises the generators."""
        self.generators.uniform_(0, 0 if self.init == "zero" else 2 * math.pi)

    def entries(self, dtype: torch.dtype) -> Tensor:
        """Returns the generators' entries."""
        return self.generators.to(dtype)

    def coordinates(self, side: int, home: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns coordinates from 0 to 1 on the training grid."""
        if type(side) is int:
            return torch.linspace(0, side / home, side, dtype=dtype, device=device)
        # torch.export would make the number of steps of linspace a constant.
        step: Any = side / home / torch.sym_max(side - 1, 1)
        return torch.arange(side, dtype=dtype, device=device).mul(step)


@register("comrope")
class ComRoPE(Rotations):
    """LieRE with commuting generators, so that the logit depends on the offset only.

    A block of b = block_size channels at position (y, x) is multiplied by ``expm(y A_row + x A_column)``, with a
    learned P (b, b) per block of channels, head and block of the model. ``"ld"`` (linearly dependent) has
    ``A_axis = theta_axis (P - P^T)``, with theta per axis and block of channels, the same for all heads; ``"ap"``
    (axial partition) rotates blocks of channels alternately by row and by column, by ``P - P^T``. The parameters are
    the differences P - P^T above the diagonal. Coordinates are ``(row + 1/2) / rows``, and likewise for columns, so
    another grid samples the same square differently.

    Source: Yu et al. 2025 (ComRoPE: Scalable and Robust Rotary Position Embedding Parameterized by Trainable Commuting
    Angle Matrices), section 4 and the authors' code, whose coordinates and initialisation these are: P and theta from
    N(0, 1). There a class token lies in the middle of the image; here class and register tokens are not rotated. The
    random perturbation of positions in training is left out.

    Args:
        commuting: ``"ld"`` or ``"ap"``.
        block_size: Channels that rotate together (the paper's choice: 8); None for the whole head, or half of it for
            ``"ap"``.
        shared: Whether all blocks of the model have the same generators; in the source each has its own.
    """

    precise = ("generators", "factors")
    factors: nn.Parameter | None

    def __init__(
        self,
        geometry: Geometry,
        *,
        commuting: str = "ld",
        block_size: int | None = None,
        shared: bool = False,
    ) -> None:
        self.axial = choice(self.scheme, "commuting", commuting, ("ld", "ap")) == "ap"
        super().__init__(geometry, block_size=block_size, shared=shared, axes=1, parts=1 + self.axial)
        self.factors = None if self.axial else nn.Parameter(empty(2, self.layers, 1, self.blocks, 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialises P - P^T and theta."""
        self.generators.normal_(std=math.sqrt(2))
        if self.factors is not None:
            self.factors.normal_()

    def entries(self, dtype: torch.dtype) -> Tensor:
        """Returns the generators' entries for each axis."""
        if self.factors is not None:
            return self.factors.to(dtype) * self.generators.to(dtype)
        number = torch.arange(self.blocks, device=self.generators.device)
        turns = torch.stack([number % 2 == 0, number % 2 == 1]).to(dtype)
        return turns[:, None, None, :, None] * self.generators.to(dtype)

    def coordinates(self, side: int, home: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns the centres of patches in [0, 1]."""
        return (torch.arange(side, dtype=dtype, device=device) + 0.5) / side
