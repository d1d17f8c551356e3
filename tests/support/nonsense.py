"""Values, files and command lines that mean nothing, made for every key of a schema and for every command.

Who makes them knows that they are nonsense: a command that takes one of them has accepted nonsense.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from bridge_mcore.config.keys import annotation_of, element_of, members, section_of, walk_fields
from bridge_mcore.config.types import Section

NUL, HALF_CHARACTER = "a\0b", "\ud800"
TOO_LONG_NAME, TOO_LONG_PATH = "x" * 300, "/".join(["d" * 200] * 25)
DIGITS = "9" * 5000


@dataclass(frozen=True)
class Key:
    """A key of a schema that holds a value: `path` with 0 for the number of a list's element."""

    path: str
    field: FieldInfo

    @property
    def kind(self) -> str:
        """What its values are."""
        if element_of(self.field.annotation) is not None:
            return "list"
        kinds = members(self.field.annotation)
        if any(get_origin(kind) is tuple for kind in kinds):
            return "pair"
        if section_of(self.field.annotation) is not None and len(kinds) == 1:
            return "section"
        if any(get_origin(kind) is Literal for kind in kinds):
            return "choice"
        for kind, name in ((bool, "switch"), (int, "whole"), (float, "number"), (Path, "path"), (str, "text")):
            if kind in kinds:
                return name
        raise AssertionError(f"{self.path}: what is {self.field.annotation}?")


def keys_of(model: type[Section]) -> list[Key]:
    """Every key, sections included."""
    return [Key(path.replace(".N", ".0"), field) for path, field in walk_fields(model)]


def nonsense(key: Key) -> Iterator[object]:
    """Values that the key must refuse, whatever the others say."""
    every: list[object] = [[[[[1]]]], {"no such key": {"b": 1}}]
    kinds: dict[str, list[object]] = {
        "whole": [10**30, -(10**30), 1.5, math.nan, math.inf, 1e308, "x", True],
        "number": [1e308, -1e308, math.nan, math.inf, -math.inf, 10**300, "x", True],
        "switch": [5, "maybe", math.nan],
        "choice": ["no such choice", 5, ""],
        "path": ["", " ", NUL, HALF_CHARACTER, TOO_LONG_NAME, TOO_LONG_PATH, "~no_such_user/x"],
        "text": [NUL, HALF_CHARACTER, "x" * 100_001],
        "pair": [[1], [1, 2, 3], ["a", "b"], "x", [math.nan, 1], [10**30, 10**31], [1e300, 1e301]],
        "list": [5, "x", [{"no such key": 1}]],
        "section": [5, "no such word", [5]],
    }
    yield from every
    yield from kinds[key.kind]


def file_with(path: str, value: object, base: dict[str, Any] | None = None) -> str:
    """YAML that says `base`, and this value at this key."""
    tree = copy.deepcopy(base) if base else {}
    *around, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    holder: Any = tree
    for part, following in zip(around, [*around, last][1:], strict=True):
        held = holder.get(part) if isinstance(holder, dict) else holder[0]
        if not isinstance(held, dict | list):
            held = [None] if following == 0 else {}
        holder[part] = held
        holder = held
    holder[last] = value
    return re.sub(r"(?<!\")(-?)(NaN|Infinity)(?!\")", lambda m: m[1] + _YAML_FLOATS[m[2]], json.dumps(tree))


_YAML_FLOATS = {"NaN": ".nan", "Infinity": ".inf"}


def bounds_of(key: Key) -> tuple[float, float] | None:
    """The smallest and the largest number that it takes, as its type says; None of a key without a number."""
    found = [bounds for annotation in _alternatives(key.field) if (bounds := _bounds(*annotation)) is not None]
    return found[0] if found else None


def _alternatives(field: FieldInfo | Any) -> Iterator[tuple[Any, list[Any]]]:
    """(type, what bounds it) of every alternative that is a number, elements of lists included."""
    annotation = annotation_of(field)
    marks = list(field.metadata) if isinstance(field, FieldInfo) else []
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for mark in more:
            marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    if annotation in (int, float):
        yield annotation, marks
    for part in get_args(annotation) if get_origin(annotation) not in (Literal, tuple) else ():
        yield from _alternatives(part)


def _bounds(kind: type, marks: list[Any]) -> tuple[float, float] | None:
    step = 1 if kind is int else 0
    low, high = -math.inf, math.inf
    for mark in marks:
        low = max(low, getattr(mark, "ge", -math.inf), getattr(mark, "gt", -math.inf) + step)
        high = min(high, getattr(mark, "le", math.inf), getattr(mark, "lt", math.inf) - step)
    return low, high


# --- YAML ------------------------------------------------------------------------------------------------------------


