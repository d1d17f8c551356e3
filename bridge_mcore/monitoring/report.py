"""The report of a run, or of several side by side: a table of results, where the time went, and the main curves."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bridge_mcore.monitoring.curves import wilson
from bridge_mcore.monitoring.figure import draw_figure, draw_runs
from bridge_mcore.monitoring.labels import model_labels, run_labels
from bridge_mcore.monitoring.runs import Run, facts, load_run
from bridge_mcore.monitoring.text import compact, duration, percent, signed, sparkline, visible

__all__ = ["draw_figure", "draw_runs", "markdown_table", "read_runs", "run_text", "summary_rows", "summary_table"]

#: What a run writes, as the table's last rows name it.
_PATHS = (
    ("figure", "figure.png"),
    ("metrics", "metrics.jsonl"),
    ("checkpoints", "checkpoints"),
    ("exported model", "export"),
)

_CAPTION = "[a, b]: 95% interval; reward, length and gain: means of up to 10 steps at the ends"
_DIFFERENCE = (
    "difference: of accuracy after, paired by problem [95% interval]; p: that chance alone makes it as large, adjusted "
    "for the number of runs"
)
_GAIN = (
    "gain: J_RL(θ, w) - J_RL(θ̂, w), in units of the advantages; above 0 is good: having learnt from traces too, θ "
    "finds rewarded answers likelier than θ̂"
)

#: Curves of the text report: metric, label, how its ends are written.
_CURVES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", "reward", "{:.3f}".format),
    ("response_length", "response length", "{:.1f}".format),
    ("j_sft", "J_SFT", "{:.3f}".format),
    ("gain", "gain", signed),
    ("lam", "λ", "{:.2f}".format),
    ("entropy", "entropy", "{:.3f}".format),
)


def read_runs(run_dirs: Path | Sequence[Path]) -> list[Run]:
    """One directory or several, read and checked."""
    if isinstance(run_dirs, (str, os.PathLike)):
        run_dirs = [Path(run_dirs)]
    return [load_run(Path(run_dir)) for run_dir in run_dirs]


def summary_table(run_dirs: Path | Sequence[Path]) -> Table:
    """The table that a run ends with and that `report` prints; a column for each run."""
    return runs_table(read_runs(run_dirs))


def runs_table(runs: Sequence[Run], differences: Sequence[str] = ()) -> Table:
    """As :func:`summary_table`, of runs that are already read. differences: of each run's accuracy from the first's."""
    rows = summary_rows(runs, differences)
    labels = [label for label, _ in rows]
    explained = [(_DIFFERENCE, any(differences)), (_GAIN, "gain" in labels)]
    caption = "\n".join([_CAPTION, *(text for text, there in explained if there)])
    table = Table(show_header=len(runs) > 1, header_style="bold", border_style="dim", caption=Text(caption, "dim"))
    table.caption_justify = "left"
    table.add_column("", style="dim", no_wrap=True)
    for label in run_labels(runs):
        table.add_column(Text(visible(label)), overflow="fold")
    for label, cells in rows:
        style = "bold" if label.startswith("accuracy") else ""
        table.add_row(Text(visible(label)), *(Text(visible(cell), style=style) for cell in cells))
    return table


def summary_rows(runs: Sequence[Run], differences: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Label and one cell a run; rows that no run has anything for are left out."""
    to_first = f"difference to {runs[0].name}"
    columns = [
        _cells(run, model, {to_first: difference} if differences else {})
        for run, model, difference in zip(runs, model_labels(runs), differences or [""] * len(runs), strict=True)
    ]
    if len(runs) == 1:
        columns[0] |= {label: str(runs[0].directory / name) for label, name in _paths(runs[0])}
    else:
        columns = [column | {"directory": str(run.directory)} for column, run in zip(columns, runs, strict=True)]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [(label, [column.get(label, "") for column in columns]) for label in labels]
    return [(label, cells) for label, cells in rows if any(cells)]


