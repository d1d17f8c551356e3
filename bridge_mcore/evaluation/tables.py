"""An evaluation for people: the same tables on the terminal and as Markdown, and wrong answers to read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bridge_mcore.evaluation.metrics import Difference, Interval
from bridge_mcore.evaluation.records import Record
from bridge_mcore.evaluation.results import AVERAGE, BenchmarkResult, Comparison, ModelResult, failure_kind
from bridge_mcore.monitoring.text import visible

Rows = list[list[str]]
#: Characters of a prompt, and of each end of a response, that are shown of a wrong answer.
_PROMPT, _HEAD, _TAIL = 600, 400, 1200


def percent(interval: Interval) -> str:
    """``45.2 [40.1, 50.3]``, in per cent."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def scores_table(models: Sequence[ModelResult]) -> Rows:
    """A heading and a row for each benchmark, with a column for each model, and the average."""
    names = list(dict.fromkeys(name for model in models for name in model.benchmarks))
    rows = [["benchmark", "problems", *(model.label for model in models)]]
    for name in names:
        found = [model.benchmarks.get(name) for model in models]
        sizes = {f"{b.problems}" + (f" × {b.samples}" if b.samples > 1 else "") for b in found if b is not None}
        rows.append([name, " / ".join(sorted(sizes)), *map(_accuracy, found)])
    if len(names) > 1:
        # An average over fewer benchmarks than the others' is not to be compared with them.
        counts = [sum(b.judged for b in model.benchmarks.values()) for model in models]
        of = ["" if count == len(names) else f" (of {count})" for count in counts]
        averages = [
            percent(m.average) + text if n else "not judged" for m, n, text in zip(models, counts, of, strict=True)
        ]
        rows.append([AVERAGE, "", *averages])
    return rows


def _accuracy(found: BenchmarkResult | None) -> str:
    return "-" if found is None else percent(found.accuracy) if found.judged else "not judged"


def details_table(model: ModelResult) -> Rows:
    """A row for each benchmark: pass@k and maj@k where there are several samples, lengths, failures."""
    found = model.benchmarks.values()
    ks = sorted({k for b in found for k in b.pass_at})
    vote = any(b.majority is not None for b in found)
    rows = [["benchmark", *(f"pass@{k}" for k in ks), *(["maj@k"] if vote else []), "tokens", "cut", "failures"]]
    for name, b in model.benchmarks.items():
        passes = [percent(b.pass_at[k]) if k in b.pass_at else "-" for k in ks]
        votes = [percent(b.majority) if b.majority is not None else "-"] if vote else []
        rows.append([name, *passes, *votes, f"{b.tokens:.0f}", f"{100 * b.cut:.1f} %", _failures(b)])
    return rows


def _failures(result: BenchmarkResult) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in result.failures.items()) or "none"


def comparison_table(comparisons: Sequence[Comparison]) -> Rows:
    """A row for each benchmark, with a column for each model that is compared with the first."""
    names = list(dict.fromkeys(name for c in comparisons for name in c.benchmarks))
    rows = [["difference", *(f"{c.second} - {c.first}" for c in comparisons)]]
    rows += [
        [name, *(_difference(c.benchmarks[name]) if name in c.benchmarks else "-" for c in comparisons)]
        for name in names
    ]
    if len(comparisons) > 1:
        rows.append(["average, p adjusted (Holm)", *(f"p {_p(c.adjusted)}" for c in comparisons)])
    return rows


def _difference(d: Difference) -> str:
    return f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]  p {_p(d.p)}"


def _p(p: float) -> str:
    return f"= {p:.4f}" if p >= 0.0001 else "< 0.0001"


def show(rows: Rows, title: str) -> None:
    """Print a table on the terminal."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(rows[0]):
        table.add_column(
            visible(heading), justify="left" if i == 0 or heading == "failures" else "right", overflow="fold"
        )
    for row in rows[1:]:
        table.add_row(*map(visible, row))
    # Names of models and benchmarks are no markup.
    Console(markup=False, emoji=False, highlight=False).print(table)


def markdown(rows: Rows) -> str:
    """The same as a Markdown table."""
    heading, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def failures_text(records: Sequence[Record], count: int) -> str:
    """Up to `count` wrong answers of one benchmark, of every kind of failure in turn, to be read by a person."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        if (kind := failure_kind(record)) is not None:
            kinds.setdefault(kind, []).append(record)
    chosen: list[tuple[str, Record]] = []
    while len(chosen) < count and any(kinds.values()):
        chosen += [(kind, left.pop(0)) for kind, left in kinds.items() if left]
    return "\n".join(_failure(kind, record) for kind, record in chosen[:count])


def _failure(kind: str, record: Record) -> str:
    sample = f", answer {record.sample}" if record.sample else ""
    parts = [
        f"--- {record.set}, problem {record.id}{sample}: {kind} ({record.reason}; {record.tokens} tokens)",
        "problem:",
        _indented(_cut(record.prompt, _PROMPT, 0)),
        f"right answer: {_cut(record.gold, 300, 0)}",
        f"given answer: {'none' if record.answer is None else _cut(record.answer, 300, 0)}",
        "response:",
        _indented(_cut(record.response, _HEAD, _TAIL)),
        "",
    ]
    return "\n".join(parts)


def _cut(text: str, head: int, tail: int) -> str:
    """A text without its middle, if it is long; the end of a response is where its answer should be."""
    if len(text) <= head + tail + 40:
        return text
    end = text[len(text) - tail :] if tail else ""
    return f"{text[:head]} … ({len(text) - head - tail} characters) … {end}".rstrip()


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")
