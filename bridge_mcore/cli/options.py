"""What options and arguments of all commands have in common: paths, and the largest numbers that mean something."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeVar

import typer

from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.types import checked_text, expanded

#: As in configurations (config.types).
MOST_ROWS = 1_000_000_000
MOST_COUNT = 1_000_000
MOST_PROCESSES = 100_000
MOST_TOKENS = 100_000_000
MOST_SECONDS = 1e7
HOTTEST = 1000.0

#: A path with one of these errors leads nowhere, whatever it is for; another one may still have to be made.
_NOWHERE = (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)

Given = TypeVar("Given", Path, Path | None, list[Path])


def user_text(value: str | None) -> str | None:
    """Text as typed. BadParameter for what is too long, or no text."""
    try:
        return None if value is None else checked_text(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def announce(text: str) -> None:
    """Say what takes a while, before imports of many seconds begin; aside, where standard output holds results."""
    typer.echo(f"· {text} …", err=True)


def user_path(value: Given) -> Given:
    """A path, or several, as typed, with `~` spelt out. BadParameter for what no file system takes."""
    if isinstance(value, list):
        return [user_path(path) for path in value]
    if value is None:
        return value
    try:
        path = Path(str(expanded(value)))
        os.stat(path)
    except ValueError as error:
        raise typer.BadParameter(f"{one_line(value, 200)}: {error}") from None
    except OSError as error:
        if error.errno in _NOWHERE:
            raise typer.BadParameter(f"{one_line(value, 200)}: {error.strerror}; give another path") from None
    return path
