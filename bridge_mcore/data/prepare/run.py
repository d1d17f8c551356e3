"""`bridge-mcore data prepare`: from a recipe to train_rl.jsonl, train_sft.jsonl, and what tells about them.

Prompts come first: read, cleaned, filtered, counted once, kept apart from the evaluation sets; each is written at once.
Then the trace sources are streamed past an index of the prompts. Memory holds the index and the evaluation sets, never
a source: with traces to pair 11 kB a prompt of MATH, without them 300 bytes (its hash, its number, its sources), and
500 more where it has a trace of its own.
"""

from __future__ import annotations

import errno
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from bridge_mcore.data.contradictions import other_golds
from bridge_mcore.data.prepare.collect import Candidate, Collector, item_row, json_line, tiers_in_use
from bridge_mcore.data.prepare.decontaminate import Contact, EvaluationIndex
from bridge_mcore.data.prepare.measure import Measure
from bridge_mcore.data.prepare.pairing import PromptIndex
from bridge_mcore.data.prepare.read import Item, Left, Opened, open_source, problems_of, traces_of
from bridge_mcore.data.prepare.recipe import Origin, Recipe
from bridge_mcore.data.prepare.text import digest, normal_form
from bridge_mcore.data.problem import Problem
from bridge_mcore.errors import DataError
from bridge_mcore.rewards.mixed import Rewards

RL_FILE, SFT_FILE = "train_rl.jsonl", "train_sft.jsonl"
DROPPED_FILE, CONTACTS_FILE = "dropped.jsonl", "contamination.jsonl"
_SPOOL = ".spool"
_DONE = ("system_dropped", "several_traces", "listed_golds", "any_listed_golds")
#: Characters of an answer that are kept to be compared; of longer ones, their digest.
_KEPT_ANSWER = 80
Show = Callable[[Iterable[Any], int | None, str], Iterable[Any]]


@dataclass
class Result:
    """What a preparation found, for card, report and figure. Lengths are in `unit`."""

    recipe: Recipe
    unit: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    #: by source, rows by what became of them; "kept" are those in train_rl.jsonl
    prompts: dict[str, Counter[str]] = field(default_factory=dict)
    trace_rows: dict[str, Counter[str]] = field(default_factory=dict)
    traces: Counter[str] = field(default_factory=Counter)
    #: by source of prompts: "prompts", and how many of them a question matched and a trace was kept for, by tier
    coverage: dict[str, Counter[str]] = field(default_factory=dict)
    evaluation: dict[str, int] = field(default_factory=dict)
    contacts: list[tuple[Item, Contact]] = field(default_factory=list)
    prompt_lengths: array[int] = field(default_factory=lambda: array("l"))
    trace_lengths: dict[str, array[int]] = field(default_factory=lambda: defaultdict(lambda: array("l")))
    difficulties: array[float] = field(default_factory=lambda: array("d"))
    unfinished: int = 0
    sft_rows: int = 0


class _Prompts:
    """The prompts that are kept: all of them by hash, and themselves where traces must be found for them."""

    def __init__(self, in_memory: bool) -> None:
        self.in_memory = in_memory
        self.items: list[Item] = []
        self._seen: dict[bytes, tuple[int, str | bytes]] = {}
        self.sources: dict[int, tuple[str, ...]] = {}
        self._alone: dict[str, tuple[str, ...]] = {}
        self.kept = 0
        self._judges: Rewards | None = None

    def earlier(self, form: bytes) -> tuple[int, str | bytes] | None:
        """(number, its answer as `_kept_answer` has it) of the same problem; number is -1 where it was not kept."""
        return self._seen.get(form)

    def contradicts(self, item: Item, answer: str | bytes) -> bool:
        """Whether an answer to the same question is another one than the item's, by its reward."""
        if isinstance(answer, bytes) or len(item.answer) > _KEPT_ANSWER:
            return False  # nothing to compare with
        self._judges = self._judges or Rewards()
        one = Problem(item.id, item.prompt, item.answer, None, item.source, item.reward, system=item.system)
        return other_golds([(replace(one, answer=answer), one)], self._judges.judge)[0]

    def close(self) -> None:
        if self._judges is not None:
            self._judges.close()

    def add(self, item: Item, form: bytes, keep: bool) -> int:
        number = self.kept if keep else -1
        self._seen[form] = (number, _kept_answer(item.answer))
        if keep:
            self.kept += 1
            if self.in_memory:
                self.items.append(item)
            self.sources[number] = self._alone.setdefault(item.source, (item.source,))  # one for all
        return number


def _kept_answer(answer: str) -> str | bytes:
    return answer if len(answer) <= _KEPT_ANSWER else digest(answer)[:8]


