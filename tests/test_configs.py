"""Reading YAML: one value for one number, and no key twice."""

import math

import pytest

from vitpos.cli.main import main
from vitpos.configs import read_yaml
from vitpos.errors import VitposError


@pytest.fixture
def read(tmp_path):
    def run(text, encoding="utf-8"):
        file = tmp_path / "x.yaml"
        file.write_text(text, encoding=encoding)
        return read_yaml(file)

    return run


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("1E5", 1e5), ("+3e1", 30.0), ("-.5e2", -50.0), ("1.e3", 1000.0), ("1.0e-3", 0.001), ("10", 10),
    ("0.5", 0.5), ("1e", "1e"), ("e3", "e3"), ("00:00:10:00", "00:00:10:00"), ("'1e-3'", "1e-3"), ("1e-3x", "1e-3x"),
    ("010", "010"), ("1:30", "1:30"), ("1:00:00:00", "1:00:00:00"), ("1_000", 1000), ("0x10", 16), ("-.inf", -math.inf),
    ("0", 0), ("1.", 1.0), ("1_0.5", 10.5),
])  # fmt: skip
def test_a_number_is_one_however_it_is_written(read, text, value):
    found = read(f"a: [{text}]")["a"][0]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "message"), [
    ("seeds: [0]\n\nseeds: [5]", "gives seeds twice: in line 1 and in line 3"),
    ("model: {lr: 1}\nmodel.lr: 2", "gives model.lr twice: in line 1 and in line 2"),
    ("a:\n  b: {c: 1}\n  b: {d: 2}", "gives a.b twice: in line 2 and in line 3"),
    ("a: [{b: 1}, {b: 2,\n b: 3}]", r"gives a\[1\].b twice: in line 1 and in line 2"),
    ("a: [1", "x.yaml is not YAML"),
    ("a: 2026-13-45", "x.yaml is not YAML: month"),
    ("a: " + "[" * 3000, "x.yaml is not YAML"),
    ("- 1", "should hold keys and values, got list"),
])  # fmt: skip
def test_mistakes(read, text, message):
    with pytest.raises(VitposError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_the_same_key_elsewhere_a_merge_and_an_alias_are_none(read):
    assert read("a: {x: 1}\nb: {x: 2}\nc: [{x: 1}, {x: 2}]")["b"] == {"x": 2}
    assert read("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: *a\nd: *a")["b"] == {"x": 2}
    assert read("a: &a [*a]")["a"]
    nines = "\n".join(
        f"{one}: &{one} [{', '.join(['*' + before] * 9)}]" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert read(f"a: &a {{x: 1}}\n{nines}")


def test_the_encoding_is_utf8_whatever_the_locale(read, monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "iso-8859-1")
    assert read("a: F\u00e4ngt", encoding="utf-8-sig") == {"a": "F\u00e4ngt"}
    with pytest.raises(VitposError, match="is not YAML: 'utf-8' codec"):
        read("a: F\u00e4ngt", encoding="iso-8859-1")


@pytest.mark.parametrize("words", [["--config", "c.yaml"], ["--config=c.yaml"], ["--trainer", "t.yaml"]])
def test_a_config_of_fit_is_checked_too(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("model: {lr: 0.1}\ndata: {name: digits}\nmodel: {name: vitpos_nano_patch4_32}")
    (tmp_path / "t.yaml").write_text("max_epochs: 1\nmax_epochs: 2")
    assert main(["fit", *words]) == 2
    assert "twice: in line 1 and in line" in capsys.readouterr().err
