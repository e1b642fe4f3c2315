"""Seeds that are added until all is decided, and what changes in a study after there are results."""

import json

import pytest
from whole import row_of

from vitpos.cli.main import main
from vitpos.study import plan, reading
from vitpos.study.results import Results, write
from vitpos.study.run import Outcome
from vitpos.study.seeds import amend, look, settle

RULE = {"start": 3, "until": "settled", "most": 12}
SCHEMES = {"position": ["none", "learned", "cpe"]}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results" / "small")


def put(results, run, accuracy):
    folder = results.of(run)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"val/accuracy": accuracy, "test/accuracy": accuracy}
    write(folder / "result.json", json.dumps({**row_of(run), "metrics": metrics}))


def accuracy(run):
    """None is worse in every seed; cpe differs by nothing that seeds agree on."""
    shift = {"none": -0.2, "learned": 0.0, "cpe": 0.03 * (-1) ** run.seed}[run.axes["position"]]
    return 0.6 + shift + 0.001 * run.seed


def seeds_of(study, results, **options):
    return sorted({run.seed for run in settle(study, results, **options).runs})


def test_the_start_is_due_first_then_one_at_a_time_until_all_is_decided(study_file, results):
    study = plan.load(study_file(axes={"position": ["none", "learned"]}, seeds=RULE))
    assert (study.comparison.start, study.comparison.most) == (3, 12)
    assert {run.seed for run in study.runs} == set(range(12))
    assert seeds_of(study, results) == [0, 1, 2]
    for seed in range(12):
        assert seeds_of(study, results) == list(range(max(3, seed + 1)))
        for run in study.runs:
            if run.seed == seed:
                assert seeds_of(study, results) == list(range(max(3, seed + 1)))  # no look within a seed
                put(results, run, accuracy(run))
        whole, decided, comparisons = look(study, results)
        assert (whole, comparisons) == (seed + 1, 1)
        if decided:
            break
    assert seed == 5  # 1/20 by 2^n / 2 and the other bet
    assert seeds_of(study, results) == list(range(6))
    put(results, study.runs[-1], 0.1)  # of seed 11, made by hand
    assert seeds_of(study, results) == [0, 1, 2, 3, 4, 5, 11]


def test_what_stays_undecided_ends_at_the_most_and_failed_runs_count_as_through(study_file, results):
    study = plan.load(study_file(axes=SCHEMES, seeds={**RULE, "most": 8}))
    for run in study.runs:
        if run.seed < 6:
            put(results, run, accuracy(run))
    assert look(study, results) == (6, 0, 2)
    assert seeds_of(study, results) == list(range(7))
    assert seeds_of(study, results, step=4) == list(range(8))
    for run in study.runs:
        if run.seed >= 6 and run.seed + len(run.axes["position"]) != 6 + 3:
            put(results, run, accuracy(run))
    lost = next(run for run in study.runs if run.seed == 6 and run.axes["position"] == "cpe")
    results.of(lost).mkdir()
    failure = {"format": 1, "hash": lost.hash, "axes": lost.axes, "seed": 6, "error": "it broke"}
    (results.of(lost) / "failure.json").write_text(json.dumps(failure))
    assert look(study, results)[0] == 8
    assert seeds_of(study, results) == list(range(8))


