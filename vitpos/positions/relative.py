"""Relative positions as a learned bias of the logits: a number for each offset, whatever the patches contain."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, flag, not_negative, register


class RelativeBias(PositionEmbedding, ABC):
    """What the learned biases share: each offset between two patches has a number for each head, added to the logits.

    Offsets are query minus key, in patches. On a grid of R rows and C columns those of rows go from 1 - R to R - 1,
    those of columns from 1 - C to C - 1; their numbers are in row-major order, (2R - 1)(2C - 1) of them, as in Swin,
    BEiT and timm's ``gen_relative_position_index``.
    """

    def prepare(self, grid: Grid, device: torch.device) -> Tensor:
        """Gives `places`. No buffer holds them, for averages of weights round what they find there."""
        return self.places(grid, device)

    def places(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Says which number each pair of patches takes, (N, N) of query and key, int64."""
        row, column = (torch.arange(side, device=device)[:, None] for side in grid)
        row, column = row - row.T + grid[0] - 1, column - column.T + grid[1] - 1
        return (row[:, None, :, None] * (2 * grid[1] - 1) + column[:, None]).reshape(2 * (grid[0] * grid[1],))

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Tensor | None = None) -> Tensor:
        """Gives each pair of patches the numbers of its offset, (heads, N, N)."""
        index = self.places(grid, q.device) if prepared is None else prepared
        # embedding(), for the backward of indexing adds in another order every time on some devices. Contiguous, for
        # the sum with the logits takes twice the time where the heads are innermost.
        return F.embedding(index, self.numbers(grid, layer, q.device)).permute(2, 0, 1).contiguous()

    @abstractmethod
    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Gives the numbers of all offsets of a grid in a block, ((2R - 1)(2C - 1), heads), in at least float32."""


@register("relative_bias")
class TableBias(RelativeBias):
    """A learned number for each offset and head.

    ``logits[h, i, j] += table[layer, offset(i, j), h]``, with table (depth, (2R - 1)(2C - 1), heads) for a training
    grid of R rows and C columns, or (1, ...) where the layers share it.

    On another grid the table is resized as by timm's ``RelPosBias.set_window_size``, which is how BEiT is fine-tuned at
    another size: near offsets keep their numbers, nearly, and far ones spread. Along each axis the known offsets are
    moved to 0, +-1, +-(1 + r), +-(1 + r + r^2), ..., with r in [1.01, 1.5] such that the last one, R - 1, comes to that
    of the new grid, and between them the numbers are interpolated linearly; beyond them the last one holds. Both axes
    are resized, also where only one has another length, so r = 1.01 on that of the same length.

    Source: Liu et al. 2021 (Swin Transformer), equation 4, over the whole image as in BEiT (Bao et al. 2022), which has
    the option of one table for all layers. Their code moves the offsets and interpolates by cubic splines; timm's is
    linear, and so is this. BEiT has further numbers for pairs with its class token; here these have a bias of zero.
    """

    def __init__(self, geometry: Geometry, *, shared: bool = False, std: float = 0.02) -> None:
        """Draws the table.

        Args:
            geometry: The host's.
            shared: Whether all layers have one table (BEiT's ``use_shared_rel_pos_bias``); otherwise each has its own.
            std: Deviation of the table at the start; 0 begins as if there were no scheme, as BEiT does.

        Raises:
            VitposError: `shared` is no truth value, or `std` no finite number from 0.
        """
        super().__init__(geometry)
        self.shared = flag(self.scheme, "shared", shared)
        self.std = not_negative(self.scheme, "std", std)
        rows, columns = geometry.grid
        tables = 1 if self.shared else geometry.depth
        self.table = nn.Parameter(empty(tables, (2 * rows - 1) * (2 * columns - 1), geometry.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table anew."""
        nn.init.normal_(self.table, std=self.std)

    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Gives the table of a block, resized to `grid`."""
        table = self.table[0 if self.shared else layer]
        if self.home(grid):
            return table
        exact = torch.promote_types(table.dtype, torch.float32)
        home = self.geometry.grid
        rows, columns = (_interpolation(home[axis], grid[axis], device).to(exact) for axis in (0, 1))
        maps = table.to(exact).view(2 * home[0] - 1, 2 * home[1] - 1, -1)
        # Not in half precision: what is rounded is the bias, once.
        with torch.autocast(device.type, enabled=False):
            return torch.einsum("ry,cx,yxh->rch", rows, columns, maps).flatten(0, 1)

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Gives the tables, resized to `grid`."""
        layers = range(len(self.table))
        return {"table": torch.stack([self.numbers(grid, layer, self.table.device) for layer in layers])}


@register("log_cpb")
class LogCPB(RelativeBias):
    """A small MLP gives the numbers of all offsets, from their logarithms: Swin v2's continuous position bias.

    With the offset d of an axis and the side W of `window` there, ``c = sign(d) log2(1 + 8 |d| / (W - 1)) / log2(8)``;
    of both axes' c, ``logits[h, i, j] += 16 sigmoid(ReLU(c W1 + b1) W2)[h] - 8``, with W1 (2, hidden_dim) and
    W2 (hidden_dim, heads) of each layer its own. Any grid is computed by the same formula; W stays that of training.

    The 8 is the value at W2 = 0. The softmax over patches does not see it, so there this is the source's bias. It is
    taken off since class and register tokens, which the source does not have, would start with e^-8 of a patch's
    attention; and since bfloat16 numbers near 8 are 1/16 apart, where at the start biases have a deviation of 0.02.

    Source: Liu et al. 2022 (Swin Transformer V2), equations 3 and 4, in the normalised form of the authors' code, from
    which are also the 16 sigmoid and the start: all weights of deviation 0.02, b1 zero.
    """

    def __init__(self, geometry: Geometry, *, hidden_dim: int = 512, window: int | None = None) -> None:
        """Draws the weights.

        Args:
            geometry: The host's.
            hidden_dim: Width of the MLP's hidden layer.
            window: Side of the square grid whose largest offset has the coordinate log2(9) / 3 = 1.06, in patches
                (``pretrained_window_size`` in Swin v2); None for rows and columns of the training grid.

        Raises:
            VitposError: `hidden_dim` is no whole number from 1, or `window` none from 2.
        """
        super().__init__(geometry)
        hidden = count(self.scheme, "hidden_dim", hidden_dim)
        self.window = geometry.grid if window is None else (count(self.scheme, "window", window, 2),) * 2
        # No nn.Linear: init_weights would reset the inner modules after this one, and undo its start.
        self.weight1 = nn.Parameter(empty(geometry.depth, hidden, 2))
        self.bias1 = nn.Parameter(empty(geometry.depth, hidden))
        self.weight2 = nn.Parameter(empty(geometry.depth, geometry.num_heads, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew."""
        nn.init.normal_(self.weight1, std=0.02)
        nn.init.zeros_(self.bias1)
        nn.init.normal_(self.weight2, std=0.02)

    def numbers(self, grid: Grid, layer: int, device: torch.device) -> Tensor:
        """Computes the MLP of all offsets of a grid."""
        exact = torch.promote_types(self.weight1.dtype, torch.float32)
        weight1, bias1, weight2 = (p[layer].to(exact) for p in (self.weight1, self.bias1, self.weight2))
        row, column = (self._coordinates(grid, axis, exact, device) for axis in (0, 1))
        # Not in half precision, which would corrupt the coordinates; the cost does not grow with the batch.
        with torch.autocast(device.type, enabled=False):
            hidden = (row[:, None, None] * weight1[:, 0] + column[:, None] * weight1[:, 1] + bias1).relu()
            return 8 * (F.linear(hidden, weight2) / 2).tanh().flatten(0, 1)  # 16 sigmoid(x) - 8 = 8 tanh(x / 2)

    def _coordinates(self, grid: Grid, axis: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Computes the coordinates of the offsets along an axis; where the window's side is 1, W - 1 is taken as 1."""
        offset = torch.arange(1 - grid[axis], grid[axis], dtype=dtype, device=device)
        return offset.sign() * (1 + offset.abs() * (8 / max(self.window[axis] - 1, 1))).log2() / 3


def _interpolation(known: int, asked: int, device: torch.device) -> Tensor:
    """Computes what the numbers of the offsets along a side add to those of another side: see `TableBias`.

    Args:
        known: The side whose numbers are known, in patches.
        asked: The side whose numbers are asked for.
        device: Of the result.

    Returns:
        Weights of linear interpolation, (2 asked - 1, 2 known - 1), in float64.
    """
    low: Any = 1.01
    high: Any = 1.5
    # In torch.export the side is not known yet: then it all is computed by the program.
    last = asked - 1 if type(asked) is int else torch.scalar_tensor(asked - 1, dtype=torch.float64, device=device)
    for _ in range(19):  # until they are 1e-6 apart, as timm, to the last step, for the ratio is no exact solution
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