def prepare(recipe: Recipe, directory: Path, show: Show) -> Result:
    """Write the data files of a recipe into an empty directory. Raises DataError for bad input."""
    result = Result(recipe, "")
    measure = Measure(recipe.tokenizer, recipe.template)
    result.unit = measure.unit
    index = _evaluation(recipe, result, show)
    pairing = recipe.pairing
    own = pairing.own == "use" or (pairing.own == "auto" and not recipe.traces)
    prompts = _Prompts(in_memory=bool(recipe.traces))
    spool = directory / _SPOOL
    try:
        with closing(prompts), Collector(recipe, measure, spool) as collector:
            with _writer(directory / RL_FILE) as rl, _writer(directory / DROPPED_FILE) as dropped:
                for key, origin in enumerate(recipe.prompts):
                    opened = _open(recipe, f"prompts.{key}", origin, result)
                    _read_prompts(opened, recipe, index, measure, prompts, collector if own else None, result,
                                  rl, dropped, show)  # fmt: skip
                if prompts.kept == 0:
                    why = "; ".join(f"{name}: {dict(counts)}" for name, counts in result.prompts.items())
                    raise DataError(f"no prompt is left ({why}); loosen the recipe's filters, or look at its sources")
                if recipe.traces:
                    _pair(recipe, prompts, collector, result, dropped, show)
            collector.flush()
            result.traces = collector.counts
            with _writer(directory / SFT_FILE) as sft:
                _write_traces(collector, prompts, result, sft)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk of {directory} is full; nothing was written") from error
        raise
    spool.unlink()
    if result.sft_rows == 0:
        (directory / SFT_FILE).unlink()
    with _writer(directory / CONTACTS_FILE) as contacts:
        for item, contact in result.contacts:
            contacts.write(json_line(contact_row(item, contact)))
    return result


def contact_row(item: Item, contact: Contact) -> dict[str, Any]:
    """A row of contamination.jsonl."""
    found = contact.problem
    row = {"id": item.id, "source": item.source, "rule": contact.rule, "overlap": round(contact.overlap, 3)}
    return row | {"evaluation": found.source, "evaluation_id": found.id, "prompt": item.prompt,
                  "evaluation_prompt": found.prompt}  # fmt: skip


def _writer(path: Path) -> BinaryIO:
    return open(path, "wb", buffering=1 << 20)


def _open(recipe: Recipe, key: str, origin: Origin, result: Result) -> Opened:
    opened = open_source(recipe, key, origin)
    result.sources.append(opened.facts)
    return opened


def _evaluation(recipe: Recipe, result: Result, show: Show) -> EvaluationIndex | None:
    problems: list[Problem] = []
    for key, origin in enumerate(recipe.decontaminate.sources):
        opened = _open(recipe, f"decontaminate.sources.{key}", origin, result)
        rows = 0
        for item in problems_of(opened, streaming=False):
            rows += 1
            if isinstance(item, Item):
                problems.append(Problem(item.id, item.prompt, item.answer, None, opened.name))
        opened.check_unchanged()
        opened.facts["rows"] = rows
        result.evaluation[opened.name] = rows
    if not problems:
        return None
    return EvaluationIndex(problems, recipe.decontaminate.ngram, recipe.decontaminate.overlap)


def _read_prompts(
    opened: Opened,
    recipe: Recipe,
    index: EvaluationIndex | None,
    measure: Measure,
    prompts: _Prompts,
    collector: Collector | None,
    result: Result,
    rl: BinaryIO,
    dropped: BinaryIO,
    show: Show,
) -> None:
    counts = result.prompts.setdefault(opened.name, Counter())
    rows = 0
    # Without traces to pair, nothing of a source is held, so that it may be larger than memory.
    for item in show(problems_of(opened, streaming=not prompts.in_memory), None, f"prompts of {opened.name}"):
        rows += 1
        if isinstance(item, Left):
            left: Left | None = item
        else:
            form = digest(normal_form(item.prompt))
            number, left = _place(item, form, recipe, index, measure, prompts, result)
            if left is None:
                rl.write(json_line(item_row(item)))
                counts["kept"] += 1
            if collector is not None and number >= 0 and (left is None or recipe.pairing.keep == "all"):
                for trace in item.traces:
                    collector.add(Candidate(number, item, "own", 1.0, trace, opened.name, item.place, item.finished))
        if left is not None:
            counts[left.stage] += 1
            dropped.write(json_line({"source": opened.name, "place": left.place, "stage": left.stage,
                                     "reason": left.reason}))  # fmt: skip
    opened.check_unchanged()
    opened.facts["rows"] = rows
    _say(opened)


def _say(opened: Opened) -> None:
    """What was done to a source's rows, for the card."""
    # Traces are taken as they stand, but for the marks of GSM8K, which everybody gets boxes for.
    if done := {key: opened.notes[key] for key in _DONE if opened.notes[key]}:
        opened.facts["done"] = done


