"""Shuffling: deterministic, complete in every epoch, and exactly continued after a restore."""

from __future__ import annotations

import json
import random

import pytest

from bridge_mcore.data.sampler import ShuffledSampler
from bridge_mcore.errors import DataError


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def test_every_epoch_is_a_new_permutation(rng):
    size = rng.randrange(20, 200)
    sampler = ShuffledSampler(size, rng.randrange(2**31))
    drawn: list[int] = []
    while len(drawn) < 5 * size:
        drawn += sampler.take(rng.randrange(0, 3 * size))
    epochs = [drawn[i * size : (i + 1) * size] for i in range(5)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert all(type(i) is int for i in drawn)


def test_how_it_is_taken_does_not_matter(rng):
    size, seed = rng.randrange(1, 50), rng.randrange(2**31)
    whole = ShuffledSampler(size, seed).take(500)
    pieces: list[int] = []
    sampler = ShuffledSampler(size, seed)
    while len(pieces) < 500:
        pieces += sampler.take(min(rng.randrange(1, 70), 500 - len(pieces)))
    assert pieces == whole
    assert size < 10 or ShuffledSampler(size, seed + 1).take(500) != whole


def test_a_restored_sampler_goes_on_the_same(rng):
    for _ in range(20):
        size, seed = rng.randrange(1, 40), rng.randrange(2**31)
        sampler = ShuffledSampler(size, seed)
        sampler.take(rng.choice([0, 1, size - 1, size, size + 1, 3 * size, rng.randrange(200)]))
        state = json.loads(json.dumps(sampler.state_dict()))
        after = sampler.take(100)
        restored = ShuffledSampler(size, seed)
        restored.take(rng.randrange(100))
        restored.load_state_dict(state)
        assert restored.take(100) == after
        assert restored.state_dict() == sampler.state_dict()


def test_the_same_on_every_machine():
    assert ShuffledSampler(8, 0).take(16) == [0, 3, 7, 5, 1, 2, 6, 4, 3, 7, 4, 2, 1, 6, 5, 0]


def test_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="empty data set"):
        ShuffledSampler(0, 0)
    with pytest.raises(ValueError):
        ShuffledSampler(3, 0).take(-1)
    state = ShuffledSampler(10, 1).state_dict()
    with pytest.raises(DataError, match="number of problems was 10, now it is 11"):
        ShuffledSampler(11, 1).load_state_dict(state)
    with pytest.raises(DataError, match=r"run\.seed\) was 1, now it is 2"):
        ShuffledSampler(10, 2).load_state_dict(state)
    with pytest.raises(DataError, match="damaged"):
        ShuffledSampler(10, 1).load_state_dict(state | {"position": 11})
