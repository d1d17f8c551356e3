"""Training runs compared on the problems that both have answered, as `eval` compares models."""

from __future__ import annotations

from collections.abc import Sequence

from bridge_mcore.evaluation.metrics import Interval
from bridge_mcore.evaluation.records import Record, read_records
from bridge_mcore.evaluation.results import AVERAGE, Comparison, ModelResult, benchmark_result, compare, model_result
from bridge_mcore.monitoring.runs import Run


def compare_runs(runs: Sequence[Run]) -> list[Comparison]:
    """Every other run's last evaluation with the first's, paired by problem; without differences where they share none.

    Raises DataError for records that cannot be read.
    """
    return compare([_result(run) for run in runs])


def difference_text(comparison: Comparison) -> str:
    """``-3.1 points [-6.0, -0.2], p 0.03``; empty where there is nothing to compare."""
    if not comparison.benchmarks:
        return ""
    found = comparison.benchmarks.get(AVERAGE) or next(iter(comparison.benchmarks.values()))
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.value:+.1f} points  [{low:+.1f}, {high:+.1f}], p {comparison.adjusted:.2g}"


def _result(run: Run) -> ModelResult:
    sets: dict[str, dict[str, list[Record]]] = {}
    for record in _last_records(run):
        sets.setdefault(record.set, {}).setdefault(record.id, []).append(record)
    results = {}
    for name, problems in sets.items():
        samples = min(len(records) for records in problems.values())
        # Repeated rows have the same id: the first answers count.
        answered = [record for records in problems.values() for record in records[:samples]]
        results[name] = benchmark_result(answered, samples, None)
    return model_result(run.name, results) if results else ModelResult(run.name, {}, Interval(0.0, 0.0, 1.0))


def _last_records(run: Run) -> list[Record]:
    """Of the evaluation that the run's last accuracy is of; none where it kept none."""
    steps = run.accuracies()[0]
    path = run.directory / "evaluations" / f"step_{steps[-1]:08d}.jsonl" if steps else None
    return read_records(path) if path is not None and path.is_file() else []
