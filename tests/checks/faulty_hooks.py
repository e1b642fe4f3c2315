"""Schemes with one fault each that shows in a hook, or in the constructor."""

import random

import torch
from right_schemes import Convolution, Distance, OneVector, RowsAndColumns, Waves
from torch import nn

from vitpos.positions import PositionEmbedding
from vitpos.positions.base import positive


class Promotes(Distance):
    def tokens(self, x, grid, layer):
        return x.float() + 1


class DividesByZero(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) / self.distances(grid, q.device)


class BlindToItself(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer).masked_fill(self.distances(grid, q.device) == 0, float("-inf"))


class WrongAxes(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer)[:, None]


class CopiesForNothing(Distance):
    def tokens(self, x, grid, layer):
        return x + 0


class LooksAtTheEdge(Distance):
    def bias(self, q, k, grid, layer):
        bias = super().bias(q, k, grid, layer)
        return torch.cat([bias[..., :-1], bias[..., -1:] - 1], dim=-1)


class HidesTheEdge(Distance):
    def bias(self, q, k, grid, layer):
        last = torch.arange(grid[0] * grid[1], device=q.device) == grid[0] * grid[1] - 1
        return super().bias(q, k, grid, layer).masked_fill(last & ~last[:, None], float("-inf"))


class SwapsTheAxes(Distance):
    def distances(self, grid, device):
        return super().distances((grid[1], grid[0]), device)


class TheSameEverywhere(Distance):
    def bias(self, q, k, grid, layer):
        return self.slopes + 0 * self.distances(grid, q.device)


class DeclaresForNothing(Distance):
    by_offset = False


class IdleAttention(PositionEmbedding):
    uses_attention = True


class WeightsOfAnotherSum(IdleAttention):
    def weights(self, attention, grid, layer):
        return attention.softmax(-1)


class PlaceInTheValues(Distance):
    uses_attention = True

    def values(self, attention, grid, layer):
        weights = attention * torch.arange(attention.shape[-1], device=attention.device)
        return weights.sum(-1, keepdim=True).expand(*attention.shape[:-1], 12)


class AnglesInHalf(PositionEmbedding):
    def tokens(self, x, grid, layer):
        return x + torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None].sin()


class AnglesByMatmul(PositionEmbedding):
    def tokens(self, x, grid, layer):
        place = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)[:, None]
        frequency = torch.linspace(0.1, 1, x.shape[2], dtype=torch.float64, device=x.device)
        return x + (place.float() @ frequency.float()[None]).sin().to(x.dtype)


class TwiceTheScale(PositionEmbedding):
    def __init__(self, geometry, *, scale=0.02):
        super().__init__(geometry)
        self.scale = positive(self.scheme, "scale", scale)

    def tokens(self, x, grid, layer):
        sign = 1 - 2 * (torch.arange(x.shape[1], device=x.device) % 2)
        return x + 2 * self.scale * sign[:, None].to(x.dtype)


class OneVectorTwiceTheScale(OneVector):
    factor = 2


class EvenHeads(Distance):
    def __init__(self, geometry, *, slope=0.1):
        if geometry.head_dim % 2:
            raise ValueError("odd heads")
        super().__init__(geometry, slope=slope)


class EvenHeadsBySplit(Distance):
    def rotate(self, q, k, grid, layer):
        return q.unflatten(-1, (-1, 2)).flatten(-2) + 1, k


class AnySlope(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry)
        self.slope = slope if isinstance(slope, float) else 1


class SlopeByIndex(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope={"low": 0.1}[slope] if isinstance(slope, str) else slope)


class Seeds(Distance):
    def reset_parameters(self):
        torch.manual_seed(0)
        super().reset_parameters()


class DrawsOutside(Distance):
    def reset_parameters(self):
        nn.init.constant_(self.slopes, random.random())


class DrawsInEval(Distance):
    def tokens(self, x, grid, layer):
        return x + torch.randn_like(x)


class SetsTheDtype(Distance):
    def bias(self, q, k, grid, layer):
        torch.set_default_dtype(torch.float64)
        return super().bias(q, k, grid, layer)


class Token(PositionEmbedding):
    def token(self, x, grid, layer):
        return x + 1


class Rotation(PositionEmbedding):
    def rotation(self, q, k, grid, layer):
        return -q, k


class Forward(PositionEmbedding):
    def forward(self, x):
        return x + 1


class PreparesOnly(PositionEmbedding):
    uses_attention = False

    def angles(self, grid):
        return grid


class PreparesOther(Distance):
    def prepare(self, grid, device):
        return self.distances(grid, device)

    def bias(self, q, k, grid, layer, prepared=None):
        return -self.slopes * (self.distances(grid, q.device) if prepared is None else prepared.sqrt())


class PreparesInPlace(PreparesOther):
    def bias(self, q, k, grid, layer, prepared=None):
        distances = self.distances(grid, q.device) if prepared is None else prepared
        return -self.slopes * distances.mul_(2)


class PreparesForNobody(Distance):
    def prepare(self, grid, device):
        return self.distances(grid, device)


class SilentValues(Distance):
    def values(self, attention, grid, layer):
        return attention @ torch.ones(attention.shape[-1], 12)


class AsksByMethod(Distance):
    def uses_attention(self):
        return False


class NoLayer(Distance):
    def tokens(self, x, grid):
        return x + 1


class NothingFromTokens(Distance):
    def tokens(self, x, grid, layer):
        x + 1


class QueriesOnly(Distance):
    def rotate(self, q, k, grid, layer):
        return -q


class MaskAsBias(Distance):
    def bias(self, q, k, grid, layer):
        return (self.distances(grid, q.device) < 3).expand(4, -1, -1)


class KeyAsArray(Distance):
    def rotate(self, q, k, grid, layer):
        return -q, k.tolist()


class InPlace(PositionEmbedding):
    def tokens(self, x, grid, layer):
        return x.add_(1) if layer == 0 else x


class KeysInPlace(Distance):
    def bias(self, q, k, grid, layer):
        k.mul_(2)
        return super().bias(q, k, grid, layer)


class WavesExchanged(Waves):
    def places(self, grid, device):
        return super().places((grid[1], grid[0]), device)


class RowsAndColumnsExchanged(RowsAndColumns):
    exchanged = True


class TableExchanged(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(1, geometry.embed_dim, *geometry.grid))

    def tokens(self, x, grid, layer):
        table = torch.nn.functional.interpolate(self.table, grid[::-1], mode="bicubic")
        return x + table.flatten(2).mT.to(x.dtype) if layer == 0 else x


class ConvolutionExchanged(Convolution):
    exchanged = True


class Edge(Distance):
    """What lies lower or more to the right is seen better, with the classic mistake."""

    by_offset = False

    def bias(self, q, k, grid, layer):
        place = torch.arange(grid[0] * grid[1], device=q.device)
        return self.slopes * ((place // grid[0]) ** 2 + 3.0 * (place % grid[0]))[None].expand(len(place), -1)
