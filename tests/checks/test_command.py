import re

import faulty_hooks
import faulty_models
import pytest

from vitpos.checks import export, hooks, model
from vitpos.checks import run as checks
from vitpos.cli.main import main
from vitpos.positions import PositionEmbedding, base, register


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(base, "_registry", dict(base._registry))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(checks, "FAST", (hooks.shapes, hooks.by_offset, model.gradients))
    monkeypatch.setattr(checks, "SLOW", (export.onnx,))


@pytest.mark.usefixtures("few")
def test_a_line_for_each_check(capsys):
    register("faulty")(faulty_models.Unused)
    assert main(["check", "faulty(slope=0.2)", "--fast"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "faulty(slope=0.2): width 48, 4 heads, 2 blocks, grid 4 x 6",
        f"shapes            ok       {hooks.shapes.__doc__}",
        f"by offset         ok       {hooks.by_offset.__doc__.splitlines()[0]}",
        "gradients         FAILED   no prefix: pos_embed.more receives no gradient",
        f"                           ({model.gradients.__doc__})",
        "onnx              skipped  slow, left out by --fast",
    ]
    assert re.fullmatch(r"2 ok, 1 FAILED, 1 skipped in \d+ s", lines[-1])


@pytest.mark.parametrize(
    ("cls", "failed"),
    [
        (faulty_hooks.Token, "defined           FAILED   faulty overrides no hook"),
        (
            faulty_hooks.NoLayer,
            "shapes            FAILED   grid 4 x 6, float64, layer 0: TypeError: NoLayer.tokens() takes 3",
        ),
        (
            faulty_hooks.QueriesOnly,
            "shapes            FAILED   grid 4 x 6, float64, layer 0: rotate: expected queries and keys",
        ),
    ],
)
def test_a_mistake_that_fails_all_is_said_once(cls, failed, capsys):
    register("faulty")(cls)
    assert main(["check", "faulty"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED   ") == 1
    assert failed in out
    *_, others, counts = out.splitlines()
    assert others == "all others        skipped  until this is fixed"
    assert re.search(rf", 1 FAILED, {len(checks.FAST) + len(checks.SLOW) - out.count(' ok  ') - 1} skipped in", counts)


def test_an_error_of_one_line_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(checks, "FAST", (hooks.shapes, model.another_grid, model.input_size, model.intermediates))
    register("faulty")(faulty_models.InModelsOnly)
    assert main(["check", "faulty", "--fast"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED   ") == 1
    assert "(the error of another grid in input size, intermediates too)" in out
    assert "1 ok, 3 FAILED, 2 skipped" in out


@pytest.mark.usefixtures("few")
def test_what_cannot_run_is_skipped_and_other_options_are_named(capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["check", "learned(inject='every')"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "by offset         skipped  it has no rotate, bias, weights or values" in lines
    assert "onnx              skipped  not installed: pip install onnxruntime" in lines
    assert lines[-1] == "not checked: learned(inject='every', init='sinusoidal_2d')"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("leaned", "unknown position scheme 'leaned'; did you mean 'learned'"),
        ("learned(scael=1)", "unknown option of position scheme 'learned': 'scael'; did you mean 'scale'"),
        ("learned(", "cannot read position scheme 'learned('"),
        ("learned(scale=0)", "must be a finite number above 0; the checks use width 48, 4 heads, 2 blocks, grid 4 x 6"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_text(text, words, capsys):
    assert main(["check", text]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("vitpos: error: ")
    assert words in error
    assert error.count("\n") == 1


class CannotBeMade(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.slopes.fill(1)


def test_an_exception_of_the_constructor_is_one_line(capsys):
    register("faulty")(CannotBeMade)
    assert main(["check", "faulty"]) == 1
    out, error = capsys.readouterr()
    assert error == ""
    assert re.fullmatch(
        r"constructor       FAILED   AttributeError: 'CannotBeMade' object .* \(test_command\.py:\d+\)\n", out
    )


def test_variants_turn_flags_and_take_words():
    assert checks.variants("none") == []
    assert checks.variants("learned+none") == []
    assert checks.variants("learned(scale=1)") == [
        "learned(scale=1, init='sinusoidal_2d')",
        "learned(scale=1, inject='every')",
        "learned(scale=1, inject='shared')",
    ]


OWN = """
import torch
from torch import nn

import vitpos


class Rows(vitpos.PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.rows = nn.Parameter(torch.randn(geometry.grid[0], 1, geometry.embed_dim))

    def tokens(self, x, grid, layer):
        return x + self.rows.expand(-1, grid[1], -1).flatten(0, 1).to(x.dtype)
"""


def test_a_scheme_in_a_file_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "FAST", (model.copies, model.gradients, model.another_grid))
    (tmp_path / "own.py").write_text(OWN)
    assert main(["check", f"{tmp_path}/own.py:Rows", "--fast"]) == 1
    _, *lines, _, _, _ = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("copies            ok  ")
    assert lines[1].startswith("gradients         ok  ")
    assert lines[2].startswith(
        "another grid      FAILED   no prefix, grid 6 x 4 after 4 x 6: RuntimeError: The size of "
    )
    assert lines[2].endswith(" (own.py:14)")


def test_what_torch_cannot_write_to_onnx_is_skipped():
    state, text = checks.outcome(export.onnx, "liere")
    assert (state, text) == ("skipped", "torch.onnx does not support aten.linalg_matrix_exp")
