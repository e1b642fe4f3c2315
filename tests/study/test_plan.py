"""The study file: what it refuses, and the runs that follow from it."""

import json
from pathlib import Path

import pytest
import yaml

from vitpos.cli.main import main
from vitpos.errors import VitposError
from vitpos.study import plan


def test_seeds_are_outermost_and_position_innermost(study_file):
    study = plan.load(study_file(axes={"position": ["none", "learned"], "model.lr": [0.1, 0.2]}, seeds=[3, 5]))
    order = [(run.seed, run.axes["model.lr"], run.axes["position"]) for run in study.runs]
    assert order[:4] == [(3, 0.1, "none"), (3, 0.1, "learned"), (3, 0.2, "none"), (3, 0.2, "learned")]
    assert [seed for seed, _, _ in order] == [3] * 4 + [5] * 4
    assert study.runs[2].config["model"]["lr"] == 0.2
    assert study.runs[2].config["seed_everything"] == 3


def test_overrides_change_the_base_and_axes_change_both(study_file):
    study = plan.load(study_file(overrides={"trainer.max_epochs": 7, "model": {"lr": 0.5}}))
    assert {run.config["trainer"]["max_epochs"] for run in study.runs} == {7}
    assert {run.config["model"]["lr"] for run in study.runs} == {0.5}
    assert study.runs[0].config["model"]["patch_size"] == 2


def test_hash_depends_on_what_is_computed_only(study_file):
    first = plan.load(study_file("a")).runs
    again = plan.load(
        study_file("b", seeds=[0, 1, 2], overrides={"data.root": "/elsewhere", "checkpoint_minutes": 1})
    ).runs
    other = plan.load(study_file("c", overrides={"model.lr": 0.5})).runs
    assert [run.hash for run in again[:4]] == [run.hash for run in first]
    assert not {run.hash for run in other} & {run.hash for run in first}
    assert len({run.hash for run in first} | {run.folder for run in first}) == 8


