"""Python values as JSON and back, without pickle: what a tested function takes and returns, from process to process.

Plain values (numbers, text, bytes, None, and lists, tuples, sets and dicts of them) keep type and value. Anything else
stays where it is and travels as a :class:`Handle`, which equals nothing but can be handed back.
"""

from __future__ import annotations

from typing import Any

_SMALL = 1 << 53  # larger ones go as hexadecimal: Python refuses decimal text of more than 4300 digits


class NotPlain(TypeError):
    """A value that cannot leave its process."""


class Handle:
    """Stands for an object that another process holds."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int, kind: str) -> None:
        self.number, self.kind = number, kind

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<a {self.kind}>"


def encode(value: Any, held: list[Any] | None = None) -> Any:
    """``value`` as JSON. Objects that are not plain go to ``held``; without it they are NotPlain."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if -_SMALL < value < _SMALL else {"i": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"b": value.hex()}
    for kind, mark in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f")):
        if isinstance(value, kind):
            return {mark: [encode(item, held) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(key, held), encode(item, held)] for key, item in value.items()]}
    if isinstance(value, Handle):
        return {"h": value.number}
    if held is None:
        raise NotPlain(f"a {type(value).__name__} is no plain data")
    held.append(value)
    return {"o": [len(held) - 1, type(value).__name__[:40]]}


def decode(message: Any, held: list[Any] | None = None) -> Any:
    """The value of :func:`encode`. Raises ValueError, TypeError, LookupError or RecursionError for anything else."""
    if not isinstance(message, dict):
        if isinstance(message, list):
            raise ValueError("a bare list")
        return message
    ((mark, body),) = message.items()
    if mark == "i":
        return int(body, 16)
    if mark == "c":
        return complex(*body)
    if mark == "b":
        return bytes.fromhex(body)
    if mark in ("l", "t", "s", "f"):
        return {"l": list, "t": tuple, "s": set, "f": frozenset}[mark](decode(item, held) for item in body)
    if mark == "d":
        return {decode(key, held): decode(item, held) for key, item in body}
    if mark == "o":
        return Handle(int(body[0]), str(body[1]))
    if mark == "h" and held is not None:
        return held[body]
    raise ValueError(f"an unknown mark {mark!r}")
