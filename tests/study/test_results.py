"""Results on disk: what counts as done, what is kept, what is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from vitpos.cli.main import main
from vitpos.errors import VitposError
from vitpos.study import plan
from vitpos.study.results import Results, write


def read(path):
    return json.loads(path.read_text())


def test_a_result_counts_when_it_is_whole_and_of_this_run(done):
    results, (one, two, *_) = Results(done.folder), plan.load(done.file).runs
    file = results.of(one) / "result.json"
    whole = file.read_text()
    assert results.row(one) == json.loads(whole)
    for damage in (whole[:-100], "", "[]", json.dumps({**json.loads(whole), "format": 0})):
        file.write_text(damage)
        assert results.row(one) is None
    file.write_text((results.of(two) / "result.json").read_text())
    assert results.row(one) is None


def test_without_runs_the_collected_rows_count_and_the_report_is_the_same(done, capsys):
    before = (done.folder / "report.md").read_text()
    rows = (done.folder / "rows.jsonl").read_text()
    shutil.rmtree(done.folder / "runs")
    (done.folder / "report.md").unlink()
    assert main(["study", "report", str(done.file), "--results", str(done.results)]) == 0
    assert (done.folder / "report.md").read_text() == before
    assert (done.folder / "rows.jsonl").read_text() == rows
    assert main(["study", "run", str(done.file), "--results", str(done.results)]) == 0
    assert "4 runs, 4 done before and skipped, 0 to do" in capsys.readouterr().out


def test_rows_are_in_the_order_of_the_plan_and_keep_earlier_ones(done):
    study, results = plan.load(done.file), Results(done.folder)
    lines = (done.folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["hash"] for line in lines] == [run.hash for run in study.runs]
    other = json.loads(lines[0])
    other["config"]["model"]["lr"] = 9.0
    other["hash"] = plan.identify(other["config"], None, None)
    (done.folder / "rows.jsonl").write_text("\n".join([json.dumps(other), *lines]))
    rows, failures = results.collect(study)
    assert ([row["hash"] for row in rows], failures) == ([run.hash for run in study.runs], [])
    kept = [json.loads(line)["hash"] for line in (done.folder / "rows.jsonl").read_text().splitlines()]
    assert kept == [*(run.hash for run in study.runs), other["hash"]]


def test_a_damaged_line_is_named_and_kept_aside_and_stops_nothing(done, capsys):
    before = (done.folder / "rows.jsonl").read_text()
    damage = ['{"hash": ', "[" * 100_000, "\x80", '{"format": 2}']
    with (done.folder / "rows.jsonl").open("a", encoding="latin-1") as file:
        file.write("\n".join(damage))
    for action in ("status", "report"):
        assert main(["study", action, str(done.file), "--results", str(done.results)]) == 0
        said = capsys.readouterr().err.splitlines()
        assert [re.search(r"rows.jsonl line (\d)", line)[1] for line in said] == ["5", "6", "7", "8"]
        assert "not whole" in said[0]
        assert "format is 2; allowed: 1" in said[3]
    assert (done.folder / "rows.jsonl").read_text() == before
    assert (done.folder / "damaged.jsonl").read_bytes().split(b"\n")[:-1] == [d.encode("latin-1") for d in damage]
    assert main(["study", "status", str(done.file), "--results", str(done.results)]) == 0
    assert capsys.readouterr().err == ""


def test_a_row_whose_config_was_edited_is_none(done, capsys):
    results, run = Results(done.folder), plan.load(done.file).runs[0]
    row = read(results.of(run) / "result.json")
    row["config"]["model"]["lr"] = 9.0
    (results.of(run) / "result.json").write_text(json.dumps(row))
    assert results.row(run) is None
    assert results.row(run) is None
    (line,) = capsys.readouterr().err.splitlines()  # said once
    assert f"result.json: hash is '{run.hash}'; allowed: that of its config" in line


def test_the_hash_of_a_config_is_that_of_its_json():
    config = {"trainer": {"callbacks": [{"scheduling": {0: 2, 4: 8, 10: 1}}]}}
    assert plan.identify(json.loads(json.dumps(config)), None, None) == plan.identify(config, None, None)


def test_the_committed_results_of_an_earlier_version_count_as_done(tmp_path):
    root = Path(__file__).parents[2]
    shutil.copytree(root / "results" / "cifar10_first", tmp_path / "cifar10_first")
    study, results = plan.load(root / "configs" / "studies" / "cifar10_first.yaml"), Results(tmp_path / "cifar10_first")
    results.refuse_other_terms(study)
    results.refuse_strays(study)
    assert [run.label for run in study.runs if results.row(run) is None] == []
    before = (results.folder / "rows.jsonl").read_text()
    rows, failures = results.collect(study)
    assert (len(rows), failures) == (18, [])
    assert (results.folder / "rows.jsonl").read_text() == before
    assert not (results.folder / "tuning.jsonl").exists()


def test_a_row_stands_where_this_version_of_the_file_puts_it(done):
    keys = yaml.safe_load(done.file.read_text())
    base = done.file.parent / "base.yaml"
    config = yaml.safe_load(base.read_text())
    epochs = config["trainer"].pop("max_epochs")
    base.write_text(yaml.safe_dump(config))
    done.file.write_text(yaml.safe_dump({**keys, "axes": {"trainer.max_epochs": [epochs], **keys["axes"]}}))
    rows, _ = Results(done.folder).collect(plan.load(done.file))
    assert [row["axes"] for row in rows[:2]] == [
        {"position": name, "trainer.max_epochs": epochs} for name in ("none", "learned")
    ]


@pytest.mark.parametrize(("key", "value"), [("correction", "none"), ("tune", {"model.lr": [0.1]})])
def test_later_terms_are_terms_too(done, key, value):
    results, keys = Results(done.folder), yaml.safe_load(done.file.read_text())
    done.file.write_text(yaml.safe_dump({**keys, key: value}))
    with pytest.raises(VitposError, match=rf"{key} was stated before the runs as \S+ \(in .*\) and is .* now"):
        results.refuse_other_terms(plan.load(done.file))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "result.json"
    write(file, "old")

    def half():
        yield b"ne"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(file, half())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert file.read_text() == "old"


def test_a_report_before_any_run_says_so(study_file, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for results in (tmp_path / "results", tmp_path / "link"):
        assert main(["study", "report", str(study_file()), "--results", str(results)]) == 2
        assert "no finished runs" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_made_is_said(study_file, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["study", "run", str(study_file()), "--results", str(tmp_path / "link")]) == 2
    error = capsys.readouterr().err
    assert "broken link" in error
    assert "free space" not in error


def test_leftovers_of_killed_processes_go(done):
    results = Results(done.folder)
    inside = results.of(plan.load(done.file).runs[0]) / "result.json.123.part"
    beside = done.folder / "rows.jsonl.123.part"
    inside.touch()
    beside.touch()
    with results.lock(), results.writing():
        assert not inside.exists()
        assert not beside.exists()
        with pytest.raises(VitposError, match="another vitpos study run works in"), results.lock():
            pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"position": ["a\x1b[31m"]}}, r"axes.position.0 is 'a\x1b[31m'; allowed: text"),
        ({"axes": {"position": ["a\nb"]}}, r"position is 'a\nb'; allowed: one line"),
        ({"axes": {"position": ["\u202eabc"]}}, r"\u202eabc"),
        ({"question": "\x07"}, r"question is '\x07'"),
        ({"axes": {"position": ["learned", "x" * 1_000_000]}}, "allowed: text of at most"),
        ({"reference": "x" * 90_000}, "characters ..."),
    ],
)
def test_a_study_file_names_nothing_that_steers_a_terminal(study_file, tmp_path, capsys, changes, said):
    assert main(["study", "status", str(study_file(**changes)), "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error[:-1].isprintable()
    assert len(error) < 2500


def test_what_is_no_regular_file_is_never_waited_for(tmp_path, capsys):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    for name in ("rows.jsonl", "tuning.jsonl", "study.yaml"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "runs" / "x" / "result.json").symlink_to("/dev/zero")
    assert Results(tmp_path).stored() == []
    assert capsys.readouterr().err.count("\n") == 1


def test_a_report_that_is_up_to_date_is_not_drawn_again(done, monkeypatch, capsys):
    words = ["study", "run", str(done.file), "--results", str(done.results)]
    main(words)
    first = capsys.readouterr().out
    drawn = []
    monkeypatch.setattr("vitpos.analysis.report.write", lambda *args: drawn.append(args) or "anew")
    main(words)
    assert (drawn, capsys.readouterr().out) == ([], first)
    (done.folder / "report.md").write_text("by hand")
    main(words)
    assert len(drawn) == 1
    main(["study", "report", *words[2:]])
    assert len(drawn) == 2
    monkeypatch.setattr("vitpos.study.drawn.reporting", lambda: "other code")
    main(words)
    assert len(drawn) == 3


def test_unchanged_rows_are_not_written_again(done):
    study = plan.load(done.file)
    before = (done.folder / "rows.jsonl").stat()
    Results(done.folder).collect(study)
    after = (done.folder / "rows.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
