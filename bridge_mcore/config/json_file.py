"""JSON files that others wrote: read with a limit, and shown in messages without letting them fill the screen."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge_mcore.errors import BridgeError, CheckpointError

#: Deepest nesting that is taken: whoever walks over what was read, or writes it again, recurses as deep.
MAX_DEPTH = 200
_NESTED = (dict, list)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class BadJson(ValueError):
    """Text that is no JSON, or more than is believed; as text one line, which says what is wrong.

    Attributes:
        line: in which line of the text, from 1; None where that is not known.
        reason: what `json` says is wrong; empty where the text is JSON, but not taken.
    """

    def __init__(self, text: str, line: int | None = None, reason: str = "") -> None:
        super().__init__(text)
        self.line, self.reason = line, reason


def read_limited(path: Path, limit: int) -> bytes | None:
    """All of a file, or None if it has more than `limit` bytes: `/dev/zero` has no end. Raises OSError."""
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    return content if len(content) <= limit else None


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a JSON text from outside says: the one place where such text is parsed.

    Args:
        pairs: as json's `object_pairs_hook`; what it raises is a BadJson too, if it is a ValueError.
    Raises:
        BadJson: it is no JSON or no UTF-8, is nested deeper than MAX_DEPTH, holds a whole number of more digits than
            Python reads, or does not fit into memory.
    """
    try:
        found = json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=pairs)
        deep = _is_deep(found)
    except UnicodeDecodeError as error:
        raise BadJson(f"not UTF-8, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadJson(f"invalid JSON: {error.msg} (column {error.colno})", error.lineno, error.msg) from None
    except RecursionError:
        deep = True
    except MemoryError:
        raise BadJson("larger than the memory that is free") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise BadJson(one_line(error)) from None
        raise BadJson(f"a whole number in it has more than {sys.get_int_max_str_digits()} digits") from None
    if deep:
        raise BadJson(f"nested too deeply: {MAX_DEPTH} levels are read")
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that stands there twice: json would take the last and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return found


def _is_deep(found: Any) -> bool:
    """Whether lists and objects lie in one another more than MAX_DEPTH deep."""
    level = [found] if isinstance(found, _NESTED) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, _NESTED)
        ]
    return bool(level)


def read_json(
    path: Path, limit: int = 64 << 20, missing: str | None = None, kind: type[BridgeError] = CheckpointError
) -> Any:
    """What a JSON file of at most `limit` bytes says. Raises `kind` naming the file and what is wrong with it.

    missing: what to say if there is no such file.
    """
    try:
        if not path.is_file():
            raise kind(f"{path} is no file" if path.exists() else missing or f"{path} does not exist")
        content = read_limited(path, limit)
    except OSError as error:
        raise kind(f"{one_line(path)} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise kind(f"{path} has more than {limit} bytes, which no such file needs")
    try:
        return parse_json(content)
    except BadJson as error:
        place = f", line {error.line}" if error.line else ""
        raise kind(f"{path}{place}: {error}; fetch or write the file again") from error


def read_json_object(
    path: Path, limit: int = 64 << 20, missing: str | None = None, kind: type[BridgeError] = CheckpointError
) -> dict[str, Any]:
    """As `read_json`, of a file that must hold one JSON object."""
    found = read_json(path, limit, missing, kind)
    if not isinstance(found, dict):
        raise kind(f"{path} should hold one JSON object, and holds a {type(found).__name__}")
    return found


def shown(value: Any) -> str:
    """A value of such a file as one short line of printable characters."""
    return _SHORT.repr(value)


def one_line(error: object, limit: int = 300) -> str:
    """A message as one line of at most `limit` characters."""
    return printable(" ".join(str(error).split()), limit)


def printable(text: str, limit: int) -> str:
    """At most `limit` characters of a text, those that a terminal would obey or could not print as escapes."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
