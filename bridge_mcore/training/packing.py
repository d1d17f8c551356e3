"""Division of sequences into micro-batches: equally many on every data-parallel rank, of nearly equal work.

Sequences of a micro-batch are laid one after another in one row, so what counts is the sum of their lengths, and no
sequence pays for another's length. Every rank computes the same division from the same lengths; nothing is sent.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge_mcore.model.families.base import ModelShape


@dataclass(frozen=True)
class SequenceCost:
    """Work of one sequence of n positions: linear · n + quadratic · n²."""

    linear: float
    quadratic: float

    def __call__(self, length: int) -> float:
        return (self.linear + self.quadratic * length) * length

    @classmethod
    def of(cls, shape: ModelShape) -> SequenceCost:
        """Floating-point operations of forward and backward (three forwards) of one sequence.

        With h hidden, f MLP width (of all experts that a token visits), V vocabulary, a query heads and g key-value
        heads of d each, l layers:

            linear    = 6 · (l · (h·d·(2a + 2g) + 3·h·f) + h·V)    a multiply and an add per weight and token, times 3
            quadratic = 6 · l · a·d                                scores and their use, half of them under causality

        Recomputed activations and adapters are left out: they change both terms by nearly the same factor.
        """
        h, width = shape.hidden_size, shape.head_dim
        attention = h * width * (2 * shape.heads + 2 * shape.kv_heads)
        mlp = 3 * h * shape.mlp_width * (shape.experts_per_token or 1)
        weights = shape.layers * (attention + mlp) + h * shape.vocab_size
        return cls(6.0 * weights, 6.0 * shape.layers * shape.heads * width)


def pack(
    lengths: Sequence[int],
    budget: int,
    ranks: int,
    cost: Callable[[int], float],
    multiple: int = 1,
    max_rows: int | None = None,
    micro_batches_multiple: int = 1,
) -> list[list[list[int]]]:
    """Divide sequences over ranks and micro-batches.

    The fewest bins are estimated by best-fit decreasing. Then sequences, longest first, go to the bin of least work
    with room (LPT); where that runs out of room it is done again with about 3% more bins. Bins are dealt to ranks, and
    at last single sequences move from the most to the least loaded rank.

    Args:
        lengths: positions of each sequence that predict something, that is tokens - 1.
        budget: positions per micro-batch, after each length is rounded up to `multiple`. A longer sequence stands
            alone.
        ranks: data-parallel ranks.
        cost: work of a sequence of that many positions; it must grow with them.
        max_rows: sequences per micro-batch, at most.
        micro_batches_multiple: the number of micro-batches is rounded up to a multiple of it (an interleaved pipeline
            needs its size).
    Returns:
        result[rank][micro_batch]: indices of sequences, ascending. Every rank has equally many micro-batches, the
        costliest first, so that the i-th ones of all ranks, which wait for each other under expert parallelism, are
        alike. One is empty only if there are fewer sequences than micro-batches.
    """
    sizes = [-(-max(n, 1) // multiple) * multiple for n in lengths]
    costs = [cost(size) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    rows = max_rows or len(sizes)
    step = micro_batches_multiple
    needed = max(1, -(-_fewest([sizes[i] for i in order], budget, rows) // ranks))
    each = -(-needed // step) * step
    while (bins := _spread(order, sizes, costs, ranks * each, budget, rows)) is None:
        each += max(1, each // (32 * step)) * step
    dealt = _deal(bins, costs, ranks)
    _level(dealt, costs, sizes, budget, rows)
    return dealt


def _fewest(descending: list[int], budget: int, rows: int) -> int:
    """Bins that best-fit decreasing needs: at most 11/9 of the fewest possible, plus a constant."""
    count = 0
    rooms: list[tuple[int, int]] = []  # (room, bin), ascending
    held: list[int] = []
    for size in descending:
        at = bisect_left(rooms, (size, -1))
        if at < len(rooms):
            room, bin_ = rooms.pop(at)
        else:
            room, bin_ = budget, count
            count += 1
            held.append(0)
        held[bin_] += 1
        if room > size and held[bin_] < rows:
            insort(rooms, (room - size, bin_))
    return count


def _spread(
    order: list[int], sizes: list[int], costs: list[float], count: int, budget: int, rows: int
) -> list[list[int]] | None:
    """Give each sequence, longest first, to the bin of least work with room for it; None if one finds no room."""
    bins: list[list[int]] = [[] for _ in range(count)]
    room = [budget] * count
    # Sizes only fall, so a bin in `open_` keeps its room until it is given something; `waiting` have too little now.
    open_ = [(0.0, 0, b) for b in range(count)]  # (work, sequences, bin)
    waiting: list[tuple[int, float, int]] = []  # (-room, work, bin)
    for i in order:
        while waiting and -waiting[0][0] >= sizes[i]:
            _, work, b = heapq.heappop(waiting)
            heapq.heappush(open_, (work, len(bins[b]), b))
        if not open_:
            return None
        work, _, b = heapq.heappop(open_)
        work += costs[i]
        bins[b].append(i)
        room[b] -= sizes[i]  # negative for a sequence over the budget: nothing joins it
        if room[b] > 0 and len(bins[b]) < rows:
            heapq.heappush(waiting, (-room[b], work, b))
    return bins


def _deal(bins: list[list[int]], costs: list[float], ranks: int) -> list[list[list[int]]]:
    """Deal bins in rounds of one per rank, costliest first; in each round the least loaded rank takes the costliest.

    The ranks' sums then never differ by more than the costliest and the cheapest bin of some round do.
    """
    work = [sum(costs[i] for i in sorted(b)) for b in bins]
    order = sorted(range(len(bins)), key=lambda b: (-work[b], b))
    result: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for start in range(0, len(order), ranks):
        takers = sorted(range(ranks), key=lambda r: (loads[r], r))
        for rank, b in zip(takers, order[start : start + ranks], strict=True):
            result[rank].append(sorted(bins[b]))
            loads[rank] += work[b]
    return result


def _level(dealt: list[list[list[int]]], costs: list[float], sizes: list[int], budget: int, rows: int) -> None:
    """Move sequences from the most to the least loaded rank while that lowers the highest load, in place.

    One is taken from the costliest micro-batch that can spare one, and put into the cheapest that has room; none is
    emptied.
    """

    def work(indices: list[int]) -> float:
        return sum(costs[i] for i in indices)

    loads = [sum(map(work, batches)) for batches in dealt]
    enough = 1e-3 * sum(loads) / len(loads)  # a thousandth of a rank's work is not worth a move
    for _ in range(200 + 4 * len(dealt)):  # far more than usual lengths need
        top = max(range(len(loads)), key=lambda r: (loads[r], -r))
        low = min(range(len(loads)), key=lambda r: (loads[r], r))
        gap = loads[top] - loads[low]
        if gap <= enough or not _move(dealt[top], dealt[low], gap, work, costs, sizes, budget, rows):
            break
        loads[top], loads[low] = sum(map(work, dealt[top])), sum(map(work, dealt[low]))
    for batches in dealt:
        batches.sort(key=lambda b: (-work(b), b))


def _move(
    source: list[list[int]],
    target: list[list[int]],
    gap: float,
    work: Callable[[list[int]], float],
    costs: list[float],
    sizes: list[int],
    budget: int,
    rows: int,
) -> bool:
    """Move the sequence whose cost is nearest to half the gap; False if none that is cheaper than the gap fits."""
    places = sorted((b for b in target if len(b) < rows), key=lambda b: (work(b), b))
    rooms = [budget - sum(sizes[i] for i in b) for b in places]
    for batch in sorted(source, key=lambda b: (-work(b), b)):
        if len(batch) < 2:
            continue
        for i in sorted(batch, key=lambda i: (abs(costs[i] - gap / 2), i)):
            if costs[i] >= gap:
                continue
            for place, room in zip(places, rooms, strict=True):
                if room >= sizes[i] or not place:
                    batch.remove(i)
                    insort(place, i)
                    return True
    return False
