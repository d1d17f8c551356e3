"""Rows of a self-test: a line when one is done, tables at the end, JSON. No torch: the launcher prints them too."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.monitoring.text import compact, duration

OK, FAIL, SKIPPED = "ok", "FAIL", "skipped"
_MARKS = {OK: "✓", FAIL: "✗", SKIPPED: "–"}
#: Section of a row that could not end.
LOST = "lost"
_ROWS, _DONE, _NOTES, _CURRENT = "rows.jsonl", "done", "notes", "current"


@dataclass
class Row:
    """One check.

    Attributes:
        status: ok, FAIL or skipped.
        detail: what was found; of a failure, what to look at.
        theta, theta_hat, w: relative L2 error of the update against one process; None where nothing was compared.
        loss: largest relative difference of an objective or gradient norm in any iteration.
        seconds: of one iteration.
        tokens_per_s: of the whole layout.
        memory_gib: peak of the fullest process (on GPUs allocated device memory, on CPU resident memory).
        took: seconds of the row.
    """

    section: str
    name: str
    processes: int
    dtype: str = ""
    status: str = OK
    detail: str = ""
    theta: float | None = None
    theta_hat: float | None = None
    w: float | None = None
    loss: float | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    memory_gib: float | None = None
    took: float = 0.0

    def fail(self, why: str) -> None:
        """Make it a failure; a second reason is added to the first."""
        self.detail = f"{self.detail}; {why}" if self.status == FAIL else why
        self.status = FAIL

    @property
    def title(self) -> str:
        """With the section where the name alone would not say what was tested."""
        return f"{self.section} {self.name}" if self.section in ("slots", "generation", "checkpoint") else self.name

    def line(self) -> str:
        """One line for when it is done."""
        parts = [f"{label} {_tiny(v)}" for label, v in zip(("θ", "θ̂", "w", "loss"), self.errors(), strict=True) if v]
        if self.seconds is not None:
            parts.append(f"{self.seconds:.3g} s an iteration")
        parts += [self.detail] * bool(self.detail)
        title = f"{self.title} {self.dtype}".rstrip()
        return f"{_MARKS[self.status]} {title:<36} {self.status:<7} {', '.join(parts)} ({duration(self.took)})"

    def errors(self) -> tuple[float | None, ...]:
        """θ, θ̂, w, loss."""
        return self.theta, self.theta_hat, self.w, self.loss


def _tiny(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if math.isfinite(value) else str(value)


class Results:
    """Rows as they come. `scratch`: where the launcher reads them if this process is lost."""

    def __init__(self, scratch: Path | None = None, shown: bool = True) -> None:
        self.rows: list[Row] = []
        self.scratch = scratch
        self.shown = shown

    def begin(self, title: str) -> None:
        """Leave word of the row that is running."""
        if self.scratch is not None and self.shown:
            (self.scratch / _CURRENT).write_text(title)

    def add(self, row: Row) -> None:
        """Keep a finished row and show its line."""
        self.rows.append(row)
        if not self.shown:
            return
        print(row.line(), flush=True)
        if self.scratch is not None:
            with open(self.scratch / _ROWS, "a") as out:
                out.write(json.dumps(asdict(row)) + "\n")

    @property
    def ok(self) -> bool:
        """At least one row, and none has failed."""
        return _all_ok(self.rows)

    def finish(self, path: Path | None) -> None:
        """Print the tables, and write the JSON file if one is asked for."""
        show(self.rows)
        _write_json(self.rows, path)
        if self.scratch is not None:
            (self.scratch / _DONE).touch()


def _all_ok(rows: Sequence[Row]) -> bool:
    return bool(rows) and not any(row.status == FAIL for row in rows)


def _write_json(rows: Sequence[Row], path: Path | None) -> None:
    if path is not None:
        found = {"ok": _all_ok(rows), "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def show(rows: Sequence[Row]) -> None:
    """Two tables: the layouts with their numbers, and the other checks with what was found."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    others = [row for row in rows if row.section != "layouts"]
    if others:
        table = Table("check", "dtype", "result")
        table.add_column("found", ratio=1)
        for row in others:
            table.add_row(row.title, row.dtype, row.status, row.detail, style="red" if row.status == FAIL else None)
        console.print(table)
    layouts = [row for row in rows if row.section == "layouts"]
    if layouts:
        table = Table()
        table.add_column("layout", no_wrap=True)
        table.add_column("dtype", no_wrap=True)
        for column in ("procs", "θ", "θ̂", "w", "loss", "s/iter", "tok/s", "GiB"):
            table.add_column(column, justify="right")
        table.add_column("result")
        for row in layouts:
            table.add_row(
                row.name, row.dtype.replace("float", "f"), str(row.processes), *map(_tiny, row.errors()),
                "" if row.seconds is None else f"{row.seconds:.3g}",
                "" if row.tokens_per_s is None else compact(row.tokens_per_s),
                "" if row.memory_gib is None else f"{row.memory_gib:.2f}",
                row.status, style="red" if row.status == FAIL else None,
            )  # fmt: skip
        console.print(table)
        for row in layouts:
            if row.status != OK:
                console.print(f"{row.name} {row.dtype}: {row.detail}", markup=False, soft_wrap=True)
        console.print("θ, θ̂, w: relative L2 error of the update against one process; loss: of objectives and norms")
    counts = {status: sum(row.status == status for row in rows) for status in (OK, FAIL, SKIPPED)}
    console.print(", ".join(f"{n} {status}" for status, n in counts.items() if n or status == OK), style="bold")


