"""How many runs share a GPU: measured while they run."""

import itertools
from collections.abc import Sequence

from vitpos.study.heartbeat import Beat
from vitpos.study.machine import cores

GAIN = 1.1  # of the images a second that one more run a GPU has to bring
SPARE = 1.2  # of what a run takes of a GPU's memory, for one more


def runs_a_gpu(rates: Sequence[float], room: bool) -> int:
    """Says how many runs should share a GPU.

    Args:
        rates: Images a second of all runs together: with one run a GPU, with two, and so on, as far as measured.
        room: Whether there is memory and a processor for one more a GPU.

    Returns:
        One more than were measured as long as each brought a tenth, else as many as were before the first that did not.
    """
    for runs, (before, rate) in enumerate(itertools.pairwise(rates), 1):
        if rate < GAIN * before:
            return runs
    return len(rates) + room if rates else 1


class Sharing:
    """Finds while runs run how many a GPU carries.

    Args:
        gpus: How many GPUs there are.
    """

    def __init__(self, gpus: int) -> None:
        self.gpus, self.each = gpus, 1
        self.rates: list[float] = []
        self.since: float | None = None

    def look(self, beats: Sequence[Beat | None]) -> int:
        """Measures the rate with as many runs as there are now, once all train and as many as should run.

        Args:
            beats: Of the runs in progress.

        Returns:
            How many runs should share a GPU from now on.
        """
        known = [beat for beat in beats if beat is not None and beat.images_per_second > 0]
        if len(known) < len(beats) or len(beats) != self.each * self.gpus:
            self.since = None
            return self.each
        if self.since is None:
            self.since = max(beat.beat for beat in known)
        if len(self.rates) < self.each and all(beat.beat - beat.window >= self.since for beat in known):
            self.rates.append(sum(beat.images_per_second for beat in known))
        if len(self.rates) == self.each:
            taken = max((beat.memory - beat.free) / self.each for beat in known)
            room = min(beat.free for beat in known) >= SPARE * taken and (self.each + 1) * self.gpus <= cores()
            self.each, before = runs_a_gpu(self.rates, room), self.each
            self.since = self.since if self.each == before else None
        return self.each
