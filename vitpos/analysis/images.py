"""Which test images a run got right: how a row keeps it, and the sampling error of a difference on the same images."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
Flags = npt.NDArray[np.bool_]


def pack(right: Flags) -> str:
    """Writes flags (N,) as base64 of their bits, eight to a byte, the first the highest."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def right(row: Row) -> Flags | None:
    """Reads which test images a run got right.

    Args:
        row: The row of a run.

    Returns:
        (N,) in the order of the data in memory, which is the same for all runs on the same data; None for a row of an
        earlier version, which does not say.
    """
    if "right" not in row:
        return None
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return np.unpackbits(packed, count=sum(row["per_class"]["count"])).astype(bool)


def sampling_error(candidate: Sequence[Row], reference: Sequence[Row]) -> float:
    """Computes the standard error of a difference of accuracies that comes from which test images there are.

    Image i has a difference d_i: the share of the candidate's runs that get it right, minus that of the reference's.
    With N images the error is ``sd(d) / sqrt(N)``, less than for two accuracies on images of their own. It says how the
    difference would move on other images of the same kind, with these seeds.

    Args:
        candidate: Rows of one variant, one a seed.
        reference: Rows of the other.

    Returns:
        The error in percentage points; NaN where a row does not say which images it got right, the rows are of
        different test images, or there are fewer than two.
    """
    flags = [[right(row) for row in rows] for rows in (candidate, reference)]
    known = [[f for f in group if f is not None] for group in flags]
    same = {
        (row["data"]["fingerprint"], sum(row.get("per_class", {}).get("count", ()))) for row in (*candidate, *reference)
    }
    if len(same) != 1 or not all(known) or known != flags or len(known[0][0]) < 2:
        return math.nan
    ours, theirs = (np.mean(group, axis=0) for group in known)
    return float(100 * np.std(ours - theirs, ddof=1) / math.sqrt(len(ours)))
