"""Answers that a text ends: cut at the token that completes it, and read up to it."""

from __future__ import annotations

import random

import numpy as np

from bridge_mcore.rollout.engine import Rollout
from bridge_mcore.rollout.stop_text import cut_at_text, without_stop

STOPS = ("\nQuestion:", "END")


def test_the_cut_is_where_an_engine_would_have_stopped(seed):
    """Against a decoder that looks after every token; tokens are pieces of one to four characters."""
    rng = random.Random(seed)
    for _ in range(200):
        text = "".join(rng.choice(["ab", "c ", "\nQuestion:", "EN", "D", "ND", "12", "\nQuest"]) for _ in range(12))
        pieces, rest = [], text
        while rest:
            size = rng.randint(1, 4)
            pieces.append(rest[:size])
            rest = rest[size:]

        def decode(tokens, pieces=pieces):
            return "".join(pieces[t] for t in tokens)

        n = len(pieces)
        rollout = Rollout(
            0, (1,), tuple(range(n)), np.arange(n, dtype=np.float32), False, 3, ((3, n // 2), (4, n - n // 2))
        )
        stopped = next((i for i in range(1, n + 1) if any(s in decode(range(i)) for s in STOPS)), None)
        found = cut_at_text(rollout, STOPS, decode)
        if stopped is None:
            assert found is rollout
            continue
        assert found.tokens == tuple(range(stopped)) and list(found.logprobs) == list(range(stopped))
        assert found.finished and sum(count for _, count in found.spans) == stopped
        assert all(count > 0 for _, count in found.spans)
        read = without_stop(decode(found.tokens), STOPS)
        assert text.startswith(read) and not any(stop in read for stop in STOPS)
        assert len(read) == min(text.find(stop) for stop in STOPS if stop in text)


def test_without_stops_nothing_is_decoded():
    rollout = Rollout(0, (1,), (5,), np.zeros(1, np.float32), True, 0)
    assert cut_at_text(rollout, (), lambda _: 1 / 0) is rollout
    assert without_stop("a\nQuestion: b", ()) == "a\nQuestion: b"
