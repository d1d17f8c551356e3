r"""What the columns of a row mean: GSM8K's `#### n`, MATH-like solutions with a `\boxed` answer, or named fields.

A column may lie inside another (`reward_model.ground_truth`, `messages.0.content`), and prompt and trace may be lists
of chat messages, as in OpenR1-Math-46k: then the prompt is what the user says and the trace what the assistant answers.
Such a list's system message is left out: it belongs to the template of whoever published it, and ours puts its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.rewards import reward_problem, unnamed_plugin
from bridge_mcore.config.schema import DataSource
from bridge_mcore.errors import ConfigError, DataError

#: Column names in use, the likeliest first (MATH, GSM8K, LIMR; OlympiadBench, OpenMathInstruct; DeepMath-103K; verl).
PROMPT_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth")
TRACE_COLUMNS = ("solution", "trace", "generated_solution", "r1_solution_1", "target")
#: The column that names the reward of a row (see :attr:`bridge_mcore.data.problem.Problem.reward`).
REWARD_COLUMN = "reward"
#: False in a row whose trace was cut: no end token follows it.
FINISHED_COLUMN = "finished"

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)


class BadRow(ValueError):
    """A row that is no usable problem; the text says why, the caller knows where."""


@dataclass(frozen=True)
class RowFormat:
    """How the rows of one source become problems. Columns that are None do not exist."""

    kind: Literal["gsm8k", "math", "fields"]
    prompt: str
    answer: str | None
    trace: str | None

    def read(self, row: Mapping[str, Any]) -> tuple[str, str, str | None]:
        """(prompt, answer, trace) of a row. Raises BadRow where prompt or answer is missing or of the wrong type."""
        prompt = question_text(row, self.prompt)
        trace = trace_text(column_of(row, self.trace), self.trace) if self.trace else None
        if self.kind == "gsm8k":
            worked, answer = _gsm8k(column_of(row, self.answer or "answer"), self.answer or "answer")
            return prompt, answer, trace or worked
        answer = _answer_text(column_of(row, self.answer), self.answer) if self.answer else ""
        if self.kind == "math" and trace is not None:
            if not answer:
                answer = (last_boxed(trace) or "").strip()
            elif "\\boxed" not in trace and is_finished(row):
                # A trace has to teach the form that the verifier reads.
                trace = f"{trace}\nThe answer is \\boxed{{{answer}}}."
        if not answer:
            column = f"'{self.answer}' is empty" if self.answer else f"no \\boxed{{…}} in '{self.trace}'"
            raise BadRow(f"it has no answer ({column})")
        return prompt, answer, trace


def question_text(row: Mapping[str, Any], column: str) -> str:
    """The problem in a column. Raises BadRow where it is missing, empty or no text."""
    prompt = column_of(row, column)
    if is_messages(prompt):
        prompt = _said(prompt, "user", column)
    if not isinstance(prompt, str):
        found = "nothing" if prompt is None else f"a {type(prompt).__name__}"
        raise BadRow(f"its prompt ('{column}') must be text, this is {found}")
    if not prompt.strip():
        raise BadRow(f"its prompt ('{column}') is empty")
    return prompt


def reward_of(row: Mapping[str, Any], plugins: Collection[str] = ()) -> str | None:
    """The reward that a row names, or None: a number in that column is somebody's score, not a name.

    Raises BadRow for one that does not exist, and for code that is not among the `plugins` of the user's settings.
    """
    value = row.get(REWARD_COLUMN)
    if not isinstance(value, str) or not value.strip():
        return None
    if problem := reward_problem(value) or unnamed_plugin(value, plugins):
        raise BadRow(problem)
    return value


def is_finished(row: Mapping[str, Any]) -> bool:
    """Whether a row's trace is whole, as all are but those that `data prepare` has cut."""
    return row.get(FINISHED_COLUMN) is not False


_MISSING = object()


