"""Streams: pure functions of seed, purpose and counters, that do not meet."""

import hashlib
import itertools

import torch

from vitpos.seeding import derive, generator


def test_values_are_fixed():
    # BLAKE2b of "0/weights" and "1/order/2"; results on disk rest on them
    assert derive(0, "weights") == int.from_bytes(blake("0/weights"), "big") >> 1
    assert derive(1, "order", 2) == int.from_bytes(blake("1/order/2"), "big") >> 1
    assert derive(0, "weights") == 4283426181684004966


def blake(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def test_streams_do_not_meet():
    purposes = ("weights", "order", "augment", "dropout")
    streams = itertools.product(range(20), purposes, range(50))
    values = [derive(seed, purpose, counter) for seed, purpose, counter in streams]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)
    assert derive(1, "order", 12) != derive(1, "order", 1, 2)
    assert derive(11, "order") != derive(1, "1/order")


def test_generators_draw_the_same_whatever_the_global_state():
    one = torch.rand(5, generator=generator(3, "order", 1))
    torch.manual_seed(9)
    before = torch.get_rng_state()
    two = torch.rand(5, generator=generator(3, "order", 1))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one, torch.rand(5, generator=generator(3, "order", 2)))
