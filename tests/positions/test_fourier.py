import math

import pytest
import torch

from vitpos.errors import VitposError
from vitpos.positions import Geometry, build


@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_at_the_start_features_are_alike_by_a_gaussian_of_the_distance(gamma):
    """Li et al. 2021, equation 2: r(p) . r(q) is about exp(-|p - q|^2 / (2 gamma^2)) / 2 for W of N(0, 1 / gamma^2)."""
    torch.manual_seed(0)
    scheme = build(f"fourier(gamma={gamma}, fourier_dim=20000)", Geometry((8, 8), 8, 2, 1))
    frequencies = scheme.frequencies[0].double()
    for row, column in [(0, 0), (0, 1), (1, 1), (2, 3), (0, 5)]:
        alike = (frequencies @ torch.tensor([row, column]).double()).cos().sum().item() / 20000
        expected = math.exp(-(row**2 + column**2) / (2 * gamma**2)) / 2
        assert alike == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(10000))  # four deviations of such a mean


@pytest.mark.parametrize("inject", ["stem", "every", "shared"])
def test_scale_is_the_rms_of_every_table_of_the_training_grid(inject):
    scheme = build(f"fourier(scale=0.3, inject={inject!r})", Geometry((4, 6), 16, 2, 3))
    for table in range(scheme.tables):
        vectors = scheme.vectors((4, 6), table, torch.device("cpu"))
        assert vectors.pow(2).mean().sqrt().item() == pytest.approx(0.3, rel=1e-5)


def test_a_larger_grid_continues_that_of_training():
    scheme = build("fourier", Geometry((4, 6), 16, 2, 1)).double()
    home, away = (scheme.vectors(grid, 0, torch.device("cpu"))[0].unflatten(0, grid) for grid in ((4, 6), (9, 7)))
    torch.testing.assert_close(away[:4, :6], home, rtol=0, atol=1e-14)


def test_half_precision_does_not_reach_the_angles():
    scheme = build("fourier", Geometry((4, 6), 16, 2, 1))
    exact = scheme.vectors((4, 999), 0, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scheme.vectors((4, 999), 0, torch.device("cpu")), exact)


def test_an_odd_number_of_features_is_refused():
    with pytest.raises(VitposError, match="'fourier': fourier_dim 7 is not divisible by 2; nearest allowed: 6 or 8"):
        build("fourier(fourier_dim=7)", Geometry((4, 6), 16, 2, 1))
    with pytest.raises(VitposError, match="'fourier': embed_dim 15 is not divisible by 2; nearest allowed: 14 or 16"):
        build("fourier", Geometry((4, 6), 15, 3, 1))
