"""What the worker processes of test_pool.py are made to do: as bad as code under test can be, and worse."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any


def run(job: list[Any]) -> Any:
    """``[name, argument]`` calls one of the functions below."""
    name, argument = job
    return globals()[name](argument)


def echo(value: Any) -> Any:
    return value


def pid(_: Any) -> int:
    return os.getpid()


def modules(_: Any) -> list[str]:
    return sorted(sys.modules)


def hash_seed(_: Any) -> str | None:
    return os.environ.get("PYTHONHASHSEED")


def power(exponent: int) -> int:
    """One C call that does not return to the interpreter for hours."""
    return (9**9**exponent).bit_length()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def allocate(gib: float) -> int:
    return len(bytes(int(gib * 2**30)))


def swallow(gib: float) -> bool:
    """A library that hides its want of memory: takes 64 MiB after 64 MiB, and answers False when there is no more."""
    held = []
    try:
        for _ in range(int(gib * 16)):
            held.append(bytes(64 << 20))
        return True
    except Exception:
        return False


def crash(_: Any) -> None:
    ctypes.string_at(0)


def leave(status: int) -> None:
    os._exit(status)


def say(text: str) -> str:
    """Output that must not get between the frames."""
    print(text)
    os.write(1, text.encode())
    os.write(2, text.encode())
    sys.stdout.flush()
    return "said"


def fail(text: str) -> None:
    raise RuntimeError(text)


def polite_exit(_: Any) -> None:
    sys.exit(0)


def unserialisable(_: Any) -> object:
    return object()
