"""The command ``vitpos study plan|run|status|report``."""

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vitpos.errors import VitposError, unknown
from vitpos.study import plan, tuning
from vitpos.study.plan import CHOSEN_BY, OPTION, Choice, Run, Study
from vitpos.study.results import Results
from vitpos.study.seeds import amend, look, settle
from vitpos.text import plural


def command(options: argparse.Namespace) -> int:
    """Carries out an action.

    Args:
        options: ``action``, ``file``, ``results`` (folder of all results), ``leave_old`` (whether results of an earlier
            version of the file are left out rather than refused), ``workers`` (runs at a time), ``sd`` (deviation of
            paired differences to plan for).

    Returns:
        0, or 1 where runs failed.

    Raises:
        VitposError: A user's mistake.
    """
    action, file, workers = options.action, options.file, options.workers
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
    if action == "plan":
        from vitpos.study.forecast import forecast

        return forecast(settled, results, options.sd, workers)
    if action == "status":
        return status(settled, results)
    if action == "report" and not results.stored():
        raise VitposError(f"study {study.comparison.name!r} has no finished runs to report on; run it first")
    failed = 0
    if action == "run":
        failed = run(study, settled, results, workers)
        settled = settle(study, results)
    if failed and not results.collect(settled)[0]:
        print(f"no run finished; why: vitpos study status {file}")
        return 1
    report(settled, results, amended)
    return 1 if failed else 0


def run(study: Study, settled: Study, results: Results, workers: int | None) -> int:
    """Does what has no whole result yet, and returns how many runs failed.

    Where the study tunes, or adds seeds, a few seeds at a time are finished before the next are begun.

    Args:
        study: The study, with all seeds that there may be.
        settled: The same as its results have it so far.
        results: Its results.
        workers: Runs at a time.
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
    with results.lock():
        results.keep(study)
        for each in (*trials, *(each for each in missing if each.tuned is not None)):
            if (results.of(each) / "result.json").exists() and results.row(
                dataclasses.replace(each, test=False)
            ) is None:
                print(f"{each.label}: result.json is damaged or of another version; it is made again", flush=True)
        check([*trials, *(each for each in missing if each.tuned is not None)], study, results)
        return sum(do_seeds(study, results, workers))


def do_seeds(study: Study, results: Results, workers: int | None) -> Iterator[int]:
    """Does the seeds that are due, a few at a time, and yields how many runs of them failed."""
    from vitpos.study.engine import default_workers

    workers = workers or default_workers()
    each_seed = max(1, sum(run.seed == study.runs[0].seed for run in study.trials or study.runs))
    step, tried = max(1, workers // each_seed), set[int]()
    while True:
        settled = settle(study, results, step)
        seeds = [seed for seed in dict.fromkeys(run.seed for run in settled.runs) if seed not in tried]
        open_ = [seed for seed in seeds if any(run.seed == seed and not results.row(run) for run in settled.runs)]
        if not open_:
            return
        now = set(open_[:step] if study.tune else open_)
        tried |= now
        carry_out([trial for trial in tuning.to_do(settled, results) if trial.seed in now], results, workers)
        settled = settle(study, results, step)
        for choice in settled.choices:
            if choice.seed in now:
                print(chosen(choice), flush=True)
        missing = [run for run in settled.runs if run.seed in now and results.row(run) is None]
        yield len([run for run in missing if run.tuned is None]) + carry_out(
            [run for run in missing if run.tuned is not None], results, workers
        )
        if study.comparison.start:
            print(looked(settled, results), flush=True)


def looked(study: Study, results: Results) -> str:
    """Says how far a study is whose seeds are added until all is decided."""
    whole, decided, comparisons = look(study, results)
    return f"after {plural(whole, 'seed')}: {decided} of {plural(comparisons, 'comparison')} decided"


def check(runs: list[Run], study: Study, results: Results) -> None:
    """Prepares each variant and each tried value once, since a mistake should show before hours of training."""
    from vitpos.study.run import prepare

    first = {**{repr(run.trial): run for run in runs[::-1]}, **{repr(run.axes): run for run in runs[::-1]}}
    for run in {run.hash: run for run in first.values()}.values():
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


def chosen(choice: Choice) -> str:
    """Says what tuning chose for a variant and seed."""
    others = (f"{k}={v}" for k, v in choice.axes.items() if k != "position")
    name = ", ".join([choice.axes["position"], *others, f"seed {choice.seed}"])
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
        print(f"tuning: {states(study.trials, results, CHOSEN_BY)}")
        print("\n".join(map(chosen, study.choices)))
    print(states(study.runs, results, study.comparison.metric))
    if study.comparison.start:
        print(f"{looked(study, results)}; {study.comparison.most} seeds at most")
    return 0


def states(runs: tuple[Run, ...], results: Results, metric: str) -> str:
    """Prints a line per run, and returns how many are in each state."""
    counts: Counter[str] = Counter()
    for run in runs:
        row, failure = results.row(run), results.failure(run) if run.tuned is not None else None
        if row:
            value = row["metrics"].get(metric)
            state, detail = "done", f"{metric} {value:.4f}" if value is not None else f"no {metric}"
        elif failure or run.blocked:
            state, detail = "failed", failure["error"] if failure else run.blocked
        elif run.tuned is None:
            state, detail = "waiting", "for tuning"
        else:
            trained = run.trial and run.test  # only its test is
            begun = not trained and (results.of(run) / "last.ckpt").exists()
            state, detail = "started" if begun else "missing", "its test" if trained else ""
        counts[state] += 1
        print(f"{state:8}{run.label}  {detail}".rstrip())
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def report(study: Study, results: Results, amended: list[str]) -> None:
    """Writes the report and prints the verdict; `amended` is what changed in the study since there were results."""
    from vitpos.analysis import report
    from vitpos.study import summary

    with results.writing():
        rows, failures = results.collect(study)
        background = report.Background(
            planned=[{"axes": run.axes, "seed": run.seed} for run in study.runs],
            text=study.path.read_text(encoding="utf-8-sig"),
            tuning=[dataclasses.asdict(choice) for choice in study.choices],
            amended=amended,
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
