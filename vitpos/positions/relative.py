"""Learned relative biases of the logits: a number per offset, independent of the content."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, flag, not_negative, register


class RelativeBias(PositionEmbedding, ABC):
    """Base class: every offset between two patches has a number per head, which is added to the logits.

    Offsets are query minus key, in patches. On a grid of R rows and C columns, row offsets go from 1 - R to R - 1 and
    column offsets from 1 - C to C - 1; the (2R - 1)(2C - 1) numbers are in row-major order, as in Swin, BEiT and timm's
    ``gen_relative_position_index``.
    """

    def prepare(self, grid: Grid, device: torch.device) -> Tensor:
        """Returns `index`. Not a buffer: weight averaging would average and round it."""
        return self.index(grid, device)

    def index(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the number of the offset of each pair of patches, (N, N) of query and key, int64."""
        row, column = (torch.arange(side, device=device)[:, None] for side in grid)
        row, column = row - row.T + grid[0] - 1, column - column.T + grid[1] - 1
        return (row[:, None, :, None] * (2 * grid[1] - 1) + column[:, None]).reshape(2 * (grid[0] * grid[1],))

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Tensor | None = None) -> Tensor:
        """Returns the biases, (heads, N, N)."""
        index = self.index(grid, q.device) if prepared is None else prepared
        # embedding(), because the backward of indexing is not deterministic on some devices. Contiguous, because adding
        # it to the logits takes twice as long if the heads are innermost.
        return F.embedding(index, self.numbers(grid, layer, q.device)).permute(2, 0, 1).contiguous()

    @abstractmethod
    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Returns the biases of all offsets of a grid in a block, ((2R - 1)(2C - 1), heads), in at least float32."""


@register("relative_bias")
class TableBias(RelativeBias):
    """A learned number per offset and head.

    ``logits[h, i, j] += table[layer, offset(i, j), h]``, with a table of (depth, (2R - 1)(2C - 1), heads) for a
    training grid of R rows and C columns, or (1, ...) if the layers share it.

    On other grids the table is resized like timm's ``RelPosBias.set_window_size``, which is how BEiT is fine-tuned at
    another size: small offsets roughly keep their numbers, and large ones spread out. Along each axis the known offsets
    are moved to 0, +-1, +-(1 + r), +-(1 + r + r^2), ..., with r in [1.01, 1.5] such that the last one, R - 1, lands on
    that of the new grid; in between the numbers are interpolated linearly, beyond that the last one is kept. Both axes
    are resized even if only one has changed, so r = 1.01 on the unchanged one.

    Source: Liu et al. 2021 (Swin Transformer), equation 4, over the whole image as in BEiT (Bao et al. 2022), which can
    also share one table among all layers. Their code moves the offsets and interpolates with cubic splines; timm's is
    linear, and so is this. BEiT has additional numbers for pairs with its class token; here their bias is zero.

    Args:
        shared: Whether all layers share one table (BEiT's ``use_shared_rel_pos_bias``).
        std: Initial standard deviation of the table; 0 starts as the identity, as in BEiT.
    """

    def __init__(self, geometry: Geometry, *, shared: bool = False, std: float = 0.02) -> None:
        super().__init__(geometry)
        self.shared = flag(self.scheme, "shared", shared)
        self.std = not_negative(self.scheme, "std", std)
        rows, columns = geometry.grid
        tables = 1 if self.shared else geometry.depth
        self.table = nn.Parameter(empty(tables, (2 * rows - 1) * (2 * columns - 1), geometry.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the table."""
        nn.init.normal_(self.table, std=self.std)

    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Returns the table of a block, resized to `grid`."""
        table = self.table[0 if self.shared else layer]
        if self.is_training_grid(grid):
            return table
        exact = torch.promote_types(table.dtype, torch.float32)
        home = self.geometry.grid
        rows, columns = (_interpolation(home[axis], grid[axis], device).to(exact) for axis in (0, 1))
        maps = table.to(exact).view(2 * home[0] - 1, 2 * home[1] - 1, -1)  # (2R - 1, 2C - 1, heads)
        # Not in half precision: only the result is rounded, once.
        with torch.autocast(device.type, enabled=False):
            return torch.einsum("ry,cx,yxh->rch", rows, columns, maps).flatten(0, 1)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Returns the tables, resized to `grid`."""
        layers = range(len(self.table))
        return {"table": torch.stack([self.numbers(grid, layer, self.table.device) for layer in layers])}


@register("log_cpb")
class LogCPB(RelativeBias):
    """Swin v2's continuous position bias: a small MLP of the log-spaced offset.

    With the offset d along an axis and the side W of `window` there,
    ``c = sign(d) log2(1 + 8 |d| / (W - 1)) / log2(8)``; with c of both axes,
    ``logits[h, i, j] += 16 sigmoid(ReLU(c W1 + b1) W2)[h] - 8``, with a separate W1 (2, hidden_dim) and W2 (hidden_dim,
    heads) per layer. Other grids are computed by the same formula; W stays that of training.

    The 8 is the value at W2 = 0. It cancels in the softmax over patches, so among them this is the source's bias. It is
    subtracted because otherwise class and register tokens, which the source does not have, would start with e^-8 of a
    patch's attention, and because bfloat16 numbers near 8 are 1/16 apart, while the initial biases have a standard
    deviation of 0.02.

    Source: Liu et al. 2022 (Swin Transformer V2), equations 3 and 4, in the normalised form of the authors' code, which
    also has the 16 sigmoid and the initialisation: all weights with standard deviation 0.02, b1 zero.

    Args:
        hidden_dim: Width of the MLP's hidden layer.
        window: Side of the square grid whose largest offset has the coordinate log2(9) / 3 = 1.06, in patches
            (``pretrained_window_size`` in Swin v2); None for rows and columns of the training grid.
    """

    def __init__(self, geometry: Geometry, *, hidden_dim: int = 512, window: int | None = None) -> None:
        super().__init__(geometry)
        hidden = count(self.scheme, "hidden_dim", hidden_dim)
        self.window = geometry.grid if window is None else (count(self.scheme, "window", window, 2),) * 2
        # Not nn.Linear: init_weights would reset the inner modules after this one and undo its initialisation.
        self.weight1 = nn.Parameter(empty(geometry.depth, hidden, 2))
        self.bias1 = nn.Parameter(empty(geometry.depth, hidden))
        self.weight2 = nn.Parameter(empty(geometry.depth, geometry.num_heads, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the weights."""
        nn.init.normal_(self.weight1, std=0.02)
        nn.init.zeros_(self.bias1)
        nn.init.normal_(self.weight2, std=0.02)

    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Computes the MLP of all offsets of a grid."""
        exact = torch.promote_types(self.weight1.dtype, torch.float32)
        weight1, bias1, weight2 = (p[layer].to(exact) for p in (self.weight1, self.bias1, self.weight2))
        row, column = (self._coordinates(grid, axis, exact, device) for axis in (0, 1))
        # Half precision would corrupt the coordinates; the cost does not grow with the batch.
        with torch.autocast(device.type, enabled=False):
            hidden = (row[:, None, None] * weight1[:, 0] + column[:, None] * weight1[:, 1] + bias1).relu()
            return 8 * (F.linear(hidden, weight2) / 2).tanh().flatten(0, 1)  # 16 sigmoid(x) - 8 = 8 tanh(x / 2)

    def _coordinates(self, grid: Grid, axis: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns the coordinates of the offsets along an axis; W - 1 counts as 1 if the window's side is 1."""
        offset = torch.arange(1 - grid[axis], grid[axis], dtype=dtype, device=device)
        return offset.sign() * (1 + offset.abs() * (8 / max(self.window[axis] - 1, 1))).log2() / 3


def _interpolation(known: int, asked: int, device: torch.device) -> Tensor:
    """Returns the linear map from the biases of a side's offsets to those of another side: see `TableBias`.

    Args:
        known: Side with known biases, in patches.
        asked: Side whose biases are wanted.
        device: Device of the result.

    Returns:
        Linear interpolation weights, (2 asked - 1, 2 known - 1), in float64.
    """
    low: Any = 1.01
    high: Any = 1.5
    # In torch.export the side is symbolic, so everything is computed by the exported program.
    last = asked - 1 if type(asked) is int else torch.scalar_tensor(asked - 1, dtype=torch.float64, device=device)
    for _ in range(19):  # bisect to 1e-6; exactly timm's number of steps, because the ratio is approximate
        ratio = (low + high) / 2
        beyond = (ratio ** (known - 1) - 1) / (ratio - 1) > last
        if isinstance(beyond, Tensor):
            low, high = torch.where(beyond, low, ratio), torch.where(beyond, ratio, high)
        else:
            low, high = (low, ratio) if beyond else (ratio, high)
    far = (ratio ** torch.arange(known - 1, dtype=torch.float64, device=device)).cumsum(0)
    places = torch.cat([-far.flip(0), far.new_zeros(1), far])
    wanted = torch.arange(1 - asked, asked, dtype=torch.float64, device=device)
    wanted = wanted.clamp(places[0], places[-1])[:, None]
    before, after = torch.cat([places[:1] - 1, places[:-1]]), torch.cat([places[1:], places[-1:] + 1])
    return torch.minimum((wanted - before) / (places - before), (after - wanted) / (after - places)).clamp(min=0)
