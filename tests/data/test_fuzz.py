"""Data files that nobody should send: each ends in one message and exit code 2, or is read; nothing in one is run.

The generator knows what it made: `nonsense` must be refused by every command, of the rest only the ending is judged.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from bridge_mcore.data.tokenizer import task_tokenizer
from tests.models import save_tiny
from tests.support.fuzz import Outcome, run_forked
from tests.support.hostile_files import check_ending, deep, evil_pickle

IMPORTS = (
    "bridge_mcore.data.preview", "bridge_mcore.data.prepare.statistics", "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.tokenization_qwen2", "pyarrow.parquet", "bridge_mcore.training.loop",
)  # fmt: skip
#: Generous: a command takes a second or less on a quiet machine.
SECONDS = 90
ROW = {"problem": "Q:a3b2A:", "answer": "5", "solution": "a3b5\\boxed{5}"}
BAD_PROMPTS: tuple[Any, ...] = (None, 5, True, 2.5, "", " \n", ["x"], {"a": 1}, "\ud800", "x\udfff", [], {})
BAD_ANSWERS: tuple[Any, ...] = (None, "", "  ", {"a": 1}, {}, True, math.nan, "\ud800", [], [None], [{"a": 1}], "$$")
ODD: tuple[Any, ...] = (
    10**4000, 1e308, "a\0b", "\u202eabc", "<|im_end|>", "x" * 200_000, "$" * 99, [{"role": 5}],
    [{"role": "user", "content": "x"}],
)  # fmt: skip
MBPP = {"text": "Double x.", "code": "def f(x): return 2 * x", "test_list": ["assert f(1) == 2"]}
LCB = {"question_content": "Add one.", "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]'}


@dataclass(frozen=True)
class Made:
    """A file: what it is, its content, its suffix, and whether every command must refuse it."""

    what: str
    content: bytes
    suffix: str = ".jsonl"
    nonsense: bool = True


def lines(*rows: Any) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def no_json(draw: random.Random, _: Path) -> Made:
    """A text that is no JSON, or whose one row is no object."""
    text = draw.choice([
        lambda: "", lambda: "\n" * draw.randrange(1, 9), lambda: "5", lambda: "null", lambda: "[1, 2]", lambda: "}{",
        lambda: json.dumps(ROW)[: draw.randrange(1, len(json.dumps(ROW)) - 1)], lambda: deep(draw),
        lambda: '{"problem": "x", "answer": "5", "z": ' + deep(draw),
        lambda: '{"problem": "x", "answer": ' + "9" * draw.randrange(4301, 20_000) + "}",
        lambda: '{"problem": "x", "answer": "1", "more": [' + "-" + "9" * draw.randrange(4301, 20_000) + "]}",
        lambda: "".join(chr(draw.randrange(32, 126)) for _ in range(draw.randrange(1, 80))),
    ])()  # fmt: skip
    return Made(f"no JSON: {text[:40]!r}", text.encode(), draw.choice([".jsonl", ".json"]))


def no_text(draw: random.Random, trace: Path) -> Made:
    """Bytes that are no text, or of another kind of file."""
    content = draw.choice([
        lambda: b"\xff\xfe" + lines(ROW), lambda: json.dumps(ROW).encode("utf-16"), lambda: b"\0" * 1000,
        lambda: gzip.compress(lines(ROW)), lambda: evil_pickle(trace, draw), lambda: b"\x80" + draw.randbytes(200),
        lambda: table(problem=["x"], answer=["5"]),
    ])()  # fmt: skip
    return Made(f"no text: {content[:20]!r}", content, draw.choice([".jsonl", ".json"]))


def no_parquet(draw: random.Random, trace: Path) -> Made:
    """What has the suffix of Parquet only."""
    good = table(problem=["Q:a3b2A:", "Q:a1A:"], answer=["5", "1"])
    content = draw.choice([
        lambda: good[: draw.randrange(len(good))], lambda: lines(ROW), lambda: b"PAR1" + draw.randbytes(60) + b"PAR1",
        lambda: evil_pickle(trace, draw), lambda: b"",
    ])()  # fmt: skip
    return Made(f"no Parquet: {content[:20]!r}", content, ".parquet")


def bad_columns(draw: random.Random, _: Path) -> Made:
    """Parquet whose columns are no problems."""
    columns: dict[str, Any] = draw.choice([
        lambda: {"problem": [1, 2], "answer": ["1", "2"]}, lambda: {"problem": [b"\xff\xfe"], "answer": ["1"]},
        lambda: {"problem": [[{"a": 1}]], "answer": ["1"]}, lambda: {"problem": pyarrow.array([None], pyarrow.string()),
                                                                   "answer": ["1"]},
        lambda: {"problem": ["x"], "answer": pyarrow.array([None], pyarrow.string())}, lambda: {"nothing": ["x"]},
        lambda: {"problem": pyarrow.array([], pyarrow.string()), "answer": pyarrow.array([], pyarrow.string())},
        lambda: {"problem": ["x"], "answer": pyarrow.array([0], pyarrow.timestamp("s"))},
    ])()  # fmt: skip
    return Made(f"Parquet of {list(columns)}", table(**columns), ".parquet")


def flipped_parquet(draw: random.Random, _: Path) -> Made:
    """Parquet with a few bits turned: read or refused."""
    content = bytearray(table(problem=["Q:a3b2A:", "Q:a1A:"], answer=["5", "1"]))
    for _ in range(draw.randrange(1, 6)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return Made(f"flipped Parquet {bytes(content).hex()}", bytes(content), ".parquet", nonsense=False)


def bad_row(draw: random.Random, _: Path) -> Made:
    """A row whose question or answer is none."""
    name, values = draw.choice([("problem", BAD_PROMPTS), ("answer", BAD_ANSWERS)])
    row = {**ROW, "solution": None, name: draw.choice(values)}
    suffix = draw.choice([".jsonl", ".json"])
    return Made(f"row {row}", lines(row) if suffix == ".jsonl" else json.dumps([row]).encode(), suffix)


def bad_reward(draw: random.Random, _: Path) -> Made:
    """A row that names a reward that there is not."""
    reward = draw.choice(["nope", "plugin:", "math:", "ma th", "MATH", "../x", "plugin:x.py", "a\0b"])
    return Made(f"reward {reward}", lines({**ROW, "reward": reward}))


def bad_code(draw: random.Random, trace: Path) -> Made:
    """A programming problem whose tests are none."""
    packed = base64.b64encode(zlib.compress(evil_pickle(trace, draw))).decode()
    row = draw.choice([
        lambda: {**MBPP, "code": "-" * draw.randrange(50_000, 100_000) + "1"}, lambda: {**MBPP, "code": "x\0"},
        lambda: {**MBPP, "test_list": draw.choice(["assert f()", [], [1], None, {"a": 1}, ["("], ["(" * 5000]])},
        lambda: {**MBPP, "text": draw.choice([5, None, ["x"]])},
        lambda: {**LCB, "private_test_cases": packed}, lambda: {**LCB, "private_test_cases": packed[:-9]},
        lambda: {**LCB, "public_test_cases": draw.choice([deep(draw), "5", "[5]", "{", 7, '[{"input": ' + "9" * 5000])},
        lambda: {**LCB, "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "zz"}])},
        lambda: {**LCB, "public_test_cases": json.dumps([{"input": 5, "output": "2", "testtype": "stdin"}])},
        lambda: {**LCB, "public_test_cases": json.dumps([{"input": deep(draw), "output": "2",
                                                        "testtype": "functional"}]), "metadata": '{"func_name": "f"}'},
    ])()  # fmt: skip
    return Made(f"code {str(row)[:90]}", lines(row))


def no_name(draw: random.Random, trace: Path) -> Made:
    """A kind of file that is not read."""
    suffix = draw.choice(["", ".pkl", ".csv", ".pt", ".jsonl.gz"])
    return Made(f"file{suffix}", evil_pickle(trace, draw), suffix)


def odd_rows(draw: random.Random, _: Path) -> Made:
    """Rows that are unusual: read or refused."""
    row: dict[str, Any] = dict(ROW)
    for _ in range(draw.randrange(1, 4)):
        name = draw.choice(["problem", "answer", "solution", "reward", "id", "finished", "messages", "level"])
        row[name] = draw.choice([*BAD_PROMPTS, *BAD_ANSWERS, *ODD])
    return Made(f"odd {str(row)[:200]}", lines(row, ROW), nonsense=False)


MAKERS: tuple[Callable[[random.Random, Path], Made], ...] = (
    no_json, no_text, no_parquet, bad_columns, flipped_parquet, bad_row, bad_reward, bad_code, no_name, odd_rows
)  # fmt: skip


class Place:
    """A directory with a tiny model, in which commands read one data file after another."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.model, self.trace = directory, directory / "model", directory / "unpickled"
        tokenizer = task_tokenizer("running_sums")
        save_tiny("qwen2", self.model, vocab=len(tokenizer))
        tokenizer.save_pretrained(self.model)
        self.count = 0

    def commands(self, made: Made) -> dict[str, list[str]]:
        self.count += 1
        file = self.directory / f"data{self.count}{made.suffix}"
        file.write_bytes(made.content)
        config = {
            "model": {"path": str(self.model)},
            "method": {"name": "rl_zero"},
            "data": {"template": "plain", "rl": {"path": str(file)}},
            "training": {"steps": 1, "prompts_per_step": 1},
            "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
            "adapter": {"rank": 2},
            "checkpoint": {"every": 0, "export": False, "export_adapter": False},
            "monitoring": {"tensorboard": False, "figure": False},
            "run": {"directory": str(self.directory / f"run{self.count}")},
        }
        (self.directory / "run.yaml").write_text(yaml.safe_dump(config))
        preview = ["data", "preview", str(file), "--model", str(self.model), "--template", "plain", "--rl"]
        return {"stats": ["data", "stats", str(file)], "preview": preview, "train": ["train", "run.yaml"]}

    def run(self, arguments: list[str]) -> Outcome:
        return run_forked(arguments, SECONDS, self.directory, imports=IMPORTS, stop_at=())

    def try_(self, made: Made, commands: tuple[str, ...]) -> None:
        found = self.commands(made)
        for name in commands:
            check_ending(self.run(found[name]), (name, made.what), made.nonsense)
        assert not self.trace.exists(), made.what


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("fuzz"))


