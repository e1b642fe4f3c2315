"""What a study crosses with position: config keys and options of the schemes."""

import json

import pytest

from vitpos.cli.main import main
from vitpos.errors import VitposError
from vitpos.study import options, plan
from vitpos.study.results import Results
from vitpos.study.run import execute


def positions(study):
    return [(run.axes, run.config["position"]) for run in study.runs]


def test_an_option_goes_to_the_schemes_that_have_it_and_the_rest_run_once(study_file):
    names = ["none", "learned", "sinusoidal_2d(temperature=100)", "learned+cpe"]
    study = plan.load(study_file(axes={"position": names, "position.scale": [0.02, 0.7]}, seeds=[0]))
    assert positions(study) == [
        ({"position": "none"}, "none"),
        ({"position": "learned", "position.scale": 0.02}, "learned(scale=0.02)"),
        (
            {"position": "sinusoidal_2d(temperature=100)", "position.scale": 0.02},
            "sinusoidal_2d(temperature=100, scale=0.02)",
        ),
        ({"position": "learned+cpe", "position.scale": 0.02}, "learned(scale=0.02)+cpe"),
        ({"position": "learned", "position.scale": 0.7}, "learned(scale=0.7)"),
        (
            {"position": "sinusoidal_2d(temperature=100)", "position.scale": 0.7},
            "sinusoidal_2d(temperature=100, scale=0.7)",
        ),
        ({"position": "learned+cpe", "position.scale": 0.7}, "learned(scale=0.7)+cpe"),
    ]
    assert len({run.hash for run in study.runs}) == 7
    assert not any("position.scale" in plan.flatten(run.config) for run in study.runs)
    same = plan.load(study_file("plain", axes={"position": ["learned", "learned(scale=0.7)"]}, seeds=[0]))
    assert same.runs[1].hash == study.runs[4].hash


def test_null_is_each_schemes_default(study_file):
    study = plan.load(study_file(axes={"position": ["learned", "sinusoidal_2d"], "position.scale": [None, 0.5]}))
    assert [text for _, text in positions(study)[:4]] == [
        "learned", "sinusoidal_2d", "learned(scale=0.5)", "sinusoidal_2d(scale=0.5)",
    ]  # fmt: skip
    assert study.runs[0].axes == {"position": "learned", "position.scale": None}


def test_an_option_that_a_scheme_refuses_whatever_its_value_is_none_it_has(study_file):
    # learned has a temperature only where it starts from sinusoids
    names = ["learned", "learned(init='sinusoidal_2d')", "rope_axial"]
    study = plan.load(study_file(axes={"position": names, "position.temperature": [100, 10000]}, seeds=[0]))
    assert [text for _, text in positions(study)] == [
        "learned",
        "learned(init='sinusoidal_2d', temperature=100)",
        "rope_axial(temperature=100)",
        "learned(init='sinusoidal_2d', temperature=10000)",
        "rope_axial(temperature=10000)",
    ]


def test_two_options_and_a_config_key_are_crossed(study_file):
    axes = {"model.lr": [0.1, 0.2], "position.scale": [0.1, 0.2], "position.temperature": [50, 60]}
    study = plan.load(study_file(axes={"position": ["none", "learned", "sinusoidal_1d"], **axes}, seeds=[0, 1]))
    counts = {name: sum(run.axes["position"] == name for run in study.runs) for name in study.axes["position"]}
    assert counts == {"none": 2 * 2, "learned": 2 * 2 * 2, "sinusoidal_1d": 2 * 2 * 2 * 2}
    assert len({run.hash for run in study.runs}) == len(study.runs)
    assert len({run.folder for run in study.runs}) == len(study.runs)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"position.scael": [1]}, r"small.yaml: unknown option of the study's positions 'scael'; did you mean 'scale'"),
        ({"position.scale": [-1]}, r"position.scale: no position of the study takes \[-1\]: .*scale=-1 must be a"),
        ({"position.inject": ["stem"], "position": ["learned", "learned(inject='stem')"]},
         r"position \"learned\(inject='stem'\)\" sets inject itself, and position.inject is an axis: leave one"),
        ({"position.scale": [1], "position": ["learned", "lerned"]}, r"unknown position scheme 'lerned'"),
    ],
)  # fmt: skip
def test_mistakes_in_options(study_file, axes, message):
    with pytest.raises(VitposError, match=message) as error:
        plan.load(study_file(axes={"position": ["none", "learned"], **axes}))
    assert "\n" not in str(error.value)


