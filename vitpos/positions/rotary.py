"""Rotary positions: queries and keys are turned in pairs of channels by angles that grow with the position."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, empty, nn

from vitpos.positions.absolute import divisible
from vitpos.positions.base import Geometry, Grid, PositionEmbedding, choice, positive, register


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
    if torch.compiler.is_compiling() or not _as_complex(pairs):
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
    else:  # the same products, several times as fast; compilers and exporters do not know complex numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine))
    return turned.flatten(-2).to(x.dtype)


def _as_complex(pairs: Tensor) -> bool:
    """Whether pairs lie in memory as complex numbers do; slices of other tensors need not."""
    *strides, last = pairs.stride()
    return last == 1 and not any(step % 2 for step in (*strides, pairs.storage_offset()))


class Rotary(PositionEmbedding, ABC):
    """Fixed angles, the same for all heads and blocks: the logit of two patches depends on their angles' difference."""

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
        """Computes the angles of a grid, (rows * columns, head_dim / 2), in float32 or float64."""

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Turns queries and keys."""
        if tuple(grid) == self.geometry.grid:
            cosine, sine = self.cosine, self.sine
        else:
            angles = self.angles(grid, q.device)
            cosine, sine = angles.cos(), angles.sin()
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
        rows, columns = grid
        bands = self.geometry.head_dim // 4
        band = torch.arange(bands, device=device).float()
        row, column = (self.turns(self.coordinates(side, device), band, bands) for side in grid)
        row = row[:, None].expand(rows, columns, bands)
        return torch.cat([row, column.expand(rows, columns, bands)], dim=-1).flatten(0, 1)

    def coordinates(self, side: int, device: torch.device | None) -> Tensor:
        """Gives the coordinates along an axis of so many patches, (side,), in float32: patches, from 0."""
        return torch.arange(side, device=device).float()

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
    permuted. EVA-02 (Fang et al. 2023) has the temperature 10000.
    """

    def __init__(self, geometry: Geometry, *, temperature: float = 100.0) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly. At 10000, half of the pairs hardly
                turns on a grid of 8 x 8.

        Raises:
            VitposError: `temperature` is not a finite number above 0, or head_dim does not divide by 4.
        """
        super().__init__(geometry, temperature=temperature)


@register("rope_dinov3")
class RopeDinov3(Rotary2D):
    """Half of the pairs of channels turns by the row, half by the column, in coordinates from -1 to 1.

    A patch's row becomes ``y = 2 (row + 1/2) / rows - 1``, its column likewise. With d = head_dim, T = temperature and
    i in [0, d/4): pair i turns by ``2 pi y / T^(i / (d/4))``, pair d/4 + i by the same of the column, where pair j is
    the channels (j, j + d/2). So the logit depends on the offset relative to the grid, and another grid is another
    sampling of the same square.

    Source: Siméoni et al. 2025 (DINOv3), section 3.2 and its code, as timm's ``RotaryEmbeddingDinoV3``; without the
    random shifts and scales of the coordinates that DINOv3 trains with.
    """

    halves = True

    def __init__(self, geometry: Geometry, *, temperature: float = 100.0) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly.

        Raises:
            VitposError: `temperature` is not a finite number above 0, or head_dim does not divide by 4.
        """
        super().__init__(geometry, temperature=temperature)

    def coordinates(self, side: int, device: torch.device | None) -> Tensor:
        """Gives the centres of so many patches in [-1, 1], (side,), in float32."""
        return 2.0 * ((torch.arange(side, device=device).float() + 0.5) / side) - 1.0

    def turns(self, position: Tensor, band: Tensor, bands: int) -> Tensor:
        """Gives the angles of coordinates, (side, bands)."""
        return 2 * math.pi * position[:, None] / self.temperature ** (2.0 * band / (2 * bands))


@register("rope_mixed")
class RopeMixed(PositionEmbedding):
    """Every pair of channels turns by a learned mix of row and column, its own in each block and head.

    With d = head_dim and j in [0, d/2): the channels (2j, 2j + 1) turn by
    ``column * frequencies[0, layer, head, j] + row * frequencies[1, layer, head, j]``, in patches.

    Source: Heo et al. 2024 (Rotary Position Embedding for Vision Transformer), equation 7, as timm's
    ``RotaryEmbeddingMixed``. Its start: pairs j and d/4 + j have the length ``T^(-4j/d)`` and are at right angles, both
    turned by a random angle of the block and head.
    """

    def __init__(self, geometry: Geometry, *, temperature: float = 10.0, init: str = "random") -> None:
        """Draws the frequencies.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength at the start, nearly.
            init: The start: ``"random"``, that of the source; or ``"zero"``, which turns nothing at first, so that a
                pretrained model goes on from where it was.

        Raises:
            VitposError: `temperature` is not a finite number above 0, `init` is another word, or head_dim does not
                divide by 4.
        """
        super().__init__(geometry)
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
        row = torch.arange(rows, dtype=exact, device=q.device).repeat_interleave(columns)[:, None]
        column = torch.arange(columns, dtype=exact, device=q.device).repeat(rows)[:, None]
        angles = column * of_column + row * of_row
        cosine, sine = angles.cos(), angles.sin()
        return turn(q, cosine, sine, half=False), turn(k, cosine, sine, half=False)
