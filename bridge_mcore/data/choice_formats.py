r"""Multiple-choice rows as (prompt, gold letter): GPQA's columns, and question / choices / answer as in MMLU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from bridge_mcore.errors import DataError

_INSTRUCTION = "Answer with the letter of the right choice in \\boxed{}."
_OPTION_COLUMNS = ("choices", "options", "endings")
_ANSWER_COLUMNS = ("answer", "answer_index", "answer_idx", "label", "answerKey", "target")


def gpqa(row: Mapping[str, Any], prompt: str | None = None, answer: str | None = None) -> tuple[str, str]:
    """A row of GPQA: the right answer and three wrong ones, put into an order that depends on nothing but their text.

    prompt, answer: columns of the question and of the right answer, where they have other names.

    Raises DataError for a missing column, or choices that are alike.
    """
    where = f"GPQA question {row.get('Record ID', '?')}"
    column = prompt or "Question"
    question = _text(row.get(column), where, column)
    columns = [answer or "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    options = [_text(row.get(column), where, column).strip() for column in columns]
    order = shuffled(question, options)
    return render(question, order, where), ascii_uppercase[order.index(options[0])]


def with_options(row: Mapping[str, Any], prompt: str | None = None, answer: str | None = None) -> tuple[str, str]:
    """A row with a question, its choices in order, and the right one as index from 0, as letter or as text.

    Choices are a list (MMLU), a dict from letter to text, or ARC's dict of lists `text` and `label`; a question may be
    ARC's too. prompt, answer: as in `gpqa`. Raises DataError for what cannot be read.
    """
    column = prompt or _question_column(row)
    question = _text(row.get(column), "this row", column)
    where = f"'{question[:50]}'"
    listed, found = _listed(row)
    if listed is None:
        raise DataError(f"{where}: no column {', '.join(_OPTION_COLUMNS)}; found {', '.join(map(str, row))}")
    labels, options = _options(found, where, listed)
    if (key := answer or next((name for name in _ANSWER_COLUMNS if row.get(name) is not None), None)) is None:
        raise DataError(f"{where}: no column {', '.join(_ANSWER_COLUMNS)}; found {', '.join(map(str, row))}")
    return render(question, options, where), ascii_uppercase[_index(row.get(key), labels, options, where, key)]


def read_choice_row(row: Mapping[str, Any], prompt: str | None = None, answer: str | None = None) -> tuple[str, str]:
    """(prompt, gold letter) of a row of either kind, told by its columns; prompt, answer: as in `gpqa`."""
    return (gpqa if _is_gpqa(row) else with_options)(row, prompt, answer)


def holds_choices(row: Mapping[str, Any], prompt: str | None = None) -> bool:
    """Whether a row's columns show choices that its question does not show itself."""
    if _is_gpqa(row):
        return True
    question = row.get(prompt or _question_column(row))
    column, found = _listed(row)
    if column is None or not isinstance(question, str):
        return False
    try:
        options = _options(found, "", column)[1]
    except (DataError, TypeError):
        return False
    return len(options) > 1 and not all(option in question for option in options)


def _is_gpqa(row: Mapping[str, Any]) -> bool:
    return "Correct Answer" in row or "Incorrect Answer 1" in row


def _listed(row: Mapping[str, Any]) -> tuple[str | None, Any]:
    """(name of the column of choices, its value); choices in columns A, B, … are a mapping; (None, None) without."""
    if (name := next((name for name in _OPTION_COLUMNS if row.get(name) is not None), None)) is not None:
        return name, row[name]
    letters = list(takewhile(lambda letter: isinstance(row.get(letter), str), ascii_uppercase))
    return ("A", {letter: row[letter] for letter in letters}) if len(letters) > 1 else (None, None)


def _question_column(row: Mapping[str, Any]) -> str:
    return next((name for name in ("question", "prompt", "problem") if name in row), "question")


def render(question: str, options: Sequence[str], where: str) -> str:
    """The prompt: question, lettered options, what to answer."""
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise DataError(f"{where}: {len(options)} choices; there must be 2 to {len(ascii_uppercase)}")
    if len(set(options)) < len(options):
        raise DataError(f"{where}: two of its choices are the same text")
    lines = [f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question.strip(), "", *lines, "", _INSTRUCTION])


def shuffled(question: str, options: Sequence[str]) -> list[str]:
    """The options ordered by a hash of question and option: the same everywhere, and independent of the rest."""
    return sorted(options, key=lambda option: hashlib.sha256(json.dumps([question, option]).encode()).digest())


def _options(value: Any, where: str, column: str) -> tuple[list[str], list[str]]:
    if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
        labels, options = [str(label) for label in value["label"]], list(value["text"])
    elif isinstance(value, Mapping):
        labels, options = [str(key) for key in value], list(value.values())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        labels, options = list(ascii_uppercase[: len(value)]), list(value)
    else:
        raise DataError(f"{where}: '{column}' must be a list or a mapping, this is a {type(value).__name__}")
    if len(labels) != len(options):
        raise DataError(f"{where}: '{column}' has {len(labels)} labels and {len(options)} texts")
    return labels, [str(option).strip() for option in options]


def _index(value: Any, labels: list[str], options: list[str], where: str, column: str) -> int:
    found = None
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str):
        text = value.strip()
        if text in labels:  # before digits: ARC labels some choices 1, 2, 3, 4
            found = labels.index(text)
        elif text.upper() in labels:
            found = labels.index(text.upper())
        elif text in options:
            found = options.index(text)
        elif text.isdecimal():
            found = int(text)
    if found is None or not 0 <= found < len(options):
        raise DataError(
            f"{where}: '{column}' is {str(value)[:40]!r}; it must be an index from 0 to {len(options) - 1}, one of the "
            f"letters {', '.join(labels)}, or the text of a choice"
        )
    return found


def _text(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: '{column}' must be text, this is {'missing' if value is None else repr(value)[:40]}")
    return value
