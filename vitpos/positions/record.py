"""What a state dict says of its scheme, and how it comes into a model on another grid."""

import json
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Grid, PositionEmbedding, apart, parts


class Record(nn.Module):
    """Puts text and geometry of a scheme into its state dict, as bytes of JSON, for safetensors holds tensors only.

    A child of the scheme whose name is the scheme's, so that a model without it says which key it does not expect.
    """

    def __init__(self, scheme: PositionEmbedding) -> None:
        """Keeps the scheme in sight, not as a child."""
        super().__init__()
        self.__dict__["of"] = scheme

    def get_extra_state(self) -> Tensor:
        """Gives the bytes; torch puts them into the state dict."""
        scheme = self.__dict__["of"]
        says = {"scheme": scheme.text, "grids": [part.geometry.grid for part in parts(scheme)], **_sizes(scheme)}
        return torch.tensor(list(json.dumps(says).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Has nothing left to do: `accept` has read it."""


def label(scheme: PositionEmbedding) -> None:
    """Gives a scheme its record, and takes those of its parts away."""
    for part in [scheme, *parts(scheme)]:
        for name in [name for name, child in part.named_children() if isinstance(child, Record)]:
            delattr(part, name)
    names = "_".join(re.sub(r"\W", "_", part.scheme) for part in parts(scheme))
    scheme.add_module(f"scheme_{names}", Record(scheme))


def accept(scheme: PositionEmbedding, state: dict[str, Any], prefix: str) -> None:
    """Makes a state dict fit a scheme, or refuses it; a state dict without a record is left as it is.

    From another grid, tables are resized where the scheme can; else the scheme takes over the grid of the state dict,
    so that it stays the same function.

    Args:
        scheme: What the state dict is about to be loaded into.
        state: The state dict; changed in place.
        prefix: Of the scheme's keys.

    Raises:
        VitposError: It is the state dict of another scheme, or of a model of other sizes.
    """
    key = re.compile(re.escape(prefix) + r"scheme_\w+\._extra_state")
    says = [_read(state.pop(name)) for name in [*state] if key.fullmatch(name)]
    state.update(
        {
            f"{prefix}{name}._extra_state": child.get_extra_state()
            for name, child in scheme.named_children()
            if isinstance(child, Record)
        }
    )
    for said in says:
        if said["scheme"] != scheme.text:
            raise VitposError(
                f"the state dict is of position scheme {said['scheme']!r}, the model has {scheme.text!r}; to load the "
                f"backbone alone, leave out the keys {prefix}*"
            )
        if wrong := {name: (said[name], own) for name, own in _sizes(scheme).items() if said[name] != own}:
            found = ", ".join(f"{name} {there}, the model has {here}" for name, (there, here) in wrong.items())
            raise VitposError(f"the state dict of position scheme {scheme.text!r} is of a model of {found}")
        for number, (part, grid) in enumerate(zip(parts(scheme), said["grids"], strict=True)):
            _move(part, tuple(grid), state, prefix if part is scheme else f"{prefix}parts.{number}.")


def _read(bytes_of: Tensor) -> dict[str, Any]:
    try:
        says: dict[str, Any] = json.loads(bytes(bytes_of.tolist()))
        return says
    except (ValueError, TypeError, AttributeError):
        raise VitposError("the state dict's record of its position scheme is damaged") from None


def _sizes(scheme: PositionEmbedding) -> dict[str, int]:
    return {name: getattr(scheme.geometry, name) for name in ("embed_dim", "num_heads", "depth")}


def _move(part: PositionEmbedding, grid: Grid, state: dict[str, Any], prefix: str) -> None:
    """Brings a part's state from a grid to its own, or the part to that grid."""
    if grid == part.geometry.grid:
        return
    with apart():
        there = type(part)(replace(part.geometry, grid=grid), **part.given)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    there.load_state_dict(own, strict=False)
    resized = there.resized(part.geometry.grid)
    if resized is not None:
        state.update({prefix + name: value for name, value in resized.items()})
        return
    # The parameters stay the same objects, for an optimizer may hold them.
    for name, parameter in part.named_parameters():
        parameter.data = there.get_parameter(name).data.to(parameter)
    for name, buffer in part.named_buffers():
        owner, _, last = name.rpartition(".")
        part.get_submodule(owner)._buffers[last] = there.get_buffer(name).to(buffer)
    kept = {"given", "training", "_parameters", "_buffers", "_modules"}
    part.__dict__.update(
        {name: value for name, value in vars(there).items() if name not in kept and "hooks" not in name}
    )
