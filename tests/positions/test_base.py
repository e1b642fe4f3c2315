import pytest
import torch

import vitpos
from vitpos.errors import VitposError
from vitpos.positions import Geometry, PositionEmbedding, Sum, available, base, build, options, parse, register

GEOMETRY = Geometry((4, 6), embed_dim=24, num_heads=2, depth=3)


@pytest.fixture
def registry(monkeypatch):
    """A registry that a test may add to."""
    monkeypatch.setattr(base, "_registry", dict(base._registry))


def test_schemes_are_listed_in_order_and_say_their_options():
    assert {"none", "learned", "sinusoidal_2d", "shaw_2d", "cpe"} <= set(available())
    assert available() == sorted(available())
    assert options("none") == {}
    assert options("sinusoidal_2d") == {"scale": None, "temperature": 10000.0, "inject": "stem"}
    with pytest.raises(VitposError, match="unknown position scheme 'sinusoid_2d'; did you mean 'sinusoidal_2d'"):
        options("sinusoid_2d")


def test_none_returns_the_very_tensors():
    scheme = build("none", GEOMETRY)
    x, q, k = torch.zeros(1, 24, 24), torch.zeros(1, 2, 24, 12), torch.ones(1, 2, 24, 12)
    assert scheme.tokens(x, (4, 6), 0) is x
    assert scheme.rotate(q, k, (4, 6), 0) == (q, k)
    assert scheme.bias(q, k, (4, 6), 0) is None
    assert not scheme.uses_attention
    assert scheme.weights(q, (4, 6), 0) is q
    assert scheme.values(q, (4, 6), 0) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learned", [("learned", {})]),
        ("learned()", [("learned", {})]),
        (" learned( scale = 1 ) ", [("learned", {"scale": 1})]),
        (
            "a+b(x=-1e3, y='s', z=None)+c(v=(1, 2))",
            [("a", {}), ("b", {"x": -1000.0, "y": "s", "z": None}), ("c", {"v": (1, 2)})],
        ),
    ],
)
def test_text_is_read(text, parts):
    assert parse(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "a\nb", "a\0b", "a.b", "a-b", "a+", "3", "(" * 500 + "a" + ")" * 500, "learned(", "learned(0.1)"),
        *("learned(scale=1, scale=2)", "learned(scale=big)", "learned(scale=open('x'))", "learned(**{'scale': 1})"),
    ],
)
def test_text_of_another_form_is_one_clear_line(text):
    with pytest.raises(VitposError, match=r"cannot read position scheme .*write name, name\(option=value") as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sinusoidal_2", "unknown position scheme 'sinusoidal_2'; did you mean 'sinusoidal_2d'"),
        ("learned+lerned", "unknown position scheme 'lerned'; did you mean 'learned'"),
        ("learned(scal=1)", r"'learned': 'scal'; did you mean 'scale'\? \(known: init, inject, scale, temperature\)"),
        ("sinusoidal_1d(temp=1)", r"'sinusoidal_1d': 'temp'; .*'temperature'\? \(known: inject, scale, temperature\)"),
        ("none(scale=1)", r"position scheme 'none': 'scale' \(known: none\)"),
        ("learned(scale=0)", "'learned': scale=0 must be a finite number above 0"),
        ("learned(scale='big')", "'learned': scale='big' must be a finite number above 0"),
        ("learned(scale=True)", "'learned': scale=True must be"),
        ("sinusoidal_1d(scale=-1)", "'sinusoidal_1d': scale=-1 must be"),
        ("sinusoidal_2d(temperature=0)", "'sinusoidal_2d': temperature=0 must be"),
        ("sinusoidal_2d(temperature=1e999)", "'sinusoidal_2d': temperature=inf must be"),
        ("shaw_2d(std=-1)", "'shaw_2d': std=-1 must be a finite number of at least 0"),
        ("cpe(layers=True)", "'cpe': layers=True must be a whole number of at least 1"),
        ("cpe(layers=1.0)", "'cpe': layers=1.0 must be a whole number of at least 1"),
        ("shaw_2d(per_head=1)", "'shaw_2d': per_head=1 must be True or False"),
        ("learned(inject='evry')", r"unknown inject of .*'learned': 'evry'; did you mean 'every'\? \(known: every, sh"),
    ],
)
def test_unknown_names_and_values_are_named_with_the_nearest(text, message):
    with pytest.raises(VitposError, match=message):
        build(text, GEOMETRY)