# --- what is left of ranks that did not end by themselves


def write_note(scratch: Path | None, rank: int, note: dict[str, Any]) -> None:
    """Leave word of a rank that is stuck or has failed: {"row", "state": stuck | waiting | failed, "text"}."""
    if scratch is not None:
        (scratch / _NOTES).mkdir(exist_ok=True)
        (scratch / _NOTES / f"{rank:06d}.json").write_text(json.dumps({"rank": rank, **note}))


def is_finished(scratch: Path) -> bool:
    """Whether rank 0 has printed the tables."""
    return (scratch / _DONE).exists()


def read_lost(scratch: Path, reason: str, processes: int) -> list[Row]:
    """The rows of ranks that were lost, and one more that says in which row, and what is known of which rank.

    `reason`: what the launcher saw.
    """
    path, current = scratch / _ROWS, scratch / _CURRENT
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    notes = [json.loads(note.read_text()) for note in sorted((scratch / _NOTES).glob("*.json"))]
    name = notes[0]["row"] if notes else current.read_text() if current.exists() else "the start"
    lost = Row(LOST, name, processes)
    silent = sorted(set(range(processes)) - {note["rank"] for note in notes})
    said = _sentences(notes)
    if notes and silent:
        said.append(f"rank{'s' * (len(silent) > 1)} {ranks_text(silent)} said nothing: killed, or blocked in a driver")
    lost.fail("; ".join(said) or reason)
    return [*rows, lost]


def show_lost(rows: list[Row], path: Path | None) -> None:
    """Print the tables of `read_lost`, and write the JSON file if one is asked for."""
    print(rows[-1].line(), flush=True)
    show(rows)
    _write_json(rows, path)


def _sentences(notes: Iterable[dict[str, Any]]) -> list[str]:
    """One sentence for all ranks that say the same."""
    by_text: dict[tuple[str, str], list[int]] = {}
    for note in sorted(notes, key=lambda n: ("failed", "stuck", "waiting").index(n["state"])):
        by_text.setdefault((note["state"], note["text"]), []).append(note["rank"])
    return [f"rank{'s' * (len(r) > 1)} {ranks_text(r)} {state}: {text}" for (state, text), r in by_text.items()]


def ranks_text(ranks: Sequence[int]) -> str:
    """``0-3, 6``"""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
