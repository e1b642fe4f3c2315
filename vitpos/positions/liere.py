"""Rotary positions by learned rotations of many channels at once."""

import math

import torch
from torch import Tensor, empty, nn

from vitpos.positions.absolute import divisible
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice, count, register


@register("liere")
class LieRE(PositionEmbedding):
    """Queries and keys are multiplied by a rotation that is learned, its own in each block and head.

    A block of b = block_size channels at position (y, x) is multiplied by ``R = expm(y A_row + x A_column)``, with
    skew-symmetric generators A (b, b). Along an axis of n patches coordinates go from 0 to 1 on the training grid, and
    to n' / n on a grid of n' patches. For b = 2 this is ``rope_mixed``. For larger b rotations do not commute, so the
    logit depends on more than the offset: R(p)^T R(q) is R(q - p) only where the generators commute.

    Source: Ostmeier et al. 2025 (LieRE: Lie Rotational Positional Encodings), section 4; coordinates and start are
    those of the authors' code. Class and register tokens are not rotated, as there.
    """

    def __init__(self, geometry: Geometry, *, block_size: int | None = None, init: str = "random") -> None:
        """Draws the generators.

        Args:
            geometry: The host's.
            block_size: Channels that turn together (LieRE_8 has 8); None for the whole head (LieRE_64 at head_dim 64).
            init: The start: ``"random"``, entries uniform in [0, 2 pi), that of the source; or ``"zero"``, which turns
                nothing at first, so that a pretrained model goes on from where it was.

        Raises:
            VitposError: `block_size` is no whole number from 2 that divides head_dim, head_dim is 1, or `init` is
                another word.
        """
        super().__init__(geometry)
        size = geometry.head_dim if block_size is None else count(self.scheme, "block_size", block_size, 2)
        self.block_size = 2 if size == 1 else size
        divisible(self.scheme, "head_dim", geometry.head_dim, self.block_size)
        self.by_offset = self.block_size == 2  # larger rotations do not commute
        self.init = choice(self.scheme, "init", init, ("random", "zero"))
        entries = self.block_size * (self.block_size - 1) // 2
        blocks = geometry.head_dim // self.block_size
        self.generators = nn.Parameter(empty(2, geometry.depth, geometry.num_heads, blocks, entries))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the generators' entries above the diagonal anew."""
        self.generators.uniform_(0, 0 if self.init == "zero" else 2 * math.pi)

    def rotations(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Computes the rotations of a grid's patches in a block.

        Returns:
            (heads, blocks, rows * columns, block_size, block_size), in at least float32.
        """
        size = self.block_size
        exact = torch.promote_types(self.generators.dtype, torch.float32)
        trained = self.geometry.grid
        row, column = (
            torch.linspace(0, side / home, side, dtype=exact, device=device)
            for side, home in zip(grid, trained, strict=True)
        )
        position = torch.stack([row.repeat_interleave(grid[1]), column.repeat(grid[0])])
        with torch.autocast(device.type, enabled=False):
            entries = torch.einsum("an,ahbe->hbne", position, self.generators[:, layer].to(exact))
            above, below = torch.triu_indices(size, size, 1, device=device)
            upper = entries.new_zeros(*entries.shape[:-1], size, size)
            upper[..., above, below] = entries
            return torch.matrix_exp(upper - upper.transpose(-2, -1))

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Multiplies queries and keys by the rotations."""
        rotations = self.rotations(grid, layer, q.device).to(q.dtype)
        q, k = (
            torch.einsum("hbnij,zhnbj->zhnbi", rotations, torch.unflatten(x, -1, (-1, self.block_size))).flatten(-2)
            for x in (q, k)
        )
        return q, k
