"""Relative positions as a fixed bias of the logits: the farther a key, the less a head attends to it."""

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, not_negative, positive, register

Sector = tuple[tuple[int, int], tuple[int, int]]
Head = tuple[float, Sector | None]

# The eight directions between patches, as (right, up), counterclockwise.
COMPASS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
# The sectors of each width, in degrees, by the direction where they begin, in the order of LookHere's heads.
BEGIN = {
    180: (0, 4, 2, 6, 7, 1, 5, 3),  # towards up, down, left, right, up right, up left, down right, down left
    90: (2, 0, 4, 6, 1, 5, 3, 7),  # towards up left, up right, down left, down right, up, down, left, right
    # left of up, left of down, above left, above right, right of up, right of down, below left, below right
    45: (2, 5, 3, 0, 1, 6, 4, 7),
}

_FAR = -1e30  # stands for -inf in a buffer, for the moving average of two of those is NaN


class Distance(PositionEmbedding):
    """What the fixed biases share: minus the head's slope times the Euclidean distance of the two patches.

    ``logits[h, i, j] -= slope(h) * sqrt((row_i - row_j)^2 + (column_i - column_j)^2)``, in patches. A head may have a
    sector: what it sees from a patch, edges and the patch itself included; to keys outside the bias is -inf.
    """

    table: Tensor

    def __init__(self, geometry: Geometry, heads: list[list[Head]]) -> None:
        """Computes the biases of the training grid.

        Args:
            geometry: The host's.
            heads: Slope and sector of the heads of each layer, or of one layer for all.
        """
        super().__init__(geometry)
        self.heads = heads
        self.register_buffer("table", self._tables(), persistent=False)

    def reset_parameters(self) -> None:
        """Computes the biases anew (after ``to_empty``, say: they are in no state dict)."""
        self.table.copy_(self._tables(self.table.device))

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> Tensor:
        """Gives the biases of the heads, (heads, N, N); for another grid than that of training they are computed."""
        layer %= len(self.heads)
        if not self.home(grid):
            return self._compute(grid, layer, q.device)
        return self.table[layer].masked_fill(self.table[layer] < _FAR / 2, float("-inf"))

    def _tables(self, device: torch.device | None = None) -> Tensor:
        """Computes the biases of the training grid in all layers that differ, (layers, heads, N, N)."""
        tables = [self._compute(self.geometry.grid, layer, device) for layer in range(len(self.heads))]
        return torch.stack(tables).clamp(min=_FAR)

    def _compute(self, grid: Grid, layer: int, device: torch.device | None) -> Tensor:
        """Computes the biases of a grid in a layer, (heads, N, N), in float32."""
        row = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
        column = torch.arange(grid[1], device=device).repeat(grid[0])
        right, up = column - column[:, None], row[:, None] - row  # from query to key
        distance = (right.square() + up.square()).float().sqrt()
        biases = []
        for slope, sector in self.heads[layer]:
            bias = -slope * distance
            if sector is not None:
                (x, y), (other_x, other_y) = sector
                # Left of the edge where the sector begins and right of that where it ends, in whole numbers.
                seen = (x * up >= y * right) & (other_y * right >= other_x * up)
                bias = bias.masked_fill(~seen, float("-inf"))
            biases.append(bias)
        return torch.stack(biases)


@register("alibi_2d")
class ALiBi2D(Distance):
    """ALiBi in two dimensions: minus a slope of the head times the Euclidean distance.

    ``logits[h, i, j] -= slope * m(h) * sqrt((row_i - row_j)^2 + (column_i - column_j)^2)``, in patches, the same in all
    layers. With H heads, h from 1, ``m(h) = 2^(-8 h / H)`` where H is a power of two. Else, with the power of two P
    below H, the first P are those of P heads, and the others every second one of 2P heads: 2^(-4 / P), 2^(-12 / P), ...

    Source: Fuller et al. 2023 (CROMA), its 2D-ALiBi, with the slopes of Press et al. 2022 (Train Short, Test
    Long), section 3, and for other numbers of heads those of its code.
    """

    def __init__(self, geometry: Geometry, *, slope: float = 1.0) -> None:
        """Computes the biases of the training grid.

        Args:
            geometry: The host's.
            slope: What all slopes are multiplied by.

        Raises:
            VitposError: `slope` is not a finite number above 0.
        """
        slope = positive(self.scheme, "slope", slope)
        power = 1 << geometry.num_heads.bit_length() - 1
        exponents = [-8 * (h + 1) / power for h in range(power)]
        exponents += [-4 * (2 * h + 1) / power for h in range(geometry.num_heads - power)]
        super().__init__(geometry, [[(slope * 2**exponent, None) for exponent in exponents]])


