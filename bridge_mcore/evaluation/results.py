"""From records to figures: accuracy with intervals, avg@k, pass@k, maj@k, lengths, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bridge_mcore.evaluation.majority import Same, cluster, majority
from bridge_mcore.evaluation.metrics import (
    Difference,
    Interval,
    bootstrap,
    holm,
    paired_difference,
    pass_at_k,
    powers_of_two,
)
from bridge_mcore.evaluation.records import Record
from bridge_mcore.rewards.verdict import says_no_answer

AVERAGE = "average"


@dataclass(frozen=True)
class BenchmarkResult:
    """Of one model on one benchmark.

    Attributes:
        problems, samples: how many, and how many answers to each.
        accuracy: mean over problems of the share of right answers: pass@1, and avg@samples.
        pass_at: k -> unbiased pass@k, of several samples.
        majority: maj@samples; None of one sample, or where answers cannot be compared.
        tokens: mean length of an answer.
        cut: share of answers that reached the limit.
        failures: kind of failure -> answers; "undecided" ones are those that the reward could not judge.
        scores: problem id -> its share of right answers, for comparisons.
    """

    problems: int
    samples: int
    accuracy: Interval
    pass_at: dict[int, Interval]
    majority: Interval | None
    tokens: float
    cut: float
    failures: dict[str, int]
    scores: dict[str, float] = field(repr=False)

    @property
    def judged(self) -> bool:
        """Some answer was judged. Without, the accuracy of 0 is none."""
        undecided = sum(count for kind, count in self.failures.items() if kind.startswith("undecided"))
        return undecided < self.problems * self.samples

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"judged": self.judged}


@dataclass(frozen=True)
class ModelResult:
    """Of one model on a suite; `average` is the mean over its benchmarks (those that were judged)."""

    label: str
    benchmarks: dict[str, BenchmarkResult]
    average: Interval

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "model": self.label,
            "average": asdict(self.average),
            "benchmarks": {name: found.summary() for name, found in self.benchmarks.items()},
        }


def failure_kind(record: Record) -> str | None:
    """How an answer failed, in a few words that a table can count; None of a right one."""
    if record.correct:
        return None
    if record.undecided:
        return f"undecided ({record.verdict})"
    if not record.finished:
        return "cut at the limit"
    if says_no_answer(record.reason):
        return "no answer"
    return "wrong answer"


def benchmark_result(records: Sequence[Record], samples: int, same: Same | None) -> BenchmarkResult:
    """The figures of one benchmark's records: `samples` of each problem, neighbours.

    same: tells which answers are equal, for maj@k; None: no votes.
    """
    groups = [records[i : i + samples] for i in range(0, len(records), samples)]
    correct = [sum(r.correct for r in group) for group in groups]
    pass_at = {k: bootstrap([[pass_at_k(c, samples, k) for c in correct]]) for k in powers_of_two(samples)}
    voted = None
    if samples > 1 and same is not None and any(r.answer is not None for r in records):
        labels = cluster([[r.answer for r in group] for group in groups], same)
        voted = bootstrap(
            [[majority(label, [r.correct for r in group]) for label, group in zip(labels, groups, strict=True)]]
        )
    return BenchmarkResult(
        problems=len(groups),
        samples=samples,
        accuracy=bootstrap([[c / samples for c in correct]]),
        pass_at=pass_at,
        majority=voted,
        tokens=sum(r.tokens for r in records) / len(records),
        cut=sum(not r.finished for r in records) / len(records),
        failures=dict(Counter(kind for r in records if (kind := failure_kind(r)) is not None).most_common()),
        scores={group[0].id: c / samples for group, c in zip(groups, correct, strict=True)},
    )


def model_result(label: str, benchmarks: Mapping[str, BenchmarkResult]) -> ModelResult:
    """A model's figures on all benchmarks."""
    judged = [b for b in benchmarks.values() if b.judged] or list(benchmarks.values())
    return ModelResult(label, dict(benchmarks), bootstrap([list(b.scores.values()) for b in judged]))


@dataclass(frozen=True)
class Comparison:
    """Of two models, on the problems that both have answered.

    Attributes:
        first, second: their labels; differences are second minus first.
        benchmarks: name -> difference; of several, under "average" that of their mean.
        adjusted: p-value of the average, adjusted for the number of models compared (Holm).
    """

    first: str
    second: str
    benchmarks: dict[str, Difference]
    adjusted: float


def compare(models: Sequence[ModelResult]) -> list[Comparison]:
    """Every other model with the first, on the benchmarks and problems that both have."""
    found = []
    for other in models[1:]:
        first = models[0]
        pairs: dict[str, tuple[list[float], list[float]]] = {}
        for name in first.benchmarks.keys() & other.benchmarks.keys():
            a, b = first.benchmarks[name].scores, other.benchmarks[name].scores
            if not (first.benchmarks[name].judged and other.benchmarks[name].judged):
                continue
            shared = [problem for problem in a if problem in b]
            if shared:
                pairs[name] = [a[p] for p in shared], [b[p] for p in shared]
        ordered = [name for name in first.benchmarks if name in pairs]
        differences = {name: paired_difference([pairs[name][0]], [pairs[name][1]]) for name in ordered}
        if len(ordered) > 1:
            differences[AVERAGE] = paired_difference([pairs[n][0] for n in ordered], [pairs[n][1] for n in ordered])
        found.append((other.label, differences))
    # Of one benchmark, the average is that one.
    adjusted = holm([list(d.values())[-1].p if d else 1.0 for _, d in found])
    return [Comparison(models[0].label, label, d, p) for (label, d), p in zip(found, adjusted, strict=True)]
