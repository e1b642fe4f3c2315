"""Positions with a softmax of their own: ConViT's gated attention."""

import torch
from torch import Tensor, empty, nn

from vitpos.positions.base import Geometry, Grid, PositionEmbedding, not_negative, register


@register("gpsa")
class GPSA(PositionEmbedding):
    """Each head mixes two attentions, one by content and one by offset, in the proportion of a learned gate.

    With y and x the offset of rows and columns, key minus query, in patches, the weights of the patches become
    ``(1 - sigmoid(gate)) softmax(q k^T / sqrt(d)) + sigmoid(gate) softmax(a x + b y + c (x^2 + y^2))``, with gate, a, b
    and c of each block and head. At the start the heads look at neighbours, as the taps of a convolution do: with s the
    whole part of the root of the number of heads, the first s^2 heads have ``c = -1`` and (a, b) twice a place in the
    square of s x s around the patch; the others a, b and c of deviation 0.02. All gates start at 1, sigmoid(1) = 0.73.
    At the edge a patch has fewer neighbours to share its attention, so a weight depends on more than the offset.

    Source: d'Ascoli et al. 2021 (ConViT), equations 6 and 7, as timm's ``convit.GPSA``, which has a further constant
    that the softmax does not see. ConViT has it in its first 10 of 12 blocks and starts with values that are the tokens
    themselves; here it is in all blocks, and the host's projections are left as they are. ConViT's class token comes
    after those blocks. Here prefix tokens attend as always; and what a patch pays to them it goes on paying, while the
    softmax of positions has the share that the patches had.
    """

    by_offset = False  # by the softmax

    def __init__(self, geometry: Geometry, *, locality_strength: float = 1.0) -> None:
        """Draws the coefficients.

        Args:
            geometry: The host's.
            locality_strength: What a, b and c are multiplied by at the start: the larger, the less a head sees around
                the place that it looks at; 0 sees all places alike.

        Raises:
            VitposError: `locality_strength` is no finite number from 0.
        """
        super().__init__(geometry)
        self.locality_strength = not_negative(self.scheme, "locality_strength", locality_strength)
        self.coefficients = nn.Parameter(empty(3, geometry.depth, geometry.num_heads))
        self.gate = nn.Parameter(empty(geometry.depth, geometry.num_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the coefficients anew."""
        nn.init.trunc_normal_(self.coefficients, std=0.02)
        side = int(self.geometry.num_heads**0.5)
        place = 2 * torch.arange(side, device=self.gate.device).float() - (side - 1)
        looks = self.coefficients[:, :, : side**2]
        looks[0], looks[1], looks[2] = place.repeat_interleave(side), place.repeat(side), -1.0
        self.coefficients.mul_(self.locality_strength)
        self.gate.fill_(1.0)

    @property
    def uses_attention(self) -> bool:
        """Always: the weights are changed."""
        return True

    def weights(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Mixes the two attentions."""
        exact = torch.promote_types(attention.dtype, torch.float32)
        of_column, of_row, of_square = self.coefficients[:, layer, :, None, None].to(exact)
        row, column = (torch.arange(side, dtype=exact, device=attention.device) for side in grid)
        row, column = row - row[:, None], column - column[:, None]
        # The exponential of a sum is a product, and so is its softmax: one of rows and one of columns.
        rows = (of_row * row + of_square * row.square()).softmax(-1)
        columns = (of_column * column + of_square * column.square()).softmax(-1)
        positions = (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        gate = self.gate[layer, :, None, None].to(exact).sigmoid()
        share = attention.sum(-1, keepdim=True)
        mixed: Tensor = (1 - gate).to(attention.dtype) * attention + share * (gate * positions).to(attention.dtype)
        return mixed