def _place(
    item: Item,
    form: bytes,
    recipe: Recipe,
    index: EvaluationIndex | None,
    measure: Measure,
    prompts: _Prompts,
    result: Result,
) -> tuple[int, Left | None]:
    """(number of the prompt, None) where it is kept; else the earlier one's number or -1, and why it is not."""
    if (earlier := prompts.earlier(form)) is not None:
        number, answer = earlier
        if number >= 0 and item.source not in prompts.sources[number]:
            prompts.sources[number] += (item.source,)
        if answer == _kept_answer(item.answer):
            return number, Left(item.place, "repeated", "the same problem came before")
        if prompts.contradicts(item, answer):
            why = f"answer {item.answer[:80]}, and {str(answer)[:80]} of the one before"
            return number, Left(item.place, "repeated, with another answer", why)
        return number, Left(item.place, "repeated, answer spelt otherwise", f"answer {item.answer[:80]}")
    filters = recipe.filters
    left: Left | None = None
    if (reason := outside_difficulty(item.difficulty, recipe)) is not None:
        left = Left(item.place, "difficulty", reason)
    length = measure.text(item.prompt)
    if left is None and filters.prompt_length is not None:
        low, high = filters.prompt_length
        if not low <= length <= high:
            left = Left(item.place, "prompt length", f"{length} {measure.unit}, wanted {low:g} to {high:g}")
    if left is None and not _sampled(item.id, recipe):
        left = Left(item.place, "not in the sample", f"sample {recipe.sample}")
    if left is None and index is not None and (contact := index.find(item.prompt)) is not None:
        result.contacts.append((item, contact))
        if recipe.decontaminate.policy == "drop":
            found = contact.problem
            reason = f"{contact.rule} {contact.overlap:.2f} with {found.id} of {found.source}"
            left = Left(item.place, "contaminated", reason)
    number = prompts.add(item, form, keep=left is None)
    if left is None:
        result.prompt_lengths.append(length)
        if item.difficulty is not None:
            result.difficulties.append(item.difficulty)
    return number, left


def outside_difficulty(difficulty: float | None, recipe: Recipe) -> str | None:
    """Why a row of this difficulty is left out, or None."""
    wanted = recipe.filters.difficulty
    if wanted is None:
        return None
    if difficulty is None:
        return "unknown" if recipe.filters.unknown_difficulty == "drop" else None
    low, high = wanted
    return None if low <= difficulty <= high else f"{difficulty:g}, wanted {low:g} to {high:g}"


def _sampled(number: str, recipe: Recipe) -> bool:
    word = blake2b(f"{recipe.seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(word, "big") < recipe.sample * 2**64


def _pair(
    recipe: Recipe, prompts: _Prompts, collector: Collector, result: Result, dropped: BinaryIO, show: Show
) -> None:
    pairing = recipe.pairing
    index = PromptIndex([item.prompt for item in prompts.items], tiers_in_use(pairing.tiers), pairing.threshold)
    for key, origin in enumerate(recipe.traces):
        opened = _open(recipe, f"traces.{key}", origin, result)
        counts = result.trace_rows.setdefault(opened.name, Counter())
        rows = 0
        for row in show(traces_of(opened), None, f"traces of {opened.name}"):
            rows += 1
            if isinstance(row, Left):
                counts[row.stage] += 1
                dropped.write(json_line({"source": opened.name, "place": row.place, "stage": row.stage,
                                         "reason": row.reason}))  # fmt: skip
                continue
            place, question, difficulty, traces, whole = row
            match = index.find(question)
            if match is None:
                counts["no such prompt"] += 1
            elif outside_difficulty(difficulty, recipe) is not None:
                counts["difficulty"] += 1
            elif not traces:
                counts["no trace"] += 1
            else:
                counts[match.tier] += 1
                item = prompts.items[match.prompt]
                for trace in traces:
                    found = Candidate(match.prompt, item, match.tier, match.similarity, trace, opened.name, place,
                                      whole)  # fmt: skip
                    collector.add(found)
        opened.check_unchanged()
        opened.facts["rows"] = rows
        _say(opened)


def _write_traces(collector: Collector, prompts: _Prompts, result: Result, sft: BinaryIO) -> None:
    paired: dict[int, str] = {}
    for number, tier, length, finished, line in collector.chosen():
        paired.setdefault(number, tier)
        result.trace_lengths[tier].append(length)
        result.unfinished += not finished
        result.sft_rows += 1
        sft.write(line)
    for number, sources in prompts.sources.items():
        for source in sources:
            counts = result.coverage.setdefault(source, Counter())
            counts["prompts"] += 1
            if number in collector.matched:
                counts[f"matched: {collector.matched[number]}"] += 1
            if number in paired:
                counts[f"trace: {paired[number]}"] += 1
