"""Carries out ``vitpos study plan|run|status|report``."""

import dataclasses
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

from vitpos.errors import VitposError, unknown
from vitpos.study import plan, tuning
from vitpos.study.plan import OPTION, Run, Study
from vitpos.study.results import Results


def command(
    action: str, file: Path, folder: Path, workers: int | None, *, leave_old: bool, sd: float | None = None
) -> int:
    """Carries a command out.

    Args:
        action: ``plan``, ``run``, ``status`` or ``report``.
        file: The study file.
        folder: Folder of all results.
        workers: Runs at a time.
        leave_old: Whether results of an earlier version of the file are left out rather than refused.
        sd: Deviation of paired differences to plan for.

    Returns:
        0, or 1 where runs failed.

    Raises:
        VitposError: A user's mistake.
    """
    if not file.exists():
        raise unknown("study file", str(file), [str(path) for path in file.parent.glob("*.yaml")])
    results = Results(folder / file.stem)
    # these two read data alone, so that of a scheme in a file they ask the results, not the file
    study = results.recall(plan.load(file, results.settings if action in ("status", "report") else None))
    results.refuse_other_terms(study)
    if not leave_old:
        results.refuse_strays(tuning.settle(study, results))
    if action == "plan":
        from vitpos.study.forecast import forecast

        return forecast(study, results, sd, workers)
    if action == "status":
        return status(study, results)
    if action == "report" and not results.stored():
        raise VitposError(f"study {study.comparison.name!r} has no finished runs to report on; run it first")
    failed = run(study, results, workers) if action == "run" else 0
    study = tuning.settle(study, results)
    if failed and not results.collect(study)[0]:
        print(f"no run finished; why: vitpos study status {file}")
        return 1
    report(study, results)
    return 1 if failed else 0


def run(study: Study, results: Results, workers: int | None) -> int:
    """Does the trials and then the runs that have no whole result yet, and returns how many runs failed."""
    settled, trials = tuning.settle(study, results), tuning.to_do(study, results)
    missing = [run for run in settled.runs if results.row(run) is None]
    count = f"{len(study.runs)} runs, {len(study.runs) - len(missing)} done before and skipped, {len(missing)} to do"
    also = f", after {len(trials)} trials of {len(study.trials)} for tuning" if trials else ""
    print(f"{study.comparison.name}: {count}{also}", flush=True)
    for line in once(study):
        print(line, flush=True)
    if not missing and not trials:
        return 0
    with results.lock():
        results.keep(study)
        for each in (*trials, *missing):
            if (results.of(each) / "result.json").exists():
                print(f"{each.label}: result.json is damaged or of another version; it is made again", flush=True)
        check([*trials, *(each for each in missing if each.tuned is not None)], study, results)
        carry_out(trials, results, workers)
        if study.trials:
            settled = tuning.settle(study, results)
            print("\n".join(chosen(choice) for choice in tuning.choices(study, results)), flush=True)
            missing = [each for each in settled.runs if results.row(each) is None]
        return len([each for each in missing if each.blocked]) + carry_out(
            [each for each in missing if not each.blocked], results, workers
        )


def check(runs: list[Run], study: Study, results: Results) -> None:
    """Prepares each variant and each tried value once, since a mistake should show before hours of training."""
    from vitpos.study.run import prepare

    for run in {**{repr(run.trial): run for run in runs[::-1]}, **{repr(run.axes): run for run in runs[::-1]}}.values():
        try:
            prepare(run, results.of(run))
        except VitposError as error:
            raise VitposError(f"{study.path}, {run.label}: {error}") from error


def carry_out(runs: list[Run], results: Results, workers: int | None) -> int:
    """Does runs, several at a time, and returns how many failed."""
    from vitpos.study.engine import default_workers, run_all

    if not runs:
        return 0
    count = min(workers or default_workers(), len(runs))
    print(f"{count} at a time; results go to {results.folder}", flush=True)
    return run_all(runs, results, workers=count)


def once(study: Study) -> list[str]:
    """Says which schemes lack an option that is an axis, and so run once, not once a value."""
    lines = []
    for key in study.axes:
        lacking = dict.fromkeys(run.axes["position"] for run in study.runs if key not in run.axes)
        if key.startswith(OPTION) and lacking:
            lines.append(f"{key} leaves out {', '.join(lacking)}: no such option, so run once, not once a value")
    return lines


def chosen(choice: tuning.Choice) -> str:
    """Says what tuning chose for a variant."""
    name = ", ".join([choice.axes["position"], *(f"{k}={v}" for k, v in choice.axes.items() if k != "position")])
    if choice.values is None:
        return f"tuning {name}: {choice.error or 'not yet chosen, trials are missing'}"
    values = ", ".join(
        f"{k}={v}" + (", the edge of its grid" if k in choice.edge else "") for k, v in choice.values.items()
    )
    lost = [", ".join(map(str, point.values())) for point, score in choice.scores if score is None]
    return f"tuning {name}: {values}" + (f"; no score for {'; '.join(lost)}" if lost else "")


def status(study: Study, results: Results) -> int:
    """Prints a line per trial and run, and counts; returns 0."""
    for line in once(study):
        print(line)
    if study.trials:
        print(f"tuning: {states(study.trials, results, tuning.METRIC)}")
        print("\n".join(chosen(choice) for choice in tuning.choices(study, results)))
    print(states(tuning.settle(study, results).runs, results, study.comparison.metric))
    return 0


def states(runs: tuple[Run, ...], results: Results, metric: str) -> str:
    """Prints a line per run, and returns how many are in each state."""
    counts: Counter[str] = Counter()
    for run in runs:
        row, failure = results.row(run), results.failure(run)
        if row:
            value = row["metrics"].get(metric)
            state, detail = "done", f"{metric} {value:.4f}" if value is not None else f"no {metric}"
        elif failure or run.blocked:
            state, detail = "failed", failure["error"] if failure else run.blocked
        elif run.tuned is None:
            state, detail = "waiting", "for tuning"
        else:
            state, detail = "started" if (results.of(run) / "last.ckpt").exists() else "missing", ""
        counts[state] += 1
        print(f"{state:8}{run.label}  {detail}".rstrip())
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def report(study: Study, results: Results) -> None:
    """Writes the report and prints the verdict."""
    from vitpos.analysis import report
    from vitpos.study import summary

    with results.writing():
        rows, failures = results.collect(study)
        background = report.Background(
            planned=[{"axes": run.axes, "seed": run.seed} for run in study.runs],
            text=study.path.read_text(encoding="utf-8-sig"),
            tuning=[dataclasses.asdict(choice) for choice in tuning.choices(study, results)],
            tuning_seeds=list(dict.fromkeys(trial.seed for trial in study.trials)),
        )
        print()
        print(report.write(study.comparison, rows, failures, results.folder, background))
        summary.write_curves(rows, results.folder)
    print(f"\nreport       {results.folder / 'report.html'} (the same as text: report.md)")
    print(f"curves       {beside_python('tensorboard')} --logdir {shlex.quote(str(results.folder))}")


def beside_python(name: str) -> str:
    """Writes a command as it can be typed: by its name if it is on the path, else with the folder of this Python."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
