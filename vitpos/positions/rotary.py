"""Rotary positions: pairs of channels of queries and keys are rotated by angles that grow with the position."""

import math
from abc import ABC, abstractmethod
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, empty, nn

from vitpos.errors import VitposError
from vitpos.positions.absolute import divisible
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice, count, positive, register


def turn(x: Tensor, cosine: Tensor, sine: Tensor, half: bool) -> Tensor:
    """Rotates pairs of channels (a, b) to (a cos - b sin, b cos + a sin).

    Args:
        x: (..., N, head_dim).
        cosine: Cosines of the angles, (..., N, head_dim / 2).
        sine: Sines, same shape.
        half: Whether pairs are (i, i + head_dim / 2), as in DINOv3; else (2i, 2i + 1), as in rope-vit and EVA-02.

    Returns:
        The rotated channels, same shape and dtype as `x`.
    """
    exact = torch.promote_types(x.dtype, torch.float32)  # half precision is inexact, and slow on strided channels
    cosine, sine = cosine.to(exact), sine.to(exact)
    # x is a view of the model's qkv; if the result were not contiguous, the attention would copy it.
    exactly = x.to(exact, memory_format=torch.contiguous_format)
    if half:  # fewer passes than rotating both halves and concatenating; not addcmul, which may round once less
        other = exactly.roll(x.shape[-1] // 2, -1).mul_(torch.cat([-sine, sine], -1))
        return (exactly * torch.cat([cosine, cosine], -1)).add_(other).to(x.dtype)
    pairs = torch.unflatten(exactly, -1, (-1, 2))
    tracing = torch._C._get_tracing_state() is not None  # also in torch.onnx.export(dynamo=False)
    if tracing or torch.compiler.is_compiling() or not _as_complex(pairs):
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
    else:  # the same products, several times as fast; compilers and exporters do not support complex numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine))
    return turned.flatten(-2).to(x.dtype)


def _as_complex(pairs: Tensor) -> bool:
    """Returns whether the memory layout of the pairs allows a view as complex numbers."""
    *strides, last = pairs.stride()
    return last == 1 and not any(step % 2 for step in (*strides, pairs.storage_offset()))


def reference(scheme: str, value: object) -> Grid | None:
    """Validates the option ``ref_grid``: None, (rows, columns), or one side of a square."""
    if value is None:
        return None
    sides = list(value) if isinstance(value, tuple | list) else [value, value]
    if len(sides) != 2:
        raise VitposError(
            f"position scheme {scheme!r}: ref_grid={value!r} must be one whole number, or two: rows and columns"
        )
    return count(scheme, "ref_grid", sides[0]), count(scheme, "ref_grid", sides[1])


def patches(grid: Grid, ref_grid: Grid | None, device: torch.device | None, dtype: torch.dtype) -> list[Tensor]:
    """Returns the coordinates of rows and columns: patch indices from 0, rescaled to `ref_grid` if given.

    With a reference grid of n' patches along an axis, the n patches of any grid are at ``(0 .. n - 1) / n * n'``: a
    larger grid samples the same square more densely. Source: EVA-02 (Fang et al. 2023), its ``pt_hw_seq_len``; timm's
    ``ref_feat_shape``.
    """
    axes = [torch.arange(side, device=device).to(dtype) for side in grid]
    if ref_grid is None:
        return axes
    return [axis / side * known for axis, side, known in zip(axes, grid, ref_grid, strict=True)]


class Rotary(PositionEmbedding, ABC):
    """Base class of fixed rotations, the same in all blocks: a logit depends on the difference of two patches' angles.

    Args:
        temperature: Approximate ratio of the longest to the shortest wavelength.

    Attributes:
        divisor: What head_dim must be divisible by.
        halves: Whether pairs are (i, i + head_dim / 2); else (2i, 2i + 1).
    """

    cosine: Tensor
    sine: Tensor
    divisor = 4  # two axes, and pairs of channels
    halves = False

    def __init__(self, geometry: Geometry, *, temperature: float) -> None:
        super().__init__(geometry)
        divisible(self.scheme, "head_dim", geometry.head_dim, self.divisor)
        self.temperature = positive(self.scheme, "temperature", temperature)
        angles = self.angles(geometry.grid)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def reset_parameters(self) -> None:
        """Recomputes the angles, which are in no state dict (needed e.g. after ``to_empty``)."""
        angles = self.angles(self.geometry.grid, self.cosine.device)
        self.cosine.copy_(angles.cos())
        self.sine.copy_(angles.sin())

    @abstractmethod
    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the angles of a grid, ([heads,] rows * columns, head_dim / 2), in float32 or float64."""

    def prepare(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines of a grid; computed for grids other than the training grid."""
        if self.is_training_grid(grid):
            return self.cosine, self.sine
        angles = self.angles(grid, device)
        return angles.cos(), angles.sin()

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """Rotates queries and keys."""
        cosine, sine = self.prepare(grid, q.device) if prepared is None else prepared
        return turn(q, cosine, sine, self.halves), turn(k, cosine, sine, self.halves)


@register("rope_1d")
class Rope1D(Rotary):
    """The rotation of language models, by the patch index in raster order.

    With d = head_dim, p = row * columns + column and T = temperature, the channels (2i, 2i + 1) rotate by
    ``p / T^(2i/d)``, i in [0, d/2).

    Source: Su et al. 2021 (RoFormer), equations 15 and 34, with its temperature of 10000.
    """

    divisor = 2

    def __init__(self, geometry: Geometry, *, temperature: float = 10000.0) -> None:
        super().__init__(geometry, temperature=temperature)

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the angles, (rows * columns, head_dim / 2), in float64."""
        bands = self.geometry.head_dim // 2
        band = torch.arange(bands, dtype=torch.float64, device=device)
        position = torch.arange(grid[0] * grid[1], dtype=torch.float64, device=device)
        return position[:, None] * self.temperature ** (-band / bands)


class Rotary2D(Rotary):
    """Rotates half of the pairs by the row, the other half by the column."""

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the angles, rows first, (rows * columns, head_dim / 2).

        In float32 and in timm's order of operations, so that a model equals timm's bit for bit.
        """
        return self.spread(*self.coordinates(grid, device))

    def spread(self, row: Tensor, column: Tensor) -> Tensor:
        """Returns the angles of all patches from the coordinates of rows and columns."""
        bands = self.geometry.head_dim // 4
        band = torch.arange(bands, device=row.device).float()
        row, column = (self.turns(axis, band, bands) for axis in (row, column))  # (rows, d/4) and (columns, d/4)
        row = row[:, None].expand(row.shape[0], column.shape[0], bands)
        return torch.cat([row, column.expand_as(row)], dim=-1).flatten(0, 1)

    @abstractmethod
    def coordinates(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        """Returns the coordinates of rows and columns, (rows,) and (columns,), in float32."""

    def turns(self, position: Tensor, band: Tensor, bands: int) -> Tensor:
        """Returns the angles of coordinates, (side, bands)."""
        return position[:, None] * (1.0 / self.temperature ** (band / bands))


@register("rope_axial")
class RopeAxial(Rotary2D):
    """Rotates half of the channel pairs by the row and half by the column, in patches.

    With d = head_dim, T = temperature and i in [0, d/4): pair i rotates by ``row / T^(i / (d/4))``, pair d/4 + i by
    ``column / T^(i / (d/4))``, where pair j is the channels (2j, 2j + 1).

    Source: Heo et al. 2024 (Rotary Position Embedding for Vision Transformer), equation 6 with its temperature, in
    timm's axis order (``RotaryEmbeddingCat(in_pixels=False)``); the paper has columns first, which permutes the pairs.
    EVA-02 (Fang et al. 2023) uses temperature 10000 and, at any resolution, the coordinates of its pretraining grid.

    Args:
        temperature: Approximate ratio of the longest to the shortest wavelength. At 10000, half of the pairs hardly
            rotate on an 8 x 8 grid.
        ref_grid: Grid in whose coordinates every grid is expressed, ``row / rows * ref_grid[0]`` and likewise for
            columns: (rows, columns), or one number for a square (EVA-02: 16). None counts patches.
    """

    def __init__(
        self, geometry: Geometry, *, temperature: float = 100.0, ref_grid: int | tuple[int, int] | None = None
    ) -> None:
        self.ref_grid = reference(self.scheme, ref_grid)  # before super().__init__, which computes the angles
        super().__init__(geometry, temperature=temperature)

    def coordinates(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        """Returns the coordinates in patches, of `ref_grid` if given."""
        return patches(grid, self.ref_grid, device, torch.float32)


@register("rope_golden")
class RopeGolden(Rotary):
    """Rotates every channel pair by the position along a fixed, oblique direction.

    With d = head_dim and n = d/2 pairs, pair j of head h, the channels (j, j + d/2), rotates by
    ``w_j (row cos a + column sin a)``, in patches, with frequencies ``w_j = T^(j / (n - 1) - 1)`` from 1/T to 1. The
    direction a is number ``m = h n + j + 1`` of a sequence that fills the circle evenly for any length: (cos a, sin a)
    is the unit vector along the normal quantiles of the fractional parts of ``m / p`` and ``m / p^2``, where p = 1.3247
    is the real root of ``p^3 = p + 1``, the golden ratio's counterpart in two dimensions. All blocks rotate alike. It
    is ``rope_mixed`` with frequencies that are spread out instead of learned.

    Source: Xiong 2025 (On N-dimensional Rotary Positional Embeddings, jerryxio.ng/posts/nd-rope), its golden gate RoPE,
    as ``GoldenGateRoPENd`` of vit-pytorch, whose frequencies go from 1 to 10000 by default.

    Args:
        temperature: Ratio of the longest to the shortest wavelength (the source's figures: 100).
        ref_grid: As for ``rope_axial``.
    """

    divisor = 2
    halves = True

    def __init__(
        self, geometry: Geometry, *, temperature: float = 100.0, ref_grid: int | tuple[int, int] | None = None
    ) -> None:
        self.ref_grid = reference(self.scheme, ref_grid)
        root = 2.0
        for _ in range(10):  # as in the source: its last digits matter far into the sequence
            root = (1 + root) ** (1 / 3)
        quantile, numbers = NormalDist().inv_cdf, range(1, geometry.num_heads * (geometry.head_dim // 2) + 1)
        # Python floats, because compilers and exporters do not support the quantiles.
        self.directions = [math.atan2(quantile(m / root**2 % 1), quantile(m / root % 1)) for m in numbers]
        super().__init__(geometry, temperature=temperature)

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Returns the angles, (heads, rows * columns, head_dim / 2), in float64."""
        heads, pairs = self.geometry.num_heads, self.geometry.head_dim // 2
        direction = torch.tensor(self.directions, dtype=torch.float64, device=device).view(heads, 1, pairs)
        band = torch.linspace(-1, 0, pairs, dtype=torch.float64, device=device)
        row, column = patches(grid, self.ref_grid, device, torch.float64)
        row, column = row.repeat_interleave(grid[1])[:, None], column.repeat(grid[0])[:, None]
        return (row * direction.cos() + column * direction.sin()) * self.temperature**band


@register("rope_mixed")
class RopeMixed(PositionEmbedding):
    """Rotates every channel pair by a learned mix of row and column, separate in each block and head.

    With d = head_dim and j in [0, d/2), the channels (2j, 2j + 1) rotate by
    ``column * frequencies[0, layer, head, j] + row * frequencies[1, layer, head, j]``, in patches.

    Source: Heo et al. 2024 (Rotary Position Embedding for Vision Transformer), equation 7, as timm's
    ``RotaryEmbeddingMixed``. Its initialisation: pairs j and d/4 + j have the length ``T^(-4j/d)`` and are orthogonal,
    both rotated by a random angle per block and head.

    Args:
        temperature: Approximate initial ratio of the longest to the shortest wavelength.
        init: ``"random"`` (as in the source) or ``"zero"``, the identity, so that a pretrained model starts from its
            own function.
        ref_grid: As for ``rope_axial``.
    """

    precise = ("frequencies",)

    def __init__(
        self,
        geometry: Geometry,
        *,
        temperature: float = 10.0,
        init: str = "random",
        ref_grid: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__(geometry)
        self.ref_grid = reference(self.scheme, ref_grid)
        divisible(self.scheme, "head_dim", geometry.head_dim, 4)
        self.temperature = positive(self.scheme, "temperature", temperature)
        self.init = choice(self.scheme, "init", init, ("random", "zero"))
        self.frequencies = nn.Parameter(empty(2, geometry.depth, geometry.num_heads, geometry.head_dim // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialises the frequencies."""
        if self.init == "zero":
            self.frequencies.zero_()
            return
        _, depth, heads, pairs = self.frequencies.shape
        device = self.frequencies.device
        length = 1.0 / self.temperature ** (torch.arange(0, 2 * pairs, 4, device=device).float() / (2 * pairs))
        angle = torch.rand(depth, heads, 1, device=device) * 2 * math.pi
        angles = torch.cat(
            [angle.expand(depth, heads, pairs // 2), (angle + math.pi / 2).expand(depth, heads, pairs // 2)], -1
        )
        self.frequencies.copy_(torch.stack([angles.cos(), angles.sin()]) * length.repeat(2))

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Rotates queries and keys, each head by its own angles."""
        rows, columns = grid
        exact = torch.promote_types(self.frequencies.dtype, torch.float32)  # half precision would corrupt the angles
        of_column, of_row = self.frequencies[:, layer, :, None].to(exact)
        row, column = patches(grid, self.ref_grid, q.device, exact)
        row, column = row.repeat_interleave(columns)[:, None], column.repeat(rows)[:, None]
        angles = column * of_column + row * of_row
        cosine, sine = angles.cos(), angles.sin()
        return turn(q, cosine, sine, half=False), turn(k, cosine, sine, half=False)
