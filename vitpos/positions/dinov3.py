"""DINOv3's rotary positions: coordinates within a square, which training shifts and scales at random."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, choice, not_negative, positive, register
from vitpos.positions.rotary import Rotary2D


# An operation of its own, since a compiler would take what it draws for a constant, or refuse to draw.
@torch.library.custom_op("vitpos::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw(count: int, device: torch.device) -> Tensor:
    """Draws numbers from [0, 1) that depend on torch's global random state, and leaves what others draw as it is.

    The generator is seeded by the global state of the CPU. So that the next draw is another one, this one is counted
    there, in the one part that no random number depends on and that every seeding sets: what ``torch.initial_seed()``
    returns. So ``torch.manual_seed`` repeats the draws, no two draws are the same without it, and dropout is that of a
    model that draws nothing here.

    Args:
        count: How many.
        device: Of the result. The numbers are drawn on the CPU: they are the same for every device.

    Returns:
        (count,), float32.
    """
    state = torch.get_rng_state()
    seed = hashlib.sha256(state.numpy().tobytes()).digest()[:8]
    state[:8].view(torch.int64).add_(1)
    torch.set_rng_state(state)
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little", signed=True))
    return torch.rand(count, generator=generator).to(device, non_blocking=True)


@draw.register_fake
def _(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, device=device)


@register("rope_dinov3")
class RopeDinov3(Rotary2D):
    """Half of the pairs of channels turns by the row, half by the column, in coordinates from -1 to 1.

    A patch's row becomes ``y = 2 (row + 1/2) / rows - 1``, its column likewise. With d = head_dim, T = temperature and
    i in [0, d/4): pair i turns by ``2 pi y / T^(i / (d/4))``, pair d/4 + i by the same of the column, where pair j is
    the channels (j, j + d/2). So the logit depends on the offset relative to the grid, and another grid is another
    sampling of the same square.

    In training the coordinates may be moved at random, in each forward anew and in all blocks alike:
    ``y := (y + shift) * jitter * rescale``, where shift and the logarithms of jitter and rescale are uniform within the
    options, shift and jitter of each axis apart, rescale of both. What is drawn is a function of torch's seed and of
    what was drawn before, and takes nothing from the random numbers of others: see `draw`.

    Source: Siméoni et al. 2025 (DINOv3), section 3.2 and its code, as timm's ``RotaryEmbeddingDinoV3``. DINOv3 trains
    with ``rescale_coords=2``.
    """

    halves = True

    def __init__(
        self,
        geometry: Geometry,
        *,
        temperature: float = 100.0,
        normalize_coords: str = "separate",
        shift_coords: float = 0.0,
        jitter_coords: float = 1.0,
        rescale_coords: float = 1.0,
    ) -> None:
        """Computes the angles of the training grid.

        Args:
            geometry: The host's.
            temperature: The ratio of the longest to the shortest wavelength, nearly.
            normalize_coords: By what a row and a column are divided: ``"separate"``, rows and columns; or both by the
                larger (``"max"``) or smaller (``"min"``) of the two, which keeps the shape of patches. Coordinates
                then end within -1 to 1 or go beyond 1, as in the source.
            shift_coords: The largest shift in training; 0 for none.
            jitter_coords: The largest factor of an axis in training, and 1 over it the smallest; 1 for none.
            rescale_coords: The largest factor of both axes in training, and 1 over it the smallest; 1 for none.

        Raises:
            VitposError: `temperature` is not a finite number above 0, head_dim does not divide by 4, `normalize_coords`
                is another word, `shift_coords` no finite number from 0, or one of the factors none from 1.
        """
        scheme = self.scheme
        self.normalize_coords = choice(scheme, "normalize_coords", normalize_coords, ("separate", "max", "min"))
        super().__init__(geometry, temperature=temperature)
        factors = {"jitter_coords": jitter_coords, "rescale_coords": rescale_coords}
        for option, factor in factors.items():
            if positive(scheme, option, factor) < 1:
                raise VitposError(f"position scheme {scheme!r}: {option}={factor!r} must be at least 1: it is a factor")
        self.shift = not_negative(scheme, "shift_coords", shift_coords)
        self.jitter, self.rescale = (math.log(factor) for factor in factors.values())

    def coordinates(self, grid: Grid, device: torch.device | None) -> list[Tensor]:
        """Gives the centres of rows and of columns in [-1, 1], in float32."""
        one = {"max": torch.sym_max, "min": torch.sym_min}.get(self.normalize_coords)
        by: Any = grid if one is None else (one(*grid),) * 2
        return [
            2.0 * ((torch.arange(side, device=device).float() + 0.5) / length) - 1.0
            for side, length in zip(grid, by, strict=True)
        ]

    def turns(self, position: Tensor, band: Tensor, bands: int) -> Tensor:
        """Gives the angles of coordinates, (side, bands)."""
        return 2 * math.pi * position[:, None] / self.temperature ** (2.0 * band / (2 * bands))

    def prepare(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Gives the cosines and sines of a grid, in training those of coordinates that are drawn anew."""
        if not (self.training and (self.shift or self.jitter or self.rescale)):
            return super().prepare(grid, device)
        drawn = 2 * draw(5, device) - 1
        shift, factor = self.shift * drawn[:2], (self.jitter * drawn[2:4] + self.rescale * drawn[4]).exp()
        axes = enumerate(self.coordinates(grid, device))
        angles = self.spread(*((axis + shift[i]) * factor[i] for i, axis in axes))
        return angles.cos(), angles.sin()
