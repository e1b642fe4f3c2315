"""One-line error messages for wrong options, from the errors of jsonargparse and Lightning."""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.callbacks.timer import Interval
from lightning.pytorch.cli import LightningArgumentParser

from vitpos.errors import VitposError, unknown

JSONARGPARSE, LIGHTNING, TORCH = (package.__path__[0] for package in (jsonargparse, lightning, torch))
# The default of Lightning's Timer; without this, a config with a Timer cannot be saved.
yaml.SafeDumper.add_multi_representer(Interval, lambda dumper, value: dumper.represent_str(value.value))


class Parser(LightningArgumentParser):
    """Reports a wrong option or config key in one line, with the nearest existing one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises a VitposError instead of printing the usage, which has two hundred lines."""
        raise readable(" ".join(message.split()), list(destinations(self)))


def destinations(parser: Any) -> Iterator[str]:
    """Yields all keys of a parser and its subcommands."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                yield from destinations(subparser)
        elif action.dest not in ("help", "print_config", "print_shtab", "model.position", "model.seed", "data.seed"):
            yield action.dest


def readable(text: str, keys: list[str]) -> VitposError:
    """Converts an error message of jsonargparse to a readable one."""
    if inner := re.search(r"Subtypes: \[.*lightning.*Errors: (- .*) Given value type: .*Given value: (.*)$", text):
        return of_a_class(text, inner[1], inner[2])
    key = r"(?:(?:[Uu]nrecognized arguments: --)|(?:(?:[Oo]ption|key|Key) '))([\w.]+)"
    refused = re.search(r"nrecognized arguments|not accept|not expected", text)
    if refused and (found := re.search(key, text)):
        group = re.search(r"Group '([\w.]+)'", text)
        return unknown_key(f"{group[1]}.{found[1]}" if group else found[1], keys)
    wanted = r"(?:Expected an? (.*?)\. Got value|Does not .* Subtypes: \[(.*?)\] Errors: .*Given value)"
    if found := re.search(rf'"([\w.]+)": .*?{wanted}: (.*)$', text):
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", found[2] or found[3]).replace("NoneType", "null")
        kind = kind.replace("typing.Literal", "one of ") if "[" in kind else kind.replace(", ", " or ")
        return VitposError(f"{found[1]} should be {kind}, got {found[4]!r}")
    text = re.sub(r'^(Parser )?key "config": | "<unicode string>",', "", text)
    return VitposError(text.replace("Unexpected config", "a config should hold keys and values, got"))


def unknown_key(key: str, keys: list[str]) -> VitposError:
    """Returns the error for an unknown key, listing only the keys of its group: all would fill a screen."""
    group = key.rpartition(".")[0]
    beside = {known for known in keys if known.rpartition(".")[0] == group}
    return unknown("option", key, beside or {known.partition(".")[0] for known in keys})


def of_a_class(text: str, errors: str, given: str) -> VitposError:
    """Reduces jsonargparse's type-by-type list of errors for a callback or logger to the one that matters."""
    found = re.search(r'key "([\w.]+)":', text)
    kind = "logger" if "loggers.logger.Logger" in text else "callbacks"
    key = found[1] if found else f"trainer.{kind}"
    said = [error.strip() for error in re.split(r"(?:^| )- (?=\S)", errors) if error.strip()]
    telling = [
        error for error in said if not re.match("Expected an? <|Not a valid subclass|a class path|a dict ", error)
    ]
    reason = telling[0] if telling else f"got {given}"
    reason = re.sub(
        r"Problem with given class_path '([\w.]+)':", lambda found: f"{found[1].rpartition('.')[2]}:", reason
    )
    if found := re.match(r"Expected a dot import path string: (.*)", reason):
        known = {*(loggers if kind == "logger" else callbacks).__all__} - {
            found[1]
        }  # an existing class of this name lacks a dependency
        return unknown(f"class of {key}", found[1], known)
    if found := re.match(r"the following arguments are required: (.*)", reason):
        names = re.findall(r"class_path='[\w.]*?(\w+)'", given)
        reason = f"{names[-1] if names else 'it'} needs {found[1]}"
    return VitposError(f"{key}: {reason}")


def refused(error: Exception) -> VitposError | None:
    """Converts an error of Lightning, or of torch called by Lightning, about a run's options to one line.

    Args:
        error: Exception raised while setting up or running a run.

    Returns:
        The error to raise instead, also if the GPU runs out of memory; None if the exception is not about options.
    """
    if isinstance(error, VitposError | OSError):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return VitposError(f"{' '.join(str(error).split())[:200]} (try a smaller data.batch_size)")
    helpers = (TORCH, f"{LIGHTNING}_")  # and lightning_utilities: the caller decides whose error it is
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(helpers)]
    text = re.sub(r"<(?:\w+\.)*(\w+) object at 0x\w+>", r"\1", " ".join(str(error).split()))
    if frames[-1].filename.startswith(JSONARGPARSE):
        return readable(text, [])
    if not frames[-1].filename.startswith(LIGHTNING):
        return None
    if isinstance(error, MisconfigurationException | ModuleNotFoundError):  # their messages are meant for users
        return VitposError(f"trainer: {text}")
    said = f"{type(error).__name__}: {text}".removesuffix(": ")
    where = Path(frames[-1].filename).relative_to(LIGHTNING)
    return VitposError(f"trainer: {said} (lightning/{where}, line {frames[-1].lineno})")