def markdown_table(runs: Sequence[Run], differences: Sequence[str] = ()) -> str:
    """The table for an issue, a pull request or a paper's notes."""
    head = ["", *run_labels(runs)]
    lines = [head, ["---"] * len(head), *([label, *cells] for label, cells in summary_rows(runs, differences))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def run_text(run: Run) -> Text:
    """Where the time of a run went, and its curves, as coloured lines of text."""
    text = Text()
    for lines, title in ((_time_lines(run), "Where the time went"), (_curve_lines(run), "Curves, first to last step")):
        if lines:
            text.append(("\n" if text else "") + title + "\n", style="bold")
            for label, drawing, rest in lines:
                text.append(f"  {label:<17}", style="dim")
                text.append(drawing, style="cyan")
                text.append(rest + "\n")
    return text


def _cells(run: Run, model: str, differences: Mapping[str, str]) -> dict[str, str]:
    fact = facts(run)
    sft = fact["sft_steps"]
    rolled_out = f"  (RL, from step {sft + 1})" if sft else ""

    def show(key: str, form: Callable[[Any], str]) -> str:
        return form(fact[key]) if fact[key] is not None else ""

    def course(key: str, form: str) -> str:
        first, last = fact[key + "_first"], fact[key + "_last"]
        return f"{first:{form}} → {last:{form}}{rolled_out}" if last is not None else ""

    total = f" of {run.total_steps}" if run.total_steps else ""
    unfinished = "" if run.finished else "  (unfinished)"
    trouble = [f"{n} {what}" for n, what in _failures(fact) if n]
    cells = {
        "method": run.method
        + (f", λ {fact['lam_last']:.2g}" if fact["lam_last"] is not None else "")
        + (f": SFT to step {sft}, then RL" if sft else ""),
        "model": model,
        "steps": f"{run.steps}{total}{unfinished}",
        "held-out problems": show("problems", "{:,}".format),
        "accuracy before": show("accuracy_before", lambda a: _accuracy(a, fact["problems"])),
        "accuracy after": _after(fact),
        "change": show("accuracy_change", lambda change: f"{100 * change:+.1f} points"),
        **differences,
        "accuracy best": show("accuracy_best", lambda a: f"{percent(a)} at step {fact['accuracy_best_step']}"),
        "reward": course("reward", ".3f"),
        "response length": course("response_length", ".1f"),
        "gain": show("gain_last", signed),
        "tokens/s": show("tokens_per_second", compact),
        "time": show("seconds", duration),
        "memory": show("memory_gib", "{:.2f} GiB".format),
        "verifier": ", ".join(trouble),
    }
    for name, value in fact["sets_after"].items() if len(fact["sets_after"]) > 1 else ():
        before = fact["sets_before"].get(name)
        cells[f"accuracy, {name}"] = (f"{percent(before)} → " if before is not None else "") + percent(value)
    return cells


def _paths(run: Run) -> list[tuple[str, str]]:
    return [(label, name) for label, name in _PATHS if (run.directory / name).exists()]


def _failures(fact: dict[str, Any]) -> tuple[tuple[int, str], ...]:
    return (fact["verifier_timeouts"], "timeouts"), (fact["verifier_errors"], "errors")


def _after(fact: dict[str, Any]) -> str:
    after = fact["accuracy_after"]
    if after is None:
        return ""
    at = "" if fact["finished"] else f"  at step {fact['accuracy_after_step']}"
    return _accuracy(after, fact["problems"]) + at


def _accuracy(accuracy: float, problems: int | None) -> str:
    if not problems:
        return percent(accuracy)
    low, high = wilson(accuracy, problems)
    return f"{percent(accuracy)}  [{100 * low:.0f}, {100 * high:.0f}]"


def _time_lines(run: Run) -> list[tuple[str, str, str]]:
    phases = facts(run)["seconds_per_phase"]
    whole = sum(phases.values())
    if not whole:
        return []
    width = 30
    return [
        (name, "█" * round(width * seconds / whole), f" {seconds / whole:.0%}  {duration(seconds)}")
        for name, seconds in sorted(phases.items(), key=lambda item: -item[1])
        if seconds / whole >= 0.005
    ]


def _curve_lines(run: Run) -> list[tuple[str, str, str]]:
    lines = []
    for key, label, form in _CURVES:
        values = run.lams if key == "lam" else run.series(key)[1]
        if len(set(values)) > 1:  # a constant λ is in the table
            lines.append((label, sparkline(values, 40), f" {form(values[0])} → {form(values[-1])}"))
    accuracies = run.accuracies()[1]
    if len(accuracies) > 1:
        course = f" {percent(accuracies[0])} → {percent(accuracies[-1])}"
        lines.insert(0, ("accuracy", sparkline(accuracies, 40), course))
    return lines
