"""The report of a preparation, in Markdown, from its card alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge_mcore.data.prepare.pairing import TIERS

#: Matches that the report lists; contamination.jsonl has all of them, with both texts.
_LISTED = 40


def report_text(card: dict[str, Any]) -> str:
    """Coverage by tier, decontamination, what was left out and why, statistics."""
    counts = card["counts"]
    parts = [
        "# Prepared data",
        f"Made {card['created']} by bridge-mcore {card['versions']['bridge-mcore']}. "
        f"**{counts['rl_rows']:,} prompts for RL, {counts['sft_rows']:,} traces for SFT**"
        + (f" ({counts['cut_traces']:,} of them cut at the limit)" if counts["cut_traces"] else "")
        + ". card.json has the recipe, the sources' hashes and these numbers.",
        "## Prompts",
        _stages(counts["prompts"], "source"),
        "## Traces",
        coverage_table(card),
    ]
    if counts["trace_rows"]:
        parts += ["Rows of the trace sources, by what their question was:", _stages(counts["trace_rows"], "source")]
    if counts["traces"]:
        parts += ["Traces of matched questions, by what became of them:", _stages({"all": counts["traces"]}, "")]
    parts += ["## Decontamination", _decontamination(card["decontamination"]), "## Lengths", statistics_table(card)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, numbers to the right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *texts]) for i in range(len(head))]
    right = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(head), line(rule), *map(line, texts)])


def coverage_table(card: dict[str, Any]) -> str:
    """Prompts by source: how many have a question of each tier, and how many have a trace."""
    tiers = [t for t in TIERS if any(f"matched: {t}" in c for c in card["coverage"].values())]
    rows = []
    for source, counts in card["coverage"].items():
        matched = [counts.get(f"matched: {tier}", 0) for tier in tiers]
        traced = sum(n for key, n in counts.items() if key.startswith("trace: "))
        share = f"{100 * traced / counts['prompts']:.1f}%"
        rest = [sum(matched) - traced, counts["prompts"] - sum(matched)]
        rows.append([source, counts["prompts"], *matched, traced, share, *rest])
    head = ["source", "prompts", *tiers, "with a trace", "share", "matched, none right", "unpaired"]
    note = "A problem of several sources counts in each. Prompts without a trace are kept for RL."
    return f"{table(head, rows)}\n\n{note}"


def statistics_table(card: dict[str, Any]) -> str:
    """Quantiles of lengths, and of the difficulty where there is one."""
    found = card["statistics"]
    named = {f"prompt ({found['unit']})": found["prompt_length"]}
    named |= {f"trace, {tier} ({found['unit']})": s for tier, s in found["trace_length"].items()}
    named["difficulty"] = found["difficulty"]
    rows = [[name, *s.values()] for name, s in named.items() if s]
    return table(["of", "n", "mean", "min", "p10", "median", "p90", "p99", "max"], rows)


def _stages(counts: dict[str, dict[str, int]], name: str) -> str:
    stages = sorted({stage for found in counts.values() for stage in found}, key=lambda stage: (stage != "kept", stage))
    rows: list[list[object]] = [
        [source, sum(c.values()), *(c.get(s, 0) for s in stages)] for source, c in counts.items()
    ]
    return table([name, "all", *stages], rows)


def _decontamination(found: dict[str, Any]) -> str:
    if not found["evaluation"]:
        return "No evaluation sets were given (`decontaminate.sources`): nothing was checked."
    sets = ", ".join(f"{name} ({rows:,})" for name, rows in found["evaluation"].items())
    matches = found["matches"]
    done = "left out" if found["policy"] == "drop" else "kept, as decontaminate.policy is report"
    text = (
        f"Against {sets}: equal normal forms, or shared passages of {found['ngram']} tokens that cover at least "
        f"{found['overlap']:.0%} of an evaluation problem. {len(matches):,} prompts met one; they were {done}."
    )
    if not matches:
        return text
    by_set: dict[tuple[str, str], dict[str, int]] = {}
    for match in matches:
        rules = by_set.setdefault((match["source"], match["evaluation"]), {"exact": 0, "n-gram": 0})
        rules[match["rule"]] += 1
    summary = table(["source", "evaluation set", "exact", "n-gram"], [[*k, *v.values()] for k, v in by_set.items()])
    listed = sorted(matches, key=lambda match: -match["overlap"])[:_LISTED]
    rows = [
        [m["source"], m["id"], m["evaluation"], m["evaluation_id"], m["rule"], f"{m['overlap']:.2f}"] for m in listed
    ]
    head = ["source", "prompt", "evaluation set", "its problem", "rule", "overlap"]
    more = f" The first {_LISTED} by overlap:" if len(matches) > _LISTED else ""
    return f"{text}\n\n{summary}\n\nBoth texts of each are in contamination.jsonl.{more}\n\n{table(head, rows)}"
