"""The packed row: what each token carries, and how it is split over context ranks."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.training.batch import collate, count_tokens, segment_multiple, unsplit

CPU = torch.device("cpu")
FIELDS = (
    "tokens", "labels", "positions", "advantages", "behaviour", "reference", "inverse_temperature", "correction",
)  # fmt: skip


def some_samples(seed: int, n: int = 7) -> list[Sample]:
    g = random.Random(seed)
    samples = []
    for _ in range(n):
        prompt, response = g.randint(1, 9), g.randint(1, 12)
        tokens = [g.randint(1, 99) for _ in range(prompt + response)]
        if g.random() < 0.5:
            samples.append(Sample(SFT, tuple(tokens), prompt))
            continue
        behaviour = np.array([-g.random() for _ in range(response)])
        reference = torch.tensor([-g.random() for _ in range(response)])
        samples.append(Sample(RL, tokens, prompt, g.uniform(-1, 1), behaviour, 0.7, reference))
    return samples


def counts_of(samples: list[Sample]) -> dict[str, int]:
    return {c: max(n, 1) * 3 for c, n in count_tokens(samples).items()}


@pytest.mark.parametrize(("multiple", "tail"), [(1, 1), (4, 1), (1, 8), (3, 4)])
def test_row_holds_each_sample_and_nothing_else(seed, multiple, tail):
    samples = some_samples(seed)
    counts = counts_of(samples)
    batch = collate(samples, counts, CPU, multiple=multiple, tail=tail)
    lengths = batch.segments.tolist()
    total = sum(lengths)
    assert batch.segments.dtype == torch.int32 and total % tail == 0
    assert all(n % multiple == 0 for n in lengths[: len(samples)])
    assert total < sum(len(s.tokens) - 1 for s in samples) + len(samples) * multiple + tail
    for name in FIELDS:
        assert getattr(batch, name).shape == (1, total), name
    left = {c: w[0].clone() for c, w in batch.weights.items()}
    start = 0
    for sample, length in zip(samples, lengths, strict=False):
        n = len(sample.tokens) - 1
        assert batch.tokens[0, start : start + n].tolist() == list(sample.tokens[:-1])
        assert batch.labels[0, start : start + n].tolist() == list(sample.tokens[1:])
        assert batch.positions[0, start : start + length].tolist() == list(range(length))
        span = slice(start + sample.prompt_length - 1, start + n)
        assert batch.labels[0, span].tolist() == list(sample.tokens[sample.prompt_length :])
        assert (batch.weights[sample.component][0, span] == 1 / torch.tensor(float(counts[sample.component]))).all()
        left[sample.component][span] = 0
        if sample.component == RL:
            assert (batch.advantages[0, span] == torch.tensor(sample.advantage)).all()
            assert torch.equal(batch.behaviour[0, span], torch.tensor(sample.behaviour, dtype=torch.float32))
            assert torch.equal(batch.reference[0, span], sample.reference)
            assert (batch.inverse_temperature[0, span] == torch.tensor(1 / 0.7)).all()
        start += length
    assert all((w == 0).all() for w in left.values())
    assert int(batch.mask.sum()) == sum(s.response_length for s in samples)
    if len(lengths) > len(samples):
        assert batch.positions[0, start:].tolist() == list(range(total - start))


def test_rows_are_the_values_at_response_tokens(seed):
    samples = some_samples(seed)
    batch = collate(samples, counts_of(samples), CPU, multiple=4, tail=8)
    for sample, row in zip(samples, batch.rows(batch.labels[0]), strict=True):
        assert row.tolist() == list(sample.tokens[sample.prompt_length :])
    with pytest.raises(ValueError, match="full row"):
        batch.rows(batch.labels[0, :-1])


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("tail", [1, 2, 3])
def test_context_ranks_hold_zigzag_chunks_that_make_up_the_row(seed, size, tail):
    samples = some_samples(seed)
    counts = counts_of(samples)
    parts = [collate(samples, counts, CPU, tail=tail, context_size=size, context_rank=r) for r in range(size)]
    segments = parts[0].segments
    assert all(torch.equal(p.segments, segments) for p in parts)
    assert all(n % (2 * size) == 0 for n in segments.tolist())
    assert parts[0].tokens.shape[1] == int(segments.sum()) // size and parts[0].tokens.shape[1] % tail == 0
    whole = collate(samples, counts, CPU, multiple=segment_multiple(1, size))
    length = int(whole.segments.sum())
    for name in FIELDS:
        row = unsplit([getattr(p, name)[0] for p in parts], segments)
        assert torch.equal(row[:length], getattr(whole, name)[0]), name
    for component in (SFT, RL):
        row = unsplit([p.weights[component][0] for p in parts], segments)
        assert torch.equal(row[:length], whole.weights[component][0]) and not row[length:].any()
    chunk = int(segments[0]) // (2 * size)
    for rank, part in enumerate(parts):
        early, late = (
            range(rank * chunk, (rank + 1) * chunk),
            range((2 * size - 1 - rank) * chunk, (2 * size - rank) * chunk),
        )
        assert part.positions[0, : 2 * chunk].tolist() == [*early, *late]
    rows = parts[0].rows(unsplit([p.labels[0] for p in parts], segments))
    assert [r.tolist() for r in rows] == [list(s.tokens[s.prompt_length :]) for s in samples]


@pytest.mark.parametrize("size", [1, 2])
def test_nothing_makes_a_blank_micro_batch(size):
    batch = collate([], {SFT: 0, RL: 0}, CPU, multiple=3, tail=4, context_size=size)
    assert batch.samples == [] and batch.rows(torch.zeros(int(batch.segments.sum()))) == []
    assert batch.tokens.shape[1] * size == int(batch.segments.sum()) and batch.tokens.shape[1] % 4 == 0
    assert not batch.mask.any()


def test_a_component_without_tokens_is_an_error():
    with pytest.raises(TrainingError, match="'sft'"):
        collate([Sample(SFT, [1, 2], 1)], {SFT: 0, RL: 1}, CPU)
