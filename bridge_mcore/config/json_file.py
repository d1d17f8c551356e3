"""JSON files that others wrote: read with a limit, and shown in messages without letting them fill the screen."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from bridge_mcore.errors import CheckpointError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def read_json_object(path: Path, limit: int = 64 << 20, missing: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. CheckpointError names the file and says what is wrong.

    missing: what to say if there is no such file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(missing or f"{path} does not exist")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise CheckpointError(f"{path} has more than {limit} bytes, which no such file needs")
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8, at byte {error.start}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply") from error
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
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
