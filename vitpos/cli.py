"""The command ``vitpos``. Heavy imports wait inside the commands, so that help comes at once."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitpos.commands import add_scheme_commands
from vitpos.errors import VitposError, unknown

if TYPE_CHECKING:
    from vitpos.study.plan import Study
    from vitpos.study.results import Results

TRAINER = {
    "fit": "train one ViT with one position scheme",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: The words after ``vitpos``; left out, those of the process.

    Returns:
        0 where all went well, 1 where runs of a study failed, 2 for a user's mistake, 130 for an interrupt.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words and words[0] in TRAINER:
            from vitpos.train.cli import command as train

            train(words)
            return 0
        options = parser().parse_args(words)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except VitposError as error:
        print(f"vitpos: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"vitpos: error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        way = "with --ckpt_path last" if words and words[0] in TRAINER else "again"
        print(f"vitpos: interrupted; the same command {way} goes on where this one stopped", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Says a user's mistake in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises the error instead of printing the usage.

        Raises:
            VitposError: Always.
        """
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            raise unknown(message.split()[1].lower(), found[1], re.findall(r"[\w-]+", found[2]))
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
    for name, text in TRAINER.items():
        commands.add_parser(name, help=text, add_help=False)
    study = commands.add_parser("study", help="run a comparison and report its verdict", description=study_help())
    actions = study.add_subparsers(title="actions", required=True, metavar="ACTION")
    for action, text in {
        "run": "do the runs that are missing, then report",
        "status": "say which runs are done, failed or missing",
        "report": "write report.md and the figures from the results there are",
    }.items():
        sub = actions.add_parser(action, help=text, description=text)
        sub.add_argument("file", type=Path, help="study file, such as configs/studies/quickstart.yaml")
        sub.add_argument("--results", type=Path, default=Path("results"), help="folder of results (%(default)s)")
        sub.add_argument("--leave-old", action="store_true", help="leave out results of an earlier study file")
        if action == "run":
            sub.add_argument("--workers", type=positive, help="runs at a time (one per processor, or one on a GPU)")
        sub.set_defaults(command=study_command, action=action)
    text = "test that a scheme does what every scheme must"
    check = commands.add_parser("check", help=text, description=f"{text[0].upper()}{text[1:]}.")
    check.add_argument("scheme", help="name, name(option=value), a+b, or my_file.py:Name")
    check.add_argument("--fast", action="store_true", help="leave out Inductor and ONNX")
    check.set_defaults(command=check_command)
    add_scheme_commands(commands)
    return top


def check_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos check``."""
    from vitpos import checks

    return checks.check_command(options.scheme, options.fast)


def study_help() -> str:
    """Describes a study in two sentences."""
    return (
        "A study file states a comparison before it runs: schemes, seeds, reference, margin. Finished runs are "
        "skipped, interrupted ones go on from their last epoch."
    )


def positive(text: str) -> int:
    """Reads a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number from 1, got {text!r}")
    return int(text)


def study_command(options: argparse.Namespace) -> int:
    """Carries out ``vitpos study run|status|report``."""
    from vitpos.study import plan
    from vitpos.study.results import Results

    if not options.file.exists():
        beside = [str(path) for path in options.file.parent.glob("*.yaml")]
        raise unknown("study file", str(options.file), beside)
    study = plan.load(options.file)
    results = Results(options.results / study.comparison.name)
    results.refuse_other_terms(study)
    if not options.leave_old:
        results.refuse_strays(study)
    if options.action == "status":
        return study_status(study, results)
    failed = study_run(study, results, options.workers) if options.action == "run" else 0
    if failed and not results.collect(study)[0]:
        print(f"no run finished; why: vitpos study status {options.file}")
        return 1
    study_report(study, results)
    return 1 if failed else 0


def study_run(study: Study, results: Results, workers: int | None) -> int:
    """Does the runs that have no whole result yet, and returns how many failed."""
    missing = [run for run in study.runs if results.row(run) is None]
    print(
        f"{study.comparison.name}: {len(study.runs)} runs, {len(study.runs) - len(missing)} done before and skipped, "
        f"{len(missing)} to do",
        flush=True,
    )
    if not missing:
        return 0
    from vitpos.study.engine import default_workers, run_all
    from vitpos.study.run import prepare

    with results.lock():
        results.keep(study)
        for run in missing:
            if (results.of(run) / "result.json").exists():
                print(f"{run.label}: result.json is damaged or of another version; it is made again", flush=True)
        variants = {str(run.axes): run for run in reversed(missing)}  # a mistake should show before hours of training
        for run in variants.values():
            try:
                prepare(run, results.of(run))
            except VitposError as error:
                raise VitposError(f"{study.path}, {run.label}: {error}") from error
        count = min(workers or default_workers(), len(missing))
        print(f"{count} at a time; results go to {results.folder}", flush=True)
        return run_all(missing, results, workers=count)


def study_status(study: Study, results: Results) -> int:
    """Prints a line per run and a count; 0 when all are done."""
    counts: Counter[str] = Counter()
    for run in study.runs:
        row, failure = results.row(run), results.failure(run)
        if row:
            state, detail = "done", f"{study.comparison.metric} {row['metrics'][study.comparison.metric]:.4f}"
        elif failure:
            state, detail = "failed", failure["error"]
        else:
            state = "started" if (results.of(run) / "last.ckpt").exists() else "missing"
            detail = ""
        counts[state] += 1
        print(f"{state:8}{run.label}  {detail}".rstrip())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


def study_report(study: Study, results: Results) -> None:
    """Writes the report and prints the verdict."""
    from vitpos.analysis import report, tensorboard

    rows, failures = results.collect(study)
    print()
    print(report.write(study.comparison, rows, failures, results.folder))
    tensorboard.write_curves(rows, results.folder)
    print(f"\nreport       {results.folder / 'report.md'}")
    print(f"curves       {beside_python('tensorboard')} --logdir {results.folder}")


def beside_python(name: str) -> str:
    """Writes a command as it can be typed: by its name if it is on the path, else with the folder of this Python."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
