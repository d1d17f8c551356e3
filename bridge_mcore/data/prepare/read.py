"""Rows of a recipe's sources as items: prompt, answer, traces and difficulty, or the reason why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_mcore.config.rewards import plugins_among
from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.card import file_hash
from bridge_mcore.data.messages import BadRow
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.prepare.recipe import Origin, Recipe, data_source, local_path, trace_columns
from bridge_mcore.data.problem import DEFAULT_REWARD
from bridge_mcore.data.problems import checked_id, own_format, source_name
from bridge_mcore.data.rows import (
    PROMPT_COLUMNS,
    TRACE_COLUMNS,
    column_of,
    detect_format,
    is_finished,
    question_of,
    reward_of,
    trace_texts,
)
from bridge_mcore.data.sources import Placed, dataset_commit, files_of, peek, read_dataset, read_path
from bridge_mcore.errors import DataError

#: A prompt that holds one of these is already inside a chat template; training would put it into a second one.
_CHAT_MARKS = ("<|im_start|>", "<|start_header_id|>", "[INST]", "<start_of_turn>", "<|user|>", "<|User|>", "<|eot_id|>")
_R1_COLUMNS = ("r1_solution_1", "r1_solution_2", "r1_solution_3")


@dataclass(frozen=True, slots=True)
class Item:
    """One usable row. `traces` are texts in the order of their columns; `difficulty` is None where it is unknown."""

    prompt: str
    answer: str
    id: str
    source: str
    reward: str
    place: str
    difficulty: float | None
    traces: tuple[str, ...]
    system: str | None = None
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Left:
    """A row that is left out: at which stage, and why."""

    place: str
    stage: str
    reason: str


@dataclass
class Opened:
    """A source that is ready to be read, and what the card says about it."""

    key: str
    origin: Origin
    source: DataSource
    name: str
    facts: dict[str, Any]
    notes: Notes = field(default_factory=Notes)
    _stats: list[tuple[Path, tuple[int, int]]] = field(default_factory=list)

    def rows(self, streaming: bool) -> Iterator[Placed]:
        """(place, row) of every row. Raises DataError for what cannot be read."""
        if self.source.path is not None:
            yield from read_path(self.source.path, self.origin.limit)
        else:
            yield from read_dataset(self.source, streaming)

    def check_unchanged(self) -> None:
        """Raises DataError if a file is not the one that was hashed."""
        for path, before in self._stats:
            if _stat(path) != before:
                raise DataError(f"{path} changed while it was read; run it again when nothing writes the file")


def open_source(recipe: Recipe, key: str, origin: Origin) -> Opened:
    """Hash a source's files, or ask the hub for its commit. Raises DataError."""
    source = data_source(recipe, origin)
    name = source_name(source)
    if (path := local_path(recipe, origin)) is None:
        commit = dataset_commit(source)
        hub = {
            "dataset": source.dataset,
            "config": source.dataset_config,
            "split": source.split,
            "revision": origin.dataset_revision,
            "commit": commit,
        }
        source = source.model_copy(update={"dataset_revision": commit})
        return Opened(key, origin, source, name, {"key": key, "name": name, **hub})
    files = files_of(path)
    stats = [(file, _stat(file)) for file in files]
    listed: list[dict[str, Any]] = [{"path": str(f), "bytes": size, "sha256": file_hash(f)} for f, (size, _) in stats]
    facts: dict[str, Any] = {"path": str(path), "files": listed, "stands_for": origin.dataset}
    return Opened(key, origin, source, name, {"key": key, "name": name, **facts}, _stats=stats)


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return found.st_size, found.st_mtime_ns


def problems_of(opened: Opened, streaming: bool) -> Iterator[Item | Left]:
    """A source of problems, row by row. Raises DataError for a bad row unless `bad_rows: skip`, or if there is none."""
    row_format, none = None, True
    first, rows = peek(opened.rows(streaming))
    for place, row in rows:
        none = False
        if (left := _outside(opened.origin, row, place)) is not None:
            yield left
            continue
        if row_format is None:
            if own := own_format(opened.source, row):
                raise DataError(
                    f"{place}: data prepare reads no rows of format: {own}; train on the file itself, or set "
                    f"{opened.key}.format to how its columns are to be read"
                )
            row_format = detect_format(first, opened.source)
            columns = _trace_columns(opened.origin, row, row_format.trace)
        try:
            reward = opened.source.reward or reward_of(row, plugins_among([opened.source.reward])) or DEFAULT_REWARD
            read = row_format.read(row, reward)
            prompt = _without_suffix(read.prompt, opened.origin.prompt_suffix)
            # As they stand in the row: a box that reading adds to a solution would verify by itself.
            texts = [read.trace or ""] if row_format.kind == "gsm8k" else _texts(opened, row, columns)
            traces = tuple(t for text in texts if text and (t := _thinking(text, opened.origin.thinking)))
            number = checked_id(prompt, read.answer, "".join(traces), read.system)
        except BadRow as error:
            yield _bad(opened, place, error)
            continue
        mark = next((mark for mark in _CHAT_MARKS if mark in prompt), None)
        if mark is not None:
            yield Left(place, "inside a chat template", f"the prompt holds {mark}; take the template off first")
            continue
        difficulty = difficulty_of(row, opened.origin.difficulty_field)
        for key in read.notes:
            opened.notes.add(key)
        whole = is_finished(row)
        yield Item(prompt, read.answer, number, opened.name, reward, place, difficulty, traces, read.system, whole)
    if none:
        raise DataError(f"{opened.key} ({opened.name}) holds no rows; at least one problem is needed")


