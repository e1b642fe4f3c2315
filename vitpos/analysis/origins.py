"""Which code the runs of a study come from, and what of that a reader must know before comparing them."""

from collections.abc import Sequence

from vitpos.analysis.markup import code
from vitpos.analysis.statistics import Row, Variant
from vitpos.analysis.style import count

_LISTED = 4


def warnings(rows: Sequence[Row]) -> list[str]:
    """Says where runs were made by sources that differ, that changed half-way or that no commit holds.

    Args:
        rows: Finished runs. Rows of earlier versions have no digest of their sources: these are unknown, and told apart
            by their commit.

    Returns:
        Sentences with markup, each about one of these; none where all runs come from one state of the sources.
    """
    versions: dict[str, list[Row]] = {}
    for row in rows:
        digests = row["environment"].get("sources")
        commit = row["environment"].get("commit", "unknown")
        name = " then ".join(map(code, digests)) if digests else f"unknown at commit {code(commit)}"
        versions.setdefault(name, []).append(row)
    lines = []
    if len(versions) > 1:
        whose = "; ".join(f"{name}: {_whose(runs)}" for name, runs in versions.items())
        lines.append(
            f"The runs come from {len(versions)} states of vitpos's sources, so that a difference may come from the "
            f"code ({whose})."
        )
    if halves := [row for row in rows if len(row["environment"].get("sources", ())) > 1]:
        lines.append(f"The sources changed half-way, between an interruption and its resumption, in {_whose(halves)}.")
    dirty = [row for row in rows if str(row["environment"].get("commit", "")).endswith("+")]
    if dirty:
        commits = ", ".join(dict.fromkeys(code(row["environment"]["commit"]) for row in dirty))
        lines.append(
            f"{count(len(dirty), 'run')} used sources with changes that no commit holds ({commits}): the commit alone "
            "does not bring them back."
        )
    return lines


def _whose(rows: Sequence[Row]) -> str:
    """Names runs, or counts them by seed where they are many."""
    if len(rows) <= _LISTED:
        return ", ".join(f"{code(Variant.of(row['axes']).label)} seed {row['seed']}" for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    shown = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
    return f"{len(rows)} runs of seed{'s' if len(seeds) > 1 else ''} {shown}"
