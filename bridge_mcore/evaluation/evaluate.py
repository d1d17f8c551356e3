"""Accuracy on held-out problems with the weights as they are: greedy by default, as the paper evaluates."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.evaluation.metrics import mean_pass_at_k
from bridge_mcore.evaluation.records import Record, record_of
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards.judge import Judge, is_replica_first
from bridge_mcore.rewards.verdict import why_undecided
from bridge_mcore.rollout.engine import Engine, Request, SamplingParams


@dataclass(frozen=True)
class HeldOut:
    """One evaluation set of a run.

    Attributes:
        answers: to each problem.
        every: steps between its evaluations; None: those of evaluation.every, and it counts in `accuracy`.
    """

    prompts: Sequence[EncodedPrompt]
    params: SamplingParams
    answers: int = 1
    every: int | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """Of the sets that were evaluated.

    Attributes:
        accuracy: mean over the sets that count (the paper's Average), or over all if none of those was evaluated; None
            where one of these has none.
        sets: share of right answers to each; a set none of whose answers could be judged has none.
        pass_at: pass@answers of the sets with several answers to a problem.
        counted: problems of the sets that `accuracy` is the mean of.
        undecided: of the sets that have any, answers that could not be judged; they count as wrong.
    """

    accuracy: float | None
    sets: dict[str, float]
    pass_at: dict[str, float]
    counted: int
    records: list[Record]
    undecided: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """What metrics keep of it."""
        found: dict[str, Any] = {"accuracy": self.accuracy, "sets": self.sets, "problems": self.counted}
        found |= {"pass_at_k": self.pass_at} if self.pass_at else {}
        return found | ({"undecided": self.undecided} if self.undecided else {})


def evaluate(
    sets: Mapping[str, HeldOut], engine: Engine, judge: Judge, layout: Layout, first_key: int = 0
) -> EvaluationResult:
    """Answer every problem of every set and verify. Collective; the same result on every rank.

    All sets that are sampled alike are asked together, so that servers are kept busy. Verdicts that are not reached
    are said: a reward that does not judge would look like a model that knows nothing.

    first_key: number of the first answer, so that no other draw of the run coincides.
    """
    work = [(name, p, j) for name, held in sets.items() for p in held.prompts for j in range(held.answers)]
    mine = list(range(layout.share, len(work), layout.shares))
    # A set's draws are the same whichever other sets are due.
    offsets = {name: first_key + (zlib.crc32(name.encode()) << 20) for name in sets}
    starts = {name: next(i for i, (n, _, _) in enumerate(work) if n == name) for name in sets}
    keys = [offsets[name] + i - starts[name] for i, (name, _, _) in enumerate(work)]
    records: dict[int, Record] = {}
    for params in dict.fromkeys(held.params for held in sets.values()):
        asked = [i for i in mine if sets[work[i][0]].params == params]
        requests = [Request(keys[i], tuple(work[i][1].tokens)) for i in asked]
        rollouts = judge.stopped(engine.generate(requests, params))
        problems, numbers = [work[i][1].problem for i in asked], [work[i][2] for i in asked]
        verdicts = judge.verify(problems, rollouts, numbers)
        attempts = judge.attempts(problems, rollouts, numbers)
        for i, problem, attempt, verdict in zip(asked, problems, attempts, verdicts, strict=True):
            records[i] = record_of(work[i][0], problem, attempt, verdict)
    if dist.get_world_size() > 1:
        parts: list[dict[int, Record]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, records if is_replica_first() else {})
        records = {i: r for part in parts for i, r in part.items()}
    ordered = [records[i] for i in range(len(work))]
    found = _result(sets, ordered)
    for name, count in found.undecided.items() if layout.is_main else ():
        first = next(i for i, r in enumerate(ordered) if r.set == name and r.undecided)
        why = why_undecided(work[first][1].problem.reward, ordered[first].verdict, ordered[first].reason)
        more = "" if name in found.sets else "; its accuracy is not known"
        total = sum(r.set == name for r in ordered)
        say(f"· evaluation of {name}: {count} of {total} answers could not be judged, the first {why}{more}")
    return found


def _result(sets: Mapping[str, HeldOut], records: list[Record]) -> EvaluationResult:
    """records: set by set, problem by problem, answer by answer."""
    accuracy: dict[str, float] = {}
    pass_at: dict[str, float] = {}
    undecided: dict[str, int] = {}
    first = 0
    for name, held in sets.items():
        judged = records[first : first + len(held.prompts) * held.answers]
        first += len(judged)
        if count := sum(r.undecided for r in judged):
            undecided[name] = count
            if count == len(judged):
                continue
        correct = [sum(r.correct for r in judged[i : i + held.answers]) for i in range(0, len(judged), held.answers)]
        accuracy[name] = mean_pass_at_k(correct, held.answers, 1)
        if held.answers > 1:
            pass_at[name] = mean_pass_at_k(correct, held.answers, held.answers)
    counts = [name for name, held in sets.items() if held.every is None] or list(sets)
    known = all(name in accuracy for name in counts)
    mean = sum(accuracy[name] for name in counts) / len(counts) if known else None
    problems = sum(len(sets[name].prompts) for name in counts)
    return EvaluationResult(mean, accuracy, pass_at, problems, records, undecided)
