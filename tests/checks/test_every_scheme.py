"""Every check over every registered scheme; a new scheme is tested by being registered."""

import pytest
from schemes import NAMES, SUMS, TEXTS

from vitpos.checks import export, hooks, model
from vitpos.checks.common import DEPTH, GEOMETRY, GRID, SkippedError, perturbed
from vitpos.checks.run import FAST, SLOW
from vitpos.positions import build

# What they look at does not depend on the options of a scheme, or takes too long for all.
NAMES_ONLY = {
    hooks.global_state,
    model.state_dict,
    model.copies,
    model.moving_average,
    model.intermediates,
    model.input_size,
    model.optimizer_groups,
    model.attach_and_detach,
    export.export,
    export.one_graph,
    *SLOW,
}
# By default these run on some schemes of each kind, for each takes seconds; CI runs them on all.
COMPILED = {export.export, export.one_graph}
SOME = {"learned", "cpe", "irpe", "rope_axial", "rope_dinov3", "liere", "gpsa", "log_cpb"}


def slow(check, text):
    return check in SLOW or (check in COMPILED and text not in SOME)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        pytest.param(check, text, id=f"{check.__name__}-{text}", marks=pytest.mark.slow if slow(check, text) else ())
        for check in (*FAST, *SLOW)
        for text in (NAMES + SUMS if check in NAMES_ONLY else TEXTS)
    ],
)
def test_it_holds(check, text):
    try:
        check(text)
    except SkippedError as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("text", TEXTS)
def test_no_head_is_left_without_positions(text):
    scheme = perturbed(build(text, GEOMETRY).double())
    for layer in range(DEPTH):
        for found in hooks.placed(scheme, GRID, layer):
            assert found.std(dim=1).min() > 1e-6