def traces_of(opened: Opened) -> Iterator[tuple[str, str, float | None, tuple[str, ...], bool] | Left]:
    """(place, question, difficulty, traces, whether they are whole) of a trace source, row by row."""
    column, columns = opened.origin.prompt_field, None
    for place, row in opened.rows(streaming=True):
        if (left := _outside(opened.origin, row, place)) is not None:
            yield left
            continue
        if columns is None:
            column = column or next((name for name in PROMPT_COLUMNS if name in row), None)
            columns = _trace_columns(opened.origin, row, None)
            if column is None or not columns:
                missing = "question (prompt_field)" if column is None else "traces (trace_fields)"
                raise DataError(
                    f"{place}: cannot tell which column holds the {missing}; columns found: "
                    f"{', '.join(row) or 'none'}. Set it on {opened.key}"
                )
        assert column is not None
        try:
            question, _ = question_of(row, column, answered=column in columns)
            texts = _texts(opened, row, columns)
            traces = tuple(t for text in texts if text and (t := _thinking(text, opened.origin.thinking)))
            checked_id(question, "", "".join(traces))
        except BadRow as error:
            yield _bad(opened, place, error)
            continue
        question = _without_suffix(question, opened.origin.prompt_suffix)
        yield place, question, difficulty_of(row, opened.origin.difficulty_field), traces, is_finished(row)


def _texts(opened: Opened, row: Mapping[str, Any], columns: list[str]) -> list[str]:
    """All traces of a row; a column that lists several is noted."""
    found = [trace_texts(column_of(row, column), column) for column in columns]
    if any(len(texts) > 1 for texts in found):
        opened.notes.add("several_traces")
    return [text for texts in found for text in texts]


def _trace_columns(origin: Origin, row: Mapping[str, Any], found: str | None) -> list[str]:
    if named := trace_columns(origin):
        return named
    if "r1_solution_1" in row:
        return [name for name in _R1_COLUMNS if name in row]
    known = found or next((name for name in TRACE_COLUMNS if name in row), None)
    return [known] if known else []


def _bad(opened: Opened, place: str, error: BadRow) -> Left:
    if opened.origin.bad_rows == "error":
        raise DataError(f"{place}: {error}; mend the row, or set {opened.key}.bad_rows=skip") from None
    return Left(place, "unusable row", str(error))


def _outside(origin: Origin, row: Mapping[str, Any], place: str) -> Left | None:
    if origin.only_field is None or origin.only_range is None:
        return None
    value = number_of(column_of(row, origin.only_field))
    low, high = origin.only_range
    if value is not None and low <= value <= high:
        return None
    shown = "nothing" if value is None else f"{value:g}"
    return Left(place, "outside only_range", f"{origin.only_field} is {shown}, wanted {low:g} to {high:g}")


def difficulty_of(row: Mapping[str, Any], column: str | None) -> float | None:
    """A row's difficulty; None where it is unknown, which DeepMath-103K writes as -1 or 0."""
    value = number_of(column_of(row, column)) if column else None
    return value if value is not None and value > 0 else None


def number_of(value: Any) -> float | None:
    """A number, also of text that holds one ("Level 5"); None for anything else."""
    if isinstance(value, str):
        found = re.search(r"-?\d+(?:\.\d+)?", value)
        return float(found[0]) if found else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _without_suffix(prompt: str, suffix: str | None) -> str:
    return prompt.rstrip().removesuffix(suffix.strip()).rstrip() if suffix else prompt


def _thinking(trace: str, policy: str) -> str:
    if "</think>" not in trace:
        return trace
    if policy == "strip":
        return trace.rpartition("</think>")[2].strip()
    return f"<think>\n{trace}" if policy == "open" and "<think>" not in trace else trace
