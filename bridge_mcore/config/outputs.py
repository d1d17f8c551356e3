"""Whether what a command will write can be made: told before its work begins, not after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bridge_mcore.config.json_file import one_line

_SHOWN = 200  # characters of a path
_LONGEST = 3500  # bytes of a path that others are put into: PATH_MAX is 4096


def directory_problem(path: Path) -> str | None:
    """Why nothing can be written into the directory `path`, which may be still to be made; None if it can.

    It is tried, for permissions tell little of root, of read-only file systems and of /proc; nothing is left behind.
    """
    try:
        if os.path.realpath(path) == path.absolute().anchor:
            return "it is the root of the file system; choose a directory in it"
        standing = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
        if not standing.exists():
            return f"{one_line(standing, _SHOWN)} is a symbolic link to nowhere; choose another directory"
        if not standing.is_dir():
            return f"{one_line(standing, _SHOWN)} is a file; choose another directory"
        if len(os.fsencode(path.absolute())) > _LONGEST:
            return f"its path has more than {_LONGEST} bytes, too long for files in it; choose a shorter one"
        missing = len(path.absolute().parts) - len(standing.absolute().parts)
        longest = os.pathconf(standing, "PC_NAME_MAX")
        if any(len(os.fsencode(name)) > longest for name in path.absolute().parts[-missing:] if missing):
            return f"a name in it is longer than {longest} bytes; choose a shorter one"
        os.rmdir(tempfile.mkdtemp(prefix=".bridge-mcore-", dir=standing))
    except OSError as error:
        where = f" in {one_line(standing, _SHOWN)}" if error.filename and "standing" in locals() else ""
        return f"nothing can be made{where} ({error.strerror}); choose another directory"
    return None


def file_problem(path: Path) -> str | None:
    """As :func:`directory_problem`, for a file; one that is there is replaced."""
    try:
        if path.is_dir():
            return "it is a directory; give a file"
        if path.exists():
            return None if os.access(path, os.W_OK) else "no permission to write it; choose another file"
    except OSError as error:
        return f"it cannot be used ({error.strerror}); choose another file"
    return directory_problem(path.parent)
