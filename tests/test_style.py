from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import vitpos
from vitpos import style
from vitpos.analysis.runs import Variant


def looks(*positions):
    return style.styles({position: Variant(position).kind for position in positions})


def test_a_scheme_has_one_colour_in_every_study():
    alone = looks("learned")["learned"]
    among = looks(*vitpos.available(), "mine.py:Mine", "learned(scale=1)", "a+b")
    assert among["learned"] == alone == style.Style("#0072B2", "-", "o")
    assert looks("mine.py:Mine", "none")["mine.py:Mine"] == among["mine.py:Mine"]
    assert looks("none")["none"].colour == style.GREY


def test_options_of_a_kind_differ_by_line_and_marker_and_its_default_is_solid():
    found = looks("cpe(layers=3)", "cpe", "cpe(layers=2)", "a+b(x=1)", "a+b")
    assert len({found[text].colour for text in ("cpe", "cpe(layers=2)", "cpe(layers=3)")}) == 1
    assert (found["cpe"].line, found["a+b"].line) == ("-", "-")  # "a+b(x=1)" is before "a+b" where "(" is before "+"
    for other in ("cpe(layers=2)", "cpe(layers=3)"):
        assert found[other].line != "-"
        assert found[other].marker != found["cpe"].marker


def test_no_two_schemes_look_alike():
    own = [f"scheme_{i}" for i in range(7)]
    found = looks(*vitpos.available(), *own)
    assert len({found[position].colour for position in found}) == 29
    many = [f"scheme_{i}(x={x})" for i in range(60) for x in range(5)]
    assert len(set(looks(*many).values())) == 300


# Severity 1.0 of Machado, Oliveira and Fernandes, 2009, "A physiologically-based model for simulation of color vision
# deficiency", for linear RGB: protanopia, deuteranopia, tritanopia.
_VISIONS = np.array([
    np.eye(3).tolist(),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
])  # fmt: skip
# Björn Ottosson's OKLab, 2020
_CONES = np.array(
    [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
)
_LAB = np.array(
    [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
)


def seen(colour):
    """OKLab, in hundredths, by vision."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 100 * np.cbrt(np.clip(linear @ _VISIONS.transpose(0, 2, 1), 0, 1) @ _CONES.T) @ _LAB.T


def test_colours_that_any_reader_confounds_have_unlike_markers():
    all_looks = [*style._KINDS.values(), *style._SPARE]
    for (one, mark), (other, its_mark) in combinations(all_looks, 2):
        distances = np.linalg.norm(seen(one) - seen(other), axis=1)
        assert distances[0] > 5, (one, other)  # two is just noticeable
        assert mark != its_mark or distances.min() > 14, (one, other)
    common = [style._KINDS[kind][0] for kind in ("none", "learned", "sinusoidal_1d", "sinusoidal_2d", "rope_axial")]
    for one, other in combinations(common, 2):
        assert np.linalg.norm(seen(one) - seen(other), axis=1).min() > 8, (one, other)


def drawing():
    figure = Figure((style.WIDTH, 2))
    figure.suptitle("a title")
    figure.add_subplot().imshow(np.eye(3), interpolation="none")
    figure.axes[0].fill_between([0, 1], [0, 1], clip_on=True)
    return figure


def test_files_are_png_and_svg_and_the_same_each_time(tmp_path, capsys):
    for folder in ("one", "other"):
        style.save(drawing(), tmp_path / folder / "a.b.png")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["a.b.png", "a.b.svg"]
    for name in ("a.b.png", "a.b.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    with Image.open(tmp_path / "one" / "a.b.png") as image:
        assert image.width == 1200
        assert "Software" not in image.info
    text = (tmp_path / "one" / "a.b.svg").read_text()
    assert ">a title</text>" in text
    assert "Verdana" in text
    assert "<dc:date>" not in text
    assert "Matplotlib" not in text
    assert capsys.readouterr() == ("", "")


def test_the_layout_is_rounded_to_what_every_process_agrees_on(tmp_path):
    figure = Figure((8, 3.3), layout="constrained")
    for axes in figure.subplots(1, 3, width_ratios=(1, 2, 3)):
        axes.set_title("title")
    style.save(figure, tmp_path / "a.png")
    for axes in figure.axes:
        assert axes.get_position().bounds == pytest.approx([round(x, 5) for x in axes.get_position().bounds], abs=1e-12)


def test_saving_leaves_the_settings_of_matplotlib(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    style.save(Figure(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("sinusoidal_2d(scale=0.5)", ["sinusoidal_2d(scale=0.5)"]),
        ("sinusoidal_2d(scale=0.5), model.depth=3", ["sinusoidal_2d(scale=0.5),", "model.depth=3"]),
        ("sinusoidal_2d(temperature=100000.0)", ["sinusoidal_2d", "(temperature=100000.0)"]),
        ("learned_of_a_long_name+rope_axial", ["learned_of_a_long_name", "+rope_axial"]),
        ("some/folders/to/my_scheme.py:MyEmbedding", ["some/folders/to/my_scheme.py", ":MyEmbedding"]),
        ("x" * 65, ["x" * 30, "x" * 30, "x" * 5]),
        ("a$b$", [r"a\$b\$"]),
    ],
)
def test_long_labels_break_where_it_reads_well(label, lines):
    assert style.wrap(label, 30).split("\n") == lines


def test_text_on_a_colour_is_seen():
    assert style.ink("#0072B2") == "white"
    assert style.ink("#0072B2", 0.2) == "black"
    assert style.ink("#E69F00") == "black"