def test_a_value_that_is_refused_among_others_shows_before_training(study_file, in_process, tmp_path, capsys):
    file = study_file(axes={"position": ["learned"], "position.scale": [0.1, -1]})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 2
    assert "learned, position.scale=-1, seed 0: position scheme 'learned': scale=-1 must" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/*/runs/*/metrics.jsonl"))


def test_texts_are_written_as_they_are_read():
    for text in ("none", "learned(scale=0.5, inject='every')+cpe(layers=2)", "my/file.py:Mine(a=[1, 2])"):
        assert options.join(options.positions.parse(text)) == text


@pytest.mark.slow
def test_an_option_from_file_to_report(study_file, in_process, tmp_path, capsys):
    file = study_file(axes={"position": ["none", "learned", "cpe"], "position.scale": [0.02, 0.7]})
    words = ["study", "run", str(file), "--results", str(tmp_path / "results")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "small: 8 runs, 0 done before and skipped, 8 to do" in printed
    assert "position.scale leaves out none, cpe: no such option, so run once, not once a value" in printed
    # each of the two is compared with learned at both amplitudes
    for text in ("none, position.scale = 0.02", "none, position.scale = 0.7", "cpe, position.scale = 0.02"):
        assert text in printed
    results, study = Results(tmp_path / "results" / "small"), plan.load(file)
    lines = [json.loads(line) for line in (results.folder / "rows.jsonl").read_text().splitlines()]
    assert [line["hash"] for line in lines] == [run.hash for run in study.runs]
    assert lines[0]["axes"] == {"position": "none"}
    rows, _ = results.collect(study)
    assert [row["axes"] for row in rows if row["axes"]["position"] == "none"] == [{"position": "none"}] * 2
    starts = {row["axes"].get("position.scale"): row["position"]["rms_start"] for row in rows if row["position"]}
    # 16 x 64 numbers are drawn: their root mean square deviates by 1 / sqrt(2 * 1024), 2 percent
    assert starts == pytest.approx({0.02: 0.02, 0.7: 0.7}, rel=0.1)
    assert main(words) == 0
    assert "8 runs, 8 done before and skipped, 0 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model.global_pool", ["avg", "token"]),
        ("model.lr", [0.001, 0.002]),
        ("trainer.max_epochs", [1, 2]),
        ("model.patch_size", [2, 4]),
        ("data.train_fraction", [0.3, 1.0]),
    ],
)
def test_a_config_key_is_crossed_with_position_and_arrives(study_file, tmp_path, key, values):
    changes = {"trainer.limit_train_batches": 2}
    study = plan.load(study_file(axes={"position": ["none", "learned"], key: values}, seeds=[0], overrides=changes))
    assert [(run.axes["position"], run.axes[key]) for run in study.runs] == [
        (name, value) for value in values for name in ("none", "learned")
    ]
    learned = []
    for number, run in enumerate(study.runs[1::2]):
        assert execute(run, tmp_path / f"{number}").error is None
        learned.append(json.loads((tmp_path / f"{number}" / "result.json").read_text()))
    first, second = learned
    assert first["metrics"]["test/loss"] != second["metrics"]["test/loss"]
    group, _, name = key.partition(".")
    if group == "trainer":
        assert [len(row["history"]) for row in learned] == values
    else:
        assert [row["resolved"][group][name] for row in learned] == values
    if name == "train_fraction":
        assert [row["data"]["train"] for row in learned] == [387, 1295]
        assert first["data"]["fingerprint"] == second["data"]["fingerprint"]
    if name == "patch_size":
        assert [row["position"]["grid"] for row in learned] == [[4, 4], [2, 2]]
    if name == "global_pool":
        assert second["parameters"] > first["parameters"]  # the class token


@pytest.mark.slow
def test_config_keys_and_options_in_one_report(study_file, in_process, tmp_path, capsys):
    axes = {"position": ["learned", "none"], "data.train_fraction": [0.3, 1.0], "position.scale": [0.02, 0.5]}
    file = study_file(axes=axes, seeds=[0], overrides={"trainer.limit_train_batches": 2})
    assert main(["study", "run", str(file), "--results", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    assert "6 runs, 0 done before" in printed
    rows, _ = Results(tmp_path / "results" / "small").collect(plan.load(file))
    assert len(rows) == 6
    assert printed.count("none, data.train_fraction = 0.3, position.scale = 0.02") >= 1
