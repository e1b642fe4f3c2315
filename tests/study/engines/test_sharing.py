"""How many runs share a GPU, from made-up rates."""

import pytest

from vitpos.study.engines import sharing
from vitpos.study.engines.sharing import Sharing, runs_a_gpu
from vitpos.study.heartbeat import Beat

GB = 10**9


@pytest.mark.parametrize(
    ("rates", "room", "runs"),
    [
        ([], True, 1),
        ([1000], True, 2),
        ([1000], False, 1),
        ([1000, 1900], True, 3),
        ([1000, 1900], False, 2),
        ([1000, 1099], True, 1),
        ([1000, 1101], True, 3),
        ([1000, 1900, 2000], True, 2),
        ([1000, 1900, 1500], False, 2),
    ],
)
def test_runs_are_added_as_long_as_they_bring_a_tenth(rates, room, runs):
    assert runs_a_gpu(rates, room) == runs


def beats(now, rates, free=70 * GB, window=15.0):
    return [
        Beat(now, now - 100, "here", 1, images_per_second=rate, window=window, free=free, memory=80 * GB)
        for rate in rates
    ]


def test_a_level_is_measured_only_while_all_its_runs_train(monkeypatch):
    monkeypatch.setattr(sharing, "cores", lambda: 64)
    found = Sharing(2)
    assert found.look(beats(0, [100])) == 1  # one of two GPUs has no run
    assert found.look([*beats(5, [100]), None]) == 1  # one run has not begun
    assert found.look(beats(10, [100, 0])) == 1
    assert found.look(beats(15, [100, 100])) == 1  # from here on all train
    assert found.look(beats(20, [100, 100])) == 1  # what the rate is a mean of began before
    assert found.look(beats(30, [100, 100])) == 2
    assert found.rates == [200]
    assert found.look(beats(35, [100, 100])) == 2  # two more have not started
    assert found.look(beats(40, [90] * 4)) == 2
    assert found.look(beats(60, [90] * 4)) == 3
    assert found.look(beats(65, [61] * 6)) == 3
    assert found.look(beats(85, [61] * 6)) == 2  # 366 is not a tenth more than 360
    assert found.rates == [200, 360, 366]
    assert found.look(beats(200, [90] * 4)) == 2  # and it stays


@pytest.mark.parametrize(("free", "each"), [(50 * GB, 2), (40 * GB, 1), (30 * GB, 1)])
def test_one_more_run_has_to_fit_into_memory(monkeypatch, free, each):
    monkeypatch.setattr(sharing, "cores", lambda: 64)
    found = Sharing(1)
    assert found.look(beats(0, [100], free)) == 1
    assert found.look(beats(20, [100], free)) == each


def test_a_run_takes_a_processor_too(monkeypatch):
    monkeypatch.setattr(sharing, "cores", lambda: 3)
    found = Sharing(2)
    assert found.look(beats(0, [100, 100])) == 1
    assert found.look(beats(20, [100, 100])) == 1
