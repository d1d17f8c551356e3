r"""Does every gold answer of a data set accept itself, its own solution, and no other answer?

``python tools/check_golds.py FILE_OR_FOLDER ...`` reads JSONL files and JSON arrays and prints a line for each:

* rows: golds that were found;
* itself: golds that the verifier accepts as their own answer, boxed;
* solution: solutions with a box that the verifier accepts;
* shifted: pairs (a gold, the next gold as its answer) that it accepts though the two are spelled differently. Each is
  listed below: is it a true coincidence?
* asked: pairs that the exact rules left to Math-Verify;
* text: golds that can only be compared as text, so that nothing but their own spelling is ever right.

Solutions are judged together with their questions, as in training: their boxes must be worked out.

Golds come from "answer", "final_answer" (a list, with "unit") or, without either, from the last box of "solution".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.exact import clean
from bridge_mcore.rewards.math import gold_text
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.readable import is_only_text
from bridge_mcore.rewards.same import decide


def gold_of(row: dict[str, Any]) -> str:
    """The gold answer of a row as one text, with its unit; "" where there is none."""
    if "final_answer" in row:
        gold = ", ".join(str(part) for part in row["final_answer"] or [])
        return gold + _unit(row.get("unit") or "")
    if "answer" in row:
        return str(row["answer"] if row["answer"] is not None else "").rpartition("#### ")[2].strip()
    return last_boxed(str(row.get("solution", ""))) or ""


def _unit(unit: str) -> str:
    unit = unit.strip().strip("$")
    if not unit or unit.startswith("^"):
        return unit
    return r"\%" if unit == "%" else rf" \text{{ {unit}}}"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file or a JSON array."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return [row for row in json.loads(text) if isinstance(row, dict)]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def files_of(paths: list[Path]) -> Iterator[Path]:
    """The data files among and below ``paths``."""
    for path in paths:
        yield from (
            sorted(file for file in path.rglob("*") if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
        )


def check(path: Path, verifier: MathVerifier) -> list[str]:
    """Print the line of one file. Returns what is to be looked at."""
    rows = [(gold, row) for row in rows_of(path) if (gold := gold_of(row))]
    golds = [gold for gold, _ in rows]
    itself = verifier.verify([(gold, f"\\boxed{{{gold}}}") for gold in golds])
    solved = [
        Attempt(gold, row["solution"], str(row.get("problem", "")))
        for gold, row in rows
        if isinstance(row.get("solution"), str) and last_boxed(row["solution"])
    ]
    solutions = verifier.judge(solved)
    pairs = [(one, other) for one, other in zip(golds, golds[1:] + golds[:1], strict=True) if one != other]
    shifted = verifier.verify([(one, f"\\boxed{{{other}}}") for one, other in pairs])
    asked = sum(decide(clean(one), clean(other))[0] is None for one, other in pairs)
    accepted = [pair for pair, verdict in zip(pairs, shifted, strict=True) if verdict.verdict == "correct"]
    name, solved_share = f"{path.parent.name}/{path.name}", f"{_right(solutions)}/{len(solved)}" if solved else "-"
    texts = [gold for gold in golds if is_only_text(gold_text(gold))]
    counts = f"{len(golds):6} {_right(itself):6} {solved_share:>10} {f'{len(accepted)}/{len(pairs)}':>12} {asked:6}"
    counts += f" {len(texts):5}"
    print(f"{name:28} {counts}", flush=True)
    return [
        *(f"rejects itself: {gold!r}" for gold, v in zip(golds, itself, strict=True) if v.verdict != "correct"),
        *(
            f"rejects its solution: {one.gold!r}, {last_boxed(one.response)!r}: {v.reason}"
            for one, v in zip(solved, solutions, strict=True)
            if v.verdict != "correct"
        ),
        *(f"only text: {gold!r}" for gold in texts),
        *(f"accepts another: {one!r} accepts {other!r}" for one, other in accepted),
    ]


def _right(verdicts: list[Any]) -> int:
    return sum(verdict.verdict == "correct" for verdict in verdicts)


def main() -> int:
    """Check all files; the exit code is 1 where a gold or a solution is rejected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="data files, or folders of them")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    notes: list[str] = []
    print(f"{'file':28} {'rows':>6} {'itself':>6} {'solution':>10} {'shifted':>12} {'asked':>6} {'text':>5}")
    with MathVerifier(options.workers) as verifier:
        for path in files_of(options.paths):
            notes += [f"{path.parent.name}: {note}" for note in check(path, verifier)]
    print("\n".join(["", *notes]))
    return int(any("rejects" in note for note in notes))


if __name__ == "__main__":
    sys.exit(main())
