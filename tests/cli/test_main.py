"""The command line: every mistake of a user is one line on stderr and exit code 2."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from vitpos.cli.main import main, parser
from vitpos.lock import hold
from vitpos.study import plan
from vitpos.study.results import Results

FIT = ["fit", "--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "2", "--data.name", "digits",
       "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["fitt"],
            [
                "unknown command",
                "'fitt'; did you mean 'fit'",
                "known: check, fit, positions, show, study, test, validate",
            ],
        ),
        ([], ["the following arguments are required: COMMAND", "vitpos --help"]),
        (["study", "stats"], ["'stats'; did you mean 'status'"]),
        (["study", "run"], ["required: file"]),
        (["study", "run", "x.yaml", "--workers", "0"], ["--workers: should be a whole number from 1, got '0'"]),
        (["study", "run", "x.yaml", "--workers", "two"], ["--workers: should be a whole number from 1, got 'two'"]),
        (["study", "run", "x.yaml", "--wrokers", "1"], ["unknown option '--wrokers'; did you mean '--workers'"]),
    ],
)
def test_mistakes_in_the_command(refused, words, expected):
    refused(*words, expected=expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.lrr", "1"], ["unknown option 'model.lrr'; did you mean 'model.lr'"]),
        (["--model.lrr=1"], ["unknown option 'model.lrr'; did you mean 'model.lr'"]),
        (["--trainer.max_epoch", "1"], ["'trainer.max_epoch'; did you mean 'trainer.max_epochs'"]),
        (["--positon", "none"], ["unknown option 'positon'; did you mean 'position'"]),
        (["--optimizer.lr", "1"], ["unknown option 'optimizer.lr' (known: ", "model, position"]),
        (["junk"], ["unrecognized arguments: junk"]),
        (["--model.lr"], ["--model.lr: expected one argument"]),
        (["--model.lr", "abc"], ["model.lr should be float, got 'abc'"]),
        (["--model.lr", "-1"], ["lr must be above 0 (got -1.0)"]),
        (["--trainer.max_epochs", "abc"], ["trainer.max_epochs should be int or null, got 'abc'"]),
        (["--model.global_pool", "tok"], ["model.global_pool should be one of ['avg', 'token'], got 'tok'"]),
        (["--trainer.precision", "bf17"], ["trainer.precision should be ", "'bf16-mixed'", "got 'bf17'"]),
        (["--trainer.max_epochs", "-3"], ["trainer: ", "-3"]),
        (["--trainer.accelerator", "tpu"], ["trainer: ", "torch_xla"]),
        (["--data.name", "digit"], ["unknown data set 'digit'; did you mean 'digits'"]),
        (["--data.batch_size", "0"], ["data.batch_size is 0; it must be at least 1"]),
        (["--model.name", "vitpos_nan"], ["unknown model 'vitpos_nan'; did you mean 'vitpos_nano_patch4_32'"]),
        (["--position", "lerned"], ["unknown position scheme 'lerned'; did you mean 'learned'", "sinusoidal_1d"]),
        (["--position", "learned(sacle=1)"], ["'sacle'; did you mean 'scale'"]),
        (["--model.patch_size", "3"], ["img_size (8, 8) is not a multiple of patch_size 3"]),
        (["--config", "nowhere.yaml"], ["File does not exist: ", "nowhere.yaml"]),
        (["--config", "."], ["Path is not a file"]),
        (["--seed_everything", "true"], ["seed_everything should be a whole number, got true"]),
        (["--ckpt_path", "nowhere.ckpt"], ["no checkpoint nowhere.ckpt"]),
    ],
)
def test_mistakes_in_the_options_of_a_run(refused, words, expected):
    refused(*FIT, *words, expected=expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {lrr: 1}", ["unknown option 'model.lrr'; did you mean 'model.lr'"]),
        ("data: {nam: digits}", ["unknown option 'data.nam'; did you mean 'data.name'"]),
        ("modle: {lr: 1}", ["unknown option 'modle"]),
        ("model: {lr: abc}", ["model.lr should be float, got 'abc'"]),
        ("data: {flip: 3}", ["data.flip should be bool, got '3'"]),
        ("model: [1", ["Problems parsing config", "line 1"]),
        ("- 1", ["a config should hold keys and values, got"]),
        ("words", ["a config should hold keys and values, got"]),
    ],
)
def test_mistakes_in_the_config_name_the_file(refused, folder, text, expected):
    (folder / "mine.yaml").write_text(text)
    refused("fit", "--config", "mine.yaml", expected=[*expected, "(config: mine.yaml)"])


def test_a_key_that_a_config_gives_twice_whatever_its_name(refused, folder):
    for name in ("mine", "mine.json"):
        (folder / name).write_text('{"model": {"lr": 1},\n"model": {"lr": 2}}')
        for words in (["--config", name], ["-c", name], [f"--config={name}"]):
            refused("fit", *words, expected=[f"{name} gives model twice: in line 1 and in line 2"])


@pytest.mark.parametrize(
    ("model", "position", "expected"),
    [
        ({"embed_dim": 66, "num_heads": 3}, "sinusoidal_2d", ["66", "divisible by 4", "64 or 68"]),
        ({"embed_dim": 64, "num_heads": 3}, "none", ["embed_dim 64 is not divisible by num_heads 3"]),
    ],
)
def test_width_that_does_not_divide(refused, monkeypatch, model, position, expected):
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **given, **model))
    refused(*FIT, "--position", position, expected=expected)


def test_a_wrong_scheme_shows_before_missing_data(refused):
    refused("fit", "--data.root", "nowhere", "--position", "lerned", expected=["'lerned'; did you mean 'learned'"])


def test_missing_and_damaged_data(refused, folder):
    ways = ["official archive", "parquet copy", "--data.download true"]
    refused("fit", "--data.root", folder, expected=["cifar10: not found", str(folder), *ways])
    refused("fit", "--data.name", "folder", expected=["--data.root"])
    for part in ("train", "test"):
        (folder / "cifar10").mkdir(exist_ok=True)
        (folder / "cifar10" / f"{part}-00000-of-00001.parquet").write_bytes(b"PAR1 half a file")
    refused("fit", "--data.root", folder, expected=["train-00000-of-00001.parquet", "truncated", *ways])


def test_unwritable_folder_of_a_run(refused, folder):
    (folder / "taken").write_text("a file")
    refused(*FIT, "--trainer.default_root_dir", "taken", expected=["cannot write to taken: File exists"])


def test_a_folder_takes_one_run_at_a_time(refused, folder):
    with hold(folder / "run" / ".lease", "taken"):
        refused(*FIT, "--trainer.default_root_dir", "run", expected=["another vitpos fit works in run"])
    assert not (folder / "run" / "metrics.jsonl").exists()


def test_full_disk_ends_a_run_with_one_line(refused, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitpos.train.checkpoint.os.fsync", full)
    there = ["--trainer.default_root_dir", "run"]
    refused(*FIT, *there, expected=["run/last.ckpt: No space left on device"])
    assert not [*Path("run").glob("*.part"), *Path("run").glob("*.ckpt")]


def test_fit_then_go_on_then_validate(refused, capsys):
    there = ["--trainer.default_root_dir", "run"]
    assert main([*FIT, *there, "--position", "learned"]) == 0
    printed = capsys.readouterr()
    assert "epoch 1/1" in printed.out
    assert "tensorboard --logdir run" in printed.out
    assert printed.err == ""
    refused(*FIT, *there, expected=["run already holds a run of 1 epochs", "--ckpt_path last"])
    refused("validate", *there, expected=["validate needs a checkpoint"])
    refused("validate", "--ckpt_path", "last", "--trainer.default_root_dir", "nowhere", expected=["no checkpoint"])

    assert main(["fit", "--data.name", "digits", *there, "--trainer.max_epochs", "2", "--ckpt_path", "last",
                 "--trainer.limit_train_batches", "2"]) == 0  # fmt: skip
    assert "goes on after epoch 1" in capsys.readouterr().out
    for command, part in (("validate", "val"), ("test", "test")):
        assert main([command, "--data.name", "digits", *there, "--ckpt_path", "run/last.ckpt"]) == 0
        printed = capsys.readouterr()
        lines = dict(line.split() for line in printed.out.splitlines())
        assert lines.keys() == {f"{part}/loss", f"{part}/accuracy"}
        assert printed.err == ""

    torch.save({"a": 1}, "other.ckpt")
    refused("test", "--ckpt_path", "other.ckpt", expected=["other.ckpt is no checkpoint of vitpos fit: it holds a"])


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(FIT) == 0
    printed = capsys.readouterr().out
    assert "Epoch 0: 100%" in printed
    assert "val/accuracy=" in printed
    assert "v_num" not in printed
    assert "epoch 1/1" not in printed


def test_config_is_printed_and_help_exits_well(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["fit", "--print_config", "--position", "learned", "--model.lr", "0.5"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["position"] == "learned"
    assert config["model"]["lr"] == 0.5
    for words in (["--help"], ["study", "--help"], ["study", "run", "--help"], ["fit", "--help"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(words)
        assert "usage:" in capsys.readouterr().out


def test_printed_config_is_a_config(capsys, folder):
    with pytest.raises(SystemExit):
        main([*FIT, "--print_config"])
    (folder / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", "mine.yaml"]) == 0


def test_interrupted_fit_says_how_to_go_on(monkeypatch, capsys):
    from vitpos.train.task import Classifier

    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)  # Lightning leaves it ignored
    monkeypatch.setattr(Classifier, "training_step", interrupt)
    try:
        assert main(FIT) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    error = capsys.readouterr().err
    assert re.fullmatch(r"vitpos: interrupted; .* --ckpt_path last goes on from the last checkpoint, if .*\n", error)


@pytest.mark.slow
def test_home_folder_in_every_path(folder, monkeypatch, capsys):
    """Without a shell that expands it: ``--option=~/x``, and in a config."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert main([*FIT, "--trainer.default_root_dir=~/run"]) == 0
    assert (folder / "home" / "run" / "last.ckpt").is_file()
    assert main(["validate", "--data.name", "digits", "--ckpt_path=~/run/last.ckpt"]) == 0
    assert main(["show", "learned", "--out=~/learned.png"]) == 0
    assert (folder / "home" / "learned.png").is_file()
    assert main(["fit", "--data.name", "folder", "--data.root=~/pictures"]) == 2
    assert f"no class folders in {folder}/home/pictures" in capsys.readouterr().err
    options = parser().parse_args(["study", "status", "~/x.yaml", "--results=~/y"])
    assert (options.file, options.results) == (folder / "home" / "x.yaml", folder / "home" / "y")
    assert not (folder / "~").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sedes": [1]}, ["unknown key of small.yaml 'sedes'; did you mean 'seeds'"]),
        ({"overrides": {"model.lrr": 1}}, ["small.yaml", "unknown option 'model.lrr'; did you mean 'model.lr'"]),
        ({"overrides": {"optimizer.lr": 1}}, ["unknown option 'optimizer"]),
        ({"overrides": {"model.lr": "fast"}}, ["model.lr should be float, got 'fast'"]),
        ({"overrides": {"model.lr.x": 1}, "base": "lr.yaml"}, ["model.lr.x=1", "lr=0.1"]),
        ({"overrides": {"model.patch_size": 3}}, ["img_size (8, 8) is not a multiple of patch_size 3"]),
        ({"overrides": {"data.batch_size": 5000}}, ["data.batch_size is 5000", "digits has only"]),
        ({"overrides": {"trainer.devices": 2}}, ["a run takes one device, got trainer.devices=2"]),
        ({"overrides": {"model.mixup": 0.2, "data.batch_size": 33}}, ["mixup and cutmix", "batch_size 33 is odd"]),
        ({"metric": "tst/accuracy"}, ["unknown metric 'tst/accuracy'; did you mean 'test/accuracy'"]),
        ({"axes": {"position": ["learned", "sinusoidal_3d"]}}, ["'sinusoidal_3d'; did you mean 'sinusoidal_2d'"]),
        ({"axes": {"position": ["learned", "sinusoidal_2d(temp=1)"]}}, ["'temp'; did you mean 'temperature'"]),
    ],
)
def test_mistakes_in_a_study_show_before_any_training(refused, in_process, study_file, folder, changes, expected):
    (folder / "lr.yaml").write_text("model: {lr: 0.1}")
    refused("study", "run", study_file(**changes), expected=expected)
    assert not list(folder.glob("results/*/runs/*/metrics.jsonl"))


