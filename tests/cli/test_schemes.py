"""The commands ``vitpos positions`` and ``vitpos show``, and a scheme of the user's own file in the others."""

import json
import re
import struct

import pytest
from matplotlib.image import imread

import vitpos
from vitpos.cli.main import main
from vitpos.positions import base, text
from vitpos.study import plan
from vitpos.study.results import Results

FILE = '''
import vitpos

class Half(vitpos.PositionEmbedding):
    """Adds a half.

    A second paragraph.

    Source: nobody 1999 (Halves), section 3.
    """

    def __init__(self, geometry, *, by=0.5, what=None):
        """Makes it.

        Args:
            geometry: The host's.
            by: How much, in halves
                of a half.
            what: Nothing.
        """
        super().__init__(geometry)
        self.by = by

    def tokens(self, x, grid, layer):
        return x + self.by if layer == 0 else x
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    monkeypatch.setattr(text, "_loaded", {})
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def test_all_schemes_are_listed_by_family_in_a_hundred_columns(capsys):
    assert main(["positions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    listed = [line.split()[0] for line in lines if re.match(r"  \w", line)]
    assert sorted(listed) == vitpos.available()
    families = {line: lines.index(line) for line in lines if re.fullmatch(r"[a-z]+", line)}
    assert list(families) == ["absolute", "relative", "contextual", "rotary", "conditional"]
    learned = next(i for i, line in enumerate(lines) if line.startswith("  learned "))
    assert families["absolute"] < learned < families["relative"]
    assert lines[learned].split(maxsplit=2) == [
        "learned", f"{14 * 14 * 384:,}", "scale=0.02, init='normal', temperature=10000.0, inject='stem'",
    ]  # fmt: skip
    assert lines[learned + 1].strip() == "Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words)"


def test_one_scheme_in_full(capsys):
    assert main(["positions", "mine.py:Half(by=2)+irpe(on='v')"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine.py:Half: absolute, 0 parameters at ViT-S\n\nAdds a half.\n\nA second paragraph.\n\n")
    assert "Source: nobody 1999 (Halves), section 3.\n\n" in out
    assert "\n  by=0.5  How much, in halves of a half.\n  what=None  Nothing.\n" in out
    assert f"\nirpe: contextual, {12 * 49 * 64:,} parameters at ViT-S\n" in out
    assert max(map(len, out.splitlines())) <= 100


def test_broken_and_hidden_schemes_of_packages_are_said(folder, monkeypatch, capsys):
    (folder / "plug-1.dist-info").mkdir()
    (folder / "plug-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (folder / "plug-1.dist-info/entry_points.txt").write_text(
        "[vitpos.positions]\nworse = no_such_module:A\nlearned = mine:Half\nunmakeable = plug:Unmakeable\n"
    )
    (folder / "plug.py").write_text(
        "import vitpos\nclass Unmakeable(vitpos.PositionEmbedding):\n    def __init__(self, geometry):\n        1 / 0\n"
    )
    monkeypatch.syspath_prepend(folder)
    assert main(["positions"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "broken: position scheme 'worse' is broken: its entry point no_such_module:A fails: Modul" in out
    assert "broken: unmakeable: ZeroDivisionError: division by zero" in out
    assert "hidden: mine:Half of an installed package, for vitpos has a scheme 'learned'" in out


def width(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">I", data[16:20])[0]


def test_a_picture_is_written_and_its_path_printed(folder, capsys):
    assert main(["show", "rope_axial(temperature=10)"]) == 0
    assert capsys.readouterr().out == "rope_axial-temperature-10.png\n"
    assert width(folder / "rope_axial-temperature-10.png") == 1200
    assert main(["show", "./mine.py:Half", "--depth", "2", "--out", "pictures/half.png"]) == 0
    assert capsys.readouterr().out == "pictures/half.png\n"
    assert width(folder / "pictures/half.png") == 1200


@pytest.mark.slow
def test_the_same_command_draws_the_same_picture(folder):
    for name in ("a.png", "b.png"):
        assert main(["show", "learned", "--grid", "2", "3", "--out", name]) == 0
    one, other = (imread(folder / name) for name in ("a.png", "b.png"))
    assert one.shape == other.shape
    assert abs(one - other).mean() < 1e-3  # sums may round in another order, and a colour with them


def test_nothing_is_drawn_of_none(folder, capsys):
    assert main(["show", "none"]) == 0
    assert capsys.readouterr().out.endswith("there is nothing to draw\n")
    assert not list(folder.glob("*.png"))


@pytest.mark.parametrize(
    ("words", "geometry"),
    [
        ([], vitpos.Geometry((8, 8), 192, 3, 12)),
        (
            ["--grid", "3", "5", "--embed-dim", "8", "--num-heads", "2", "--depth", "4"],
            vitpos.Geometry((3, 5), 8, 2, 4),
        ),
        (["--model", "vit_tiny_patch16_224"], vitpos.Geometry((14, 14), 192, 3, 12)),
        (["--model", "eva02_tiny_patch14_224", "--depth", "2"], vitpos.Geometry((16, 16), 192, 3, 2)),
    ],
)
def test_the_geometry_is_as_asked_or_the_models(monkeypatch, words, geometry):
    seen = []
    monkeypatch.setattr("vitpos.portraits.draw.draw", lambda scheme, name, path: seen.append(scheme.geometry))
    assert main(["show", "learned", *words]) == 0
    assert seen == [geometry]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["positions", "lerned"], "unknown position scheme 'lerned'; did you mean 'learned'"),
        (["positions", "mine.py:Hlf"], "unknown scheme in mine.py: 'Hlf'; did you mean 'Half'"),
        (["show", "lerned"], "unknown position scheme 'lerned'; did you mean 'learned'"),
        (["show"], "the following arguments are required: scheme"),
        (["show", "learned", "--out", "x.jpg"], "--out x.jpg must end in .png"),
        (["show", "learned", "--num-heads", "5"], "embed_dim 192 is not divisible by num_heads 5"),
        (["show", "learned", "--grid", "0", "5"], "every number to be at least 1"),
        (["show", "learned", "--depth", "0"], "every number to be at least 1"),
        (["show", "learned", "--model", "vit_tiny_patch16_225"], "'vit_tiny_patch16_225'; nearest: vit_tiny_patch"),
        (["show", "learned", "--model", "resnet18"], "cannot attach to ResNet"),
        (["fit", "--position", "mien.py:Half", "--data.name", "digits"], "position scheme; did you mean 'mine.py'"),
        (["check", "mine.py:Hlf"], "did you mean 'Half'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, words, expected):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("vitpos: error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_a_scheme_of_a_file_is_trained(folder, capsys):
    words = ["--model.name", "vitpos_nano_patch4_32", "--model.patch_size", "2", "--data.name", "digits",
             "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]  # fmt: skip
    assert main(["fit", *words, "--position", "mine.py:Half(by=0.25)"]) == 0
    assert list(folder.rglob("*mine.py-Half-by-0.25*"))


@pytest.mark.usefixtures("in_process")
def test_a_scheme_of_a_file_is_studied_and_an_edited_one_is_not_taken_for_done(folder, study_file, capsys):
    file = study_file(axes={"position": ["mine.py:Half", "none"]}, seeds=[0], reference="none")
    assert main(["study", "run", str(file), "--results", "results"]) == 0
    study = plan.load(file)
    rows = [Results(folder / "results/small").row(run) for run in study.runs]
    assert [row["axes"]["position"] for row in rows] == ["mine.py:Half", "none"]
    assert "mine.py:Half" in (folder / "results/small/report.md").read_text()
    (folder / "mine.py").write_text(FILE + "\n")
    capsys.readouterr()
    assert main(["study", "status", str(file), "--results", "results", "--leave-old"]) == 0
    assert "1 missing" in capsys.readouterr().out
    assert json.loads((folder / "results/small/rows.jsonl").read_text().splitlines()[0])["hash"] == rows[0]["hash"]
