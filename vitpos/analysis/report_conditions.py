"""Sections of a report that say under which conditions its numbers hold: tuning, caveats, how to repeat it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from vitpos.analysis.document import Block, Items, Listing, Section
from vitpos.analysis.evidence import Evidence
from vitpos.analysis.markup import code
from vitpos.analysis.statistics import Row, Variant
from vitpos.analysis.style import count
from vitpos.analysis.tables import Column, Table, duration, number, texts

_CODE = ("vitpos", "torch", "timm", "lightning", "python")


def tuning(evidence: Evidence) -> Section:
    """Says what was tried for each variant and what was chosen, and warns of choices at the edge of the grid."""
    found = evidence.background.tuning
    if not found:
        return Section("Tuning", ())
    keys = list(found[0]["scores"][0][0])
    points = [point for point, _ in found[0]["scores"]]
    seeds = evidence.background.tuning_seeds
    text = (
        f"Every variant was trained with each of {count(len(points), 'value')} of {_names(keys)}, the same budget for "
        f"all, on {'seeds' if len(seeds) > 1 else 'seed'} {_list(seeds)}, which no verdict uses. What had the best "
        "validation accuracy at the last epoch (in percent below; bold: chosen) is what its runs use. The test images "
        "had no part in it."
    )
    edges = [Variant.of(c["axes"]).label for c in found if c["edge"]]
    warning = (
        f"At the edge of its grid, so that the best value may lie outside it: {_names(edges)}. "
        "Where that is so for one scheme and not for another, their comparison may be one of learning rates and the "
        "like; widen the grid in a new study."
    )
    columns = [*evidence.subject, *(Column(", ".join(f"{k} {v}" for k, v in point.items())) for point in points)]
    rows = [
        [*evidence.about(Variant.of(c["axes"])), *(_score(c, *pair) for pair in c["scores"]), _choice(c)] for c in found
    ]
    table = Table(
        "tuning", "Validation accuracy by value tried, and what was chosen", [*columns, texts("chosen")], rows
    )
    return Section("Tuning", (text, table, *([warning] if edges else [])))


def _score(choice: Mapping[str, Any], point: Mapping[str, Any], score: float | None) -> str:
    shown = "no score" if score is None else number(100 * score)
    return f"**{shown}**" if point == choice["values"] else shown


def _choice(choice: Mapping[str, Any]) -> str:
    if choice["values"] is None:
        return choice["error"] or "not yet chosen, trials are missing"
    edge = [key for key in choice["values"] if key in choice["edge"]]
    values = ", ".join(f"{key} {value}" for key, value in choice["values"].items())
    return values + (f" (the edge of {', '.join(edge)})" if edge else "")


def caveats(evidence: Evidence) -> Section:
    """Says what limits the numbers: seeds, failures, and runs that were not made alike."""
    seeds = evidence.seeds
    few = "which so few seeds cannot check" if len(seeds) < 20 else "which these seeds can check only roughly"
    lines = [
        f"{count(len(seeds), 'seed')} ({_list(seeds)}). A t interval assumes normally distributed differences, {few}. "
        "A sign-flip test assumes only that a difference without effect is as likely with the other sign.",
        "Verdicts are about this model, these data and this training, at the last epoch; the test images were read "
        "once, and chose nothing."
        if evidence.split == "test"
        else f"Verdicts are about {evidence.metric}, for images that others chose by or trained on.",
        "images/s are as the runs went, beside each other and whatever else the machine did: no comparison of speed.",
    ]
    lines += [
        f"Failed: {code(Variant.of(failure['axes']).label)}, seed {failure['seed']}: {code(failure['error'])}"
        for failure in evidence.failures
    ]
    lines += [
        f"Runs differ in {what}: {', '.join(f'{value} ({count})' for value, count in counts.items())}."
        for what, counts in mixed(evidence.rows).items()
    ]
    return Section("Caveats", (Items(lines),))


def mixed(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Finds what should be the same in all rows and is not, with the count of rows for each value."""
    getters: dict[str, Callable[[Row], Any]] = {
        key: lambda row, key=key: row["environment"].get(key)  # type: ignore[misc]
        for key in dict.fromkeys(key for row in rows for key in row["environment"])
    }
    getters["data"] = lambda row: f"{row['data']['name']} {row['data']['fingerprint']}"
    getters["format of the rows"] = lambda row: row.get("format")
    found = {}
    for what, get in getters.items():
        counts: dict[str, int] = {}
        for row in rows:
            counts[str(get(row))] = counts.get(str(get(row)), 0) + 1
        if len(counts) > 1:
            found[what] = counts
    return found


