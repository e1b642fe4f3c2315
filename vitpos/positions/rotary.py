"""Rotary positions: queries and keys are turned in pairs of channels by angles that grow with the position."""

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
    """Turns pairs of channels (a, b) into (a cos - b sin, b cos + a sin).

    Args:
        x: (..., N, head_dim).
        cosine: Of the angles, (..., N, head_dim / 2).
        sine: As `cosine`.
        half: Whether a pair is (i, i + head_dim / 2), as in DINOv3; else it is (2i, 2i + 1), as in rope-vit and EVA-02.

    Returns:
        The turned channels, shape and dtype of `x`.
    """
    exact = torch.promote_types(x.dtype, torch.float32)  # in half precision strided channels are slow, and inexact
    cosine, sine = cosine.to(exact), sine.to(exact)
    # A view of the host's q, k, v becomes contiguous here, or the products of attention would copy what is returned.
    exactly = x.to(exact, memory_format=torch.contiguous_format)
    if half:  # fewer passes than over half rows that are joined again; not addcmul, which may round once less
        other = exactly.roll(x.shape[-1] // 2, -1).mul_(torch.cat([-sine, sine], -1))
        return (exactly * torch.cat([cosine, cosine], -1)).add_(other).to(x.dtype)
    pairs = torch.unflatten(exactly, -1, (-1, 2))
    tracing = torch._C._get_tracing_state() is not None  # also in torch.onnx.export(dynamo=False)
    if tracing or torch.compiler.is_compiling() or not _as_complex(pairs):
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
    else:  # the same products, several times as fast; compilers and exporters do not know complex numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine))
    return turned.flatten(-2).to(x.dtype)


def _as_complex(pairs: Tensor) -> bool:
    """Whether pairs lie in memory as complex numbers do; slices of other tensors need not."""
    *strides, last = pairs.stride()
    return last == 1 and not any(step % 2 for step in (*strides, pairs.storage_offset()))


def reference(scheme: str, value: object) -> Grid | None:
    """Checks the option ``ref_grid``: None, or the sides of a grid, or the one side of a square.

    Raises:
        VitposError: It is neither.
    """
    if value is None:
        return None
    sides = list(value) if isinstance(value, tuple | list) else [value, value]
    if len(sides) != 2:
        raise VitposError(
            f"position scheme {scheme!r}: ref_grid={value!r} must be one whole number, or two: rows and columns"
        )
    return count(scheme, "ref_grid", sides[0]), count(scheme, "ref_grid", sides[1])


def patches(grid: Grid, ref_grid: Grid | None, device: torch.device | None, dtype: torch.dtype) -> list[Tensor]:
    """Gives the coordinates of rows and of columns: patches, from 0.

    With a reference grid of n' patches along an axis, the n patches of any grid are at ``(0 .. n - 1) / n * n'``: a
    larger grid lies as densely in the same square. Source: EVA-02 (Fang et al. 2023), its ``pt_hw_seq_len``; timm's
    ``ref_feat_shape``.
    """
    axes = [torch.arange(side, device=device).to(dtype) for side in grid]
    if ref_grid is None:
        return axes
    return [axis / side * known for axis, side, known in zip(axes, grid, ref_grid, strict=True)]


class Rotary(PositionEmbedding, ABC):
    """Fixed angles, the same for all blocks: the logit of two patches depends on the difference of their angles."""

    cosine: Tensor
    sine: Tensor
    divisor = 4  # two axes, and pairs of channels
    halves = False

    def __init__(self, geometry: Geometry, *, temperature: float) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly.

        Raises:
            VitposError: `temperature` is not a finite number above 0, or head_dim does not divide into pairs.
        """
        super().__init__(geometry)
        divisible(self.scheme, "head_dim", geometry.head_dim, self.divisor)
        self.temperature = positive(self.scheme, "temperature", temperature)
        angles = self.angles(geometry.grid)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def reset_parameters(self) -> None:
        """Computes the angles anew (after ``to_empty``, say: they are in no state dict)."""
        angles = self.angles(self.geometry.grid, self.cosine.device)
        self.cosine.copy_(angles.cos())
        self.sine.copy_(angles.sin())

    @abstractmethod
    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the angles of a grid, (rows * columns, head_dim / 2) or of each head, in float32 or float64."""

    def prepare(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Gives the cosines and sines of a grid; for another one than that of training they are computed."""
        if self.home(grid):
            return self.cosine, self.sine
        angles = self.angles(grid, device)
        return angles.cos(), angles.sin()

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """Turns queries and keys."""
        cosine, sine = self.prepare(grid, q.device) if prepared is None else prepared
        return turn(q, cosine, sine, self.halves), turn(k, cosine, sine, self.halves)


@register("rope_1d")
class Rope1D(Rotary):
    """The rotation of language models, over the index of the patch in raster order.

    With d = head_dim, p = row * columns + column and T = temperature, the pair of channels (2i, 2i + 1) turns by
    ``p / T^(2i/d)``, i in [0, d/2).

    Source: Su et al. 2021 (RoFormer), equations 15 and 34.
    """

    divisor = 2

    def __init__(self, geometry: Geometry, *, temperature: float = 10000.0) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly (RoFormer: 10000).

        Raises:
            VitposError: `temperature` is not a finite number above 0, or head_dim is odd.
        """
        super().__init__(geometry, temperature=temperature)

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the angles, (rows * columns, head_dim / 2), in float64."""
        bands = self.geometry.head_dim // 2
        band = torch.arange(bands, dtype=torch.float64, device=device)
        position = torch.arange(grid[0] * grid[1], dtype=torch.float64, device=device)
        return position[:, None] * self.temperature ** (-band / bands)


class Rotary2D(Rotary):
    """Half of the pairs turns by the row, the other half by the column."""

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the angles, rows first, (rows * columns, head_dim / 2).

        In float32 and in the order of operations of timm, so that a model equals timm's bit for bit.
        """
        return self.spread(*self.coordinates(grid, device))

    def spread(self, row: Tensor, column: Tensor) -> Tensor:
        """Computes the angles of all patches from the coordinates of rows and of columns."""
        bands = self.geometry.head_dim // 4
        band = torch.arange(bands, device=row.device).float()
        row, column = (self.turns(axis, band, bands) for axis in (row, column))
        row = row[:, None].expand(row.shape[0], column.shape[0], bands)
        return torch.cat([row, column.expand_as(row)], dim=-1).flatten(0, 1)

    @abstractmethod
    def coordinates(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        """Gives the coordinates of rows and of columns, (rows,) and (columns,), in float32."""

    def turns(self, position: Tensor, band: Tensor, bands: int) -> Tensor:
        """Gives the angles of coordinates, (side, bands)."""
        return position[:, None] * (1.0 / self.temperature ** (band / bands))


@register("rope_axial")
class RopeAxial(Rotary2D):
    """Half of the pairs of channels turns by the row, half by the column, in patches.

    With d = head_dim, T = temperature and i in [0, d/4): pair i turns by ``row / T^(i / (d/4))``, pair d/4 + i by
    ``column / T^(i / (d/4))``, where pair j is the channels (2j, 2j + 1).

    Source: Heo et al. 2024 (Rotary Position Embedding for Vision Transformer), equation 6 with its temperature, in
    timm's order of the axes (``RotaryEmbeddingCat(in_pixels=False)``); the paper's is columns first, the same pairs
    permuted. EVA-02 (Fang et al. 2023) has the temperature 10000 and, at any resolution, the coordinates of the grid
    that it was pretrained on.
    """

    def __init__(
        self, geometry: Geometry, *, temperature: float = 100.0, ref_grid: int | tuple[int, int] | None = None
    ) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly. At 10000, half of the pairs hardly
                turns on a grid of 8 x 8.
            ref_grid: The grid in whose coordinates every grid is described, ``row / rows * ref_grid[0]`` and the like
                for columns: rows and columns, or one number for a square (EVA-02: 16). None counts patches.

        Raises:
            VitposError: `temperature` is not a finite number above 0, head_dim does not divide by 4, or `ref_grid` is
                not one or two whole numbers from 1.
        """
        self.ref_grid = reference(self.scheme, ref_grid)  # first, for the angles are computed by the constructor above
        super().__init__(geometry, temperature=temperature)

    def coordinates(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        """Gives the coordinates of rows and of columns in patches, of `ref_grid` if there is one."""
        return patches(grid, self.ref_grid, device, torch.float32)


@register("rope_golden")
class RopeGolden(Rotary):
    """Every pair of channels turns by the place along a direction of its own; the directions are fixed, and oblique.

    With d = head_dim and n = d/2 pairs, pair j of head h, the channels (j, j + d/2), turns by
    ``w_j (row cos a + column sin a)``, in patches, with frequencies ``w_j = T^(j / (n - 1) - 1)`` from 1/T to 1 and the
    direction a of number ``m = h n + j + 1`` in a sequence that fills the circle evenly, however many there are:
    (cos a, sin a) is the unit vector along the normal quantiles of the fractional parts of ``m / p`` and ``m / p^2``,
    where p = 1.3247 is the real root of ``p^3 = p + 1``, the golden ratio's counterpart in two dimensions. All blocks
    turn alike. It is ``rope_mixed`` with frequencies that are spread out instead of learned.

    Source: Xiong 2025 (On N-dimensional Rotary Positional Embeddings, jerryxio.ng/posts/nd-rope), its golden gate RoPE,
    as ``GoldenGateRoPENd`` of vit-pytorch, whose frequencies go from 1 to 10000 unless told otherwise.
    """

    divisor = 2
    halves = True

    def __init__(
        self, geometry: Geometry, *, temperature: float = 100.0, ref_grid: int | tuple[int, int] | None = None
    ) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength (the source's figures: 100).
            ref_grid: As for ``rope_axial``.

        Raises:
            VitposError: `temperature` is not a finite number above 0, head_dim is odd, or `ref_grid` is not one or two
                whole numbers from 1.
        """
        self.ref_grid = reference(self.scheme, ref_grid)
        root = 2.0
        for _ in range(10):  # as the source: far on in the sequence, its last digits matter
            root = (1 + root) ** (1 / 3)
        quantile, numbers = NormalDist().inv_cdf, range(1, geometry.num_heads * (geometry.head_dim // 2) + 1)
        # Python's numbers, since compilers and exporters do not know the quantiles.
        self.directions = [math.atan2(quantile(m / root**2 % 1), quantile(m / root % 1)) for m in numbers]
        super().__init__(geometry, temperature=temperature)

    def angles(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """Computes the angles, (heads, rows * columns, head_dim / 2), in float64."""
        heads, pairs = self.geometry.num_heads, self.geometry.head_dim // 2
        direction = torch.tensor(self.directions, dtype=torch.float64, device=device).view(heads, 1, pairs)
        band = torch.linspace(-1, 0, pairs, dtype=torch.float64, device=device)
        row, column = patches(grid, self.ref_grid, device, torch.float64)
        row, column = row.repeat_interleave(grid[1])[:, None], column.repeat(grid[0])[:, None]
        return (row * direction.cos() + column * direction.sin()) * self.temperature**band


@register("rope_mixed")
class RopeMixed(PositionEmbedding):
    """Every pair of channels turns by a learned mix of row and column, its own in each block and head.

    With d = head_dim and j in [0, d/2): the channels (2j, 2j + 1) turn by
    ``column * frequencies[0, layer, head, j] + row * frequencies[1, layer, head, j]``, in patches.

    Source: Heo et al. 2024 (Rotary Position Embedding for Vision Transformer), equation 7, as timm's
    ``RotaryEmbeddingMixed``. Its start: pairs j and d/4 + j have the length ``T^(-4j/d)`` and are at right angles, both
    turned by a random angle of the block and head.
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
        """Draws the frequencies.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength at the start, nearly.
            init: The start: ``"random"``, that of the source; or ``"zero"``, which turns nothing at first, so that a
                pretrained model goes on from where it was.
            ref_grid: As for ``rope_axial``.

        Raises:
            VitposError: `temperature` is not a finite number above 0, `init` is another word, head_dim does not divide
                by 4, or `ref_grid` is not one or two whole numbers from 1.
        """
        super().__init__(geometry)
        self.ref_grid = reference(self.scheme, ref_grid)
        divisible(self.scheme, "head_dim", geometry.head_dim, 4)
        self.temperature = positive(self.scheme, "temperature", temperature)
        self.init = choice(self.scheme, "init", init, ("random", "zero"))
        self.frequencies = nn.Parameter(empty(2, geometry.depth, geometry.num_heads, geometry.head_dim // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the frequencies anew."""
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
        """Turns queries and keys, each head by its own angles."""
        rows, columns = grid
        exact = torch.promote_types(self.frequencies.dtype, torch.float32)  # half precision would corrupt the angles
        of_column, of_row = self.frequencies[:, layer, :, None].to(exact)
        row, column = patches(grid, self.ref_grid, q.device, exact)
        row, column = row.repeat_interleave(columns)[:, None], column.repeat(rows)[:, None]
        angles = column * of_column + row * of_row
        cosine, sine = angles.cos(), angles.sin()
        return turn(q, cosine, sine, half=False), turn(k, cosine, sine, half=False)
