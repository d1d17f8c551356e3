"""Numbers about one file of problems, whoever made it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.card import card_of
from bridge_mcore.data.prepare.measure import Measure
from bridge_mcore.data.prepare.output import summary
from bridge_mcore.data.prepare.report import table
from bridge_mcore.data.problems import load_problems


def file_statistics(path: Path, tokenizer: Path | None) -> dict[str, Any]:
    """Counts, and lengths of prompts, answers and traces. Raises DataError for bad files, and broken cards."""
    card = card_of(path)
    problems = load_problems(DataSource(path=path, bad_rows="skip"))
    measure = Measure(tokenizer, "plain")
    traces = [problem.trace for problem in problems if problem.trace is not None]
    return {
        "file": str(path),
        "problems": len(problems),
        "different": len({problem.id for problem in problems}),
        "traces": len(traces),
        "unfinished": sum(not problem.finished for problem in problems),
        "rewards": dict(Counter(problem.reward for problem in problems)),
        "unit": measure.unit,
        "prompt_length": summary([measure.text(problem.prompt) for problem in problems]),
        "answer_length": summary([measure.text(problem.answer) for problem in problems]),
        "trace_length": summary([measure.text(trace) for trace in traces]),
        "card": None if card is None else {"created": card.get("created"), "output": _output(card)},
    }


def _output(card: dict[str, Any]) -> Any:
    recipe = card.get("recipe")
    return recipe.get("output") if isinstance(recipe, dict) else None


def statistics_text(found: dict[str, Any]) -> str:
    """The same for people."""
    traces = f"{found['traces']:,} with a trace" + (f", {found['unfinished']:,} cut" if found["unfinished"] else "")
    head = f"{found['file']}: {found['problems']:,} rows, {found['different']:,} different problems, {traces}"
    names = ("prompt", "answer", "trace")
    rows = [[name, *found[f"{name}_length"].values()] for name in names if found[f"{name}_length"]]
    lengths = table([found["unit"], "n", "mean", "min", "p10", "median", "p90", "p99", "max"], rows)
    card = found["card"]
    state = "no card beside it" if card is None else f"as its card says: unchanged since {card['created']}"
    return f"{head}\n{state}\n\n{lengths}"
