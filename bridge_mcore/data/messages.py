"""Lists of chat messages in the columns of a row: one question, perhaps a system message, perhaps one answer.

A longer conversation, a picture or a call of a tool is refused, never cut to what would fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bridge_mcore.config.json_file import BadJson, once, parse_json

#: `developer` is OpenAI's newer name of the system's role.
SYSTEM_ROLES = ("system", "developer")
_ROLES = (*SYSTEM_ROLES, "user", "assistant")
#: Parts of a message that hold more of what was said, beside its content.
_BESIDE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio", "images",
           "name")  # fmt: skip
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(?:role|content)'\s*:")
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"')
#: The beginning of a message in JSON, also of text that was cut, in OpenAI's form and in ShareGPT's.
_MESSAGE = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:role|content|from|value)"\s*:\s*"')
#: Columns beside the messages that say more of the question.
_BESIDE_MESSAGES = ("images", "image", "videos", "audios", "tools", "functions")


class BadRow(ValueError):
    """A row that is no usable problem; the text says why, the caller knows where."""


def messages_of(value: Any, column: str) -> list[Mapping[str, Any]] | None:
    """The chat messages that a value is, as a list or as JSON text; None for any other value.

    Raises BadRow for messages in another form (ShareGPT's, as Python prints them, one alone, or JSON that is broken),
    which would otherwise be read as the question itself.
    """
    if isinstance(value, str):
        if _PYTHON_LIST.match(value):
            raise BadRow(f"'{column}' holds a list of messages as Python prints it; write it as JSON (json.dumps)")
        if not _JSON.match(value):
            return None
        try:
            value = parse_json(value, once)
        except BadJson as error:
            if _MESSAGE.match(value):
                raise BadRow(f"'{column}' holds chat messages as JSON that cannot be read ({error}); mend it") from None
            return None
        if isinstance(value, Mapping) and {"role", "content"} <= value.keys():
            raise BadRow(f"'{column}' holds one chat message as JSON; write a list of messages, or its content alone")
    listed = isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value)
    if listed and all({"from", "value"} <= m.keys() for m in value):
        raise BadRow(
            f"'{column}' holds messages in ShareGPT's form (from, value); write them as role and content, with the "
            "roles system, user and assistant"
        )
    if listed and all("role" in m for m in value):
        return list(value)
    return None


def beside_messages(row: Mapping[str, Any]) -> str | None:
    """The column of a row beside its messages that would be lost, such as pictures; None if there is none."""
    return next((name for name in _BESIDE_MESSAGES if row.get(name)), None)


def question_and_system(messages: list[Mapping[str, Any]], column: str, answered: bool) -> tuple[str, str | None]:
    """(what the user asks, what the system message says). Raises BadRow for any other conversation.

    answered: the assistant's message of the same list is read as the trace.
    """
    roles = _known_roles(messages, column)
    users, answers = roles.count("user"), roles.count("assistant")
    if users != 1 or answers > 1:
        raise BadRow(
            f"'{column}' holds {users} messages of the user and {answers} of the assistant; a problem has one question "
            "and one answer: give each turn a row of its own, or write the earlier turns into the question's text"
        )
    systems = [message for message, role in zip(messages, roles, strict=True) if role == "system"]
    if len(systems) > 1 or (systems and roles[0] != "system"):
        raise BadRow(f"'{column}' may hold one system message, at its beginning; join or move them")
    if answers and roles[-1] != "assistant":
        raise BadRow(f"'{column}' holds an answer before the question; a problem has one question, then one answer")
    if answers and not answered:
        raise BadRow(
            f"'{column}' holds an answer of the assistant that nothing would read; set trace_field: {column} to learn "
            "from it, or take it out of the list"
        )
    question = _content(messages[roles.index("user")], column)
    return question, _content(systems[0], column) if systems else None


def answer_in(messages: list[Mapping[str, Any]], column: str) -> str:
    """What the one message of the assistant says. Raises BadRow where there are several, or none."""
    roles = _known_roles(messages, column)
    if roles.count("assistant") != 1:
        raise BadRow(
            f"'{column}' holds {roles.count('assistant')} messages of the assistant; a problem has one question and "
            "one answer"
        )
    return _content(messages[roles.index("assistant")], column)


def _known_roles(messages: list[Mapping[str, Any]], column: str) -> list[str]:
    roles = [message["role"] for message in messages]
    for role in roles:
        if role not in _ROLES:
            raise BadRow(
                f"'{column}' holds a message of the role {str(role)[:40]!r}; only system, user and assistant are read: "
                "leave the row out, or write the message into the question's text"
            )
    return ["system" if role in SYSTEM_ROLES else role for role in roles]


def _content(message: Mapping[str, Any], column: str) -> str:
    said, role = message.get("content"), message["role"]
    if more := [key for key in _BESIDE if message.get(key)]:
        raise BadRow(f"the {role}'s message in '{column}' has {more[0]} beside its content; write it into the content")
    if isinstance(said, list):
        said = "".join(_part(part, role, column) for part in said)
    if not isinstance(said, str):
        raise BadRow(f"the {role}'s message in '{column}' must be text, this is a {type(said).__name__}")
    return said


def _part(part: Any, role: str, column: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadRow(f"the {role}'s message in '{column}' has a part of the type {str(kind)[:40]!r}; only text is read")