def column_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or None. Where no column has that name, dots lead into columns and numbers into lists."""
    found = _look_up(row, name)
    return None if found is _MISSING else found


def _look_up(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return _MISSING
    return found


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def _said(messages: list[Mapping[str, Any]], role: str, column: str) -> str:
    """What the one message of a role says. Raises BadRow where there are several, or none."""
    said = [message.get("content") for message in messages if message["role"] == role]
    if len(said) != 1:
        raise BadRow(f"'{column}' holds {len(said)} messages of the {role}; a problem has one question and one answer")
    if isinstance(said[0], list):  # content in parts
        said = ["".join(str(part.get("text", "")) for part in said[0] if isinstance(part, Mapping))]
    if not isinstance(said[0], str):
        raise BadRow(f"the {role}'s message in '{column}' must be text, this is a {type(said[0]).__name__}")
    return said[0]


def detect_format(row: Mapping[str, Any], source: DataSource, place: str) -> RowFormat:
    """The format of a source from its settings and its first row.

    `prompt_field`, `answer_field` and `trace_field` name columns in every format; the others are found by name.
    Raises DataError listing the columns found, ConfigError if `format: fields` lacks its fields.
    """
    fields = {"prompt": source.prompt_field, "answer": source.answer_field, "trace": source.trace_field}
    for key, field in fields.items():
        if field is not None and _look_up(row, field) is _MISSING:
            raise DataError(f"{place}: no column '{field}' ({key}_field){nearest(field, list(row))}; {_found(row)}")
    if source.format == "fields":
        if source.prompt_field is None or source.answer_field is None:
            raise ConfigError("format: fields needs prompt_field and answer_field (and trace_field for SFT)")
        return RowFormat("fields", source.prompt_field, source.answer_field, source.trace_field)

    prompt = source.prompt_field or _first(PROMPT_COLUMNS, row)
    answer = source.answer_field or _first(ANSWER_COLUMNS, row)
    trace = source.trace_field or _first(TRACE_COLUMNS, row)
    if trace == "target" and source.trace_field is None and not is_messages(row[trace]):
        trace = None  # many other sets have a column of that name
    given = None if answer is None else column_of(row, answer)
    looks_gsm8k = isinstance(given, str) and "####" in given
    if prompt is None or (answer is None and trace is None):
        missing = "prompt" if prompt is None else "answer"
        wanted = PROMPT_COLUMNS if prompt is None else ANSWER_COLUMNS
        raise DataError(
            f"{place}: cannot tell which column is the {missing}; {_found(row)}, looked for {', '.join(wanted)}. "
            f"Set {missing}_field on this data source"
        )
    if source.format == "gsm8k" or (source.format == "auto" and looks_gsm8k):
        return RowFormat("gsm8k", prompt, answer, source.trace_field)
    return RowFormat("math", prompt, answer, trace)


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` whose braces balance, or None."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for match in _BRACE_OR_ESCAPE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return text[start : match.start()]
    return None


def _gsm8k(value: Any, column: str) -> tuple[str, str]:
    """(worked solution ending in a boxed answer, answer) of GSM8K's `steps #### n`."""
    if not isinstance(value, str) or "####" not in value:
        raise BadRow(f"it has no answer ('{column}' must end in '#### n')")
    steps, _, answer = value.rpartition("####")
    answer = answer.strip().lstrip("$").replace(",", "")
    if not answer:
        raise BadRow(f"it has no answer (nothing follows '####' in '{column}')")
    steps = _CALCULATOR.sub("", steps).strip()
    return f"{steps}\nThe answer is \\boxed{{{answer}}}.".lstrip(), answer


def _answer_text(value: Any, column: str) -> str:
    """A gold answer as text: whole floats lose their `.0`, a list of answers is joined, `$…$` is taken off."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        text = value.strip()
        inner = text.strip("$")
        return inner.strip() if text[:1] == text[-1:] == "$" and "$" not in inner else text
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    if isinstance(value, list):
        return ", ".join(filter(None, (_answer_text(item, column) for item in value)))
    raise BadRow(f"its answer ('{column}') must be text or a number, this is a {type(value).__name__}")


def trace_text(value: Any, column: str) -> str | None:
    """A trace without white space around it; of several solutions the first; None where there is none."""
    if is_messages(value):
        value = _said(value, "assistant", column)
    if isinstance(value, list):
        value = next((item for item in value if item), None)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow(f"its trace ('{column}') must be text, this is a {type(value).__name__}")
    return value.strip() or None


def _first(names: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    return next((name for name in names if _look_up(row, name) is not _MISSING), None)


def _found(row: Mapping[str, Any]) -> str:
    return f"columns found: {', '.join(map(str, row)) or 'none'}"
