"""Axes that are options of the schemes, such as ``position.scale``: who has them, and what runs follow."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vitpos import positions
from vitpos.errors import VitposError, unknown
from vitpos.positions.text import split

PREFIX = "position."
# Divisible in all ways that schemes ask for; the host's own geometry is checked when a run is prepared.
GEOMETRY = positions.Geometry(grid=(4, 4), embed_dim=192, num_heads=3, depth=2)

Axes = dict[str, Any]
Part = tuple[str, dict[str, object]]
Seen = Sequence[tuple[Axes, str]]


def points(axes: Mapping[str, Sequence[Any]], seen: Seen | None = None) -> list[tuple[Axes, Axes]]:
    """Crosses the axes of a study, ``position`` fastest.

    ``position.NAME`` gives the option NAME to every scheme that has it; null leaves each scheme its own default. A
    scheme without the option stands once, without that axis, not once a value.

    Args:
        axes: Values by axis, ``position`` among them.
        seen: Where given, no file of a scheme is run. What such a scheme has for options is read off these finished
            runs: their axes, and their position with the options written into it.

    Returns:
        Of each point its values by axis, ``position`` first, and what it sets in the config, dotted.

    Raises:
        VitposError: A scheme sets an option itself that is an axis too, or no scheme of the study takes an axis.
    """
    options = [key for key in axes if key.startswith(PREFIX)]
    texts = [str(value) for value in axes["position"]]
    unread = {text for text in texts if seen is not None and any(split(name) for name, _ in positions.parse(text))}
    takers = {
        key: {
            text: recalled(text, key, seen or ()) if text in unread else takes(text, key, axes[key]) for text in texts
        }
        for key in options
    }
    for key, found in takers.items():
        if not unread and not any(map(any, found.values())):
            raise nobody(key, axes[key], texts)
    others = {key: values for key, values in axes.items() if key != "position"}
    found_points: dict[str, tuple[Axes, Axes]] = {}
    for *values, text in itertools.product(*others.values(), texts):
        point = dict(zip(others, values, strict=True))
        own = {key: value for key, value in point.items() if key not in takers or any(takers[key][text])}
        given = {key: (takers[key][text], own[key]) for key in options if own.get(key) is not None}
        settings = {key: value for key, value in point.items() if key not in takers}
        mine = {"position": text, **own}
        settings["position"] = write(text, given) if given else text
        if text in unread:
            settings["position"] = next((at for axes, at in seen or () if axes == mine), settings["position"])
        found_points.setdefault(repr(mine), (mine, settings))
    return list(found_points.values())


def takes(text: str, key: str, values: Sequence[Any]) -> list[bool]:
    """Tells of each part of a scheme's text whether it has the option of an axis.

    An option that a part refuses whatever the value, as ``learned`` does a temperature unless it starts from sinusoids,
    is none that it has. Its default says nothing about that, so the other values are tried.

    Raises:
        VitposError: The text sets the option itself, or cannot be read.
    """
    option, found = key.removeprefix(PREFIX), []
    for name, given in positions.check(text):
        known = positions.options(name)
        if option in given:
            raise VitposError(f"position {text!r} sets {option} itself, and {key} is an axis: leave one of the two out")
        telling = [value for value in values if value is not None and value != known.get(option)] or values
        found.append(option in known and any(not refusal((name, {**given, option: value})) for value in telling))
    return found


def recalled(text: str, key: str, seen: Seen) -> list[bool]:
    """Does as `takes`, from finished runs: a scheme has the options that they have; all, where there are none."""
    found = [axes for axes, _ in seen if axes["position"] == text]
    return [not found or any(key in axes for axes in found)] * len(positions.parse(text))


def refusal(part: Part) -> str:
    """Builds a scheme for its own sake, and returns what it has against its options, or nothing."""
    try:
        with torch.random.fork_rng(devices=[]):
            positions.build(join([part]), GEOMETRY)
    except ValueError as error:
        return str(error)
    return ""


def nobody(key: str, values: Sequence[Any], texts: Sequence[str]) -> VitposError:
    """Makes the error for an axis that no scheme of the study takes."""
    option = key.removeprefix(PREFIX)
    parts = [part for text in texts for part in positions.check(text)]
    having = [(name, given) for name, given in parts if option in positions.options(name)]
    if not having:
        return unknown(
            "option of the study's positions", option, {o for name, _ in parts for o in positions.options(name)}
        )
    name, given = having[0]
    return VitposError(
        f"{key}: no position of the study takes {values}: {refusal((name, {**given, option: values[-1]}))}"
    )


def write(text: str, given: Mapping[str, tuple[list[bool], Any]]) -> str:
    """Writes options, each for the parts that take it, into the text of a scheme."""
    parts = [(name, dict(options)) for name, options in positions.parse(text)]
    for key, (wanted, value) in given.items():
        for (_, options), wants in zip(parts, wanted, strict=True):
            if wants:
                options[key.removeprefix(PREFIX)] = value
    return join(parts)


def join(parts: Sequence[Part]) -> str:
    """Writes names and options as the text that names them."""
    texts = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in parts)
    return "+".join(text.removesuffix("()") for text in texts)
