"""The study file: what it refuses, and the runs that follow from it."""

import pytest
import yaml

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
    again = plan.load(study_file("b", seeds=[0, 1, 2], overrides={"data.root": "/elsewhere"})).runs
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
        ({"seeds": "0"}, r"seeds must be list\[int\], got '0'"),
        ({"seeds": [0, "x"]}, r"seeds must be list\[int\]"),
        ({"seeds": []}, r"seeds needs a list of at least one value, got \[\]"),
        ({"seeds": [0, 1, 0]}, r"seeds names 0 twice"),
        ({"axes": {"model.lr": [1]}}, r"axes need 'position' among them, got model.lr"),
        ({"axes": {"position": "none"}}, r"position needs a list of at least one value, got 'none'"),
        ({"axes": {"position": ["learned"], "data.root": ["a", "b"]}}, r"data.root cannot be an axis: it says where"),
        ({"axes": {"position": ["learned"], "scale": [1]}}, r"small.yaml: scale cannot be an axis: .* position.scale"),
        ({"tune_seeds": [7]}, r"tune_seeds without tune: nothing is tuned"),
        ({"tune": {"model.lr": 0.1}}, r"tune.model.lr needs a list of at least one value, got 0.1"),
        ({"tune": {"model.lr": [1, 1]}}, r"tune.model.lr names 1 twice"),
        ({"tune": [1]}, r"tune must be dict\[str, list\[Any\]\], got \[1\]"),
        ({"tune": {"model.lr": [1]}, "tune_seeds": [1, 9]}, r"tune_seeds and seeds both name 1: a value must not be"),
        ({"tune": {"model.lr": [1]}, "tune_seeds": [9, 9]}, r"tune_seeds names 9 twice"),
        ({"tune": {"data.root": ["a"]}}, r"data.root cannot be tuned: tune takes config keys of all schemes"),
        ({"tune": {"position.scale": [1]}}, r"position.scale cannot be tuned"),
        ({"tune": {"model.lr": [1]}, "axes": {"position": ["learned"], "model.lr": [1]}}, r"model.lr is an axis and"),
        ({"tune": {"model.lr": [1]}, "metric": "val/accuracy"}, r"metric cannot be val/accuracy where tune chooses by"),
        ({"correction": 1}, r"correction must be str, got 1"),
        ({"margin": "big"}, r"margin must be float, got 'big'"),
        ({"alpha": 2}, r"alpha"),
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
