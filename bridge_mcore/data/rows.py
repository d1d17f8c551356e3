r"""What the columns of a row mean: GSM8K's `#### n`, MATH-like solutions with a `\boxed` answer, or named fields.

A column may lie inside another (`reward_model.ground_truth`, `messages.0.content`), and prompt and trace may be lists
of chat messages, as in OpenR1-Math-46k (:mod:`bridge_mcore.data.messages`): then the prompt is what the user says and
the trace what the assistant answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.rewards import PLUGIN, reward_problem, unnamed_plugin
from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.messages import BadRow, answer_in, beside_messages, messages_of, question_and_system
from bridge_mcore.data.problem import ANY_OF, DEFAULT_REWARD, answer_line
from bridge_mcore.data.sources import Placed
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.thoughts import after_thought

#: Column names in use, the likeliest first (MATH, GSM8K, LIMR; OlympiadBench, OpenMathInstruct; DeepMath-103K; verl).
PROMPT_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth")
TRACE_COLUMNS = ("solution", "trace", "generated_solution", "r1_solution_1", "target")
#: The column that names the reward of a row (see :attr:`bridge_mcore.data.problem.Problem.reward`).
REWARD_COLUMN = "reward"
#: False in a row whose trace was cut: no end token follows it.
FINISHED_COLUMN = "finished"

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_LAST_MARK = re.compile(r"(?<!#)####(?!#)[^\n]*[^\s#][^\n]*\s*\Z")
#: A number with separators between its thousands; not what stands in brackets, such as a point.
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)


#: Rewards that read the last box of an answer and nothing else: only for them may a trace be given one.
_BOX_REWARDS = ("math",)


@dataclass(frozen=True)
class Row:
    """What a row says. `notes` name what was done to it (keys of :mod:`bridge_mcore.data.notes`)."""

    prompt: str
    answer: str
    trace: str | None = None
    system: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowFormat:
    """How the rows of one source become problems. Columns that are None do not exist."""

    kind: Literal["gsm8k", "math", "fields"]
    prompt: str
    answer: str | None
    trace: str | None
    golds: Literal["all", "any"] = "all"
    system_messages: Literal["keep", "drop"] = "keep"
    #: the kind was found by the first rows
    guessed: bool = False

    def read(self, row: Mapping[str, Any], reward: str = DEFAULT_REWARD) -> Row:
        """What a row says. Raises BadRow where prompt or answer is missing or of the wrong type.

        reward: which one will judge; only one that reads boxes lets a trace without a box get one.
        """
        notes: list[str] = []
        prompt, system = question_of(row, self.prompt, answered=self.prompt == self.trace)
        if system is not None and self.system_messages == "drop":
            system = None
            notes.append("system_dropped")
        trace, further = traced(row, self.trace)
        notes += further
        given = column_of(row, self.answer) if self.answer else None
        reads_boxes = reward in _BOX_REWARDS
        if self.kind == "gsm8k":
            worked, answer = _gsm8k(given, self.answer or "answer", reads_boxes)
            notes += ["boxed"] if reads_boxes and trace is None else []
            return Row(prompt, answer, trace or worked, system, tuple(notes))
        as_it_is = reward.startswith(PLUGIN)
        answer = _answer_text(given, self.answer, self.golds, as_it_is) if self.answer else ""
        if isinstance(given, list) and len(given) > 1:
            notes.append("listed_golds" if self.golds == "all" else "any_listed_golds")
        if self.guessed and isinstance(given, str) and ends_in_mark(given):
            raise BadRow(
                f"its answer ('{self.answer}') ends in GSM8K's '#### n', and those of most rows do not; give such rows "
                "a file of their own, or set format on this data source"
            )
        if self.kind == "math" and trace is not None:
            if not answer:
                answer = (last_boxed(trace) or "").strip()
                notes += ["answer_of_trace"] if self.answer and answer else []
            elif reads_boxes and is_finished(row) and "\\boxed" not in after_thought(trace):
                # A trace has to teach the form that the verifier reads. In a thought that does not end, it reads none.
                boxed = trace + answer_line(answer)
                if after_thought(boxed):
                    trace = boxed
                    notes.append("boxed")
        if not answer:
            column = f"'{self.answer}' is empty" if self.answer else f"no \\boxed{{…}} in '{self.trace}'"
            raise BadRow(f"it has no answer ({column})")
        return Row(prompt, answer, trace, system, tuple(notes))


def question_of(row: Mapping[str, Any], column: str, answered: bool = False) -> tuple[str, str | None]:
    """(the problem in a column, its system message). Raises BadRow where it is missing, empty or no text.

    answered: the same column holds the trace, as the message of the assistant.
    """
    prompt, system = column_of(row, column), None
    if (messages := messages_of(prompt, column)) is not None:
        prompt, system = question_and_system(messages, column, answered)
        if beside := beside_messages(row):
            raise BadRow(f"'{beside}' beside its messages ('{column}') would be lost; only text is read")
    if not isinstance(prompt, str):
        found = "nothing" if prompt is None else f"a {type(prompt).__name__}"
        raise BadRow(f"its prompt ('{column}') must be text, this is {found}")
    if not prompt.strip():
        raise BadRow(f"its prompt ('{column}') is empty")
    return prompt, system


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


def detect_format(rows: Sequence[Placed], source: DataSource) -> RowFormat:
    """The format of a source from its settings and its first rows, (place, row) each; a column may lack in some.

    `prompt_field`, `answer_field` and `trace_field` name columns in every format; the others are found by name.
    Raises DataError listing the columns found, ConfigError if `format: fields` lacks its fields.
    """
    place, row = rows[0]
    fields = {"prompt": source.prompt_field, "answer": source.answer_field, "trace": source.trace_field}
    for key, field in fields.items():
        if field is not None and all(_look_up(other, field) is _MISSING for _, other in rows):
            raise DataError(f"{place}: no column '{field}' ({key}_field){nearest(field, list(row))}; {_found(row)}")
    how = source.golds, source.system_messages
    if source.format == "fields":
        if source.prompt_field is None or source.answer_field is None:
            raise ConfigError("format: fields needs prompt_field and answer_field (and trace_field for SFT)")
        return RowFormat("fields", source.prompt_field, source.answer_field, source.trace_field, *how)

    others = [other for _, other in rows]
    prompt = source.prompt_field or next(filter(None, (_first(PROMPT_COLUMNS, other) for other in others)), None)
    answer = source.answer_field or next(filter(None, (_first(ANSWER_COLUMNS, other) for other in others)), None)
    trace = source.trace_field or next(filter(None, map(trace_column, others)), None)
    golds = [] if answer is None else [column_of(other, answer) for other in others]
    marked = [isinstance(gold, str) and ends_in_mark(gold) for gold in golds]
    looks_gsm8k = 2 * sum(marked) > len(marked)
    if prompt is None or (answer is None and trace is None):
        missing = "prompt" if prompt is None else "answer"
        wanted = PROMPT_COLUMNS if prompt is None else ANSWER_COLUMNS
        raise DataError(
            f"{place}: cannot tell which column is the {missing}; {_found(row)}, looked for {', '.join(wanted)}. "
            f"Set {missing}_field on this data source"
        )
    if source.format == "gsm8k" or (source.format == "auto" and looks_gsm8k):
        return RowFormat("gsm8k", prompt, answer, source.trace_field, *how)
    return RowFormat("math", prompt, answer, trace, *how, guessed=source.format == "auto")


def trace_column(row: Mapping[str, Any]) -> str | None:
    """The column of a row that holds its trace, found by name; None if there is none."""
    found = _first(TRACE_COLUMNS, row)
    # Many other sets have a column of the name target.
    return None if found == "target" and messages_of(row[found], found) is None else found


def ends_in_mark(gold: str) -> bool:
    """Whether the last line of a text is GSM8K's `#### n`."""
    return _LAST_MARK.search(gold) is not None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` whose braces balance, or None."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for match in _BRACE_OR_ESCAPE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                return text[start : match.start()]
    return None


def _gsm8k(value: Any, column: str, boxed: bool) -> tuple[str, str]:
    """(worked solution, answer) of GSM8K's `steps #### n`; `boxed`: the solution ends in a box in place of the mark."""
    if not isinstance(value, str) or "####" not in value:
        raise BadRow(f"it has no answer ('{column}' must end in '#### n')")
    steps, _, answer = value.rpartition("####")
    answer = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), answer.strip().lstrip("$"))
    if "\n" in answer:
        raise BadRow(f"it has no answer (the last line of '{column}' must be '#### n')")
    if not answer:
        raise BadRow(f"it has no answer (nothing follows '####' in '{column}')")
    if not boxed:
        return value.strip(), answer
    steps = _CALCULATOR.sub("", steps).strip()
    return (steps + answer_line(answer)).lstrip(), answer


