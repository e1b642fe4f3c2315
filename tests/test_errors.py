"""The one line that a mistake becomes."""

from vitpos.errors import VitposError, unknown


def test_unknown_names_the_nearest_and_all():
    error = unknown("scheme", "lerned", ["none", "learned", "cpe"])
    assert isinstance(error, VitposError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown scheme 'lerned'; did you mean 'learned'? (known: cpe, learned, none)"


def test_unknown_without_anything_near():
    assert str(unknown("scheme", "xyz", {"none"})) == "unknown scheme 'xyz' (known: none)"
    assert str(unknown("scheme", "xyz", [])) == "unknown scheme 'xyz' (known: none)"
