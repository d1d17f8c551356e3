"""Load one set of problems: a file, a Hugging Face dataset or a generated task, always as a list of `Problem`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from bridge_mcore.config.schema import GYM, DataSource
from bridge_mcore.data.choice_formats import read_choice_row
from bridge_mcore.data.code_formats import detect_code_format, read_code_row
from bridge_mcore.data.knights import generate_knights
from bridge_mcore.data.messages import BadRow
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import DEFAULT_REWARD, Problem, problem_id
from bridge_mcore.data.rows import Row, RowFormat, detect_format, is_finished, reward_of
from bridge_mcore.data.sources import read_dataset, read_file
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


#: Formats whose rows hold what another reward than math reads: (how a row is read, that reward).
_READERS: dict[str, tuple[Callable[[Mapping[str, Any]], tuple[str, str]], str]] = {
    "code": (read_code_row, "code"),
    "choice": (read_choice_row, "choice"),
}


def _own_format(source: DataSource, row: Mapping[str, Any]) -> str | None:
    """The format with a reader of its own that a source has, or that `auto` sees in its first row."""
    if source.format in _READERS:
        return source.format
    if source.format != "auto" or source.prompt_field or source.answer_field:
        return None
    if detect_code_format(row) is not None:
        return "code"
    return "choice" if "Correct Answer" in row else None


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
    for place, row in rows:
        if not seen:
            seen, own = True, _own_format(source, row)
        try:
            if own is None:
                row_format = row_format or detect_format(row, source, place)
            # The one place where a problem's reward is decided.
            named = source.reward or reward_of(row, {*plugins, default_reward})
            reward = named or (_READERS[own][1] if own else default_reward)
            read = _read_own(str(own), row) if row_format is None else row_format.read(row, reward)
            number = checked_id(read.prompt, read.answer, read.trace, read.system)
            problem = Problem(number, read.prompt, read.answer, read.trace, name, reward, is_finished(row), read.system)
            if (twin := first_seen.setdefault((problem.id, read.trace), place)) != place:
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


def _read_own(name: str, row: Mapping[str, Any]) -> Row:
    try:
        return Row(*_READERS[name][0](row))
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
