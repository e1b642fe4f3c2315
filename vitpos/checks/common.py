"""Shared fixtures of the checks: a small geometry, a small ViT, and errors of one line."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitpos.attach import attach
from vitpos.positions import Geometry, PositionEmbedding
from vitpos.positions.base import Grid, parts

# Batch, heads, depth and classes differ as far as the width allows, so that mixed-up axes are noticed.
GRID, WIDTH, HEADS, DEPTH, CLASSES, BATCH = (4, 6), 48, 4, 2, 5, 3
GEOMETRY = Geometry(GRID, WIDTH, HEADS, DEPTH)
SIZE = (16, 24)  # image size in pixels, patch size 4
HALVES = (torch.bfloat16, torch.float16)
PREFIXES: dict[str, dict[str, Any]] = {
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "class token": {"class_token": True, "global_pool": "token"},
    "class token and registers": {"class_token": True, "reg_tokens": 3, "global_pool": "token"},
    "registers": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
}
# The hooks that act on a block: only they have an argument `layer`.
HOOKS = tuple(
    name
    for name, hook in vars(PositionEmbedding).items()
    if inspect.isfunction(hook) and "layer" in inspect.signature(hook).parameters
)
REGISTERS = PREFIXES["class token and registers"]


class CheckError(Exception):
    """A property does not hold; one line with the expected and the found value."""


class SkippedError(Exception):
    """A check does not apply to this scheme or cannot run here; one line with the reason."""


def require(condition: bool, message: str) -> None:
    """Raises a CheckError with this message unless the condition holds."""
    if not condition:
        raise CheckError(message)


def close(found: Tensor, expected: Tensor, what: str, atol: float = 0.0) -> None:
    """Raises a CheckError unless shapes are equal and values differ by at most `atol`; 0 requires bitwise equality."""
    require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    require(found.is_complex() == expected.is_complex(), f"{what}: {found.dtype}, expected {expected.dtype}")
    if not torch.equal(found, expected):
        difference = (found.double() - expected.double()).abs().max().item()
        require(difference <= atol and atol > 0, f"{what}: they differ by {difference:.2g}, allowed is {atol:.2g}")


@contextmanager
def case(text: str) -> Iterator[None]:
    """Adds the current case of a check as a note to any exception raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def by(grid: Grid) -> str:
    """Formats a grid or a size."""
    return f"{grid[0]} x {grid[1]}"


def short(dtype: torch.dtype) -> str:
    """Formats a dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def queries(grid: Grid, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Returns fixed random queries or keys, (BATCH, HEADS, rows * columns, head_dim)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, prod(grid), WIDTH // HEADS, generator=generator).to(dtype)


def images(*size: int, batch: int = BATCH, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns fixed random images of `size`, by default `SIZE`."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *(size or SIZE), generator=generator, dtype=dtype)


def overrides(scheme: PositionEmbedding, *hooks: str) -> bool:
    """Returns whether a scheme, or a part of a sum, overrides one of these hooks."""
    return any(getattr(type(p), h) is not getattr(PositionEmbedding, h) for p in parts(scheme) for h in hooks)


def spelled(name: str, given: dict[str, object], **more: str) -> str:
    """Formats the text of a scheme with options; `more` holds values that are already formatted."""
    values = {**{option: repr(value) for option, value in given.items()}, **more}
    return f"{name}({', '.join(f'{option}={value}' for option, value in values.items())})" if values else name


def perturbed(scheme: PositionEmbedding) -> PositionEmbedding:
    """Randomizes parameters that are zero, in place, so that a scheme that starts as the identity has an effect."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in scheme.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
    return scheme


def vit(text: str | None = None, seed: int = 0, *, start: bool = False, **kwargs: Any) -> Any:
    """Builds a timm ViT of two blocks on a 4 x 6 grid, with dynamic image size, in eval mode.

    Args:
        text: The scheme; None for a ViT that never had one.
        seed: Seed of all weights.
        start: Keeps the scheme's initial parameters; otherwise it is `perturbed`.
        kwargs: Arguments of timm's ``VisionTransformer``.
    """
    torch.manual_seed(seed)
    given = {"img_size": SIZE, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    more = {"mlp_ratio": 1, "num_classes": CLASSES, "pos_embed": "none", "dynamic_img_size": True}
    host: Any = VisionTransformer(**{**given, **more, **PREFIXES["no prefix"], **kwargs}).eval()
    if text is None:
        return host
    attach(host, text)
    if not start:
        perturbed(host.pos_embed)
    return host


def own(host: nn.Module) -> dict[str, Tensor]:
    """Returns the scheme's parameters and buffers by their names in the model."""
    named = [*host.named_parameters(), *host.named_buffers()]
    return {name: tensor for name, tensor in named if name.startswith("pos_embed.")}
