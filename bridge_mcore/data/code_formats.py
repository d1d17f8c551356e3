"""Programming problems from published files: LiveCodeBench, HumanEval and MBPP rows as (prompt, gold answer).

The gold answers are what :mod:`bridge_mcore.rewards.code` reads. Nothing in a row is executed or unpickled here.
"""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from bridge_mcore.config.json_file import BadJson, one_line, parse_json
from bridge_mcore.config.nearest import nearest
from bridge_mcore.errors import ConfigError, DataError

#: Bytes that packed tests may unpack to.
MAX_UNPACKED = 1 << 30

_STDIN = (
    "Write a Python program that solves this problem. It reads standard input and writes standard output. "
    "Put the whole program into one ```python block at the end of your answer."
)
_FUNCTION = "Put the whole solution, with its imports, into one ```python block at the end of your answer."
# A pickle that says no more than "this text": the opcodes that `pickle.dumps(text)` writes, in any protocol.
_TEXT_OPCODES = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_HARMLESS_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def livecodebench(row: Mapping[str, Any]) -> tuple[str, str]:
    """A row of LiveCodeBench's `code_generation` files: public and private tests, stdin or LeetCode style.

    Raises DataError for a row without tests, or whose tests cannot be read.
    """
    where = f"LiveCodeBench problem {row.get('question_id', '?')}"
    question = _text(row, "question_content", where)
    cases = _cases(row.get("public_test_cases"), where, "public_test_cases")
    cases += _cases(row.get("private_test_cases"), where, "private_test_cases")
    kinds = {case.get("testtype") for case in cases}
    if kinds == {"stdin"}:
        tests = [{"input": _text(case, "input", where), "output": _text(case, "output", where)} for case in cases]
        return f"{question}\n\n{_STDIN}", json.dumps({"style": "stdin", "tests": tests})
    if kinds != {"functional"}:
        found = ", ".join(sorted(map(str, kinds))) or "no tests"
        raise DataError(f"{where}: its tests must be all 'stdin' or all 'functional'; found: {found}")
    metadata = row.get("metadata")
    metadata = _json(metadata, where, "metadata") if isinstance(metadata, str) else metadata
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not _is_name(name):
        raise DataError(f"{where}: its metadata names no function (func_name)")
    functional = []
    for case in cases:
        lines = [line for line in _text(case, "input", where).split("\n") if line.strip()]
        arguments = [_json(line, where, "a test's input") for line in lines]
        functional.append({"args": arguments, "output": _json(_text(case, "output", where), where, "a test's output")})
    starter = row.get("starter_code") or ""
    # LeetCode's own judge imports these; its starter code counts on it.
    prelude = "from typing import *\nfrom collections import *\nimport bisect, heapq, itertools, functools, math"
    gold = {"style": "function", "entry_point": name, "prelude": prelude, "tests": functional}
    prompt = f"{question}\n\nComplete this class in Python:\n```python\n{starter.rstrip()}\n```\n{_FUNCTION}"
    return prompt, json.dumps(gold)


def humaneval(row: Mapping[str, Any]) -> tuple[str, str]:
    """A row of HumanEval (also HumanEval+ in its form): prompt, test with a `check`, entry_point."""
    where = f"HumanEval problem {row.get('task_id', '?')}"
    stub, test, name = (_text(row, key, where) for key in ("prompt", "test", "entry_point"))
    if not _is_name(name):
        raise DataError(f"{where}: its entry_point is no name of a function")
    gold = {"style": "function", "entry_point": name, "test": test, "prelude": stub}
    prompt = f"Complete this Python function:\n```python\n{stub.strip()}\n```\n{_FUNCTION}"
    return prompt, json.dumps(gold)


def mbpp(row: Mapping[str, Any], examples: int = 1) -> tuple[str, str]:
    """A row of MBPP, full or sanitized: text (or prompt), code, test_list.

    :param examples: tests that the prompt shows, so that name and signature are known. The paper's prompts show all
        three; in training that invites programs that answer just these.
    """
    where = f"MBPP problem {row.get('task_id', '?')}"
    question = _text(row, "text" if "text" in row else "prompt", where)
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError(f"{where}: its test_list is no list of assert statements")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    names = _tested_names(tests, setup, row.get("code"), where)
    source = "\n".join([setup, *tests])
    gold = {"style": "function", "entry_point": names[0], "names": names[1:], "test": source, "prelude": setup}
    shown = "\n".join(tests[:examples])
    prompt = question.strip() + (f"\nYour code should pass this:\n```python\n{shown}\n```" if shown else "")
    return f"{prompt}\n{_FUNCTION}", json.dumps(gold)


