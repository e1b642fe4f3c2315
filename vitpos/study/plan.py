"""A study file: what is compared, stated before anything runs, and the runs that follow from it."""

import dataclasses
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from vitpos.analysis.comparison import Comparison
from vitpos.errors import VitposError, unknown

# Bumped when the same config starts to mean another computation: results of another format are not skipped but redone.
FORMAT = 1
# Where a run happens and where its files lie do not change what it computes, so they stay out of its hash.
PLACE = ("data.root", "data.download", "trainer.default_root_dir", "trainer.accelerator", "trainer.devices")


@dataclass(frozen=True)
class Run:
    """One training: a point on the study's axes and a seed.

    Attributes:
        axes: Value on each axis, ``position`` first.
        seed: Seed of all random streams.
        config: Everything that ``vitpos fit --config`` would be given, nested.
    """

    axes: dict[str, Any]
    seed: int
    config: dict[str, Any]

    @property
    def hash(self) -> str:
        """The first 12 hex digits of SHA-256 of the config without places; equal hashes are equal computations."""
        content = {key: value for key, value in flatten(self.config).items() if key not in PLACE}
        if content.get("data.name") == "folder":  # there the place is all that names the data
            content["data.root"] = self.config["data"].get("root")
        text = json.dumps({"format": FORMAT, **content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """What people call it: ``learned, model.lr=0.001, seed 0``."""
        others = [f"{key}={value}" for key, value in self.axes.items() if key != "position"]
        return ", ".join([str(self.axes["position"]), *others, f"seed {self.seed}"])

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and unique by its hash."""
        words = re.sub(r"[^\w.+=]+", "-", "-".join(str(value) for value in self.axes.values())).strip("-")
        return f"{words[:80]}-s{self.seed}-{self.hash[:8]}"


@dataclass(frozen=True)
class File:
    """The keys of a study file.

    Attributes:
        question: What the study answers.
        base: A config of ``vitpos fit``, its path relative to the study file.
        axes: Dotted config keys and the values to cross; ``position`` is one of them.
        seeds: One run of every variant for each.
        reference: The position that the others are compared with.
        overrides: Dotted config keys that differ from the base in all runs.
        metric: Key of the result that is compared, a share between 0 and 1.
        margin: Percentage points within which two schemes count as equal.
        alpha: Family-wise error rate of the verdicts.
    """

    question: str
    base: str
    axes: dict[str, list[Any]]
    seeds: list[int]
    reference: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric: str = "test/accuracy"
    margin: float = 1.0
    alpha: float = 0.05


@dataclass(frozen=True)
class Study:
    """A study file that was read and checked.

    Attributes:
        path: The file.
        comparison: What is compared and how it is judged.
        runs: All runs, seeds in the outer loop: an interruption leaves complete pairs.
    """

    path: Path
    comparison: Comparison
    runs: tuple[Run, ...]


def load(path: str | Path) -> Study:
    """Reads a study file and makes its runs.

    Args:
        path: The YAML file; its stem names the study.

    Raises:
        VitposError: No such file, not YAML, an unknown or missing key, a value of the wrong type, an axis without
            values, a value or seed that stands twice, or a reference that is no position of the study.
    """
    path = Path(path)
    given = read_yaml(path)
    known = get_type_hints(File)
    for key in given:
        if key not in known:
            raise unknown(f"key of {path.name}", str(key), known)
    for field in dataclasses.fields(File):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise VitposError(f"{path}: the key {field.name!r} is missing")
        if field.name in given and not fits(given[field.name], known[field.name]):
            wanted = str(known[field.name]).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
            raise VitposError(f"{path}: {field.name} must be {wanted}, got {given[field.name]!r}")
    file = File(**given)
    if "position" not in file.axes:
        raise VitposError(f"{path}: axes need 'position' among them, got {', '.join(file.axes) or 'none'}")
    for key in PLACE:
        if key in file.axes:
            raise VitposError(f"{path}: {key} cannot be an axis: it says where a run happens, not what it computes")
    for key, values in {**file.axes, "seeds": file.seeds}.items():
        if not isinstance(values, list) or not values:
            raise VitposError(f"{path}: {key} needs a list of at least one value, got {values!r}")
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise VitposError(f"{path}: {key} names {twice[0]!r} twice")
    positions = [str(value) for value in file.axes["position"]]
    if file.reference not in positions:
        raise unknown("reference", file.reference, positions)
    base = read_yaml(path.parent / file.base)
    return Study(
        path=path,
        comparison=Comparison(path.stem, file.question, file.reference, file.metric, float(file.margin), file.alpha),
        runs=tuple(expand(base, file)),
    )


def expand(base: dict[str, Any], file: File) -> list[Run]:
    """Crosses seeds (outer) and axes (inner, ``position`` fastest) into runs."""
    axes = {key: values for key, values in file.axes.items() if key != "position"}
    axes["position"] = [str(value) for value in file.axes["position"]]
    runs = []
    for seed, *values in itertools.product(file.seeds, *axes.values()):
        point = dict(zip(axes, values, strict=True))
        settings = {**flatten(base), **flatten(file.overrides), **point, "seed_everything": seed}
        ordered = {"position": point.pop("position"), **point}
        runs.append(Run(ordered, seed, nest(settings)))
    return runs


def fits(value: Any, kind: Any) -> bool:
    """Tells whether a value read from YAML has the type of its key."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == list[int]:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return isinstance(value, getattr(kind, "__origin__", kind))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds keys and values.

    Raises:
        VitposError: It cannot be read, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise VitposError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise VitposError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise VitposError(f"{path} should hold keys and values, got {type(content).__name__}")
    return content


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
