"""What was answered, one JSON line an answer: written as answers come in, read again by a command that goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, get_args, get_type_hints

from bridge_mcore.config.json_file import one_line, parse_json, shown
from bridge_mcore.data.problem import Problem
from bridge_mcore.errors import DataError
from bridge_mcore.evaluation.votes import same_spelling
from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.exact import clean
from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.thoughts import after_thought
from bridge_mcore.rewards.verdict import Verdict

#: Characters of a gold answer that are kept: the tests of a programming problem may have megabytes.
_MAX_GOLD = 2000


@dataclass(frozen=True)
class Record:
    """One answered problem.

    Attributes:
        set: name of the benchmark.
        id: of the problem.
        sample: number of this answer among those to the problem, from 0.
        answer: what the response gives as its answer (the content of its box), for votes; None where it gives none.
        verdict, reason: as the reward gave them.
        tokens: length of the response.
        finished: it ended by itself; False means it was cut at the limit.
    """

    set: str
    id: str
    sample: int
    prompt: str
    gold: str
    response: str
    answer: str | None
    verdict: str
    reason: str
    tokens: int
    finished: bool

    @property
    def correct(self) -> bool:
        """Whether the reward said so."""
        return self.verdict == "correct"

    @property
    def undecided(self) -> bool:
        """Whether the reward could not say."""
        return self.verdict not in ("correct", "incorrect")


def record_of(name: str, problem: Problem, attempt: Attempt, verdict: Verdict) -> Record:
    """The record of one judged answer to a problem of the benchmark `name`."""
    said = after_thought(attempt.response, attempt.thinking)
    return Record(
        set=name, id=problem.id, sample=attempt.sample, prompt=problem.prompt, gold=shown_gold(problem.answer),
        response=attempt.response, answer=answer_of(problem, said), verdict=verdict.verdict,
        reason=verdict.reason, tokens=attempt.tokens or 0, finished=attempt.finished,
    )  # fmt: skip


def shown_gold(gold: str) -> str:
    """A gold answer as a record keeps it."""
    return gold if len(gold) <= _MAX_GOLD else f"{gold[:_MAX_GOLD]}… ({len(gold)} characters)"


def answer_of(problem: Problem, response: str) -> str | None:
    """What a response votes for: what its last box (or `<answer>`) holds; None without one, and for programs."""
    kind = problem.reward.split(":")[0]
    if kind in ("code", "plugin"):
        return None
    found = last_boxed(response) if kind == "math" else final_answer(response)
    return (same_spelling(kind, clean(found), problem.answer) or None) if found is not None else None


#: What each field of a record may be, of `Record`'s annotations.
_TYPES = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Record).items()}


class RecordFile:
    """Appends records; a line is whole or, after a kill, dropped when the file is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_records(path, mend=True) if path.exists() else []
        self._file: IO[str] | None = None

    def append(self, records: Iterable[Record]) -> None:
        """Write records to the disk."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        for record in records:
            self._file.write(json.dumps(asdict(record)) + "\n")  # ASCII: half a surrogate pair survives
            self.records.append(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path, mend: bool = False) -> list[Record]:
    """The records of a file, without a last line that a kill left unfinished. mend: cut that off, too.

    Raises DataError naming the line that is no record.
    """
    records: list[Record] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    whole = content.rfind(b"\n") + 1
    if mend and whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)
    content = content[:whole]
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(parse_json(line)))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is no record of an evaluation ({one_line(error)}); evaluate anew with --restart"
            ) from None
    return records


def _record(found: Any) -> Record:
    """A record of a line's JSON. Raises ValueError for what no `record_of` makes."""
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of an object")
    for name, kinds in _TYPES.items():
        if name not in found:
            raise ValueError(f"it has no {name}")
        if type(found[name]) not in kinds:
            raise ValueError(f"{name} is {shown(found[name])}")
    return Record(**{name: found[name] for name in _TYPES})


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a file of records, instead of one that is there."""
    path.unlink(missing_ok=True)
    with RecordFile(path) as file:
        file.append(records)