@register("lookhere")
class LookHere(Distance):
    """Most heads look one way: keys outside of a head's field of view are hidden; and a slope times the distance.

    With l of L layers from 0, ``logits[h, i, j] -= slope * s(l) * m(h) * |i - j|`` for keys j in the field of view of
    head h from patch i, edges and i itself included, and -inf for others. |i - j| is the Euclidean distance in patches,
    and s goes linearly from the first of `layer_slopes` in layer 0 to the second in layer L - 1.

    The last heads are undirected: they see all keys, with m = 4^-1, 4^-2, 4^-3, 4^-4 (each for a quarter of them where
    there are more than 4). The others take the eight directions, 45 degrees apart, in turn, m = 1/2: so 12 heads are 8
    directed ones and 4 undirected, as in the paper, each layer the same. Other numbers of heads are our choice: a third
    is undirected, rounded down; where fewer than 8 are directed, the next layer goes on with the next directions, and
    where more are, those that come again in a layer have half the slope (1/4, then 1/8).

    Source: Fuller et al. 2024 (LookHere: Vision Transformers with Directed Attention Generalize and Extrapolate),
    section 3: its LH-180, LH-90 and LH-45 for ViT-B, with the order of heads, head slopes and edges of the authors'
    code. The default slopes are those with which its weights come: 2, and 1.5 to 0.5 over the layers, as in the configs
    of the paper's segmentation models. There the biases are rounded to bfloat16 (by up to 0.4 %), with its lowest
    number for -inf, and 6 heads have the same 4 directions in all layers. Here they are float32. Class and register
    tokens have no place: all heads see them.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        view: int = 180,
        slope: float = 2.0,
        layer_slopes: tuple[float, float] = (1.5, 0.5),
        undirected: int | None = None,
    ) -> None:
        """Computes the biases of the training grid.

        Args:
            geometry: The host's.
            view: Field of view of the directed heads in degrees: 180, 90 or 45.
            slope: What all slopes are multiplied by; 0 leaves the fields of view alone.
            layer_slopes: What the slopes of the first and of the last layer are multiplied by; linear in between.
            undirected: How many heads, the last ones, see all keys; None for a third, rounded down.

        Raises:
            VitposError: `view` is another number, `slope` no finite number from 0, `layer_slopes` not two of those, or
                `undirected` no whole number from 0 to num_heads.
        """
        scheme, heads = self.scheme, geometry.num_heads
        if count(scheme, "view", view) not in BEGIN:
            raise VitposError(f"position scheme {scheme!r}: view={view} must be 180, 90 or 45 degrees")
        slope = not_negative(scheme, "slope", slope)
        if not isinstance(layer_slopes, tuple | list) or len(layer_slopes) != 2:
            raise VitposError(
                f"position scheme {scheme!r}: layer_slopes={layer_slopes!r} must be two numbers, of the first layer "
                "and of the last"
            )
        first, last = (not_negative(scheme, "layer_slopes", value) for value in layer_slopes)
        free = heads // 3 if undirected is None else count(scheme, "undirected", undirected, 0)
        if free > heads:
            raise VitposError(f"position scheme {scheme!r}: undirected={free} of {heads} heads; at most all of them")
        layers = []
        for layer in range(geometry.depth):
            own = slope * (first + (last - first) * layer / max(geometry.depth - 1, 1))
            directed = heads - free
            begins = [BEGIN[view][(layer * directed + h) % 8] for h in range(directed)]
            sectors = [(COMPASS[begin], COMPASS[(begin + view // 45) % 8]) for begin in begins]
            turned: list[Head] = [(own / 2 ** (1 + h // 8), sector) for h, sector in enumerate(sectors)]
            layers.append(turned + [(own / 4 ** (1 + min(h, 4 * h // free)), None) for h in range(free)])
        super().__init__(geometry, layers)
