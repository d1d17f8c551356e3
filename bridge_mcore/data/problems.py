"""Load one set of problems: a file, a Hugging Face dataset or a generated task, always as a list of `Problem`."""

from __future__ import annotations

import logging
import re

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problem import Problem, problem_id
from bridge_mcore.data.rows import BadRow, RowFormat, detect_format
from bridge_mcore.data.sources import read_dataset, read_file
from bridge_mcore.data.tasks import generate_problems
from bridge_mcore.errors import ConfigError, DataError

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


def load_problems(source: DataSource) -> list[Problem]:
    """All problems of a source, in the order of its rows.

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
    if source.task is not None:
        return generate_problems(source, name)
    return _load_rows(source, name)


def _load_rows(source: DataSource, name: str) -> list[Problem]:
    rows = read_dataset(source) if source.path is None else read_file(source.path, source.limit)
    row_format: RowFormat | None = None
    problems: list[Problem] = []
    first_seen: dict[tuple[str, str | None], str] = {}
    skipped: list[str] = []
    for place, row in rows:
        row_format = row_format or detect_format(row, source, place)
        try:
            prompt, answer, trace = row_format.read(row)
            problem = Problem(_checked_id(prompt, answer, trace), prompt, answer, trace, name)
            if (twin := first_seen.setdefault((problem.id, trace), place)) != place:
                raise BadRow(f"it repeats {twin} (id {problem.id})")
        except BadRow as error:
            if source.bad_rows == "error":
                raise DataError(f"{place}: {error}; mend the row, or set bad_rows: skip on this data source") from None
            skipped.append(f"{place}: {error}")
            continue
        problems.append(problem)
    where = str(source.path if source.path is not None else source.dataset)
    if row_format is None:
        raise DataError(f"{where} holds no rows; at least one problem is needed")
    if not problems:
        raise DataError(f"{where}: every one of its {len(skipped)} rows was skipped; the first: {skipped[0]}")
    if skipped:
        _log.warning("%s: skipped %d of %d rows; the first: %s", where, len(skipped), len(skipped) + len(problems),
                     skipped[0])  # fmt: skip
    return problems


def _checked_id(prompt: str, answer: str, trace: str | None) -> str:
    try:
        (trace or "").encode()
        return problem_id(prompt, answer)
    except UnicodeEncodeError as error:
        # JSON can carry half of a surrogate pair, which no tokenizer takes.
        raise BadRow(f"it holds invalid Unicode ({error.reason})") from None
