"""Traces for known prompts: verified in batches, measured, chosen per prompt; memory holds only places in a file."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge_mcore.data.prepare.measure import Measure
from bridge_mcore.data.prepare.pairing import TIERS, TierName
from bridge_mcore.data.prepare.read import Item
from bridge_mcore.data.prepare.recipe import Recipe
from bridge_mcore.data.problem import DEFAULT_REWARD, Problem
from bridge_mcore.rewards import MathVerifier, Verdict

#: Traces verified together: enough to keep the workers busy; of R1's, some 4 MB.
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trace that may belong to prompt `number`: which tier found it, how alike the questions are, where it stands."""

    number: int
    item: Item
    tier: TierName
    similarity: float
    trace: str
    source: str
    place: str
    finished: bool = True


@dataclass(frozen=True, slots=True, order=True)
class _Kept:
    rank: tuple[int, ...]
    offset: int
    tier: TierName
    length: int
    finished: bool


class Collector(AbstractContextManager["Collector"]):
    """Takes candidates in the order of their sources and keeps the best of each prompt, or all (`pairing.keep`).

    What passes is written to a spool file at once; a hundred bytes or so a trace stay in memory.

    Attributes:
        matched: by prompt, the surest tier that found it a trace, right or wrong.
        counts: traces by what became of them ("verified", "wrong answer", "too long", …).
    """

    def __init__(self, recipe: Recipe, measure: Measure, spool: Path) -> None:
        self._recipe, self._measure = recipe, measure
        self._spool = spool.open("w+b")
        self._waiting: list[Candidate] = []
        self._kept: dict[int, list[_Kept]] = defaultdict(list)
        self.matched: dict[int, TierName] = {}
        self.counts: Counter[str] = Counter()
        self._taken = 0
        pairing = recipe.pairing
        self._verifier = MathVerifier(pairing.workers) if pairing.verify else None

    def __exit__(self, *_: object) -> None:
        self._spool.close()
        if self._verifier is not None:
            self._verifier.close()

    def add(self, candidate: Candidate) -> None:
        """Take one; it is verified with those that follow."""
        before = self.matched.get(candidate.number)
        if before is None or TIERS.index(candidate.tier) < TIERS.index(before):
            self.matched[candidate.number] = candidate.tier
        self._waiting.append(candidate)
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Verify what waits."""
        waiting, self._waiting = self._waiting, []
        # Boxes are what the reward of mathematics reads; another reward's answers stand elsewhere.
        checked = [c for c in waiting if self._verifier is not None and c.item.reward == DEFAULT_REWARD]
        verdicts: dict[int, Verdict] = {}
        if self._verifier is not None:
            found = self._verifier.verify([(c.item.answer, c.trace) for c in checked])
            verdicts = {id(c): verdict for c, verdict in zip(checked, found, strict=True)}
        for candidate in waiting:
            verdict = verdicts.get(id(candidate))
            if verdict is None or verdict.verdict == "correct":
                why = "as asked" if self._verifier is None else f"reward {candidate.item.reward.partition(':')[0]}"
                self.counts["verified" if verdict else f"not verified, {why}"] += 1
                self._keep(candidate)
            elif verdict.verdict == "incorrect":
                self.counts["no box" if verdict.reason.startswith("no \\boxed") else "wrong answer"] += 1
            else:
                self.counts[f"undecided ({verdict.verdict})"] += 1

    def _keep(self, candidate: Candidate) -> None:
        item, recipe = candidate.item, self._recipe
        bounds = recipe.filters.trace_length
        length = self._measure.text(candidate.trace)
        if bounds is not None and not bounds[0] <= length <= bounds[1]:
            self.counts["outside trace_length"] += 1
            return
        problem = Problem(
            item.id,
            item.prompt,
            item.answer,
            candidate.trace,
            item.source,
            item.reward,
            candidate.finished,
            item.system,
        )
        fitted = self._measure.fit(problem, recipe.limit.length, recipe.limit.policy == "cut")
        if fitted is None:
            self.counts["over the limit, dropped"] += 1
            return
        if not fitted.finished:
            self.counts["over the limit, cut"] += 1
            length = self._measure.text(fitted.text)
        finished = fitted.finished and candidate.finished  # one that came cut stays so
        self._taken += 1
        order = (length, self._taken) if recipe.pairing.keep == "shortest" else (self._taken,)
        # A whole trace before one that was cut, of whatever tier.
        rank = (int(not finished), TIERS.index(candidate.tier), *order)
        entry = _Kept(rank, self._spool.seek(0, 2), candidate.tier, length, finished)
        if recipe.pairing.keep == "all":
            self._kept[candidate.number].append(entry)
        elif not (best := self._kept.get(candidate.number)) or entry < best[0]:
            self._kept[candidate.number] = [entry]
        else:
            return
        self._spool.write(_line(candidate, fitted.text, finished))

    def chosen(self) -> Iterator[tuple[int, TierName, int, bool, bytes]]:
        """(prompt, tier, length, finished, line of train_sft.jsonl) of what is kept, in the order of the prompts."""
        for number in sorted(self._kept):
            seen: set[bytes] = set()
            for entry in sorted(self._kept[number]):
                self._spool.seek(entry.offset)
                line = self._spool.readline()
                trace = json.loads(line)["trace"].encode()
                if trace not in seen:
                    yield number, entry.tier, entry.length, entry.finished, line
                seen.add(trace)


def _line(candidate: Candidate, text: str, finished: bool) -> bytes:
    row: dict[str, Any] = item_row(replace(candidate.item, traces=()))
    row = {"prompt": row.pop("prompt"), "answer": row.pop("answer"), "trace": text, **row}
    row |= {"tier": candidate.tier, "trace_source": candidate.source, "trace_place": candidate.place}
    if candidate.tier == "fuzzy":
        row["similarity"] = round(candidate.similarity, 4)
    if not finished:
        row["finished"] = False
    return json_line(row)


def item_row(item: Item) -> dict[str, Any]:
    """The row of train_rl.jsonl."""
    prompt: Any = item.prompt
    if item.system is not None:  # as reading a row finds it again
        prompt = [{"role": "system", "content": item.system}, {"role": "user", "content": item.prompt}]
    row: dict[str, Any] = {"prompt": prompt, "answer": item.answer, "id": item.id, "source": item.source}
    row["reward"] = item.reward
    return row if item.difficulty is None else row | {"difficulty": item.difficulty}


def json_line(row: dict[str, Any]) -> bytes:
    """One line of a .jsonl file; the same row always gives the same bytes."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def tiers_in_use(names: Sequence[str]) -> list[TierName]:
    """The tiers of a recipe, from the surest on."""
    return [tier for tier in TIERS if tier in names]
