"""What a hostile or careless hand makes of files: trees with one place changed, and texts that no reader takes."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.fuzz import Outcome

#: Values of another kind than whatever stands at a place, or that no such place can have.
STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 3.5, 1e308, math.nan, math.inf, 10**30, "", "x", "64", "../x", "\ud800", "a\0b", [], [1],
    [[1]], {}, {"a": 1}, "y" * 3000,
)  # fmt: skip


class Evil:
    """Unpickled, it leaves a trace: a file of the name that BRIDGE_TEST_TRACE gives."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def evil_pickle(trace: Path, draw: random.Random) -> bytes:
    """A pickle that would run a command, in any protocol."""
    return pickle.dumps(draw.choice([Evil(trace), [Evil(trace)], {"a": Evil(trace)}]), protocol=draw.randrange(6))


def deep(draw: random.Random) -> str:
    """JSON that is nested beyond what is read, closed or not."""
    depth, opening = draw.choice([(250, "["), (250, '{"a":'), (2000, "["), (100_000, "["), (100_000, '{"a":')])
    closing = ("]" if opening == "[" else "}") * depth
    return opening * depth + draw.choice(["", "1" + closing])


def unreadable(draw: random.Random) -> bytes:
    """Bytes that are no JSON object to anybody."""
    return draw.choice([
        lambda: b"", lambda: b"{", lambda: b"\xff\xfe{}", lambda: b"\0" * draw.randrange(1, 100), lambda: b"[1, 2]",
        lambda: b"nonsense", lambda: deep(draw).encode(), lambda: b'{"a": ' + b"9" * draw.randrange(4301, 9000) + b"}",
        lambda: draw.randbytes(draw.randrange(1, 300)), lambda: b"5", lambda: b'"text"', lambda: b"null",
        lambda: b'{"a": "\\ud8', lambda: json.dumps({"a": 1}).encode("utf-16"),
    ])()  # fmt: skip


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    tree = copy.deepcopy(tree)
    at = tree
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return tree


def strange_for(old: Any, draw: random.Random) -> Any:
    """A value that is not of the kind of `old`."""
    kind = {bool: bool, int: (int, float), float: (int, float)}.get(type(old), type(old))
    return draw.choice([v for v in STRANGE if not isinstance(v, kind) or (type(v) is bool) != (type(old) is bool)])


def check_ending(outcome: Outcome, what: object, nonsense: bool) -> None:
    """No traceback, hang, signal or other failure; a refusal is one message; nonsense is refused."""
    assert outcome.kind in ("ok", "refused"), (what, outcome)
    if outcome.kind == "refused":
        message = outcome.text[outcome.text.rfind("error: ") :]
        assert message.startswith("error: ") and len(message.splitlines()) <= 3 and len(message) < 2500, (what, outcome)
    if nonsense:
        assert outcome.kind == "refused", (what, outcome)
