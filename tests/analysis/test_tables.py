"""How numbers are written."""

import pytest

from vitpos.analysis.tables import duration


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"),
    (7500, "2 h 05 min"),
])  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text