def bad_yaml(random: Random) -> dict[str, bytes]:
    """Files that are no configuration, by what is wrong with them; sizes and places differ from seed to seed."""
    deep, wide, levels = random.randint(400, 20_000), random.randint(8, 30), random.randint(9, 20)
    name = [f"k{i}" for i in range(levels + 1)]
    seed = random.randint(1, 9)
    texts: dict[str, str | bytes] = {
        "python object": '!!python/object/apply:os.system ["touch PWNED"]\n',
        "python name": "run: {directory: !!python/name:os.system }\n",
        "billion laughs": f"k0: &k0 [{', '.join('x' * wide)}]\n"
        + "".join(f"{name[i + 1]}: &{name[i + 1]} [{', '.join([f'*{name[i]}'] * wide)}]\n" for i in range(levels)),
        "billion laughs of mappings": "k0: &k0 {x: 1}\n"
        + "".join(
            f"{name[i + 1]}: &{name[i + 1]} {{{', '.join(f'm{j}: *{name[i]}' for j in range(wide))}}}\n"
            for i in range(levels)
        ),
        "billion merges": "k0: &k0 {x: 1}\n"
        + "".join(
            f"{name[i + 1]}: &{name[i + 1]} {{<<: [{', '.join([f'*{name[i]}'] * wide)}]}}\n" for i in range(levels)
        ),
        "contains itself": "run: &r {directory: x, more: *r}\n",
        "merges itself": "run: &r {<<: *r}\n",
        "merges a number": f"run: {{<<: {seed}}}\n",
        "tabs": "run:\n\tseed: 1\n",
        "given twice": f"run: {{seed: {seed}, seed: 2}}\n",
        "two documents": "run: {seed: 1}\n---\nrun: {seed: 2}\n",
        "a list": "- 1\n- 2\n",
        "a word": "hello\n",
        "endless number": f"run: {{seed: {'9' * random.randint(301, 9000)}}}\n",
        "endless negative number": f"training: {{steps: -{'1' * random.randint(4301, 9000)}}}\n",
        "endless exponent": f"optimizer: {{alpha: 1e{'9' * random.randint(4, 5000)}}}\n",
        "endless key": f'"{"k" * random.randint(1000, 100_000)}": 1\n',
        "endless word": f"model: {{dtype: {'a' * random.randint(1000, 100_000)}}}\n",
        "endless text": f"run: {{directory: {'a' * 1_000_000}}}\n",
        "deep lists": "[" * deep,
        "deep mappings": "{a: " * deep + "1" + "}" * deep,
        "deep and closed": "[" * 400 + "]" * 400,
        "many unknown keys": "\n".join(f"k{i}: 1" for i in range(random.randint(5_000, 20_000))),
        "many wrong elements": f"data: {{evaluation: [{'5, ' * random.randint(1_000, 20_000)}]}}\n",
        "not text": b"\xff\xfe\x00run: 1" + random.randbytes(50),
        "NUL": b"run: {seed: 1\x00}",
        "a bell": b"run: {directory: a\x07b}\n",
        "half a character": b'run: {directory: "\\ud800"}\n',
        "a list as key": "? [a, b]\n: 1\n",
        "unknown anchor": "run: *nope\n",
        "tagged number": 'run: {seed: !!int "abc"}\n',
        "tagged float": 'optimizer: {alpha: !!float "abc"}\n',
        "tagged switch": 'checkpoint: {export: !!bool "maybe"}\n',
        "tagged null": 'run: {seed: !!null "x"}\n',
        "tagged bytes": 'run: {directory: !!binary "####"}\n',
        "tagged date": 'run: {seed: !!timestamp "2001-99-99"}\n',
        "tagged set": "run: !!set {a, b}\n",
        "included": "run: !include /etc/passwd\n",
        "directive": "%YAML 9.9\n---\nrun: {seed: 1}\n",
        "sexagesimal": "run: {seed: 1:30}\n",
        "full width": "run: {seed: １２}\n",
        "trailing": '{"run": {"seed": 1}} x',
    }
    return {what: text if isinstance(text, bytes) else text.encode() for what, text in texts.items()}


def broken(random: Random, text: bytes) -> bytes:
    """A configuration with some bytes lost, doubled or changed. It may still be one."""
    content = bytearray(text)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content))
        length = random.randint(1, 12)
        change = random.choice(("lose", "double", "replace", "insert"))
        if change == "lose":
            del content[at : at + length]
        elif change == "double":
            content[at:at] = content[at : at + length]
        elif change == "replace":
            content[at : at + 1] = random.choice((b"\0", b"\t", b"{", b"}", b"[", b":", b"&a ", b"*a ", b"'", b"\xff"))
        else:
            content[at:at] = random.choice((b"- ", b"? ", b"<<: ", b"!!map ", b"%", b"9" * 400, b"\n", b"#", b"|\n"))
        if not content:
            return b"{"
    return bytes(content)
