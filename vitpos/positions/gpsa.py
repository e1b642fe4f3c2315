"""ConViT's gated positional self-attention: positions with their own softmax."""

import torch
from torch import Tensor, empty, nn

from vitpos.positions.base import Geometry, Grid, PositionEmbedding, not_negative, register


@register("gpsa")
class GPSA(PositionEmbedding):
    """Each head mixes content attention and positional attention in the proportion of a learned gate.

    With y and x the row and column offsets, key minus query, in patches, the weights of the patches become
    ``(1 - sigmoid(gate)) softmax(q k^T / sqrt(d)) + sigmoid(gate) softmax(a x + b y + c (x^2 + y^2))``, with gate, a, b
    and c per block and head. Initially the heads look at neighbours, like the taps of a convolution: with s the square
    root of the number of heads, rounded down, the first s^2 heads have ``c = -1`` and (a, b) twice a cell of the s x s
    square around the patch; the others draw a, b and c with standard deviation 0.02. All gates start at 1, sigmoid(1) =
    0.73. A patch at the edge has fewer neighbours to share its attention among, so a weight depends on more than the
    offset.

    Source: d'Ascoli et al. 2021 (ConViT), equations 6 and 7, as timm's ``convit.GPSA``, which has an additional
    constant that cancels in the softmax. ConViT uses it in its first 10 of 12 blocks and initialises the value
    projection to the identity; here it is in all blocks, and the model's projections are unchanged. ConViT appends its
    class token after those blocks. Here prefix tokens attend as usual; what a patch attends to them is unchanged, and
    the positional softmax gets the share that the patches had.

    Args:
        locality_strength: Factor of the initial a, b and c: the larger, the narrower a head's view around the cell that
            it looks at; 0 attends to all patches equally.
    """

    by_offset = False  # because of the softmax

    def __init__(self, geometry: Geometry, *, locality_strength: float = 1.0) -> None:
        super().__init__(geometry)
        self.locality_strength = not_negative(self.scheme, "locality_strength", locality_strength)
        self.coefficients = nn.Parameter(empty(3, geometry.depth, geometry.num_heads))
        self.gate = nn.Parameter(empty(geometry.depth, geometry.num_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialises the coefficients and gates."""
        nn.init.trunc_normal_(self.coefficients, std=0.02)
        side = int(self.geometry.num_heads**0.5)
        place = 2 * torch.arange(side, device=self.gate.device).float() - (side - 1)
        looks = self.coefficients[:, :, : side**2]
        looks[0], looks[1], looks[2] = place.repeat_interleave(side), place.repeat(side), -1.0
        self.coefficients.mul_(self.locality_strength)
        self.gate.fill_(1.0)

    @property
    def uses_attention(self) -> bool:
        """Always true: the scheme changes the weights."""
        return True

    def weights(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Mixes content and positional attention."""
        exact = torch.promote_types(attention.dtype, torch.float32)
        of_column, of_row, of_square = self.coefficients[:, layer, :, None, None].to(exact)
        row, column = (torch.arange(side, dtype=exact, device=attention.device) for side in grid)
        row, column = row - row[:, None], column - column[:, None]
        # The exponential of a sum is a product, so the softmax factorises into one over rows and one over columns.
        rows = (of_row * row + of_square * row.square()).softmax(-1)
        columns = (of_column * column + of_square * column.square()).softmax(-1)
        positions = (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)  # (heads, N, N)
        gate = self.gate[layer, :, None, None].to(exact).sigmoid()
        share = attention.sum(-1, keepdim=True)
        mixed: Tensor = (1 - gate).to(attention.dtype) * attention + share * (gate * positions).to(attention.dtype)
        return mixed
