"""Accuracy on held-out problems with the weights as they are: greedy by default, as the paper evaluates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards.judge import Judge, is_replica_first
from bridge_mcore.rollout.engine import Engine, Request, SamplingParams


@dataclass(frozen=True)
class Record:
    """One answered problem."""

    set: str
    id: str
    prompt: str
    gold: str
    response: str
    verdict: str
    reason: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class EvaluationResult:
    """`accuracy` is the mean over sets (the paper's Average); each set's is the share of correct answers."""

    accuracy: float
    sets: dict[str, float]
    records: list[Record]

    def summary(self) -> dict[str, Any]:
        """What metrics keep of it."""
        return {"accuracy": self.accuracy, "sets": self.sets, "problems": len({(r.set, r.id) for r in self.records})}


def evaluate(
    sets: Mapping[str, Sequence[EncodedPrompt]],
    engine: Engine,
    judge: Judge,
    layout: Layout,
    params: SamplingParams,
    samples: int = 1,
    first_key: int = 0,
) -> EvaluationResult:
    """Answer every problem of every set `samples` times and verify. Collective; the same result on every rank.

    first_key: number of the first answer, so that blocks of one evaluation draw different random numbers.
    """
    work = [(name, p, j) for name, prompts in sets.items() for p in prompts for j in range(samples)]
    mine = list(range(layout.share, len(work), layout.shares))
    rollouts = engine.generate([Request(first_key + i, tuple(work[i][1].tokens)) for i in mine], params)
    verdicts = judge.verify([work[i][1].problem.answer for i in mine], rollouts)
    records: dict[int, Record] = {}
    for i, rollout, verdict in zip(mine, rollouts, verdicts, strict=True):
        name, prompt, _ = work[i]
        problem = prompt.problem
        records[i] = Record(
            name, problem.id, problem.prompt, problem.answer, judge.decode(rollout.tokens), verdict.verdict,
            verdict.reason, len(rollout.tokens), rollout.finished,
        )  # fmt: skip
    if dist.get_world_size() > 1:
        parts: list[dict[int, Record]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, records if is_replica_first() else {})
        records = {i: r for part in parts for i, r in part.items()}
    ordered = [records[i] for i in range(len(work))]
    accuracy = {}
    for name in sets:
        judged = [r for r in ordered if r.set == name]
        accuracy[name] = sum(r.verdict == "correct" for r in judged) / len(judged)
    return EvaluationResult(sum(accuracy.values()) / len(accuracy), accuracy, ordered)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One JSON line per answered problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as out:
        for record in records:
            out.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
