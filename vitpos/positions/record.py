"""The scheme recorded in a state dict, and loading it into a model on another grid."""

import json
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitpos.errors import VitposError
from vitpos.positions.base import Grid, PositionEmbedding, isolated_init, parts


class Record(nn.Module):
    """Stores a scheme's text and geometry in its state dict, as bytes of JSON because safetensors holds tensors only.

    It is a child of the scheme with the scheme's name in its own, so that a model with another scheme or without one
    reports an unexpected key that says what the state dict belongs to.
    """

    def __init__(self, scheme: PositionEmbedding) -> None:
        """Keeps a reference to the scheme without registering it as a child."""
        super().__init__()
        self.__dict__["of"] = scheme

    def get_extra_state(self) -> Tensor:
        """Returns the bytes, which torch adds to the state dict."""
        scheme = self.__dict__["of"]
        record = {"scheme": scheme.text, "grids": [part.geometry.grid for part in parts(scheme)], **_sizes(scheme)}
        return torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Does nothing: `adapt` has already read the record."""


def add_record(scheme: PositionEmbedding) -> None:
    """Gives a scheme its record and removes those of its parts."""
    for part in [scheme, *parts(scheme)]:
        for name in [name for name, child in part.named_children() if isinstance(child, Record)]:
            delattr(part, name)
    names = "_".join(re.sub(r"\W", "_", part.scheme) for part in parts(scheme))
    scheme.add_module(f"scheme_{names}", Record(scheme))


def adapt(scheme: PositionEmbedding, state: dict[str, Any], prefix: str) -> None:
    """Adapts a state dict to a scheme, or refuses it; a state dict without a record is left unchanged.

    If it comes from another grid, its tables are resized if the scheme supports that; otherwise the scheme takes over
    the grid of the state dict, so that it stays the same function.

    Args:
        scheme: The scheme that the state dict is about to be loaded into.
        state: The state dict; changed in place.
        prefix: Prefix of the scheme's keys.

    Raises:
        VitposError: It belongs to another scheme or to a model of another size.
    """
    key = re.compile(re.escape(prefix) + r"scheme_\w+\._extra_state")
    records = [_read(state.pop(name)) for name in [*state] if key.fullmatch(name)]
    state.update(
        {
            f"{prefix}{name}._extra_state": child.get_extra_state()
            for name, child in scheme.named_children()
            if isinstance(child, Record)
        }
    )
    for record in records:
        if record["scheme"] != scheme.text:
            raise VitposError(
                f"the state dict is of position scheme {record['scheme']!r}, the model has {scheme.text!r}; to load "
                f"the backbone alone, leave out the keys {prefix}*"
            )
        if wrong := {name: (record[name], own) for name, own in _sizes(scheme).items() if record[name] != own}:
            found = ", ".join(f"{name} {there}, the model has {here}" for name, (there, here) in wrong.items())
            raise VitposError(f"the state dict of position scheme {scheme.text!r} is of a model of {found}")
        for number, (part, grid) in enumerate(zip(parts(scheme), record["grids"], strict=True)):
            _move(part, tuple(grid), state, prefix if part is scheme else f"{prefix}parts.{number}.")


def _read(bytes_of: Tensor) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(bytes(bytes_of.tolist()))
        return record
    except (ValueError, TypeError, AttributeError):
        raise VitposError("the state dict's record of its position scheme is damaged") from None


def _sizes(scheme: PositionEmbedding) -> dict[str, int]:
    return {name: getattr(scheme.geometry, name) for name in ("embed_dim", "num_heads", "depth")}


def _move(part: PositionEmbedding, grid: Grid, state: dict[str, Any], prefix: str) -> None:
    """Converts a part's state to the part's grid, or else the part to the state's grid."""
    if grid == part.geometry.grid:
        return
    with isolated_init():
        there = type(part)(replace(part.geometry, grid=grid), **part.given)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    there.load_state_dict(own, strict=False)
    resized = there.resized(part.geometry.grid)
    if resized is not None:
        state.update({prefix + name: value for name, value in resized.items()})
        return
    # The parameters stay the same objects, because an optimizer may hold them.
    for name, parameter in part.named_parameters():
        parameter.data = there.get_parameter(name).data.to(parameter)
    for name, buffer in part.named_buffers():
        owner, _, last = name.rpartition(".")
        part.get_submodule(owner)._buffers[last] = there.get_buffer(name).to(buffer)
    kept = {"given", "training", "_parameters", "_buffers", "_modules"}
    part.__dict__.update(
        {name: value for name, value in vars(there).items() if name not in kept and "hooks" not in name}
    )
