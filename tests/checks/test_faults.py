"""Schemes with one fault each: the check that is meant for it fails, and says what is wrong."""

import random
import re

import pytest
import torch
from torch import nn

from vitpos.checks import FAST, hooks, model, outcome
from vitpos.checks import export as exports
from vitpos.positions import PositionEmbedding, base, register
from vitpos.positions.base import positive


class Distance(PositionEmbedding):
    """A learned slope of the head times minus the distance: this one is right."""

    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry)
        self.slope = positive(self.scheme, "slope", slope)
        self.slopes = nn.Parameter(torch.empty(geometry.num_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.slopes, self.slope)

    def distances(self, grid, device):
        row = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
        column = torch.arange(grid[1], device=device).repeat(grid[0])
        return (row[:, None] - row).abs() + (column[:, None] - column).abs()

    def bias(self, q, k, grid, layer):
        return -self.slopes * self.distances(grid, q.device)


class LooksBack(Distance):
    """No patch sees the rows below its own: right, with -inf in the bias."""

    def bias(self, q, k, grid, layer):
        row = torch.arange(grid[0], device=q.device).repeat_interleave(grid[1])
        return super().bias(q, k, grid, layer).masked_fill(row > row[:, None], float("-inf"))


class Turns(PositionEmbedding):
    """Pairs of channels turn by the row, and others by the column: right, rotary, fixed."""

    def __init__(self, geometry):
        super().__init__(geometry)
        if geometry.head_dim % 4:
            raise ValueError(f"position scheme {self.scheme!r}: head_dim {geometry.head_dim} is not divisible by 4")

    def angles(self, x, grid):
        frequency = torch.logspace(0, -1, x.shape[-1] // 4, dtype=torch.float64, device=x.device)
        row = torch.arange(grid[0], device=x.device).repeat_interleave(grid[1])
        column = torch.arange(grid[1], device=x.device).repeat(grid[0])
        return torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=-1)

    def turned(self, x, grid):
        angles, (one, two) = self.angles(x, grid), x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
        cos, sin = angles.cos().to(one.dtype), angles.sin().to(one.dtype)
        return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)

    def rotate(self, q, k, grid, layer):
        return self.turned(q, grid), self.turned(k, grid)


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


class OneVector(PositionEmbedding):
    """A random number, of deviation `scale`, times a chessboard of signs: right."""

    factor = 1

    def __init__(self, geometry, *, scale=0.02):
        super().__init__(geometry)
        self.scale = positive(self.scheme, "scale", scale)
        self.number = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.number, std=self.scale * self.factor)

    def tokens(self, x, grid, layer):
        patch, channel = (torch.arange(n, device=x.device) for n in x.shape[1:])
        return x + (self.number * (1 - 2 * ((patch[:, None] + channel) % 2))).to(x.dtype)


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


class OneGridOnly(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, self.geometry.grid, layer) + 0 * self.distances(grid, q.device)


class KeepsByTheNumberOfPatches(Distance):
    def bias(self, q, k, grid, layer):
        self.kept = getattr(self, "kept", {})
        distances = self.kept.setdefault(q.shape[2], self.distances(grid, q.device))
        return -self.slopes * distances


class KeepsOfInferenceMode(Distance):
    def bias(self, q, k, grid, layer):
        if grid == (4, 4):
            self.kept = torch.ones(1)
        return super().bias(q, k, grid, layer) * getattr(self, "kept", 1)


