"""DINOv3's rotary positions: coordinates within a square, randomly shifted and scaled in training."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from vitpos.errors import VitposError
from vitpos.positions.base import Geometry, Grid, choice, not_negative, positive, register
from vitpos.positions.rotary import Rotary2D


# A custom op, because a compiler would treat the draws as constants or refuse to trace them.
@torch.library.custom_op("vitpos::draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw(count: int, device: torch.device) -> Tensor:
    """Draws uniform numbers from [0, 1) that depend on torch's global random state without advancing the CPU stream.

    The generator is seeded from the global CPU state. To make the next draw differ, this one is counted in the one part
    of the state that no random number depends on and that every seeding resets: the value of ``torch.initial_seed()``.
    So ``torch.manual_seed`` repeats the draws, successive draws differ, and dropout is the same as in a model without
    draws.

    Args:
        count: Number of draws.
        device: Device of the result. The numbers are drawn on the CPU, so they are the same for every device.

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
    """Rotates half of the channel pairs by the row and half by the column, in coordinates from -1 to 1.

    A patch's row becomes ``y = 2 (row + 1/2) / rows - 1``, its column likewise. With d = head_dim, T = temperature and
    i in [0, d/4): pair i rotates by ``2 pi y / T^(i / (d/4))``, pair d/4 + i by the same function of the column, where
    pair j is the channels (j, j + d/2). So the logit depends on the offset relative to the grid size, and another grid
    samples the same square differently.

    In training the coordinates may be augmented, with new draws for each forward pass, shared by all blocks:
    ``y := (y + shift) * jitter * rescale``, with shift, log jitter and log rescale uniform within the options; shift
    and jitter are drawn per axis, rescale once. The draws are a function of torch's seed and of the number of previous
    draws, and leave the global random stream as it is: see `draw`.

    Source: Siméoni et al. 2025 (DINOv3), section 3.2 and its code, as timm's ``RotaryEmbeddingDinoV3``. DINOv3 trains
    with ``rescale_coords=2``.

    Args:
        temperature: Approximate ratio of the longest to the shortest wavelength.
        normalize_coords: Divisor of rows and columns: ``"separate"`` (rows and columns), or the larger (``"max"``) or
            smaller (``"min"``) of the two for both, which preserves the aspect ratio of patches. Coordinates then end
            within -1 to 1 or exceed 1, as in the source.
        shift_coords: Largest shift in training; 0 for none.
        jitter_coords: Largest factor per axis in training, its inverse being the smallest; 1 for none.
        rescale_coords: Largest factor of both axes in training, its inverse being the smallest; 1 for none.
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
        """Returns the centres of rows and columns in [-1, 1], in float32."""
        one = {"max": torch.sym_max, "min": torch.sym_min}.get(self.normalize_coords)
        by: Any = grid if one is None else (one(*grid),) * 2
        return [
            2.0 * ((torch.arange(side, device=device).float() + 0.5) / length) - 1.0
            for side, length in zip(grid, by, strict=True)
        ]

    def turns(self, position: Tensor, band: Tensor, bands: int) -> Tensor:
        """Returns the angles of coordinates, (side, bands)."""
        return 2 * math.pi * position[:, None] / self.temperature ** (2.0 * band / (2 * bands))

    def prepare(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of a grid; in training with augmentation, of newly drawn coordinates."""
        if not (self.training and (self.shift or self.jitter or self.rescale)):
            return super().prepare(grid, device)
        drawn = 2 * draw(5, device) - 1
        shift, factor = self.shift * drawn[:2], (self.jitter * drawn[2:4] + self.rescale * drawn[4]).exp()
        axes = enumerate(self.coordinates(grid, device))
        angles = self.spread(*((axis + shift[i]) * factor[i] for i, axis in axes))
        return angles.cos(), angles.sin()
