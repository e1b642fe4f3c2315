"""The command ``vitpos study plan|run|status|report``."""

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vitpos.errors import VitposError, unknown
from vitpos.study import drawn, heartbeat, plan, tuning
from vitpos.study.plan import CHOSEN_BY, OPTION, Run, Study
from vitpos.study.results import Results
from vitpos.study.seeds import amend, looked, settle


def command(options: argparse.Namespace) -> int:
    """Carries out an action.

    Args:
        options: ``action``, ``file``, ``results`` (folder of all results), ``leave_old`` (whether results of an earlier
            version of the file are left out rather than refused), ``workers`` (runs at a time), ``sd`` (deviation of
            paired differences to plan for), and for ``run`` those of the engine (see `vitpos.study.engines`).

    Returns:
        0, or 1 where runs failed.

    Raises:
        VitposError: A user's mistake.
    """
    action, file = options.action, options.file
    if not file.exists():
        raise unknown("study file", str(file), [str(path) for path in file.parent.glob("*.yaml")])
    results = Results(options.results / file.stem)
    # these two read data alone, so that of a scheme in a file they ask the results, not the file
    study = results.recall(plan.load(file, results.settings if action in ("status", "report") else None))
    results.refuse_other_terms(study)
    study, amended = amend(study, results)
    settled = settle(study, results)
    if not options.leave_old:
        results.refuse_strays(study)
    results.reader.keep()
    if action == "plan":
        from vitpos.study.forecast import forecast

        return forecast(settled, results, options.sd, options.workers)
    if action == "status":
        return status(settled, results)
    if action == "report" and not results.stored():
        raise VitposError(f"study {study.comparison.name!r} has no finished runs to report on; run it first")
    failed = 0
    if action == "run":
        failed = run(study, settled, results, options)
        settled = settle(study, results)
    if failed and not results.collect(settled)[0]:
        print(f"no run finished; why: vitpos study status {file}")
        return 1
    report(settled, results, amended, draw=action == "report")
    results.reader.keep()
    return 1 if failed else 0


def run(study: Study, settled: Study, results: Results, options: argparse.Namespace) -> int:
    """Does what has no whole result yet, and returns how many runs failed.

    Args:
        study: The study, with all seeds that there may be.
        settled: The same as its results have it so far.
        results: Its results.
        options: As `command`.

    Raises:
        VitposError: A mistake in a run's config, an engine that cannot work, or results that cannot be written.
    """
    trials = tuning.to_do(settled, results)
    missing = [run for run in settled.runs if results.row(run) is None]
    done = len(settled.runs) - len(missing)
    count = f"{len(settled.runs)} runs, {done} done before and skipped, {len(missing)} to do"
    also = f", chosen from {len(settled.trials)} trials, {len(trials)} to do" if trials else ""
    print(f"{study.comparison.name}: {count}{also}", flush=True)
    for line in once(study):
        print(line, flush=True)
    if not missing and not trials:
        return 0
    from vitpos.study import driver, engines

    limits = engines.Limits(options.run_timeout, options.cpus_per_run, options.gpus_per_run)
    asked = engines.Options(options.engine, limits, options.workers, options.ray_address, dict(options.slurm or ()))
    engine = engines.make(asked, results)
    due = [*trials, *(each for each in missing if each.tuned is not None)]
    with results.lock():
        results.keep(study)
        for each in due:
            whole = results.row(dataclasses.replace(each, test=False))
            if whole is None and (results.of(each) / "result.json").exists():
                print(f"{each.label}: result.json is damaged or of another version; it is made again", flush=True)
        driver.check(due, study, results)
        return driver.carry_out(study, results, engine, retries=options.retries, fail_fast=options.fail_fast)


def once(study: Study) -> list[str]:
    """Says which schemes lack an option that is an axis, and so run once, not once a value."""
    lines = []
    for key in study.axes:
        lacking = dict.fromkeys(run.axes["position"] for run in study.runs if key not in run.axes)
        if key.startswith(OPTION) and lacking:
            lines.append(f"{key} leaves out {', '.join(lacking)}: no such option, so run once, not once a value")
    return lines


def status(study: Study, results: Results) -> int:
    """Prints a line per trial and run, and counts; returns 0."""
    for line in once(study):
        print(line)
    if study.trials:
        print(f"tuning: {states(study.trials, results, CHOSEN_BY)}")
        print("\n".join(map(tuning.chosen, study.choices)))
    print(states(study.runs, results, study.comparison.metric))
    if study.comparison.start:
        print(f"{looked(study, results)}; {study.comparison.most} seeds at most")
    return 0


def states(runs: tuple[Run, ...], results: Results, metric: str) -> str:
    """Prints a line per run, and returns how many are in each state."""
    counts: Counter[str] = Counter()
    for run in runs:
        state, detail = state_of(run, results, metric)
        counts[state] += 1
        print(f"{state:<10}{run.label}  {detail}".rstrip())
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def state_of(run: Run, results: Results, metric: str) -> tuple[str, str]:
    """Says in a word how far a run is, with details."""
    if row := results.row(run):
        value = row["metrics"].get(metric)
        return "done", f"{metric} {value:.4f}" if value is not None else f"no {metric}"
    if run.tuned is None:
        return ("failed", run.blocked) if run.blocked else ("waiting", "for tuning")
    beat = heartbeat.read(results.of(run))
    if beat and beat.alive:
        return "running", f"{beat.progress}; {beat.place}"
    if failure := results.failure(run):
        return "failed", failure["error"]
    if beat:
        return "abandoned", f"{beat.progress}; {beat.place}; goes on from its checkpoint with the next study run"
    if run.trial and run.test:  # it is trained
        return "missing", "its test"
    return ("started" if (results.of(run) / "last.ckpt").exists() else "missing"), ""


def report(study: Study, results: Results, amended: list[str], *, draw: bool = True) -> None:
    """Writes the report and prints the verdict.

    Args:
        study: The study, settled.
        results: Its results.
        amended: What changed in the study since there were results.
        draw: Also where the report is up to date.
    """
    with results.writing():
        rows, failures = results.collect(study)
        background: dict[str, Any] = {
            "planned": [{"axes": run.axes, "seed": run.seed} for run in study.runs],
            "text": study.path.read_text(encoding="utf-8-sig"),
            "tuning": [dataclasses.asdict(choice) for choice in study.choices],
            "amended": amended,
        }
        origin = drawn.origin(results.digests(rows), study.comparison, failures, background)
        said = None if draw else drawn.said(results.folder, origin)
        if said is None:
            from vitpos.analysis import report
            from vitpos.study import summary

            said = report.write(study.comparison, rows, failures, results.folder, report.Background(**background))
            summary.write_curves(rows, results.folder)
            drawn.keep(results.folder, origin, said)
    print(f"\n{said}")
    print(f"\nreport       {results.folder / 'report.html'} (the same as text: report.md)")
    print(f"curves       {beside_python('tensorboard')} --logdir {shlex.quote(str(results.folder))}")


def beside_python(name: str) -> str:
    """Writes a command as it can be typed: by its name if it is on the path, else with the folder of this Python."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
