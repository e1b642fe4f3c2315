"""Every scheme that comes with vitpos says where it is from and what its options are."""

import pytest
from schemes import NAMES

from vitpos.cli.schemes import documents
from vitpos.positions import PositionEmbedding, base, options

SHIPPED = {name: cls.__module__ for name, cls in base._registry.items()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented_with_its_source_and_options(name):
    cls = base._registry[name]
    if cls is not PositionEmbedding and SHIPPED[name].startswith("vitpos."):
        assert "Source:" in cls.__doc__
        assert set(options(name)) <= documents(cls).keys()
