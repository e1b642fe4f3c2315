"""Engines carry runs out: worker processes on this machine, Ray tasks or SLURM jobs, behind one interface."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from vitpos.errors import VitposError
from vitpos.study.engines.jobs import end_left
from vitpos.study.plan import Run
from vitpos.study.results import Results
from vitpos.study.run import Outcome

__all__ = ["Engine", "Limits", "Options", "Outcome", "make"]


@dataclass(frozen=True)
class Limits:
    """What one attempt at a run may use.

    Attributes:
        timeout: Seconds, or None for no limit.
        cpus: Processors that Ray or SLURM reserves.
        gpus: GPUs that they reserve, a fraction where several runs share one; None where nothing was said.
    """

    timeout: float | None = None
    cpus: float = 1
    gpus: float | None = None


@dataclass(frozen=True)
class Options:
    """What the command line says about the engine.

    Attributes:
        name: ``local``, ``ray`` or ``submitit``.
        limits: What one attempt may use.
        workers: Runs at a time, or None for as many as suit the machine.
        ray_address: Address of a Ray cluster, or None to start one here.
        slurm: Parameters of submitit's executor, by name.
    """

    name: str = "local"
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    ray_address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """Carries runs out, several at a time. A context manager; leaving it ends what still runs.

    Attributes:
        slots: Runs at a time; may change while runs are carried out.
    """

    @property
    def slots(self) -> int:
        """Runs at a time, now."""

    def start(self, run: Run) -> None:
        """Starts one attempt at a run, from its last checkpoint; only while fewer than `slots` run."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Returns the attempts that have ended, as soon as there is one, or none after so many seconds.

        Raises:
            VitposError: The results cannot be written, or no run can be carried out any more.
        """

    def __enter__(self) -> Self:
        """Connects to what carries the runs out."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what still runs; it goes on from its checkpoint with the next command."""


def make(options: Options, results: Results) -> Engine:
    """Builds the engine of that name; nothing is started before it is entered.

    Args:
        options: The engine, and what it may use.
        results: Where the runs' folders are.

    Raises:
        VitposError: Its package is not installed, or an option is for another engine or cannot be.
    """
    for option, given, takers in (
        ("--cpus-per-run", options.limits.cpus != 1, ("ray", "submitit")),
        ("--gpus-per-run", options.limits.gpus is not None, ("ray", "submitit")),
        ("--ray-address", options.ray_address, ("ray",)),
        ("--slurm", options.slurm, ("submitit",)),
    ):
        if given and options.name not in takers:
            raise VitposError(f"{option} is for --engine {' or '.join(takers)}, not for {options.name}")
    try:
        if options.name == "submitit":
            from vitpos.study.engines.slurm import Slurm

            return Slurm(results, options.limits, options.workers, options.slurm)
        end_left(results)
        if options.name == "ray":
            from vitpos.study.engines.ray import Ray

            return Ray(results, options.limits, options.workers, options.ray_address)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "submitit"):
            raise
        extra = "ray" if options.name == "ray" else "slurm"
        raise VitposError(
            f"--engine {options.name} needs a package that is not installed: pip install 'vitpos[{extra}]'"
        ) from None
    from vitpos.study.engines.local import Local

    return Local(results, options.limits, options.workers)