class Unused(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.more = nn.Parameter(torch.ones(3))


class ZeroTimesZero(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.more = nn.Parameter(torch.zeros(2))

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (1 + self.more.prod())


class MeanOfTheBatch(Distance):
    def tokens(self, x, grid, layer):
        return x - x.mean(dim=0)


class InModelsOnly(Distance):
    """Fails where queries are a view of the model's, on another grid: a mistake that many checks meet."""

    def bias(self, q, k, grid, layer):
        if grid != self.geometry.grid and not q.is_contiguous():
            raise RuntimeError(f"no grid {grid}")
        return super().bias(q, k, grid, layer)


class Overflows(Distance):
    def tokens(self, x, grid, layer):
        return x + (1e3 * x) ** 2 * 1e-6


class Float32Only(Distance):
    def rotate(self, q, k, grid, layer):
        return q @ torch.eye(q.shape[-1], device=q.device), k


class OutOfTheStateDict(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.register_buffer("drawn", torch.randn(4, 1, 1), persistent=False)

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.drawn


class HoldsAFunction(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.function = lambda grid: grid


class SharedByAll(Distance):
    counts = [0]  # noqa: RUF012

    def bias(self, q, k, grid, layer):
        self.counts[0] += 1
        return super().bias(q, k, grid, layer) * self.counts[0]


class CannotStartAnew(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.register_buffer("ones", torch.ones(1), persistent=False)

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.ones


class StartsElsewhere(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(1, geometry.embed_dim))

    def reset_parameters(self):
        nn.init.normal_(self.table, std=0.02)


class TableOnTheCPU(Distance):
    def bias(self, q, k, grid, layer):
        return -self.slopes * self.distances(grid, "cpu")


class AsksForAValue(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.slopes.max().item()


class CountsImages(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (2 if q.shape[0] == 3 else 1)


class AsksForASign(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (2 if self.slopes.sum() > 0 else 1)


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


class Waves(PositionEmbedding):
    """A sinusoid of the row in half of the channels, of the column in the others: right."""

    def places(self, grid, device):
        row = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
        return row, torch.arange(grid[1], device=device).repeat(grid[0])

    def tokens(self, x, grid, layer):
        if layer:
            return x
        frequency = torch.logspace(0, -2, x.shape[2] // 4, dtype=torch.float64, device=x.device)
        angles = [place[:, None] * frequency for place in self.places(grid, x.device)]
        waves = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
        return x + torch.nn.functional.pad(waves, (0, x.shape[2] - waves.shape[1])).to(x.dtype)


class WavesExchanged(Waves):
    def places(self, grid, device):
        return super().places((grid[1], grid[0]), device)


class RowsAndColumns(PositionEmbedding):
    """A vector for each row and each column, by interpolation on other grids: right."""

    exchanged = False

    def __init__(self, geometry):
        super().__init__(geometry)
        self.rows = nn.Parameter(torch.empty(geometry.grid[0], geometry.embed_dim))
        self.columns = nn.Parameter(torch.empty(geometry.grid[1], geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self):
        for table in self.parameters():
            nn.init.normal_(table)

    def tokens(self, x, grid, layer):
        tables = (self.columns, self.rows) if self.exchanged else (self.rows, self.columns)
        grid = grid[::-1] if self.exchanged else grid
        sizes = zip(tables, grid, strict=True)
        one, two = (torch.nn.functional.interpolate(t.T[None], n, mode="linear")[0].T for t, n in sizes)
        return x + (one[:, None] + two[None]).flatten(0, 1).to(x.dtype) if layer == 0 else x


class RowsAndColumnsExchanged(RowsAndColumns):
    exchanged = True


class TableExchanged(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(1, geometry.embed_dim, *geometry.grid))

    def tokens(self, x, grid, layer):
        table = torch.nn.functional.interpolate(self.table, grid[::-1], mode="bicubic")
        return x + table.flatten(2).mT.to(x.dtype) if layer == 0 else x


class Convolution(PositionEmbedding):
    """A depthwise convolution in front of block 1: right."""

    exchanged = False

    def __init__(self, geometry):
        super().__init__(geometry)
        self.kernel = nn.Parameter(torch.randn(geometry.embed_dim, 1, 3, 3) / 3)

    def reset_parameters(self):
        nn.init.normal_(self.kernel, std=1 / 3)

    def tokens(self, x, grid, layer):
        if layer != 1:
            return x
        maps = x.mT.unflatten(2, grid[::-1] if self.exchanged else grid)
        moved = torch.nn.functional.conv2d(maps, self.kernel.to(x.dtype), padding=1, groups=x.shape[2])
        return x + moved.flatten(2).mT


class ConvolutionExchanged(Convolution):
    exchanged = True


class Edge(Distance):
    """What lies lower or more to the right is seen better, with the classic mistake."""

    by_offset = False

    def bias(self, q, k, grid, layer):
        place = torch.arange(grid[0] * grid[1], device=q.device)
        return self.slopes * ((place // grid[0]) ** 2 + 3.0 * (place % grid[0]))[None].expand(len(place), -1)


class ByNumber(Distance):
    """The number of the patch, which knows of no columns, in tokens and bias: right."""

    def tokens(self, x, grid, layer):
        return x + torch.arange(x.shape[1], device=x.device)[:, None].to(x.dtype) / 100

    def bias(self, q, k, grid, layer):
        place = torch.arange(q.shape[2], device=q.device)
        return -self.slopes * (place[:, None] - place).abs()


class FewNumbers(Distance):
    """A random slope for each head: four numbers, and right."""

    std = 0.5

    def __init__(self, geometry):
        super().__init__(geometry)

    def reset_parameters(self):
        nn.init.normal_(self.slopes, std=self.std)


class OneNumber(FewNumbers):
    """One random number, an empty buffer, a buffer of two whole numbers, and a frozen parameter: right."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.slopes = nn.Parameter(torch.empty(1, 1, 1))
        self.frozen = nn.Parameter(torch.empty(geometry.num_heads, 1, 1), requires_grad=False)
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("signs", torch.empty(2, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "signs"):
            nn.init.ones_(self.frozen)
            with torch.no_grad():
                self.signs.copy_(2 * torch.randint(0, 2, (2,)) - 1)

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.frozen * (3 + self.signs.sum())


class BehindAGate(Distance):
    """A table behind a gate that is zero at the start, for each layer: right."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.gates = nn.ParameterList(torch.empty(()) for _ in range(geometry.depth))
        self.table = nn.Parameter(torch.empty(geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "table"):
            nn.init.normal_(self.table)
            for gate in self.gates:
                nn.init.zeros_(gate)

    def tokens(self, x, grid, layer):
        place = torch.arange(x.shape[1], device=x.device)[:, None]
        return x + (self.gates[layer] * self.table * place).to(x.dtype)


class OnlyBuffers(PositionEmbedding):
    """Random and fixed, and not trained: right."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.register_buffer("noise", torch.empty(geometry.embed_dim))
        self.register_buffer("signs", torch.empty(geometry.embed_dim), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        self.noise.uniform_()
        self.signs.copy_(1 - 2.0 * (torch.arange(len(self.signs)) % 2))

    def tokens(self, x, grid, layer):
        place = torch.arange(x.shape[1], device=x.device)[:, None]
        return x + self.noise.to(x.dtype) * place * self.signs.to(x.dtype)


class DrawnWider(FewNumbers):
    """Another deviation than that of the constructor."""

    def __init__(self, geometry):
        super().__init__(geometry)
        nn.init.normal_(self.slopes, std=5)


class DrawnElsewhere(FewNumbers):
    """As much of it, but all on one side."""

    def __init__(self, geometry):
        super().__init__(geometry)
        with torch.no_grad():
            self.slopes.abs_()


class DrawnOnce(FewNumbers):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.first = self.slopes.detach().clone()

    def reset_parameters(self):
        if hasattr(self, "first"):
            self.slopes.data.copy_(self.first)
        else:
            super().reset_parameters()


class NeverReset(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(24, geometry.embed_dim))


class NeverResetWholeNumbers(Distance):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.register_buffer("order", torch.arange(4))


HERE = r" \(test_faults\.py:\d+\)$"
FAULTS = [
    (hooks.defined, Token, r"faulty overrides no hook \(.*\); did you mean 'tokens' by 'token'\?$"),
    (hooks.defined, Rotation, "did you mean 'rotate' by 'rotation'"),
    (hooks.defined, Forward, r"overrides no hook \(.*\); forward is never called$"),
    (hooks.defined, PreparesOnly, r"overrides no hook \([a-z, ]*\)$"),
    (hooks.defined, SilentValues, "values is never called, since uses_attention is not overridden"),
    (hooks.defined, AsksByMethod, "uses_attention gives .*method.*; it has to be a property"),
    (hooks.shapes, NoLayer, r"layer 0: TypeError: NoLayer.tokens\(\) takes 3 positional arguments but 4 were given"),
    (hooks.shapes, NothingFromTokens, r"tokens: expected \(3, 24, 48\) float64, found NoneType"),
    (hooks.shapes, QueriesOnly, r"rotate: expected queries and keys, found \(3, 4, 24, 12\) float64"),
    (hooks.shapes, KeyAsArray, r"keys: expected \(3, 4, 24, 12\) float64, found list"),
    (hooks.shapes, MaskAsBias, r"bias: expected numbers to be added to the logits, found \(4, 24, 24\) bool"),
    (hooks.untouched, InPlace, "layer 0: a hook changes its tokens in place"),
    (hooks.untouched, KeysInPlace, "layer 0: a hook changes its keys in place"),
    (hooks.rows_and_columns, WavesExchanged, "layer 0, tokens: rows and columns are exchanged"),
    (hooks.rows_and_columns, RowsAndColumnsExchanged, "layer 0, tokens: rows and columns are exchanged"),
    (hooks.rows_and_columns, TableExchanged, "layer 0, tokens: rows and columns are exchanged"),
    (hooks.rows_and_columns, ConvolutionExchanged, "layer 1, spread of tokens: rows and columns are exchanged"),
    (hooks.rows_and_columns, SwapsTheAxes, r"layer 0, attention \(1\): rows and columns are exchanged"),
    (hooks.rows_and_columns, Edge, r"layer 0, attention \(1\): rows and columns are exchanged"),
    (model.init_weights, DrawnWider, r"slopes: its mean square after init_weights is 0\.\d+, at the start \d\d"),
    (model.init_weights, DrawnElsewhere, r"slopes: its mean after init_weights is -?0\.0\d+, at the start 0\.\d"),
    (model.init_weights, DrawnOnce, "pos_embed.slopes: init_weights draws the same numbers again"),
    (model.init_weights, NeverReset, r"pos_embed.table is not set by init_weights; reset_parameters\(\) has to draw"),
    (model.init_weights, NeverResetWholeNumbers, "pos_embed.order is not set by init_weights"),
    (hooks.global_state, Seeds, "making it seeds the global generator"),
    (hooks.global_state, DrawsOutside, r"slopes made twice from one seed: they differ by"),
    (hooks.global_state, DrawsInEval, "a hook uses random numbers in eval mode"),
    (hooks.global_state, SetsTheDtype, "default dtype: it was torch.float32, it is torch.float64"),
    (hooks.shapes, Promotes, r"grid 4 x 6, float64, layer 0: tokens: expected \(3, 24, 48\) float64, found .* float32"),
    (hooks.shapes, DividesByZero, r"bias: NaN or \+inf"),
    (hooks.shapes, BlindToItself, "bias: -inf where a patch looks at itself"),
    (hooks.shapes, WrongAxes, r"bias: shape \(4, 1, 24, 24\) is none of \(\(4, 24, 24\), \(3, 4, 24, 24\)\)"),
    (hooks.untouched, CopiesForNothing, "layer 0: tokens are an equal copy"),
    (hooks.by_offset, LooksAtTheEdge, "grid 4 x 6, layer 0: the same offset elsewhere differs by 0.9"),
    (hooks.by_offset, HidesTheEdge, r"the same offset elsewhere differs by 9.+e\+03, allowed is 1e-06"),
    (hooks.by_offset, SwapsTheAxes, "the same offset elsewhere differs by"),
    (hooks.by_offset, TheSameEverywhere, "all offsets are treated the same"),
    (hooks.by_offset, DeclaresForNothing, "by_offset is False, but the same offset elsewhere differs by"),
    (hooks.by_offset, PlaceInTheValues, "the same offset elsewhere differs by"),
    (hooks.half_precision, AnglesInHalf, r"autocast bfloat16, grid 512 x 2 .* tokens: relative error .*, allowed is"),
    (hooks.half_precision, AnglesByMatmul, r"autocast bfloat16, grid 512 x 2 .* tokens: relative error"),
    (hooks.scale, TwiceTheScale, r"scale=0.3: expected an RMS within 5 % of it, found 0.6"),
    (hooks.scale, OneVectorTwiceTheScale, r"scale=0.3: expected an RMS within 5 % of it, found 0.[56]"),
    (hooks.geometries, EvenHeads, "width 1, 1 heads, grid 4 x 6: the error does not name faulty: odd heads"),
    (hooks.geometries, EvenHeadsBySplit, f"width 1, 1 heads, grid 4 x 6: RuntimeError: unflatten.*{HERE}"),
    (hooks.bad_options, AnySlope, r"slope=\[\]: expected a ValueError that names the option, found none"),
    (hooks.bad_options, SlopeByIndex, rf"slope='\?': KeyError: '\?'{HERE}"),
    (model.another_grid, OneGridOnly, rf"no prefix, grid 4 x 4 after 4 x 6: RuntimeError: The size of tensor.*{HERE}"),
    (model.another_grid, KeepsByTheNumberOfPatches, "grid 6 x 4 after 4 x 6: output, and that of a copy new to it"),
    (model.another_grid, KeepsOfInferenceMode, "grid 4 x 6 after others: RuntimeError: Inference tensors cannot"),
    (model.gradients, Unused, "no prefix: pos_embed.more receives no gradient"),
    (model.gradients, ZeroTimesZero, "the gradient of pos_embed.more is zero"),
    (model.permutation, TheSameEverywhere, r"expected the output to change by more than 1e-10, found \d"),
    (model.images_apart, MeanOfTheBatch, "an image alone and in a batch: they differ by .*, allowed is 1e-12"),
    (model.autocast, Overflows, "float16: output, and that of float32: they differ by nan"),
    (model.half_model, Float32Only, f"bfloat16: RuntimeError: expected .*{HERE}"),
    (model.state_dict, OutOfTheStateDict, r"output after load_state_dict \(torch\), and that of the saved"),
    (model.copies, HoldsAFunction, r"Can't (get local|pickle)"),
    (model.copies, SharedByAll, "output of a deepcopy, and of its original: they differ"),
    (model.checkpointing, SharedByAll, "gradient of .* with checkpointing and without: they differ"),
    (model.init_weights, CannotStartAnew, "pos_embed.ones is not set by init_weights"),
    (model.init_weights, StartsElsewhere, r"pos_embed.table: its mean square after init_weights is 0.0004"),
    (exports.fake_cuda, TableOnTheCPU, f"grid 4 x 6: .*cuda:0.* cpu.*{HERE}"),
    (exports.fake_cuda, AsksForAValue, f"grid 4 x 6: DataDependentOutputException.*{HERE}"),
    (exports.export, CountsImages, "grid 4 x 6: .*batch"),
    (exports.one_graph, AsksForASign, f"grid 4 x 6: .*[Dd]ata-dependent branching.*{HERE}"),
]  # fmt: skip
TRAINED = (model.gradients, model.permutation, model.checkpointing, model.optimizer_groups, model.init_weights)
RIGHT = [Distance, LooksBack, Turns, Waves, RowsAndColumns, Convolution, ByNumber, FewNumbers, OneNumber, BehindAGate]
RIGHT += [OnlyBuffers, OneVector]
# What these look at is made by attach out of any scheme.
OF_THE_HOST = {
    *(model.fused_attention, model.moving_average, model.intermediates, model.input_size),
    *(model.optimizer_groups, model.attach_and_detach),
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(base, "_registry", dict(base._registry))


@pytest.mark.parametrize(("check", "cls", "words"), FAULTS, ids=[f"{c.__name__}-{f.__name__}" for c, f, _ in FAULTS])
@pytest.mark.usefixtures("registry")
def test_a_fault_is_found(check, cls, words):
    register("faulty")(cls)
    state, text = outcome(check, "faulty")
    assert state == "FAILED"
    assert "\n" not in text
    assert re.search(words, text), text


@pytest.mark.parametrize(
    ("check", "cls"),
    [
        pytest.param(check, cls, id=f"{check.__name__}-{cls.__name__}")
        for cls in RIGHT
        for check in FAST
        if cls in RIGHT[:3] or check.__module__ == hooks.__name__ or check in TRAINED
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_right_scheme_passes(check, cls):
    register("right")(cls)
    state, text = outcome(check, "right")
    assert state in ("ok", "skipped"), text


@pytest.mark.usefixtures("registry")
def test_a_scheme_may_declare_that_it_depends_on_more():
    register("edge")(type("Edge", (LooksAtTheEdge,), {"by_offset": False}))
    assert outcome(hooks.by_offset, "edge") == ("skipped", "does not hold, as declared by by_offset = False")


def test_every_check_has_a_fault():
    assert set(FAST) - {check for check, _, _ in FAULTS} == OF_THE_HOST