def _answer_text(value: Any, column: str, golds: Literal["all", "any"] = "all", as_it_is: bool = False) -> str:
    """A gold answer as text: `$…$` is taken off (unless `as_it_is`), a list is joined as `golds` says.

    A number is its shortest decimal.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        text = value.strip()
        inner = text.strip("$")
        if as_it_is:
            return text
        return inner.strip() if text[:1] == text[-1:] == "$" and "$" not in inner else text
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _decimal(value, column)
    if isinstance(value, list):
        if any(isinstance(item, list) for item in value):
            raise BadRow(f"its answer ('{column}') is a list of lists; give one list of right answers")
        texts = [_answer_text(item, column, as_it_is=as_it_is) for item in value]
        if not all(texts):
            if any(texts):
                raise BadRow(f"its list of answers ('{column}') holds an empty one; take it out")
            return ""
        return (ANY_OF if golds == "any" else ", ").join(texts)
    raise BadRow(
        f"its answer ('{column}') must be text or a number, this is a {type(value).__name__}; write it as text"
    )


def _decimal(value: int | float | Decimal, column: str) -> str:
    """The shortest decimal of a number, without exponent and without zeros at the end: 0.1, 27, 0.0000001."""
    if isinstance(value, int):
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not exact.is_finite():
        raise BadRow(f"its answer ('{column}') is {value}, no finite number; write it as text")
    text = format(exact, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def traced(row: Mapping[str, Any], column: str | None) -> tuple[str | None, list[str]]:
    """(the trace of a row, what was done to it)."""
    if column is None:
        return None, []
    raw = column_of(row, column)
    several = isinstance(raw, list) and messages_of(raw, column) is None and sum(map(bool, raw)) > 1
    return next(iter(trace_texts(raw, column, 1)), None), ["further_traces"] if several else []


def trace_texts(value: Any, column: str, most: int | None = None) -> list[str]:
    """The traces that a value holds, without white space around them: of a list of solutions each, at most `most`."""
    if (messages := messages_of(value, column)) is not None:
        value = answer_in(messages, column)
    found = [item for item in value if item][:most] if isinstance(value, list) else [value]
    for item in found:
        if item is not None and not isinstance(item, str):
            raise BadRow(f"its trace ('{column}') must be text, this is a {type(item).__name__}")
    return [text for item in found if item is not None and (text := item.strip())]


def _first(names: tuple[str, ...], row: Mapping[str, Any]) -> str | None:
    return next((name for name in names if _look_up(row, name) is not _MISSING), None)


def _found(row: Mapping[str, Any]) -> str:
    return f"columns found: {', '.join(map(str, row)) or 'none'}"
