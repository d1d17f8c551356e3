"""The one reader of JSON from outside: what it takes, and the line that it says otherwise."""

from __future__ import annotations

import json
import os
import random
import sys

import pytest

from bridge_mcore.config.json_file import MAX_DEPTH, BadJson, parse_json, read_json, read_json_object
from bridge_mcore.errors import CheckpointError, DataError


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[{"a": ', "}]")])
def test_depth_is_bounded(opening, closing):
    """To the level; what is read can be written again, from wherever it is read."""
    levels = opening.count("[") + opening.count("{")
    most = parse_json(nested(MAX_DEPTH // levels, opening, closing))
    assert parse_json(json.dumps(most)) == most
    for depth in (MAX_DEPTH // levels + 1, 900, 100_000):
        with pytest.raises(BadJson, match=f"nested too deeply: {MAX_DEPTH} levels"):
            parse_json(nested(depth, opening, closing))
    with pytest.raises(BadJson, match="nested too deeply"):
        parse_json(opening * 100_000)


def test_what_is_no_json_is_said_with_its_place():
    with pytest.raises(BadJson, match=r"invalid JSON: Expecting value \(column 7\)") as error:
        parse_json('{\n "a": }')
    assert (error.value.line, error.value.reason) == (2, "Expecting value")
    most = sys.get_int_max_str_digits()
    assert parse_json("9" * most) == int("9" * most)
    with pytest.raises(BadJson, match=f"a whole number in it has more than {most} digits"):
        parse_json('{"a": [' + "9" * (most + 1) + "]}")
    with pytest.raises(BadJson, match="not UTF-8, at byte 2"):
        parse_json(b'{"\xff": 1}')
    with pytest.raises(BadJson, match="twice"):
        parse_json('{"a": 1}', lambda _: (_ for _ in ()).throw(ValueError("named twice")))


def test_it_reads_what_json_reads(seed):
    """Random trees: the same as Python's own reader."""
    draw = random.Random(seed)

    def tree(depth: int) -> object:
        kind = draw.randrange(7 if depth else 5)
        if kind == 5:
            return [tree(depth - 1) for _ in range(draw.randrange(4))]
        if kind == 6:
            return {str(draw.random()): tree(depth - 1) for _ in range(draw.randrange(4))}
        return [None, draw.random() < 0.5, draw.randrange(-(10**30), 10**30), draw.gauss(0, 1e9), "é\ud83d\ude00\n"][
            kind
        ]

    for _ in range(200):
        text = json.dumps(tree(6))
        assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_files_are_files_of_a_size(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(CheckpointError, match=r"x\.json does not exist"):
        read_json(path)
    with pytest.raises(DataError, match="nothing there"):
        read_json(path, missing="nothing there", kind=DataError)
    path.write_text("[1]")
    assert read_json(path) == [1]
    with pytest.raises(CheckpointError, match="should hold one JSON object, and holds a list"):
        read_json_object(path)
    with pytest.raises(CheckpointError, match="has more than 2 bytes"):
        read_json(path, 2)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is no file"):
        read_json(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is no file"):
        read_json(path)
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        read_json(tmp_path / ("x" * 5000))
