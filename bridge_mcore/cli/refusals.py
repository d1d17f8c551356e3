"""Errors of the system in the words of whoever can mend them: one place for all commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge_mcore.config.json_file import one_line
from bridge_mcore.errors import ConfigError

_ELSEWHERE = "; choose another place"
#: Errors that the state of the machine or of the user's files causes, never a program, and what to do about them.
_MENDS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; mend its permissions, or choose another place"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "; raise the limit of open files, for example with ulimit -n 4096"),
    errno.EFBIG: "; raise the limit of a file's size (ulimit -f), or choose another place",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.ELOOP: "; give what is meant, without symbolic links",
    errno.EISDIR: "; give a file",
    errno.ENOTDIR: "; a part of this path is a file" + _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.EIO: _ELSEWHERE,
}
#: Errors that a program's own mistake can cause as well: the user's only where the path is one that was given.
_OF_GIVEN_PATHS = {
    errno.ENOENT: "; check its name",
    errno.EEXIST: "; a part of this path is a file" + _ELSEWHERE,
    errno.ENOTEMPTY: _ELSEWHERE,
    errno.ENXIO: _ELSEWHERE,
    errno.ENODEV: _ELSEWHERE,
    errno.EINVAL: _ELSEWHERE,
}
_WITHOUT_PATH = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG)


def refusal(error: OSError, arguments: Sequence[str]) -> ConfigError | None:
    """What to say of an error of the system that the user can mend; None of one that is a mistake of the program.

    Args:
        arguments: of the command line.
    """
    number = error.errno or 0
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return ConfigError(f"{reason}{_MENDS[number]}") if number in _WITHOUT_PATH else None
    path = os.fsdecode(error.filename)
    if number in _MENDS and not _ours(path):
        mend = _MENDS[number]
    elif number in _OF_GIVEN_PATHS and any(_related(path, text) for text in arguments):
        mend = _OF_GIVEN_PATHS[number]
    else:
        return None
    return ConfigError(f"{one_line(path, 200)} cannot be used: {reason}{mend}")


def _ours(path: str) -> bool:
    """Whether it is a file of the installation: nothing that a user gives lies there."""
    return any(_below(path, place) for place in (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])))


def _related(path: str, argument: str) -> bool:
    """Whether an argument (a path, or `key=path`) is this path, below it or around it."""
    given = os.path.expanduser(argument.rpartition("=")[2])
    return bool(given) and (_below(path, given) or _below(given, path))


def _below(path: str, place: str) -> bool:
    path, place = os.path.abspath(path), os.path.abspath(place)
    return path == place or path.startswith(place.rstrip("/") + "/")
