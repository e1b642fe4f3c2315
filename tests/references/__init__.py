"""What every scheme is compared with, number by number: an installed package, or the source's formula by hand.

A line for a new scheme: a function under ``@reference(scheme, oracle, tolerance)`` that yields pairs of tensors, ours
and theirs. ``python tests/positions/test_references.py`` prints the table of all of them with the differences found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

Pairs = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reference:
    """One comparison: the scheme, what it is compared with, the largest absolute difference that rounding explains."""

    scheme: str
    oracle: str
    tolerance: float
    pairs: Callable[[], Pairs]

    def difference(self) -> float:
        """The largest absolute difference over all pairs."""
        largest = []
        for ours, theirs in self.pairs():
            assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
            assert theirs.double().std() > 0 or theirs.numel() == 1  # zeros equal zeros whatever the scheme does
            largest.append((ours.double() - theirs.double()).abs().max().item())
        return max(largest)


REFERENCES: list[Reference] = []


def reference(scheme: str, oracle: str, tolerance: float) -> Callable[[Callable[[], Pairs]], Callable[[], Pairs]]:
    """Enters a comparison; a tolerance of 0 is equality bit for bit."""

    def enter(pairs: Callable[[], Pairs]) -> Callable[[], Pairs]:
        REFERENCES.append(Reference(scheme, oracle, tolerance, pairs))
        return pairs

    return enter
