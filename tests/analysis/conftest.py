import pytest
from rows import STUDY, make_row


@pytest.fixture
def row():
    return make_row


@pytest.fixture
def study():
    """Rows of a study with six variants and four seeds."""
    return [make_row(p, seed, a / 100) for p, values in STUDY.items() for seed, a in enumerate(values)]
