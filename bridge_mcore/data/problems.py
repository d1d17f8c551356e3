"""Load one set of problems: a file, a Hugging Face dataset or a generated task, always as a list of `Problem`."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from bridge_mcore.config.data_checks import unread_fields
from bridge_mcore.config.schema import GYM, DataSource
from bridge_mcore.data.choice_formats import holds_choices, read_choice_row
from bridge_mcore.data.code_formats import detect_code_format, read_code_row
from bridge_mcore.data.knights import generate_knights
from bridge_mcore.data.messages import BadRow
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import DEFAULT_REWARD, Problem, problem_id
from bridge_mcore.data.rows import Row, RowFormat, detect_format, is_finished, reward_of, trace_column, traced
from bridge_mcore.data.sources import peek, read_dataset, read_file
from bridge_mcore.data.tasks import generate_problems
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.monitoring.text import visible

__all__ = ["Problem", "load_problems", "problem_id", "source_name"]

_log = logging.getLogger(__name__)


def source_name(source: DataSource) -> str:
    """What metrics and records call this set: its `name`, or one made of file, dataset or task and split."""
    if source.name:
        return source.name
    if source.path is not None:
        folder = source.path.expanduser().absolute().parent.name
        return f"{folder}-{source.path.stem}" if folder else source.path.stem
    # "train[:100]" is a split of `datasets`; a metric's name has letters and digits only.
    split = re.sub(r"[^\w.]+", "-", source.split).strip("-")
    if source.dataset is not None:
        return f"{source.dataset.rstrip('/').split('/')[-1]}-{split}"
    return f"{source.task}-{split}"


def load_problems(
    source: DataSource,
    default_reward: str = DEFAULT_REWARD,
    plugins: Collection[str] = (),
    notes: Notes | None = None,
    repeats: Literal["bad", "once"] = "bad",
) -> list[Problem]:
    """All problems of a source, in the order of its rows.

    Args:
        default_reward: what judges problems where neither the source, nor the row, nor its format says.
        plugins: rewards that are code and that rows may name, since the user's settings do.
        notes: gets what was done to rows, counted.
        repeats: a row that repeats another is a bad row; or the problem is there once, and it is noted.

    Raises:
        DataError: the file or dataset is missing, unreadable or empty, or a row is no usable problem (and
            `bad_rows` is not "skip"); the message names file and row.
        ConfigError: the source names none or several of path, dataset and task, or a generated task gets a split or
            difficulty that it does not have.
    """
    given = [key for key in ("path", "dataset", "task") if getattr(source, key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"a data source needs exactly one of path (a file), dataset (a Hugging Face id) and task (generated); "
            f"this one has {' and '.join(given) if given else 'none'}"
        )
    name = source_name(source)
    notes = Notes() if notes is None else notes
    if source.task is not None:
        found = _generated(source, name)
        found = found if source.reward is None else [replace(p, reward=source.reward) for p in found]
    else:
        found = _load_rows(source, name, default_reward, plugins, notes, repeats)
    notes["rows"] += len(found)
    notes["with_trace"] += sum(problem.trace is not None for problem in found)
    return found


def _generated(source: DataSource, name: str) -> list[Problem]:
    task, size = str(source.task), min(source.size, source.limit or source.size)
    if task == "knights":
        return generate_knights(source.seed, source.split, source.difficulty, size, name)
    if task.startswith(GYM):
        from bridge_mcore.data.gym import generate_gym  # an optional package

        return generate_gym(task.removeprefix(GYM), source.seed, source.split, size, source=name)
    return generate_problems(source, name)


#: Formats whose rows hold what another reward of the same name than math reads.
_OWN = ("code", "choice")


def own_format(source: DataSource, row: Mapping[str, Any]) -> str | None:
    """The format with a reader of its own that a source has, or that `auto` sees in a row."""
    if source.format in _OWN:
        return source.format
    if source.format != "auto":
        return None
    if not (source.prompt_field or source.answer_field) and detect_code_format(row) is not None:
        return "code"
    return "choice" if holds_choices(row, source.prompt_field) else None


def _load_rows(
    source: DataSource,
    name: str,
    default_reward: str,
    plugins: Collection[str],
    notes: Notes,
    repeats: Literal["bad", "once"],
) -> list[Problem]:
    rows = read_dataset(source) if source.path is None else read_file(source.path, source.limit)
    row_format: RowFormat | None = None
    own: str | None = None
    seen = False
    problems: list[Problem] = []
    first_seen: dict[tuple[str, str | None], str] = {}
    skipped: list[str] = []
    first, rows = peek(rows)
    for place, row in rows:
        if not seen:
            seen, own = True, own_format(source, row)
            if own == "code" and (unread := unread_fields(source)):
                raise ConfigError(f"data source {name}: {unread}")
            if own is None:
                row_format = detect_format(first, source)
        try:
            if (other := own_format(source, row)) != own:
                raise BadRow(
                    f"it looks like a row of format: {other or 'math'}, and the first row like one of "
                    f"{own or 'math'}; set format on this data source, or give each kind a file of its own"
                )
            # The one place where a problem's reward is decided.
            named = source.reward or reward_of(row, {*plugins, default_reward})
            reward = named or own or default_reward
            read = _read_own(source, str(own), row) if row_format is None else row_format.read(row, reward)
            number = checked_id(read.prompt, read.answer, read.trace, read.system)
            problem = Problem(number, read.prompt, read.answer, read.trace, name, reward, is_finished(row), read.system)
            told_by = problem.id, None if repeats == "once" else read.trace  # a trace is not asked for
            if (twin := first_seen.setdefault(told_by, place)) != place:
                if repeats == "once":
                    notes.add("repeated", f"{place} repeats {twin}")
                    continue
                raise BadRow(f"it repeats {twin} (id {problem.id})")
        except BadRow as error:
            if source.bad_rows == "error":
                raise DataError(f"{place}: {error}; mend the row, or set bad_rows: skip on this data source") from None
            skipped.append(f"{place}: {error}")
            continue
        problems.append(problem)
        for key in read.notes:
            notes.add(key, str(problem))
    where = str(source.path if source.path is not None else source.dataset)
    if not seen:
        raise DataError(f"{where} holds no rows; at least one problem is needed")
    if not problems:
        raise DataError(f"{where}: every one of its {len(skipped)} rows was skipped; the first: {skipped[0]}")
    if skipped:
        notes["skipped"] += len(skipped)
        _log.warning("%s: skipped %d of %d rows; the first: %s", where, len(skipped), len(skipped) + len(problems),
                     visible(skipped[0]))  # fmt: skip
    return problems


def _read_own(source: DataSource, name: str, row: Mapping[str, Any]) -> Row:
    try:
        if name == "code":
            question, gold = read_code_row(row)
        else:
            question, gold = read_choice_row(row, source.prompt_field, source.answer_field)
        column = source.trace_field or (trace_column(row) if name == "choice" else None)
        trace, notes = traced(row, column)
        return Row(question, gold, trace, notes=tuple(notes))
    except DataError as error:
        raise BadRow(str(error)) from None


def checked_id(prompt: str, answer: str, trace: str | None, system: str | None = None) -> str:
    """The problem's id. Raises BadRow for text that is not valid Unicode."""
    try:
        (trace or "").encode()
        return problem_id(prompt, answer, system)
    except UnicodeEncodeError as error:
        # JSON can carry half of a surrogate pair, which no tokenizer takes.
        raise BadRow(f"it holds invalid Unicode ({error.reason})") from None