def test_a_sum_applies_its_parts_in_order_and_adds_their_biases():
    class Affine(PositionEmbedding):
        def __init__(self, geometry, factor, shift):
            super().__init__(geometry)
            self.factor, self.shift = factor, shift

        def tokens(self, x, grid, layer):
            return x * self.factor + self.shift

        def rotate(self, q, k, grid, layer):
            return q * self.factor + self.shift, k - self.shift

        def bias(self, q, k, grid, layer):
            return torch.full((2, 24, 24), float(self.shift))

        @property
        def uses_attention(self):
            return self.shift > 0

        def weights(self, attention, grid, layer):
            return attention * self.factor + self.shift

        def values(self, attention, grid, layer):
            return attention * self.factor

    parts = [Affine(GEOMETRY, 2, 1), PositionEmbedding(GEOMETRY), Affine(GEOMETRY, 3, 5)]
    both = Sum(GEOMETRY, parts)
    ones = torch.ones(1, 1)
    assert both.tokens(ones, (4, 6), 0).item() == (1 * 2 + 1) * 3 + 5
    assert [t.item() for t in both.rotate(ones, ones, (4, 6), 0)] == [14, 1 - 1 - 5]
    assert both.bias(ones, ones, (4, 6), 0).unique().tolist() == [6]
    assert both.weights(ones, (4, 6), 0).item() == (1 * 2 + 1) * 3 + 5
    assert both.values(ones, (4, 6), 0).item() == 2 + 3
    assert Sum(GEOMETRY, parts[:2]).values(ones, (4, 6), 0).item() == 2
    assert Sum(GEOMETRY, parts[1:2]).bias(ones, ones, (4, 6), 0) is None
    assert [Sum(GEOMETRY, some).uses_attention for some in (parts, parts[:2], parts[1:2])] == [True, True, False]


def test_a_sum_from_text_adds_both_tables():
    x = torch.zeros(1, 24, 24)
    apart = [build(t, GEOMETRY).tokens(x, (4, 6), 0) for t in ("sinusoidal_1d", "sinusoidal_2d(scale=2)")]
    both = build("sinusoidal_1d+sinusoidal_2d(scale=2)", GEOMETRY)
    torch.testing.assert_close(both.tokens(x, (4, 6), 0), apart[0] + apart[1], rtol=0, atol=1e-6)


def test_an_instance_passes_if_it_was_made_for_the_geometry():
    scheme = build("learned", GEOMETRY)
    assert build(scheme, GEOMETRY) is scheme
    other = Geometry((6, 4), 24, 2, 3)
    with pytest.raises(VitposError, match=r"'learned' was made for .*grid=\(4, 6\).*the model has .*grid=\(6, 4\)"):
        build(scheme, other)


def test_geometry_says_what_is_wrong_with_it():
    assert GEOMETRY.head_dim == 12
    with pytest.raises(VitposError, match="embed_dim 24 is not divisible by num_heads 5"):
        Geometry((4, 6), 24, 5, 3)
    with pytest.raises(VitposError, match="at least 1"):
        Geometry((4, 0), 24, 2, 3)


def test_a_registered_class_is_built_by_name(registry):
    @vitpos.register("mine")
    class Mine(PositionEmbedding):
        def __init__(self, geometry, *, gain=2.0):
            super().__init__(geometry)
            self.gain = gain

    assert "mine" in available()
    built = build("mine(gain=3)", GEOMETRY)
    assert type(built) is Mine
    assert (built.gain, built.scheme) == (3, "mine")


def test_registering_refuses_what_text_could_not_build(registry):
    class Positional(PositionEmbedding):
        def __init__(self, geometry, gain=2.0):
            super().__init__(geometry)

    class Required(PositionEmbedding):
        def __init__(self, geometry, *, gain):
            super().__init__(geometry)

    for cls in (Positional, Required):
        with pytest.raises(VitposError, match="'mine': option 'gain' must be keyword-only with a default"):
            register("mine")(cls)
    with pytest.raises(VitposError, match="'my scheme' is not an identifier"):
        register("my scheme")(PositionEmbedding)
    with pytest.raises(VitposError, match=r"'learned' is already registered by vitpos\.positions\.learned\.Learned"):
        register("learned")(type("Other", (PositionEmbedding,), {}))
    with pytest.raises(VitposError, match=r"is not a class of vitpos\.PositionEmbedding"):
        register("mine")(torch.nn.Linear)


def test_the_same_class_defined_again_replaces_itself(registry):
    def cell():
        @register("mine")
        class Mine(PositionEmbedding):
            pass

        return Mine

    cell()
    second = cell()
    assert type(build("mine", GEOMETRY)) is second
