"""JSON files that others wrote: read with a limit, and shown in messages without letting them fill the screen."""

from __future__ import annotations

import json
import reprlib
import sys
from pathlib import Path
from typing import Any

from bridge_mcore.errors import CheckpointError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def read_limited(path: Path, limit: int) -> bytes | None:
    """All of a file, or None if it has more than `limit` bytes: `/dev/zero` has no end. Raises OSError."""
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    return content if len(content) <= limit else None


def parse_json(text: str | bytes) -> Any:
    """What JSON says. ValueError, in words, also for what Python's reader gives up on otherwise."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8, at byte {error.start}") from None
    except ValueError:  # int() of thousands of digits
        raise ValueError(f"a number of more than {sys.get_int_max_str_digits()} digits") from None


def read_json_object(path: Path, limit: int = 64 << 20, missing: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. CheckpointError names the file and says what is wrong.

    missing: what to say if there is no such file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(missing or f"{path} does not exist")
        content = read_limited(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if content is None:
        raise CheckpointError(f"{path} has more than {limit} bytes, which no such file needs")
    try:
        found = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8, at byte {error.start}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} should hold one JSON object")
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
