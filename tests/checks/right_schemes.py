"""Schemes of all kinds, with few numbers too, in which no check may find a fault."""

import torch
from torch import nn

from vitpos.positions import PositionEmbedding
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


class LastBlockAlone(PositionEmbedding):
    """Learned, and used in the last block only, whose patches a class token does not see any more: right."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.empty(geometry.embed_dim))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.table)

    def tokens(self, x, grid, layer):
        if layer < self.geometry.depth - 1:
            return x
        place = torch.arange(x.shape[1], device=x.device)[:, None]
        return x + (self.table * place).to(x.dtype)


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