FORMATS: dict[str, Callable[[Mapping[str, Any]], tuple[str, str]]] = {
    "livecodebench": livecodebench,
    "humaneval": humaneval,
    "mbpp": mbpp,
}


def detect_code_format(row: Mapping[str, Any]) -> str | None:
    """Which of FORMATS a row's columns show, None if none."""
    if "public_test_cases" in row or "private_test_cases" in row:
        return "livecodebench"
    if {"prompt", "test", "entry_point"} <= row.keys():
        return "humaneval"
    return "mbpp" if "test_list" in row else None


def read_code_row(row: Mapping[str, Any], name: str | None = None) -> tuple[str, str]:
    """(prompt, gold) of a row in the format `name`, or in the one that its columns show."""
    name = name or detect_code_format(row)
    if name is None:
        raise DataError(
            "these columns are no programming problem; there must be public_test_cases (LiveCodeBench), prompt with "
            f"test and entry_point (HumanEval), or test_list (MBPP). Found: {', '.join(map(str, row))}"
        )
    if name not in FORMATS:
        raise ConfigError(f"unknown code format '{name}'{nearest(name, FORMATS)}; there is {', '.join(FORMATS)}")
    return FORMATS[name](row)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{key}' must be text, this is {'missing' if value is None else type(value).__name__}"
        )
    return value


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _json(text: str, where: str, what: str) -> Any:
    try:
        return parse_json(text)
    except BadJson as error:
        raise DataError(f"{where}: {what} is not JSON that can be read: {error}") from None


def _cases(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """Test cases of one column: a list, JSON text, or base64 of zlib of a pickled JSON text."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except BadJson:
            is_text = value.lstrip()[:1] in ("[", "{")
            value = _json(value if is_text else _unpack(value, where, column), where, column)
    if not isinstance(value, list) or not all(isinstance(case, dict) for case in value):
        raise DataError(f"{where}: '{column}' is no list of test cases")
    return value


def _unpack(text: str, where: str, column: str) -> str:
    """The JSON in LiveCodeBench's packed tests. The pickle in it is read as data: it may hold one text only."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise DataError(f"{where}: '{column}' is neither JSON nor base64 of zlib ({error})") from None
    if not inflate.eof:
        raise DataError(f"{where}: '{column}' is cut off, or unpacks to more than {MAX_UNPACKED >> 20} MiB")
    if data[:1] in (b"[", b" "):
        return data.decode("utf-8", "replace")
    found = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _TEXT_OPCODES:
                found.append(argument)
            elif opcode.name not in _HARMLESS_OPCODES:
                raise ValueError(f"the operation {opcode.name}")
    except ValueError as error:
        found = []
        why = str(error)
    else:
        why = "not one text"
    if len(found) != 1 or not isinstance(found[0], str):
        raise DataError(
            f"{where}: '{column}' holds a pickle that is more than a text ({why}); pickles can run code, so it is not "
            "opened. Unpack it where you trust it and write the test cases as JSON"
        )
    return found[0]


def _tested_names(tests: list[str], setup: str, code: Any, where: str) -> list[str]:
    """Names that tests expect of the program, the function first: those that the reference solution defines."""
    try:
        used = [
            node.id
            for test in tests
            for node in ast.walk(ast.parse(test))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        ]
        given = {name for node in ast.walk(ast.parse(setup)) for name in _defines(node)}
        defined = {name for node in ast.parse(code).body for name in _defines(node)} if isinstance(code, str) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what Python's parser ends with
        raise DataError(
            f"{where}: its tests or code are not Python ({one_line(error) or 'nested too deeply'})"
        ) from None
    called = [name for name in dict.fromkeys(used) if name not in given and not hasattr(builtins, name)]
    names = [name for name in called if defined is None or name in defined]
    # A solution may define a helper under a built-in's name (`sum`), if a test calls it.
    names = names or [name for name in dict.fromkeys(used) if defined and name in defined]
    if not names:
        raise DataError(f"{where}: cannot tell which function its tests call; found {', '.join(called) or 'none'}")
    functions = _called_first(tests, names)
    return [functions, *(name for name in names if name != functions)]


def _called_first(tests: list[str], names: list[str]) -> str:
    """The outermost called one of ``names`` in the first test: of `f(Pair(1, 2))` it is f."""
    for node in ast.walk(ast.parse(tests[0])):  # breadth first, so the outermost call comes first
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            return node.func.id
    return names[0]


def _defines(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
