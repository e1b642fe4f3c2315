"""The picture of a scheme: there is one of every scheme, and its numbers are those of the scheme, where they belong."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from schemes import NAMES

from vitpos import style
from vitpos.portraits import draw as portrait
from vitpos.portraits import probes
from vitpos.positions import Geometry, PositionEmbedding, build

GEOMETRY = Geometry(grid=(3, 4), embed_dim=24, num_heads=3, depth=4)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Returns a function that draws a scheme and gives the figure."""
    seen = []
    monkeypatch.setattr(style, "save", lambda figure, path: seen.append(figure))

    def draw(scheme, geometry=GEOMETRY):
        built = build(scheme, geometry)
        assert portrait.draw(built, "the name", tmp_path / "x.png")
        figure = seen.pop()
        figure.draw_without_rendering()  # its layout is made here
        return figure

    return draw


def panels(figure: Figure, title: str):
    return [axes for axes in figure.axes if axes.get_title() == title]


def shown(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def titles(figure):
    return [" ".join(text.get_text().split()) for part in figure.subfigs for text in part.texts]


TEXTS = [name for name in NAMES if name != "none"]
TEXTS += ["learned(inject='every')+rope_axial", "irpe(on='v')", "cpe(layers=3, std=0)", "rope_mixed(init='zero')"]


SOME = ("learned", "relative_bias", "rope_axial", "gpsa")


@pytest.mark.parametrize("text", [t if t in SOME else pytest.param(t, marks=pytest.mark.slow) for t in TEXTS])
def test_every_scheme_gives_a_picture_on_any_grid(text, tmp_path):
    for grid in ((3, 4), (1, 1)):
        path = tmp_path / "x.png"
        assert portrait.draw(build(text, Geometry(grid, 48, 6, 4)), text, path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        path.unlink()


def test_none_gives_no_picture(tmp_path):
    assert not portrait.draw(build("none", GEOMETRY), "none", tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_the_bias_of_an_offset_is_where_it_belongs(drawn):
    figure = drawn("alibi_2d")
    image = panels(figure, "all blocks, head 1")[0].images[0]
    assert image.get_extent() == [-3.5, 3.5, 2.5, -2.5]
    row, column = np.mgrid[-2:3, -3:4]
    slope = build("alibi_2d", GEOMETRY).heads[0][1][0]
    np.testing.assert_allclose(image.get_array(), -slope * np.hypot(row, column), atol=1e-6)
    lines = panels(figure, "Same row, all blocks")[0].lines
    assert lines[1].get_xdata().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    np.testing.assert_allclose(lines[1].get_ydata(), -slope * np.abs(np.arange(-3, 4)), atol=1e-6)
    np.testing.assert_allclose(
        panels(figure, "Same column, all blocks")[0].lines[1].get_ydata(), -slope * np.abs(np.arange(-2, 3)), atol=1e-6
    )


def test_offsets_are_those_of_the_key_and_hidden_ones_are_grey(drawn):
    class Right(PositionEmbedding):
        def bias(self, q, k, grid, layer):  # keys to the right of the query, or above it, are seen
            row, column = (torch.arange(12) // 4, torch.arange(12) % 4)
            seen = (column > column[:, None]) | (row < row[:, None])
            return torch.zeros(1, 12, 12).masked_fill(~seen, -math.inf).expand(3, 12, 12)

    figure = drawn(Right(GEOMETRY))
    seen = ~np.isnan(shown(panels(figure, "all blocks, all heads")[0]))
    assert seen[2].tolist() == [False] * 4 + [True] * 3
    assert seen[3].tolist() == [False] * 4 + [True] * 3
    assert seen[:2].all()
    assert any("grey: hidden" in axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)


def test_blocks_that_differ_are_drawn_first_middle_and_last(drawn):
    names = [axes.get_title() for axes in drawn("relative_bias").axes]
    assert [name for name in names if name.startswith("block ")] == [
        f"block {b}, head {h}" for b in (0, 2, 3) for h in range(3)
    ]
    assert panels(drawn("relative_bias(shared=True)"), "all blocks, head 2")


def test_the_logit_of_a_rotation_is_the_sum_of_its_cosines(drawn):
    scheme = build("rope_axial", GEOMETRY)
    image = shown(panels(drawn(scheme), "all blocks, all heads")[0])
    waves = [1 / 100 ** (i / 2) for i in range(2)]
    row, column = np.mgrid[-2:3, -3:4]
    expected = sum(2 * np.cos(w * row) + 2 * np.cos(w * column) for w in waves) / math.sqrt(8)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_a_scheme_that_depends_on_more_than_the_offset_says_so(drawn):
    assert any("mean over places, which deviate" in title for title in titles(drawn("liere")))
    assert not any("deviate" in title for title in titles(drawn("rope_mixed")))


def test_what_starts_as_the_identity_is_drawn_with_other_parameters_and_says_so(drawn):
    for text in ("irpe", "relative_bias(std=0)", "cpe(std=0)", "rope_mixed(init='zero')", "irpe(on='v')"):
        assert any("it starts as the identity" in title for title in titles(drawn(text))), text
    assert not any("identity" in title for title in titles(drawn("relative_bias")))


def test_the_deviation_of_a_contextual_bias_is_the_length_of_its_vectors(drawn):
    scheme = build("shaw_2d", GEOMETRY)
    image = shown(panels(drawn(scheme), "block 0, all heads")[0])
    vectors = scheme.tables["k"][0, :, 0].detach().numpy()  # 5 of rows, 7 of columns
    expected = np.linalg.norm(vectors[:5, None] + vectors[None, 5:], axis=-1) / math.sqrt(8)
    np.testing.assert_allclose(image, expected, rtol=0.2)  # of 256 draws: four standard errors are 0.18
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.9


def test_the_length_of_what_the_values_gain(drawn):
    scheme = build("shaw_2d(on='v')", GEOMETRY)
    vectors = scheme.tables["v"][3, :, 0].detach().numpy()
    expected = np.linalg.norm(vectors[:5, None] + vectors[None, 5:], axis=-1)
    np.testing.assert_allclose(shown(panels(drawn(scheme), "block 3, all heads")[0]), expected, rtol=1e-5)


def test_a_table_is_shown_by_similarity_power_norms_and_spectrum(drawn):
    scheme = build("learned(scale=1)", GEOMETRY)
    figure, table = drawn(scheme), scheme.table[0].detach()
    mosaic = shown(panels(figure, "Similarities, block 0")[0])
    assert mosaic.shape == (3 * 4 - 1, 4 * 5 - 1)
    assert np.isnan(mosaic[3]).all()
    assert np.isnan(mosaic[:, 4]).all()
    cosines = torch.nn.functional.cosine_similarity(table[1 * 4 + 2], table).reshape(3, 4)
    np.testing.assert_allclose(mosaic[4:7, 10:14], cosines, atol=1e-6)
    np.testing.assert_allclose(shown(panels(figure, "Norms, block 0")[0]), table.norm(dim=1).reshape(3, 4), rtol=1e-6)
    (line,) = panels(figure, "Spectrum of the table")[0].lines
    np.testing.assert_allclose(np.sum(line.get_ydata()), 1)
    assert len(line.get_ydata()) == 12


def test_the_power_of_a_wave_is_at_its_frequency(drawn):
    class Wave(PositionEmbedding):
        def tokens(self, x, grid, layer):
            if layer:
                return x
            column = torch.arange(12) % 4
            return x + torch.cos(math.pi / 2 * column)[:, None]  # once across the four columns

    axes = panels(drawn(Wave(GEOMETRY)), "2-D Fourier power, block 0")[0]
    assert axes.images[0].get_extent() == [-2.5, 1.5, 1.5, -1.5]
    assert np.argwhere(shown(axes) > 0.4).tolist() == [[1, 1], [1, 3]]


def test_a_convolution_is_shown_by_its_kernel_and_what_it_does_at_the_edge(drawn):
    scheme = build("cpe", GEOMETRY)
    figure = drawn(scheme)
    image = panels(figure, "by one patch of ones,\nchannel 0")[0].images[0]
    assert image.get_extent() == [-2.5, 1.5, 1.5, -1.5]
    kernel = scheme.kernels[0, 0, 0].detach()
    np.testing.assert_allclose(
        image.get_array()[:, 1:], kernel.flip(0, 1), atol=1e-6
    )  # the answer is the kernel turned
    edge = shown(panels(figure, "by ones everywhere,\nRMS change from middle")[0])
    assert edge[1, 1:3].max() < 1e-6
    lost = scheme.kernels[0, :, 0, 0].sum(-1).detach()  # the row of the kernel that lies outside at the upper edge
    np.testing.assert_allclose(edge[0, 1], lost.square().mean().sqrt(), rtol=1e-5)


def test_a_sum_shows_all_its_parts_and_long_names_are_broken(drawn, tmp_path):
    figure = drawn("learned+cpe+rope_axial+alibi_2d")
    for title in ("Norms, block 0", "by one patch of ones,\nchannel 1", "all blocks, all heads", "all blocks, head 2"):
        assert panels(figure, title), title
    heads = drawn("relative_bias(shared=True)", Geometry((3, 4), 96, 24, 2))
    names = [axes.get_title() for axes in heads.axes if "all blocks\n" in axes.get_title()]
    assert len(names) == 12
    assert (names[0], names[-1]) == ("all blocks\nhead 0", "all blocks\nhead 23")


def test_the_first_number_of_queries_is_not_that_of_a_table_of_seed_0():
    scheme_numbers = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert not any(torch.equal(one.flatten()[:4], scheme_numbers) for one in probes.inputs(build("none", GEOMETRY), 1))