def test_base_of_a_study_with_an_unknown_key(refused, study_file, folder):
    file = study_file(base="other.yaml")
    (folder / "other.yaml").write_text("data: {name: digits, batchsize: 3}")
    refused("study", "run", file, expected=["unknown option 'data.batchsize'; did you mean 'data.batch_size'"])


def test_missing_study_file(refused, study_file):
    study_file("quickstart")
    refused("study", "run", "quikstart.yaml", expected=["'quikstart.yaml'; did you mean 'quickstart.yaml'"])
    refused("study", "status", ".", expected=["cannot read .: Is a directory"])


@pytest.mark.parametrize("action", ["run", "report"])
def test_unwritable_results(refused, done, monkeypatch, action):
    other = done.results.parent / "taken"
    other.write_text("a file")
    if action == "report":
        monkeypatch.setattr("pathlib.Path.write_bytes", no_space)
        other = done.results
        (done.folder / "report.html").unlink()  # else it is up to date
    line = refused("study", action, done.file, "--results", other, expected=["cannot write ", str(other)])
    assert "Not a directory" in line or "No space left" in line


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_stops_a_study_and_keeps_what_is_done(refused, in_process, study_file, monkeypatch, capsys):
    from vitpos.study import run

    def full(path, text, write=run.write):
        if len(list(path.parent.parent.glob("*/result.json"))) == 1:
            no_space()
        write(path, text)

    file = study_file()
    with monkeypatch.context() as patch:
        patch.setattr(run, "write", full)
        refused("study", "run", file, expected=["No space left on device", "finished runs are kept"])
    results = Results(file.parent / "results" / "small")
    assert [results.row(run) is not None for run in plan.load(file).runs] == [True, False, False, False]
    assert main(["study", "run", str(file)]) == 0
    assert "4 runs, 1 done before and skipped, 3 to do" in capsys.readouterr().out