def test_a_study_runs_until_it_is_settled(study_file, in_process, results, capsys, monkeypatch):
    def execute(run, folder):
        put(results, run, accuracy(run))
        return Outcome(run, None)

    monkeypatch.setattr("vitpos.study.run.execute", execute)
    file = study_file(axes={"position": ["none", "learned"]}, seeds=RULE)
    words = [str(file), "--results", str(results.folder.parent)]
    assert main(["study", "run", *words, "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    for seeds in (3, 4, 5):
        assert f"after {seeds} seeds: 0 of 1 comparison decided" in printed
    assert "after 6 seeds: 1 of 1 comparison decided" in printed
    assert "after 7 seeds" not in printed
    text = (results.folder / "report.md").read_text()
    assert "seeds added in order, from 3 up to 12, until every comparison is decided" in text
    assert "sign bets" in text
    assert "missing" not in text
    assert "smallest possible p" not in text
    assert main(["study", "run", *words]) == 0
    assert "12 runs, 12 done before and skipped, 0 to do" in capsys.readouterr().out
    assert main(["study", "status", *words]) == 0
    assert capsys.readouterr().out.endswith("12 done\nafter 6 seeds: 1 of 1 comparison decided; 12 seeds at most\n")
    assert main(["study", "plan", *words, "--sd", "1"]) == 0
    assert "3 to 12 seeds" in capsys.readouterr().out
    study_file(axes={"position": ["none", "learned"]}, seeds=list(range(6)))
    assert main(["study", "report", *words]) == 2
    error = capsys.readouterr().err
    assert "seeds was stated before the runs as {" in error
    assert "is a list now" in error


def test_the_first_statement_is_kept_and_what_changes_is_said(study_file, results, capsys):
    first = plan.load(study_file(axes=SCHEMES, seeds=list(range(6))))
    results.folder.mkdir(parents=True)
    results.keep(plan.load(study_file(axes=SCHEMES, seeds=[0])))
    study_file(axes=SCHEMES, seeds=list(range(6)))
    results.keep(first)  # no results yet: the statement may change
    for run in first.runs:
        put(results, run, accuracy(run) + 0.05 * (run.axes["position"] == "cpe"))
    assert amend(first, results) == (first, [])
    words = [str(first.path), "--results", str(results.folder.parent)]
    assert main(["study", "report", *words]) == 0
    before = (results.folder / "report.md").read_text()
    assert "after there were results" not in before
    statement = (results.folder / "study.yaml").read_text()

    fewer = plan.load(study_file(axes={"position": ["none", "learned"]}, seeds=list(range(8))))
    changed, lines = amend(fewer, results)
    assert changed.comparison.family == 2
    assert lines == ["seeds added after there were results: 6, 7",
                     "schemes or settings left out after there were results: cpe"]  # fmt: skip
    results.keep(fewer)
    assert (results.folder / "study.yaml").read_text() == statement
    assert main(["study", "report", *words]) == 2
    assert "leave the earlier results out with --leave-old" in capsys.readouterr().err
    assert main(["study", "report", *words, "--leave-old"]) == 0
    after = (results.folder / "report.md").read_text()
    assert "Seeds added after there were results: 6, 7. The stated error rate is then no longer guaranteed" in after
    assert "left out after there were results: cpe" in after
    assert "judged jointly (max-T) for 2 comparisons" in after


def test_leaving_candidates_out_does_not_lower_p(study_file, results):
    from vitpos.analysis.runs import frame
    from vitpos.analysis.verdict import verdicts

    def p_of_none(study):
        rows = results.collect(study)[0]
        found = verdicts(frame(rows, "test/accuracy"), study.comparison)
        return float(found["p"][found["scheme"] == "none"].iloc[0])

    first = plan.load(study_file(axes=SCHEMES, seeds=list(range(7))))
    for run in first.runs:
        put(results, run, accuracy(run))
    results.keep(first)
    whole = p_of_none(first)
    fewer = plan.load(study_file(axes={"position": ["none", "learned"]}, seeds=list(range(7))))
    assert p_of_none(amend(fewer, results)[0]) >= whole
    assert p_of_none(fewer) <= whole


def test_each_result_is_read_once_a_command(done, monkeypatch, capsys):
    parsed, parse = [], reading.parse
    monkeypatch.setattr(reading, "parse", lambda text: parsed.append(text) or parse(text))
    for action in ("run", "status", "report"):
        parsed.clear()
        assert main(["study", action, str(done.file), "--results", str(done.results)]) == 0
        assert len(parsed) == len(set(parsed)) == 4
