"""Errors of the system: the user's get one line, the program's own keep their traceback."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from bridge_mcore.cli import options
from bridge_mcore.cli.main import main
from bridge_mcore.cli.refusals import refusal
from bridge_mcore.config import types
from tests.config.files import write

CONFIG = "model: {generated: {}}\nrollout: {max_new_tokens: 24}\ndata: {rl: {task: running_sums}, template: plain}\n"


def failure(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "path", "arguments", "message"),
    [
        (errno.ENOSPC, "/runs/a/config.yaml", (), "/runs/a/config.yaml cannot be used: No space left on device; free"),
        (errno.ENOSPC, None, (), "No space left on device; free some space"),
        (errno.EMFILE, None, (), "Too many open files; raise the limit of open files"),
        (errno.EFBIG, "/runs/a/x", (), "File too large; raise the limit of a file's size"),
        (errno.EACCES, "/runs/a", (), "Permission denied; mend its permissions"),
        (errno.EISDIR, "/runs/a/data.json", (), "Is a directory; give a file"),
        (errno.ENAMETOOLONG, "x" * 5000, (), "File name too long; choose a shorter name"),
        (errno.ENOENT, "/data/a.jsonl", ("train", "/data/a.jsonl"), "No such file or directory; check its name"),
        (errno.ENOENT, "/data/a/b", ("train", "c.yaml", "data.rl.path=/data/a"), "check its name"),  # below it
        (errno.EEXIST, "/data", ("eval", "--output", "/data/a/b"), "File exists"),  # around it
    ],
)
def test_errors_that_a_user_can_mend(number: int, path: str | None, arguments: tuple[str, ...], message: str) -> None:
    found = refusal(failure(number, path), arguments)
    assert found is not None and message in str(found) and found.exit_code == 2
    assert len(str(found)) < 400 and "\n" not in str(found)


@pytest.mark.parametrize(
    ("number", "path", "arguments"),
    [
        (errno.ENOENT, "/tmp/made-by-us", ("train", "c.yaml", "run.directory=runs/a")),
        (errno.EEXIST, "/data/ab", ("train", "/data/a")),  # another name, not a place below
        (errno.EACCES, f"{sys.prefix}/lib/x.py", ()),
        (errno.ENOENT, os.path.abspath(options.__file__), ("report", "/")),
        (errno.EPIPE, None, ()),
        (errno.EBADF, None, ()),
        (errno.EACCES, None, ()),  # of a socket, say
    ],
)
def test_errors_of_the_program(number: int, path: str | None, arguments: tuple[str, ...]) -> None:
    if path == os.path.abspath(options.__file__):
        assert refusal(failure(errno.EACCES, path), arguments) is None
    else:
        assert refusal(failure(number, path), arguments) is None


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (failure(errno.EROFS, "/runs/a/metrics.jsonl"), 2, False),
        (failure(errno.ENOENT, "/somewhere/of/ours"), 1, True),
        (FileNotFoundError("no number, no path"), 1, True),
    ],
)
def test_through_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys, error: OSError, code: int, traceback: bool
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("bridge_mcore.launch.local.run_training", fail)
    config = write(tmp_path / "c.yaml", CONFIG + f"run: {{directory: {json.dumps(str(tmp_path / 'run'))}}}\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config)])
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert ("Traceback" in said) == traceback and ("this is a bug" in said) == traceback
    assert traceback or said.count("\n") == 1


def test_the_largest_numbers_are_those_of_configurations() -> None:
    def most(kind: object) -> float:
        (field,) = kind.__metadata__  # type: ignore[attr-defined]
        return next(mark.le for mark in field.metadata if hasattr(mark, "le"))

    assert most(types.PositiveInt) == options.MOST_ROWS and most(types.Count) == options.MOST_COUNT
    assert most(types.Processes) == options.MOST_PROCESSES and most(types.Tokens) == options.MOST_TOKENS
    assert most(types.Seconds) == options.MOST_SECONDS and most(types.SampledTemperature) == options.HOTTEST