def test_changed_study_says_which_runs_belong_to_which(refused, done, in_process, capsys):
    keys = yaml.safe_load(done.file.read_text())
    done.file.write_text(yaml.safe_dump({**keys, "overrides": {"model.lr": 0.01}, "axes": {"position": ["learned"]}}))
    words = ["study", "status", done.file, "--results", done.results]
    line = refused(*words, expected=["of 4 results", "0 belong to this version, 4 to an earlier one", "--leave-old"])
    assert "none seed 0, learned seed 0" in line
    assert "model.lr: None there, 0.01 here" in line
    assert main([*map(str, words), "--leave-old"]) == 0
    assert "2 missing" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "old", "new"), [("margin", "1.0", 5.0), ("reference", "learned", "none")])
def test_terms_of_the_comparison_hold_once_there_are_results(refused, done, key, old, new):
    keys = yaml.safe_load(done.file.read_text())
    done.file.write_text(yaml.safe_dump({**keys, key: new}))
    for action in ("run", "status", "report"):
        words = ["study", action, done.file, "--results", done.results]
        refused(*words, expected=[f"{key} was stated before the runs as {old}", f"is {new} now", "another name"])
    done.file.write_text(yaml.safe_dump({**keys, "margin": 1.0}))  # the default, written out
    assert main(["study", "status", str(done.file), "--results", str(done.results)]) == 0