def provenance(evidence: Evidence) -> Section:
    """Says on what the runs were made."""
    rows = evidence.rows
    environments = [row["environment"] for row in rows]
    versions = [key for key in _CODE if key in environments[0]]
    data = [
        f"{d['name']}, {d['train']:,} training, {d['val']:,} validation and {d['test']:,} test images, "
        f"fingerprint {code(d['fingerprint'])}"
        for d in (row["data"] for row in rows)
    ]
    lines = [
        f"Hardware: {_either(e.get('hardware') for e in environments)}",
        f"Precision: {_either(e.get('precision') for e in environments)}",
        f"Versions: {_either(', '.join(f'{key} {e.get(key)}' for key in versions) for e in environments)}",
        f"Commit: {_either(e.get('commit') for e in environments)}",
        f"Sources of vitpos: {_either(' then '.join(e.get('sources', ['unknown'])) for e in environments)}",
        f"Data: {_either(data)}",
        f"Training time: {duration(sum(row['seconds'] for row in rows))} in all, {count(len(rows), 'run')}",
    ]
    return Section("What it ran on", (Items(lines),))


def repeat(evidence: Evidence) -> Section:
    """Gives everything that is needed to repeat the study."""
    name, rows = evidence.comparison.name, evidence.rows
    installs = Counter(
        " ".join(f"{key}=={row['environment'][key]}" for key in _CODE[1:4] if key in row["environment"]) for row in rows
    )
    pip = [
        f"pip install {versions}{f'  # {n} of {len(rows)} runs' if len(installs) > 1 else ''}"
        for versions, n in installs.most_common()
    ]
    commits = dict.fromkeys(str(row["environment"].get("commit")) for row in rows)
    blocks: list[Block] = [
        f"With the source at commit {' / '.join(map(code, commits))} and the packages that it ran on"
        f"{', the study file being as below' if evidence.background.text else ''}:",
        Listing("\n".join([*pip, f"vitpos study run configs/studies/{name}.yaml --results repeated"])),
        "One seed gives the same numbers again on the same kind of device with the same number of threads and the same "
        "versions; elsewhere it gives other runs of the same kind.",
    ]
    if evidence.background.text:
        blocks += [f"The study file, {code(f'{name}.yaml')}:", Listing(evidence.background.text)]
    shared = yaml.safe_dump(
        common([row["config"] for row in rows]), default_flow_style=None, sort_keys=False, width=110
    )
    blocks += ["Configuration that all runs share:", Listing(shared)]
    files = (
        "Beside this report: `rows.jsonl` has every run with its whole configuration and history; `tables/` has the "
    )
    files += "tables as CSV and LaTeX, `figures/` the figures as SVG and PNG, `tensorboard/` the curves."
    return Section("How to repeat", [*blocks, files])


def common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keeps what is the same in all configurations, nested."""
    result: dict[str, Any] = {}
    for key, first in configs[0].items():
        values = [config.get(key) for config in configs]
        if all(isinstance(value, Mapping) for value in values):
            if nested := common([value for value in values if isinstance(value, Mapping)]):
                result[key] = nested
        elif all(key in config for config in configs) and all(value == first for value in values):
            result[key] = first
    return result


def _either(values: Any) -> str:
    return " / ".join(dict.fromkeys(map(str, values)))


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _names(values: Any) -> str:
    return ", ".join(map(code, dict.fromkeys(values)))
