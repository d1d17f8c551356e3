"""Directories that appear complete or not at all: what is said when the disk, or a limit, gets in the way."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.errors import TrainingError


class RustError(Exception):
    """As safetensors and tokenizers raise it."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EFBIG, "File too large"), r"model could not be written: .*File too large"),
        (
            RustError("Error while serializing: I/O error: File too large (os error 27)"),
            r"could not be .*File too large",
        ),
        (RustError("Permission denied (os error 13)"), r"model could not be written: .*Permission denied"),
        (RustError("I/O error: No space left on device (os error 28)"), "the disk is full: .*model was not written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    ],
)
def test_errors_of_the_system(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        with atomic_directory(tmp_path / "model"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RustError, match="no header"):
        with atomic_directory(tmp_path / "model"):
            raise RustError("there is no header")
    assert list(tmp_path.iterdir()) == []