def test_a_second_study_run_is_kept_out(refused, done, in_process):
    shutil.rmtree(next(done.folder.glob("runs/learned-s1-*")))
    (done.folder / "rows.jsonl").unlink()
    with Results(done.folder).lock():
        refused("study", "run", done.file, "--results", done.results, expected=["another vitpos study run works in"])
    assert main(["study", "run", str(done.file), "--results", str(done.results)]) == 0


def test_all_runs_failed(study_file, in_process, capsys):
    file = study_file(overrides={"model.lr": 1e30, "trainer.precision": "32-true"})
    assert main(["study", "run", str(file)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("failed: the loss is not finite") == 4
    assert f"no run finished; why: vitpos study status {file}" in printed


def test_more_seeds_are_no_change(done, capsys):
    keys = yaml.safe_load(done.file.read_text())
    done.file.write_text(yaml.safe_dump({**keys, "seeds": [0, 1, 2]}))
    assert main(["study", "status", str(done.file), "--results", str(done.results)]) == 0
    assert "4 done, 2 missing" in capsys.readouterr().out


def test_help_comes_at_once_without_torch():
    command = Path(sys.executable).with_name("vitpos")
    done = subprocess.run([sys.executable, "-X", "importtime", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: vitpos ")
    assert not re.findall(r"\| +(?:torch|timm|lightning|numpy)$", done.stderr, re.MULTILINE)


def test_status_reads_committed_rows(done, capsys):
    shutil.rmtree(done.folder / "runs")
    assert main(["study", "status", str(done.file), "--results", str(done.results)]) == 0
    rows = [json.loads(line) for line in (done.folder / "rows.jsonl").read_text().splitlines()]
    printed = capsys.readouterr().out
    assert "4 done" in printed
    assert all(f"{row['metrics']['test/accuracy']:.4f}" in printed for row in rows)
