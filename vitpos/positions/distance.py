"""Fixed relative biases that decrease with the distance between query and key."""

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, count, not_negative, positive, register

Sector = tuple[tuple[int, int], tuple[int, int]]
Head = tuple[float, Sector | None]

# The eight directions between patches, as (right, up), counterclockwise.
COMPASS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
# Where each head's sector begins, by its width in degrees, in the order of LookHere's heads.
BEGIN = {
    180: (0, 4, 2, 6, 7, 1, 5, 3),  # towards up, down, left, right, up right, up left, down right, down left
    90: (2, 0, 4, 6, 1, 5, 3, 7),  # towards up left, up right, down left, down right, up, down, left, right
    # left of up, left of down, above left, above right, right of up, right of down, below left, below right
    45: (2, 5, 3, 0, 1, 6, 4, 7),
}

_FAR = -1e30  # replaces -inf in buffers, because weight averaging of two -inf gives NaN


class Distance(PositionEmbedding):
    """Base class of fixed biases: minus the head's slope times the Euclidean distance between the two patches.

    ``logits[h, i, j] -= slope(h) * sqrt((row_i - row_j)^2 + (column_i - column_j)^2)``, in patches. A head may have a
    sector, its field of view from a patch, including its edges and the patch itself; keys outside get a bias of -inf.

    Args:
        heads: Slope and sector of each head, per layer or once for all layers.
    """

    table: Tensor

    def __init__(self, geometry: Geometry, heads: list[list[Head]]) -> None:
        super().__init__(geometry)
        self.heads = heads
        self.register_buffer("table", self._tables(), persistent=False)

    def reset_parameters(self) -> None:
        """Recomputes the biases, which are in no state dict (needed e.g. after ``to_empty``)."""
        self.table.copy_(self._tables(self.table.device))

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> Tensor:
        """Returns the biases, (heads, N, N); computed for grids other than the training grid."""
        layer %= len(self.heads)
        if not self.is_training_grid(grid):
            return self._compute(grid, layer, q.device)
        return self.table[layer].masked_fill(self.table[layer] < _FAR / 2, float("-inf"))

    def _tables(self, device: torch.device | None = None) -> Tensor:
        """Returns the biases of the training grid for all layers that differ, (layers, heads, N, N)."""
        tables = [self._compute(self.geometry.grid, layer, device) for layer in range(len(self.heads))]
        return torch.stack(tables).clamp(min=_FAR)

    def _compute(self, grid: Grid, layer: int, device: torch.device | None) -> Tensor:
        """Returns the biases of a grid in a layer, (heads, N, N), in float32."""
        row = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
        column = torch.arange(grid[1], device=device).repeat(grid[0])
        right, up = column - column[:, None], row[:, None] - row  # from query to key
        distance = (right.square() + up.square()).float().sqrt()
        biases = []
        for slope, sector in self.heads[layer]:
            bias = -slope * distance
            if sector is not None:
                (x, y), (other_x, other_y) = sector
                # Left of the edge where the sector begins and right of the one where it ends, in exact integers.
                seen = (x * up >= y * right) & (other_y * right >= other_x * up)
                bias = bias.masked_fill(~seen, float("-inf"))
            biases.append(bias)
        return torch.stack(biases)


@register("alibi_2d")
class ALiBi2D(Distance):
    """ALiBi in two dimensions: minus a head-specific slope times the Euclidean distance.

    ``logits[h, i, j] -= slope * m(h) * sqrt((row_i - row_j)^2 + (column_i - column_j)^2)``, in patches, the same in all
    layers. With H heads, h from 1, ``m(h) = 2^(-8 h / H)`` if H is a power of two. Otherwise, with P the largest power
    of two below H, the first P slopes are those of P heads, and the others every second one of 2P heads: 2^(-4 / P),
    2^(-12 / P), ...

    Source: Fuller et al. 2023 (CROMA), its 2D-ALiBi, with the slopes of Press et al. 2022 (Train Short, Test Long),
    section 3, and for other numbers of heads those of its code.

    Args:
        slope: Factor of all slopes.
    """

    def __init__(self, geometry: Geometry, *, slope: float = 1.0) -> None:
        slope = positive(self.scheme, "slope", slope)
        power = 1 << geometry.num_heads.bit_length() - 1
        exponents = [-8 * (h + 1) / power for h in range(power)]
        exponents += [-4 * (2 * h + 1) / power for h in range(geometry.num_heads - power)]
        super().__init__(geometry, [[(slope * 2**exponent, None) for exponent in exponents]])


@register("lookhere")
class LookHere(Distance):
    """Most heads look in one direction: keys outside a head's field of view are masked; others are biased by distance.

    With layer l of L, from 0, ``logits[h, i, j] -= slope * s(l) * m(h) * |i - j|`` for keys j in the field of view of
    head h from patch i, including its edges and i itself, and -inf for other keys. |i - j| is the Euclidean distance in
    patches; s is linear from the first of `layer_slopes` in layer 0 to the second in layer L - 1.

    The last heads are undirected: they see all keys, with m = 4^-1, 4^-2, 4^-3, 4^-4 (each for a quarter of them if
    there are more than 4). The others take the eight directions, 45 degrees apart, in turn, with m = 1/2. So 12 heads
    are 8 directed and 4 undirected ones, as in the paper, the same in each layer. For other numbers of heads these
    choices are ours: a third is undirected, rounded down; with fewer than 8 directed heads, the next layer continues
    with the next directions; with more, directions that repeat in a layer have half the slope (1/4, then 1/8).

    Source: Fuller et al. 2024 (LookHere: Vision Transformers with Directed Attention Generalize and Extrapolate),
    section 3: its LH-180, LH-90 and LH-45 for ViT-B, with the order of heads, head slopes and edges of the authors'
    code. The default slopes are those of its released weights: 2, and 1.5 to 0.5 over the layers, as in the configs of
    the paper's segmentation models. There the biases are rounded to bfloat16 (by up to 0.4 %), with its lowest number
    for -inf, and 6 heads have the same 4 directions in all layers. Here they are float32. Class and register tokens
    have no position: all heads see them.

    Args:
        view: Field of view of the directed heads in degrees: 180, 90 or 45.
        slope: Factor of all slopes; 0 leaves only the fields of view.
        layer_slopes: Factors of the slopes in the first and last layer; linear in between.
        undirected: Number of heads, the last ones, that see all keys; None for a third, rounded down.
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