def test_a_folder_of_images_is_known_by_its_place(study_file):
    def hashes(name, root):
        overrides = {"data.name": "folder", "data.root": root}
        return {run.hash for run in plan.load(study_file(name, overrides=overrides)).runs}

    assert not hashes("a", "/one") & hashes("b", "/other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, r"unknown key of small.yaml 'sedes'; did you mean 'seeds'"),
        ({"reference": "lerned"}, r"unknown reference 'lerned'; did you mean 'learned'"),
        ({"question": None}, r"the key 'question' is missing"),
        ({"seeds": "0"}, r"seeds must be list\[int\] .*, got '0'"),
        ({"seeds": {"start": 6, "until": "settled"}}, r"seeds is \{.*\}; allowed: a list of seeds, or \{start: 6,"),
        ({"seeds": {"start": 6, "until": "bored", "most": 8}}, r"allowed: a list of seeds, or"),
        ({"seeds": {"start": 9, "until": "settled", "most": 8}}, r"with 1 <= start <= most"),
        (
            {"seeds": {"start": 6, "until": "settled", "most": 8}, "correction": "holm"},
            r"correction holm does not go with",
        ),
        ({"seeds": [0, "x"]}, r"seeds must be list\[int\]"),
        ({"seeds": [2**32]}, r"a seed of seeds should be a whole number from 0 to 4294967295, got 4294967296"),
        ({"seeds": [-1]}, r"a seed of seeds should be a whole number from 0"),
        ({"seeds": []}, r"seeds needs a list of at least one value, got \[\]"),
        ({"seeds": [0, 1, 0]}, r"seeds names 0 twice"),
        (
            {"axes": {"position": ["none", "learned(scale=1e-3)", "learned( scale=0.001)"]}, "reference": "none"},
            r"one scheme twice, as 'learned\(scale=1e-3\)' and as 'learned\( scale=0.001\)'",
        ),
        ({"axes": {"model.lr": [1]}}, r"axes need 'position' among them, got model.lr"),
        ({"axes": {"position": "none"}}, r"position needs a list of at least one value, got 'none'"),
        ({"axes": {"position": ["learned"], "data.root": ["a", "b"]}}, r"data.root cannot be an axis: it says where"),
        ({"axes": {"position": ["learned"], "scale": [1]}}, r"small.yaml: scale cannot be an axis: .* position.scale"),
        ({"tune_seeds": [7]}, r"tune_seeds is no key any more: every seed chooses for itself; leave it out"),
        ({"tune": {"model.lr": 0.1}}, r"tune.model.lr needs a list of at least one value, got 0.1"),
        ({"tune": {"model.lr": [1, 1]}}, r"tune.model.lr names 1 twice"),
        ({"tune": [1]}, r"tune must be dict\[str, list\[Any\]\], got \[1\]"),
        ({"tune": {"data.root": ["a"]}}, r"data.root cannot be tuned: tune takes config keys of all schemes"),
        ({"tune": {"position.scale": [1]}}, r"position.scale cannot be tuned"),
        ({"tune": {"model.lr": [1]}, "axes": {"position": ["learned"], "model.lr": [1]}}, r"model.lr is an axis and"),
        ({"tune": {"model.lr": [1]}, "metric": "val/accuracy"}, r"metric cannot be val/accuracy where tune chooses by"),
        ({"correction": 1}, r"correction must be str, got 1"),
        ({"margin": "big"}, r"margin must be float, got 'big'"),
        ({"alpha": 2}, r"small.yaml: .*alpha is 2"),
        ({"base": "nowhere.yaml"}, r"cannot read .*nowhere.yaml: No such file"),
    ],
)
def test_mistakes_in_the_file(study_file, changes, message):
    with pytest.raises(VitposError, match=message) as error:
        plan.load(study_file(**changes))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_a_study(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("a: [1")
    with pytest.raises(VitposError, match=r"x.yaml is not YAML"):
        plan.load(file)
    file.write_text("- 1")
    with pytest.raises(VitposError, match=r"should hold keys and values, got list"):
        plan.load(file)


def test_nest_undoes_flatten():
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    assert plan.nest(plan.flatten(tree)) == tree
    assert yaml.safe_load(yaml.safe_dump(plan.flatten(tree))) == {"a.b": 1, "a.c.d": [1, 2], "e": None}


ROOT = Path(__file__).parent.parent.parent
FIRST = {  # hash of the first run of each study file here
    "aa_digits": "fc4571944232",
    "cifar10_claim": "487149706d1c",
    "cifar10_first": "38c60602bc31",
    "digits_amplitude": "df1e79d73118",
    "digits_settled": "0ba63f1b7352",
    "quickstart": "51a6321f0664",
}


@pytest.mark.parametrize(("name", "first"), FIRST.items())
def test_results_of_the_studies_here_stay_valid(name, first):
    study = plan.load(ROOT / "configs" / "studies" / f"{name}.yaml")
    assert study.runs[0].hash == first
    rows = ROOT / "results" / name / "rows.jsonl"
    if rows.exists():
        assert {json.loads(line)["hash"] for line in rows.read_text().splitlines()} <= {
            run.hash for run in study.trials or study.runs
        }


def test_a_number_written_otherwise_is_the_same_run(study_file, tmp_path):
    def runs(name, number):
        file = study_file(name, axes={"position": ["none", "learned"], "model.lr": [1], "position.scale": [2]},
                          overrides={"model.weight_decay": 3})  # fmt: skip
        text = file.read_text().replace("- 1\n  position", f"- {number}\n  position").replace("- 2\n", f"- {number}\n")
        file.write_text(
            text.replace("weight_decay: 3", f"weight_decay: {number}") + f"margin: {number}\nalpha: {number}"
        )
        study = plan.load(file)
        assert (study.comparison.margin, study.comparison.alpha) == (0.001, 0.001)
        return [(run.hash, run.label) for run in study.runs]

    assert runs("a", "1e-3") == runs("b", "0.001") == runs("c", "1.0e-3")
    file = study_file("d", axes={"position": ["none", "learned"], "model.lr": [1]})
    file.write_text(file.read_text().replace("- 1\n  position", "- 1e-3\n  - 0.001\n  position"))
    with pytest.raises(VitposError, match=r"model.lr names 0.001 twice"):
        plan.load(file)


def test_a_printed_or_saved_config_is_a_base(study_file, tmp_path, capsys):
    from vitpos.study.run import prepare

    with pytest.raises(SystemExit):
        main(["fit", "--data.name", "digits", "--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "4",
              "--print_config"])  # fmt: skip
    text = capsys.readouterr().out
    assert "ckpt_path" in text
    (tmp_path / "printed.yaml").write_text(text)
    study = plan.load(study_file(base="printed.yaml"))
    assert "ckpt_path" not in study.runs[0].config
    prepare(study.runs[0], tmp_path / "run")


def test_paths_start_at_the_study_file(study_file, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from vitpos.positions.learned import Learned\n\n\nclass Mine(Learned):\n    pass\n"
    )
    (tmp_path / "elsewhere").mkdir()
    axes = {"position": ["none", "mine.py:Mine"], "position.scale": [0.1, 0.2]}
    file = study_file(axes=axes, reference="none", seeds=[0])
    here = [run.hash for run in plan.load(file).runs]
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = plan.load(file)
    assert [run.hash for run in study.runs] == here
    assert study.runs[1].config["position"] == "mine.py:Mine(scale=0.1)"
    monkeypatch.chdir(tmp_path)
    assert [run.hash for run in plan.load("small.yaml").runs] == here
    monkeypatch.chdir(ROOT.parent)
    assert plan.load(ROOT / "configs/studies/aa_digits.yaml").runs[1].hash