def test_what_is_right_is_read(place):
    """Else every refusal below would mean nothing."""
    for suffix, content in ((".jsonl", lines(ROW)), (".json", json.dumps([ROW]).encode()),
                            (".parquet", table(problem=["Q:a3b2A:"], answer=["5"]))):  # fmt: skip
        for name, arguments in place.commands(Made("good", content, suffix)).items():
            if name != "train" or suffix == ".jsonl":
                outcome = place.run(arguments)
                assert outcome.kind == "ok", (name, outcome)


def test_bad_data_files(place, seed):
    """Files of all kinds, by the two commands that read data without a model's weights."""
    draw = random.Random(seed)
    for number in range(30):
        place.try_(MAKERS[number % len(MAKERS)](draw, place.trace), ("stats", "preview"))


def test_a_run_refuses_them_too(place, seed):
    draw = random.Random(seed)
    for number in range(6):
        makers = [maker for maker in MAKERS if maker not in (flipped_parquet, odd_rows)]
        place.try_(makers[(seed + number) % len(makers)](draw, place.trace), ("train",))


@pytest.mark.slow
def test_many_bad_data_files(place, seed):
    """Files of all kinds, each by every command that reads data."""
    draw = random.Random(seed)
    for number in range(120):
        place.try_(MAKERS[number % len(MAKERS)](draw, place.trace), ("stats", "preview", "train"))
