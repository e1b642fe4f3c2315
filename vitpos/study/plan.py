"""A study file: what is compared, stated before anything runs, and the runs that follow from it."""

import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from vitpos import paths
from vitpos.analysis.terms import Terms
from vitpos.configs import check_seed, flatten, nest, read_yaml
from vitpos.errors import VitposError, unknown
from vitpos.rows import check_tree, check_value

# Bumped when the same config starts to mean another computation: results of another format are not skipped but redone.
FORMAT = 1
# Where a run happens, where its files lie and how often it is saved do not change what it computes: not in its hash.
PLACE = (
    "data.root",
    "data.download",
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.devices",
    "checkpoint_minutes",
)
# Keys of a config of ``vitpos fit`` that say how one command goes on, not what is computed.
COMMAND = ("ckpt_path", "weights_only", "config")
# Axes ``position.NAME`` are options of the schemes (see `vitpos.study.options`).
OPTION = "position."
# What tuning chooses by: the images for validation, after the last epoch.
CHOSEN_BY = "val/accuracy"


@dataclass(frozen=True)
class Run:
    """One training: a point on the study's axes and a seed.

    Attributes:
        axes: Value on each axis, ``position`` first; without the options that its scheme lacks.
        seed: Seed of all random streams.
        config: Everything that ``vitpos fit --config`` would be given, nested.
        trial: The values of tuned keys that it has; empty where nothing is tuned.
        test: Whether the test set is read. A trial does not read it unless it is chosen.
        tuned: The values of tuned keys that were chosen for it; empty where nothing is, None until they are.
        edge: The tuned keys whose chosen value is at the edge of the grid.
        blocked: Why no values could be chosen, so that it cannot run.
        study: Folder of the study file, where its relative paths start, else in the current one.
        recorded: Digests of files of schemes as results have them, for a file that is gone since.
    """

    axes: dict[str, Any]
    seed: int
    config: dict[str, Any]
    trial: dict[str, Any] = dataclasses.field(default_factory=dict)
    test: bool = True
    tuned: dict[str, Any] | None = dataclasses.field(default_factory=dict)
    edge: tuple[str, ...] = ()
    blocked: str = ""
    study: Path = Path()
    recorded: dict[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def hash(self) -> str:
        """The first 12 hex digits of SHA-256 of the config without places; equal hashes are equal computations.

        Where the scheme is in a file of the user's, the file's content counts. It is read once, so that a run keeps its
        hash, also in another process, where the file is edited later.

        Raises:
            VitposError: That file cannot be read.
        """
        return identify(self.config, {} if self.tuned is None else None, self.files)  # one without its values is no run

    @functools.cached_property
    def files(self) -> dict[str, str] | None:
        """The SHA-256 of each file that the scheme is in, in hex, as first read; None without (errors as `hash`)."""
        if ".py:" not in (position := str(self.config.get("position"))):
            return None
        from vitpos.positions import text as texts  # loads torch, which most plans do without

        with texts.looking_in(self.study):
            try:
                return texts.digests(position)
            except VitposError:
                if not self.recorded:
                    raise
                return {
                    file[0]: self.recorded.get(file[0], "")
                    for name, _ in texts.parse(position)
                    if (file := texts.split(name))
                }

    @property
    def label(self) -> str:
        """What people call it: ``learned, model.lr=0.001, seed 0``."""
        others = [f"{key}={value}" for key, value in self.axes.items() if key != "position"]
        tried = [f"trial of {key}={value}" for key, value in self.trial.items() if not self.test]
        return ", ".join([str(self.axes["position"]), *others, *tried, f"seed {self.seed}"])

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and unique by its hash."""
        words = "-".join(map(str, [*self.axes.values(), *self.trial.values()]))
        words = re.sub(r"[^\w.+=]+", "-", words).strip("-")
        words = words[:80].encode()[:200].decode(errors="ignore")  # a name has 255 bytes at most
        return f"{words}{self.mark}"

    def chosen(self, edge: tuple[str, ...]) -> "Run":
        """Returns a trial as the run that tuning chose: the same computation, and the test set is read."""
        run = dataclasses.replace(self, test=True, tuned=self.trial, edge=edge)
        run.__dict__.update(hash=self.hash, files=self.files)  # as first read
        return run

    @property
    def mark(self) -> str:
        """The end of its folder's name, which is the same whatever a study file calls its axes."""
        return f"-s{self.seed}-{self.hash[:8]}"


def identify(config: dict[str, Any], trial: dict[str, Any] | None, files: dict[str, str] | None) -> str:
    """Computes the hash of a run (see `Run.hash`), also from what its result says of it.

    Args:
        config: Its config.
        trial: The values of tuned keys that it tried, in results of earlier versions, whose trials were no runs; else
            None.
        files: The digests of the files that its scheme is in, None where it is in none.
    """
    content = {key: value for key, value in flatten(config).items() if key not in PLACE}
    if files is not None:
        content["files"] = files
    if content.get("data.name") == "folder":  # there the place is all that names the data
        content["data.root"] = config["data"].get("root")
    if trial is not None:
        content["trial"] = trial
    text = json.dumps(json.loads(json.dumps({"format": FORMAT, **content})), sort_keys=True)  # keys as in the result
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class File:
    """The keys of a study file.

    Attributes:
        question: What the study answers.
        base: A config of ``vitpos fit``, its path relative to the study file; also one that ``--print_config`` wrote
            or that a run saved.
        axes: Dotted config keys and the values to cross; ``position`` is one of them. ``position.NAME`` is the option
            NAME of every scheme that has it; null is each scheme's default.
        seeds: One run of every variant for each. A list is a fixed design. ``{start: 6, until: settled, most: 24}``
            begins with the seeds 0 to 5 and adds the next until every comparison is decided, 24 in all at most.
        reference: The position that the others are compared with.
        overrides: Dotted config keys that differ from the base in all runs.
        metric: Key of the result that is compared, a share between 0 and 1.
        margin: Percentage points within which two schemes count as equal.
        alpha: Family-wise error rate of the verdicts.
        correction: How p values are adjusted over the comparisons: ``max_t``, ``holm``, ``bonferroni``, ``none``.
        tune: Dotted config keys and a few values of each, crossed. Every variant is trained with each of them on every
            seed; for each seed, the run with the best validation accuracy at the last epoch is the one that is tested.
    """

    question: str
    base: str
    axes: dict[str, list[Any]]
    seeds: list[int] | dict[str, Any]
    reference: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric: str = "test/accuracy"
    margin: float = 1.0
    alpha: float = 0.05
    correction: str = "max_t"
    tune: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def seed_list(self) -> list[int]:
        """All seeds, those that may be added among them."""
        return list(range(self.seeds["most"])) if isinstance(self.seeds, dict) else self.seeds


@dataclass(frozen=True)
class Study:
    """A study file that was read and checked.

    Attributes:
        path: The file.
        comparison: What is compared and how it is judged.
        runs: A run for each variant and seed, seeds in the outer loop: an interruption leaves complete pairs. Where the
            study tunes, they lack their values until `vitpos.study.tuning.settle` puts the chosen trials there.
        axes: The axes as stated.
        tune: The grid as stated.
        trials: Where the study tunes, the runs that are chosen from.
        choices: What `settle` chose.
    """

    path: Path
    comparison: Terms
    runs: tuple[Run, ...]
    axes: dict[str, list[Any]]
    tune: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    trials: tuple[Run, ...] = ()
    choices: "tuple[Choice, ...]" = ()


@dataclass(frozen=True)
class Choice:
    """What tuning chose for one variant and seed.

    Attributes:
        axes: The variant.
        seed: The seed.
        values: The chosen value of each key; None until its trials are through, or where there is an error.
        scores: Validation accuracy of each point of the grid; None where the trial failed or is missing.
        edge: Keys whose value is the least or the greatest of several numbers: the best may lie outside the grid.
        error: Why nothing can be chosen; empty otherwise.
    """

    axes: dict[str, Any]
    seed: int
    values: dict[str, Any] | None
    scores: tuple[tuple[dict[str, Any], float | None], ...]
    edge: tuple[str, ...] = ()
    error: str = ""


def load(path: str | Path, seen: Sequence[tuple[dict[str, Any], str]] | None = None) -> Study:
    """Reads a study file and makes its runs.

    Args:
        path: The YAML file; its stem names the study.
        seen: `vitpos.study.results.Results.settings`, to ask them, not the files of schemes, what options these have.

    Raises:
        VitposError: No such file, not YAML, an unknown or missing key, a value of the wrong type, an axis without
            values, a value or seed that stands twice, a reference that is no position of the study, an option that no
            scheme has, or tuning that would judge by what it chose from.
    """
    path = Path(path)
    file = read(path)
    base = {key: value for key, value in read_yaml(path.parent / paths.expand(file.base)).items() if key not in COMMAND}
    try:
        check_axes(file)
        check_tuning(file)
        runs, trials = expand(base, file, path.parent.resolve(), seen)
        rule = {key: file.seeds[key] for key in ("start", "most")} if isinstance(file.seeds, dict) else {}
        terms = (file.question, file.reference, file.metric, float(file.margin), file.alpha, file.correction)
        comparison = Terms(path.stem, *terms, **rule)
    except VitposError as error:
        raise VitposError(f"{path}: {error}") from error
    return Study(
        path=path,
        comparison=comparison,
        runs=tuple(runs),
        axes=file.axes,
        tune=file.tune,
        trials=tuple(trials),
    )


def read(path: Path) -> File:
    """Reads a study file and checks that it has the keys, each of its type (errors as `load`)."""
    given = read_yaml(path)
    check_tree(given, str(path))
    known = get_type_hints(File)
    for key in given:
        if key == "tune_seeds":
            raise VitposError(f"{path}: tune_seeds is no key any more: every seed chooses for itself; leave it out")
        if key not in known:
            raise unknown(f"key of {path.name}", str(key), known)
    for field in dataclasses.fields(File):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise VitposError(f"{path}: the key {field.name!r} is missing")
        if field.name in given and not fits(given[field.name], known[field.name]):
            wanted = str(known[field.name]).replace("typing.", "").removeprefix("<class '").removesuffix("'>")
            raise VitposError(f"{path}: {field.name} must be {wanted}, got {given[field.name]!r}")
    return File(**given)


def check_axes(file: File) -> None:
    """Checks axes, seeds and reference (errors as `load`)."""
    if "position" not in file.axes:
        raise VitposError(f"axes need 'position' among them, got {', '.join(file.axes) or 'none'}")
    for key in file.axes:
        if key in PLACE:
            raise VitposError(f"{key} cannot be an axis: it says where or how a run happens, not what it computes")
        if "." not in key and key != "position":
            raise VitposError(f"{key} cannot be an axis: axes are config keys such as model.lr, options of the schemes "
                              f"such as position.{key}, and position; seeds are the key seeds")  # fmt: skip
    check_seeds(file.seeds)
    check_values({**file.axes, "seeds": file.seed_list})
    positions = [str(value) for value in file.axes["position"]]
    if file.reference not in positions:
        raise unknown("reference", file.reference, positions)
    spelled: dict[str, str] = {}
    for text in positions:
        if (other := spelled.setdefault(spelling(text), text)) != text:
            raise VitposError(f"axes.position names one scheme twice, as {other!r} and as {text!r}")


def spelling(text: str) -> str:
    """Writes a scheme's text in one way: ``a(x=1e-3)`` and ``a( x=0.001 )`` are one scheme."""
    try:
        return ast.unparse(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a class in a file, or a mistake that shows later
        return text


def check_seeds(seeds: list[int] | dict[str, Any]) -> None:
    """Checks seeds, or the rule by which they are added (errors as `load`)."""
    if isinstance(seeds, list):
        for seed in seeds:
            check_seed(seed, "a seed of seeds")
        return
    start, most = seeds.get("start"), seeds.get("most")
    counts = type(start) is int and type(most) is int and 1 <= start <= most <= 1000
    if seeds.keys() != {"start", "until", "most"} or seeds["until"] != "settled" or not counts:
        raise VitposError(
            f"seeds is {seeds}; allowed: a list of seeds, or {{start: 6, until: settled, most: 24}} with "
            "1 <= start <= most <= 1000"
        )


def check_tuning(file: File) -> None:
    """Checks what is tuned (errors as `load`)."""
    for key in file.tune:
        if key in file.axes:
            raise VitposError(f"{key} is an axis and cannot be tuned as well")
        if key in PLACE or "." not in key or key.startswith(OPTION):  # not every scheme has it: budgets would differ
            raise VitposError(f"{key} cannot be tuned: tune takes config keys of all schemes, such as model.lr")
    check_values({f"tune.{key}": values for key, values in file.tune.items()})
    if file.tune and file.metric == CHOSEN_BY:
        raise VitposError(f"metric cannot be {file.metric} where tune chooses by it")


def check_values(lists: dict[str, list[Any]]) -> None:
    """Checks that every list has values, each once."""
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise VitposError(f"{key} needs a list of at least one value, got {values!r}")
        for value in values:
            check_value(value, key)
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise VitposError(f"{key} names {twice[0]!r} twice")


def expand(
    base: dict[str, Any], file: File, place: Path, seen: Sequence[tuple[dict[str, Any], str]] | None = None
) -> tuple[list[Run], list[Run]]:
    """Crosses seeds (outer) and axes (inner, ``position`` fastest) into runs, and with the tuned values into trials."""
    axes = {key: values for key, values in file.axes.items() if key != "position"}
    axes["position"] = [str(value) for value in file.axes["position"]]
    if any(key.startswith(OPTION) for key in axes):
        from vitpos.positions import text as texts  # loads torch
        from vitpos.study.options import points

        with texts.looking_in(place):
            crossed = points(axes, seen)
    else:
        crossed = []
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            crossed.append(({"position": point["position"], **point}, point))
    shared = {**flatten(base), **flatten(file.overrides)}

    def run(axes: dict[str, Any], settings: dict[str, Any], seed: int, **fields: Any) -> Run:
        return Run(axes, seed, nest({**shared, **settings, "seed_everything": seed}), study=place, **fields)

    tuned: dict[str, Any] | None = None if file.tune else {}
    runs = [run(*point, seed, tuned=tuned) for seed in file.seed_list for point in crossed]
    trials = [
        run(point, {**settings, **trial}, seed, trial=trial, test=False)
        for seed in file.seed_list
        for trial in grid(file.tune)
        for point, settings in crossed
    ]
    return runs, trials


def grid(tune: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Crosses the values of all tuned keys, the last key fastest; nothing where nothing is tuned."""
    return [dict(zip(tune, values, strict=True)) for values in itertools.product(*tune.values())] if tune else []


def fits(value: Any, kind: Any) -> bool:
    """Tells whether a value read from YAML has the type of its key."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == list[int] | dict[str, Any]:
        return isinstance(value, dict) or (isinstance(value, list) and all(type(item) is int for item in value))
    return isinstance(value, getattr(kind, "__origin__", kind))
