"""Division of sequences over ranks and micro-batches."""

from __future__ import annotations

import random
import time

import pytest

from bridge_mcore.model.families.shape import ModelShape, Rope
from bridge_mcore.training.packing import SequenceCost, pack

COST = SequenceCost(1.0, 1e-4)


def lognormal(generator: random.Random, n: int, longest: int) -> list[int]:
    """Lengths like those of answers: most near 400, a long tail."""
    return [min(max(8, int(generator.lognormvariate(6.0, 0.8))), longest) for _ in range(n)]


def loads_of(result: list[list[list[int]]], lengths: list[int]) -> list[float]:
    return [sum(COST(lengths[i]) for batch in batches for i in batch) for batches in result]


@pytest.mark.parametrize("case", range(40))
def test_every_division_keeps_the_promises(seed, case):
    g = random.Random(seed + case)
    n = g.choice([0, 1, 3, 17, 200])
    budget, multiple, ranks = g.choice([64, 500, 4096]), g.choice([1, 4, 6]), g.choice([1, 2, 5])
    rows, step = g.choice([None, 1, 3]), g.choice([1, 2, 4])
    lengths = [g.randint(0, g.choice([30, 600, 5000])) for _ in range(n)]
    result = pack(lengths, budget, ranks, COST, multiple, rows, step)
    assert result == pack(tuple(lengths), budget, ranks, COST, multiple, rows, step)
    assert len(result) == ranks
    count = len(result[0])
    assert count >= 1 and count % step == 0 and all(len(batches) == count for batches in result)
    flat = [batch for batches in result for batch in batches]
    assert sorted(i for batch in flat for i in batch) == list(range(n))
    for batch in flat:
        assert batch == sorted(batch)
        assert rows is None or len(batch) <= rows
        assert len(batch) <= 1 or sum(-(-max(lengths[i], 1) // multiple) * multiple for i in batch) <= budget
    assert sum(not batch for batch in flat) == max(0, len(flat) - n)


def test_loads_are_within_the_bound_of_greedy_scheduling(seed):
    """One micro-batch per rank, no budget: the highest load is at most the mean plus the largest sequence."""
    for case in range(20):
        g = random.Random(seed + case)
        lengths, ranks = lognormal(g, g.randint(5, 80), 4096), g.randint(2, 8)
        loads = loads_of(pack(lengths, 10**9, ranks, COST), lengths)
        assert max(loads) <= sum(loads) / ranks + (1 - 1 / ranks) * max(map(COST, lengths)) + 1e-6


@pytest.mark.parametrize("ranks", [1, 8])
def test_real_lengths_fill_micro_batches_and_balance_ranks(seed, ranks):
    """512 answers, budget 8192: ranks within 1% of their mean, at most 10% more micro-batches than tokens need."""
    answers = lognormal(random.Random(seed), 512, 8192)
    lengths = [-(-n // 8) * 8 for n in answers]
    assert sum(lengths) < 1.05 * sum(answers)  # padding
    result = pack(answers, 8192, ranks, COST, multiple=8)
    loads = loads_of(result, lengths)
    assert max(loads) <= 1.01 * sum(loads) / ranks
    assert len(result[0]) <= 1.1 * sum(lengths) / (8192 * ranks) + 1
    works = [[sum(COST(lengths[i]) for i in batch) for batch in batches] for batches in result]
    assert works == [sorted(w, reverse=True) for w in works]


@pytest.mark.parametrize(("budget", "highest"), [(10_000, 1.01), (6000, 1.4)])
def test_a_heavy_sequence_does_not_leave_its_rank_behind(budget, highest):
    """One sequence costs as much as 180 others. Another rank takes more of those as far as its budget goes."""
    lengths, cost = [4000] + [100] * 200, SequenceCost(1.0, 1e-3)
    result = pack(lengths, budget, 2, cost)
    loads = [sum(cost(lengths[i]) for batch in batches for i in batch) for batches in result]
    assert max(loads) <= highest * sum(loads) / 2
    assert max(sum(lengths[i] for i in batch) for batches in result for batch in batches) <= budget


def test_ten_thousand_sequences_take_no_time(seed):
    lengths = lognormal(random.Random(seed), 10_000, 16_384)
    start = time.process_time()
    pack(lengths, 8192, 8, COST, multiple=4, micro_batches_multiple=4)
    assert time.process_time() - start < 2.0


def test_cost_of_a_model_counts_its_multiplications():
    """By hand, of one layer: hidden 8, 2 query heads and 1 key-value head of 4, MLP 16, vocabulary 32."""
    shape = ModelShape(32, 8, 16, 1, 2, 1, 4, 1e-6, Rope(1e4), True, 64)
    projections = 8 * 8 + 2 * 8 * 4 + 8 * 8
    cost = SequenceCost.of(shape)
    assert cost.linear == 6 * (projections + 3 * 8 * 16 + 8 * 32)
    # scores and weighted values: 2 multiply-adds of 2 heads of 4 for n²/2 pairs, backward twice that
    assert cost(10) == 10 * cost.linear + 3 * 2 * 2 * 2 * 4 * 10 * 10 / 2
