"""Reading configs and study files: one value for one number, and no key twice."""

import copy
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vitpos.errors import VitposError

SEEDS = 2**32  # numpy, and so Lightning, takes the seeds below


class Loader(yaml.SafeLoader):
    """Reads YAML as version 1.2 reads numbers: ``1e-3`` is one, ``1:30`` is text; so is ``010``, which was 8 before."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [each for each in resolvers if not each[0].endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _kind, _pattern in {
    "int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$",
    "float": r"[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)$|[-+]?(\.[0-9]|[0-9][0-9_]*\.)[0-9_]*$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds keys and values.

    Raises:
        VitposError: It cannot be read, is not YAML, has a key twice, or holds something else.
    """
    try:
        content, found = _parse(path.read_text(encoding="utf-8-sig"))  # Windows editors begin a file with a mark
    except OSError as error:
        raise VitposError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8, a date that does not exist
        raise VitposError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise VitposError(f"{path} should hold keys and values, got {type(content).__name__}")
    refuse(found, path)
    return copy.deepcopy(content)


@functools.lru_cache(8)  # the same study file is read several times by a command, and may list thousands of values
def _parse(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """Reads YAML: its content, and its keys with their lines."""
    loader = Loader(text)
    try:
        tree = loader.get_single_node()
        found = list(keys(tree, set()))  # before merge keys are put in their place
        return (None if tree is None else loader.construct_document(tree)), found
    finally:
        loader.dispose()


def refuse_twice(path: Path) -> None:
    """Stops at a key that a YAML file gives twice, nested or dotted; YAML would take the last without a word.

    Raises:
        VitposError: Names the key and both lines.
    """
    try:
        found = _parse(path.read_text(encoding="utf-8-sig"))[1]
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return  # whoever reads it will say so
    refuse(found, path)


def refuse(found: Iterable[tuple[str, int]], path: Path) -> None:
    """Stops at a key that stands twice (errors as `refuse_twice`)."""
    lines: dict[str, int] = {}
    for key, line in found:
        if key in lines:
            raise VitposError(f"{path} gives {key} twice: in line {lines[key]} and in line {line}; leave one out")
        lines[key] = line


def keys(node: yaml.Node | None, seen: set[int], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields the dotted keys of a YAML document and their lines, also of mappings within lists; aliases once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if key.tag != "tag:yaml.org,2002:merge":
                yield name, key.start_mark.line + 1
            yield from keys(value, seen, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from keys(item, seen, f"{prefix[:-1]}[{index}].")


def check_seed(seed: object, where: str) -> None:
    """Checks a seed of a run.

    Raises:
        VitposError: It is no whole number, or out of range.
    """
    if type(seed) is not int:
        raise VitposError(f"{where} should be a whole number, got {str(seed).lower()}")
    if not 0 <= seed < SEEDS:
        raise VitposError(f"{where} should be a whole number from 0 to {SEEDS - 1}, got {seed}")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested keys into dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Turns dotted keys into nested ones."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise VitposError(f"{key}={value!r} does not go with {group}={node!r}: one of the two keys is wrong")
        node[last] = value
    return tree
