import json
from pathlib import Path

import pytest

from vitpos.analysis.confounds import confounds, settings

ROWS = Path(__file__).parents[2] / "results" / "cifar10_first" / "rows.jsonl"


def make(position, rms=None, parameters=0, tuned=None, axes=None, **config):
    found = {
        "axes": {"position": position, **(axes or {})},
        "config": {"position": position, "seed_everything": 0, "model": {"lr": 0.001}, **config},
        "position": None if rms is None else {"rms_start": rms[0], "rms_end": rms[1]},
        "position_parameters": parameters,
    }
    return found if tuned is None else {**found, "tuned": tuned}


def test_only_the_kind_differs():
    assert confounds([make("none")], [make("relative_bias")]) == []
    assert confounds([make("sinusoidal_1d", (0.71, 0.71))], [make("sinusoidal_2d", (0.70, 0.70))]) == []
    assert confounds([], [make("none")]) == []


def test_amplitude_at_the_start():
    high, low = make("sinusoidal_2d", (0.707, 0.707)), make("learned", (0.0201, 0.043), 6144)
    assert confounds([high], [low]) == [
        "starts at RMS 0.71 against 0.02 (ends at 0.71 against 0.043)",
    ]
    rows = [make("sinusoidal_2d", (0.5, 0.5)), make("sinusoidal_2d", (1.5, 1.5))]  # a mean of 1 over seeds
    assert confounds(rows, [make("sinusoidal_1d", (0.25, 0.25))]) == ["starts at RMS 1 against 0.25"]
    assert confounds([make("fourier", (None, 0.5))], [make("sinusoidal_2d", (0.5, 0.5))]) == [
        "starts at RMS 0 against 0.5 (ends at 0.5 against 0.5)"
    ]
    # what adds nothing to the tokens has no amplitude to compare
    assert confounds([make("sinusoidal_2d", (0.71, 0.71))], [make("none")]) == []


def test_options_of_one_kind():
    cold, warm = make("sinusoidal_2d(temperature=100)", (0.7, 0.7)), make("sinusoidal_2d", (0.7, 0.7))
    assert confounds([cold], [warm]) == ["temperature 100 against 10000"]
    quiet = make("sinusoidal_2d(scale=0.02)", (0.02, 0.02))
    assert confounds([quiet], [warm]) == ["starts at RMS 0.02 against 0.7"]  # said once, not as scale too
    shared = make("relative_bias(shared=True)+cpe(layers=2)")
    assert confounds([shared], [make("relative_bias+cpe")]) == [
        "shared of relative_bias True against False",
        "layers of cpe 2 against 1",
    ]


def test_temperature_of_two_kinds():
    assert confounds([make("rope_axial")], [make("sinusoidal_2d", (0.7, 0.7))]) == ["temperature 100 against 10000"]
    # a learned table has the option only where it starts from sinusoids
    assert confounds([make("sinusoidal_2d(temperature=50)")], [make("learned")]) == []
    assert confounds([make("sinusoidal_2d(temperature=50)")], [make("learned(init='sinusoidal_2d')")]) == [
        "temperature 50 against 10000"
    ]


def test_options_that_the_row_kept_win_over_todays_defaults():
    old = {**make("rope_axial"), "resolved": {"position": [{"name": "rope_axial", "options": {"temperature": 7.0}}]}}
    assert confounds([old], [make("rope_axial")]) == ["temperature 7 against 100"]
    assert confounds([make("gone(a=1)")], [make("gone(a=2)")]) == ["a 1 against 2"]  # a scheme that is not here


def test_settings_and_axes():
    one = make("none", axes={"model.lr": 0.01}, model={"lr": 0.01}, trainer={"max_epochs": 3})
    other = make("learned", axes={"model.lr": 0.001}, trainer={"max_epochs": 3})
    assert settings(one, other) == ["model.lr 0.01 against 0.001"]
    default = {**make("none", model={}, trainer={"max_epochs": 3}), "resolved": {"model": {"lr": 0.002}}}
    assert settings(default, other) == ["model.lr 0.002 against 0.001"]
    assert settings(make("learned", axes={"position.scale": 0.7}), make("none")) == []  # it has no such option


def test_tuned_values():
    one, other = (
        make(name, tuned={"model.lr": lr}, model={"lr": lr}) for name, lr in (("none", 0.002), ("cpe", 0.001))
    )
    assert confounds([one], [other]) == ["model.lr tuned, mostly to 0.002 against 0.001"]
    rare = make("none", tuned={"model.lr": 0.001}, model={"lr": 0.001})
    assert confounds([rare, one, one], [other]) == confounds([one], [other])
    assert confounds([one], [one]) == []


@pytest.fixture(scope="module")
def committed():
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    return lambda position: [row for row in rows if row["axes"]["position"] == position]


def test_rows_of_an_earlier_version(committed):
    assert confounds(committed("sinusoidal_2d"), committed("learned")) == [
        "starts at RMS 0.71 against 0.02 (ends at 0.71 against 0.043)",
    ]
    assert confounds(committed("sinusoidal_2d(temperature=100)"), committed("sinusoidal_2d")) == [
        "temperature 100 against 10000"
    ]


def test_what_a_row_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.py").write_text("open('ran', 'w')")
    monkeypatch.setattr("vitpos.positions.text.installed", lambda: 1 / 0)  # nor is an installed package looked for
    row = make("notes.py:X(size=1)+elsewhere")
    assert confounds([row], [make("notes.py:X(size=2)+elsewhere")]) == ["size of notes.py:X 1 against 2"]
    assert not Path("ran").exists()
