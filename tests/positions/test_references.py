"""Every scheme equals its source, number by number; `python tests/positions/test_references.py` prints the table."""

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import references
from references import REFERENCES

from vitpos import positions

for module in pkgutil.iter_modules(references.__path__):
    importlib.import_module(f"references.{module.name}")


@pytest.mark.parametrize("comparison", REFERENCES, ids=lambda c: f"{c.scheme} as {c.oracle}")
def test_it_equals_its_reference(comparison):
    assert comparison.difference() <= comparison.tolerance


@pytest.mark.parametrize("name", positions.available())
def test_every_scheme_has_a_reference(name):
    compared = {part for comparison in REFERENCES for part, _ in positions.parse(comparison.scheme)}
    assert name in compared


if __name__ == "__main__":
    print("| scheme | compared with | largest difference | tolerance |\n| --- | --- | ---: | ---: |")
    for c in sorted(REFERENCES, key=lambda c: c.scheme):
        print(f"| `{c.scheme}` | {c.oracle} | {c.difference():.1e} | {c.tolerance:.1e} |")
