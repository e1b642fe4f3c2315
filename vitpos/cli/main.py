"""The command ``vitpos``. Heavy imports wait inside the commands, so that help comes at once."""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitpos.cli import fit, schemes
from vitpos.errors import VitposError, unknown, visible
from vitpos.paths import expand

STUDY = (
    "A study file states a comparison before it runs: schemes, seeds, reference, margin. Finished runs are skipped, "
    "interrupted ones go on from their last checkpoint."
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: The words after ``vitpos``; left out, those of the process.

    Returns:
        0 where all went well, 1 where runs of a study failed, 2 for a user's mistake, 128 and the signal's number for
        an interrupt.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        settle_environment()
        if words and words[0] in fit.COMMANDS:
            return fit.command(words)
        options = parser().parse_args(words)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except VitposError as error:
        print(f"vitpos: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(visible(f"vitpos: error: {error.filename or 'output'}: {error.strerror or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        way = "again goes on where this one stopped"
        if words and words[0] in fit.COMMANDS:
            way = "with --ckpt_path last goes on from the last checkpoint, if there is one"
        print(f"vitpos: interrupted; the same command {way}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def settle_environment() -> None:
    """Makes this process and its workers independent of what the shell, a notebook or a locale has set.

    Raises:
        VitposError: The system is Windows.
    """
    if importlib.util.find_spec("resource") is None:
        raise VitposError("the command vitpos runs on Linux and macOS; on Windows, run it in WSL")
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend need not be installed here, and nothing is shown
    os.environ.setdefault("PYTHONIOENCODING", ":backslashreplace")  # of the workers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the locale lacks a letter of a name


class Parser(argparse.ArgumentParser):
    """Says a user's mistake in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises the error instead of printing the usage.

        Raises:
            VitposError: Always.
        """
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            raise unknown(message.split()[1].lower().rstrip(":"), found[1], re.findall(r"[\w-]+", found[2]))
        if found := re.search(r"unrecognized arguments: (-[^\s=]*)", message):
            raise unknown("option", found[1], set(option_names(self)))
        raise VitposError(f"{message} (see {self.prog} --help)")


def option_names(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Names the options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        for subparser in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from option_names(subparser)


def parser() -> argparse.ArgumentParser:
    """Builds the parser of everything but the trainer's own commands."""
    top = Parser(prog="vitpos", description="Position embeddings for vision transformers, compared.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in fit.COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    add_study(commands)
    schemes.add(commands)
    return top


def add_study(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``vitpos study`` here, since the module that carries it out takes long to import."""
    study = commands.add_parser("study", help="run a comparison and report its verdict", description=STUDY)
    actions = study.add_subparsers(title="actions", required=True, metavar="ACTION")
    for action, text in {
        "plan": "print the seeds needed for a verdict, the power, and the time it takes",
        "run": "carry out the missing runs, then write the report",
        "status": "list which runs are done, running, failed or missing",
        "report": "write the report from the results so far",
    }.items():
        sub = actions.add_parser(action, help=text, description=text)
        sub.add_argument("file", type=expand, help="study file, such as configs/studies/quickstart.yaml")
        sub.add_argument("--results", type=expand, default=Path("results"), help="folder of results (%(default)s)")
        sub.add_argument("--leave-old", action="store_true", help="leave out results of an earlier study file")
        sub.set_defaults(command=study_command, action=action, workers=None, sd=None)
        if action == "plan":
            sub.add_argument("--sd", type=float, help="deviation of paired differences in points (else measured)")
        if action in ("plan", "run"):
            sub.add_argument(
                "--workers", type=positive, help="runs at a time (one per core; on GPUs as many as is fastest)"
            )
        if action == "run":
            add_engine(sub)


def add_engine(run: argparse.ArgumentParser) -> None:
    """Adds the options that say where runs are carried out, and what they may use."""
    run.add_argument(
        "--engine",
        choices=("local", "ray", "submitit"),
        default="local",
        help="where runs are carried out (%(default)s)",
    )
    run.add_argument("--run-timeout", type=seconds, metavar="SECONDS", help="end runs that take longer (no limit)")
    run.add_argument(
        "--retries", type=whole, default=1, help="further attempts at a run that hung, was killed or crashed (1)"
    )
    run.add_argument("--fail-fast", action="store_true", help="stop after the first failed run")
    run.add_argument("--cpus-per-run", type=amount, default=1, help="cores to reserve with Ray or SLURM (1)")
    run.add_argument(
        "--gpus-per-run", type=amount, help="GPUs to reserve with Ray or SLURM; with Ray, 0.25 lets four runs share one"
    )
    run.add_argument("--ray-address", help="address of a running Ray cluster (default: start one here)")
    run.add_argument(
        "--slurm",
        type=pair,
        action="append",
        metavar="KEY=VALUE",
        help="parameter of SLURM, such as partition=gpu; may be repeated",
    )


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    return whole(text, 1)


def whole(text: str, least: int = 0) -> int:
    """Reads a whole number."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise argparse.ArgumentTypeError(f"should be a whole number from {least}, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Reads a time, which a clock can count to."""
    return number(text, 1, 1e9, "a number of seconds")


def amount(text: str) -> float:
    """Reads how many processors or GPUs."""
    return number(text, 0, 10_000, "a number")


def number(text: str, low: float, high: float, what: str) -> float:
    """Reads a number between two others."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"should be {what} from {low:,.0f} to {high:,.0f}, got {text!r}")
    return value


def pair(text: str) -> tuple[str, str]:
    """Reads ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"should be KEY=VALUE, such as partition=gpu, got {text!r}")
    return key, value


def study_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos study plan|run|status|report``."""
    from vitpos.cli import study

    return study.command(options)
