"""Reading configs and study files: unambiguous numbers, and no duplicate keys."""

import copy
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from vitpos.errors import VitposError

SEEDS = 2**32  # numpy, and therefore Lightning, accepts smaller seeds only


class Loader(yaml.SafeLoader):
    """Reads numbers as in YAML 1.2: ``1e-3`` is a number, ``1:30`` is text, and so is ``010`` (octal in YAML 1.1)."""

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
    """Reads a YAML file with a mapping.

    Raises:
        VitposError: It cannot be read, is not valid YAML, has a duplicate key, or is not a mapping.
    """
    try:
        content, found = _parse(path.read_text(encoding="utf-8-sig"))  # Windows editors write a byte order mark
    except OSError as error:
        raise VitposError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or an invalid date
        raise VitposError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise VitposError(f"{path} should hold keys and values, got {type(content).__name__}")
    refuse(found, path)
    return copy.deepcopy(content)


@functools.lru_cache(8)  # a command reads the same study file several times, and it may list thousands of values
def _parse(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """Parses YAML into its content and its keys with their lines."""
    loader = Loader(text)
    try:
        tree = loader.get_single_node()
        found = list(keys(tree, set()))  # before the loader resolves merge keys
        return (None if tree is None else loader.construct_document(tree)), found
    finally:
        loader.dispose()


def refuse_duplicates(path: Path) -> None:
    """Raises a VitposError for a duplicate key, nested or dotted; YAML would silently take the last."""
    try:
        found = _parse(path.read_text(encoding="utf-8-sig"))[1]
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return  # reported when the file is read
    refuse(found, path)


def refuse(found: Iterable[tuple[str, int]], path: Path) -> None:
    """Raises a VitposError for a duplicate key."""
    lines: dict[str, int] = {}
    for key, line in found:
        if key in lines:
            raise VitposError(f"{path} gives {key} twice: in line {lines[key]} and in line {line}; leave one out")
        lines[key] = line


def keys(node: yaml.Node | None, seen: set[int], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields the dotted keys of a YAML document with their lines, including mappings in lists; aliases once."""
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
    """Checks the seed of a run.

    Raises:
        VitposError: It is not an integer, or out of range.
    """
    if type(seed) is not int:
        raise VitposError(f"{where} should be a whole number, got {str(seed).lower()}")
    if not 0 <= seed < SEEDS:
        raise VitposError(f"{where} should be a whole number from 0 to {SEEDS - 1}, got {seed}")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Converts nested keys to dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Converts dotted keys to nested ones."""
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
