"""Judge one program on its tests. Runs in the workers of :class:`bridge_mcore.rewards.code.CodeReward`.

This process is trusted and holds the expected outputs; the box that it owns runs the program and holds none of them.
"""

from __future__ import annotations

import json
import signal
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_mcore.rewards.code_compare import same_output, same_value
from bridge_mcore.rewards.sandbox import Box, BoxError, SandboxSettings

#: Wall seconds of a test beyond its CPU seconds: for programs that sleep, on a machine that is busy. Who ran out of
#: them was not seen to fail: on a crowded machine it may be a right program that got no core.
WALL_FACTOR, WALL_EXTRA = 4.0, 5.0
_KNOWN_GOLDS = 8
#: Part of the time that something may have waited for a core on a machine that still counts as idle.
_IDLE = 0.1

_box: tuple[tuple[Any, ...], Box] | None = None
_golds: OrderedDict[str, Tests] = OrderedDict()


class GoldError(ValueError):
    """A gold that holds no tests; the text says why."""


@dataclass(frozen=True)
class Tests:
    """What a gold says: either cases, or the source of a test."""

    style: str
    cases: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    source: str = ""
    prelude: str = ""
    time_limit: float | None = None


def parse_gold(text: str) -> Tests:
    """The tests in a gold answer. Raises GoldError."""
    try:
        gold = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GoldError(f"it is not JSON ({error})") from None
    if not isinstance(gold, dict) or gold.get("style") not in ("stdin", "function"):
        raise GoldError('it has no "style" (stdin or function)')
    style, limit = gold["style"], gold.get("time_limit")
    if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit < 1e6):
        raise GoldError(f'its "time_limit" is {limit!r}, not a positive number of seconds')
    if style == "function" and not isinstance(gold.get("entry_point"), str):
        raise GoldError('it has no "entry_point", the name of the function')
    prelude = gold.get("prelude", "")
    if not isinstance(prelude, str):
        raise GoldError('its "prelude" is no source text')
    names = [gold.get("entry_point", ""), *gold.get("names", [])] if style == "function" else []
    if style == "function" and "test" in gold:
        if not isinstance(gold["test"], str):
            raise GoldError('its "test" is no source text')
        return Tests("check", [], names, gold["test"], prelude, limit)
    cases = gold.get("tests")
    if not isinstance(cases, list) or not cases:
        raise GoldError('its "tests" are no list, or an empty one')
    keys = {"input": str, "output": str} if style == "stdin" else {"args": list, "output": object}
    for number, case in enumerate(cases, 1):
        for key, kind in keys.items():
            if not isinstance(case, dict) or key not in case or not isinstance(case[key], kind):
                raise GoldError(f'its test {number} has no "{key}" that is {"text" if kind is str else "a list"}')
    return Tests(style, cases, names, prelude=prelude, time_limit=limit)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Judge ``job["program"]`` by the gold in ``job["gold"]`` or the file ``job["gold_file"]``: verdict and reason."""
    settings = SandboxSettings(**{**job["settings"], "without": tuple(job["settings"]["without"])})
    try:
        tests = _tests(job)
    except GoldError as error:
        return {"verdict": "error", "reason": f"the gold cannot be used: {error}"}
    deadline = time.monotonic() + job["seconds"]
    for attempt in (1, 2):  # a box that broke may have been killed from outside; twice means it is this program
        try:
            box = _the_box(settings, job["namespaces"])
            if tests.style == "check":
                return _check(box, tests, job["program"], settings)
            return _cases(box, tests, job["program"], settings, deadline)
        except BoxError as error:
            _drop_box()
            if attempt == 2:
                return {"verdict": "error", "reason": f"the sandbox broke: {str(error)[:200]}"}
    raise AssertionError("not reached")


def _tests(job: dict[str, Any]) -> Tests:
    key = job.get("gold_file") or job["gold"]
    if key in _golds:
        _golds.move_to_end(key)
        return _golds[key]
    tests = parse_gold(Path(job["gold_file"]).read_text() if "gold_file" in job else job["gold"])
    _golds[key] = tests
    if len(_golds) > _KNOWN_GOLDS:
        _golds.popitem(last=False)
    return tests


def _the_box(settings: SandboxSettings, namespaces: str) -> Box:
    global _box
    if _box is None or _box[0] != (settings, namespaces):
        _drop_box()
        _box = ((settings, namespaces), Box(settings, namespaces))
    return _box[1]


def _drop_box() -> None:
    global _box
    if _box is not None:
        _box[1].close()
        _box = None


def _limits(tests: Tests, settings: SandboxSettings) -> tuple[dict[str, Any], float]:
    cpu = tests.time_limit or settings.cpu_seconds
    return {"cpu": cpu}, WALL_FACTOR * cpu + WALL_EXTRA


def _trouble(reply: dict[str, Any], settings: SandboxSettings, cpu: float) -> tuple[str, bool] | None:
    """What went wrong with a run that was not cut by the clock, in words, and whether it is dear (do not try again);
    None: it ended well."""
    if reply["status"] == "time":
        return f"time (more than {cpu:g} s of CPU)", True
    if reply["status"] == "ended":
        return ("output (too much)", True) if reply["full"] else None
    error = reply["error"]
    if error.startswith("MemoryError"):
        return f"memory (more than {settings.memory_mib} MiB)", True
    if reply["full"] or reply["signal"] == signal.SIGXFSZ:
        return f"output (more than {settings.output_mib} MiB)", True
    if error.startswith("the box: "):
        raise BoxError(error)
    if reply["signal"]:
        try:
            name = signal.Signals(reply["signal"]).name
        except ValueError:
            name = f"signal {reply['signal']}"
        return f"error ({name})", False
    return f"error ({error[:150] or 'it ended with a failure'})", False


def _cases(box: Box, tests: Tests, program: str, settings: SandboxSettings, deadline: float) -> dict[str, Any]:
    """Every case is a process of its own. All must pass; a dear failure (time, memory, output) ends the trials."""
    limits, wall = _limits(tests, settings)
    clock = _Clock()
    passed, tried, failure, cut = 0, 0, "", ""
    for number, case in enumerate(tests.cases, 1):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if tests.style == "stdin":
            request = {"mode": "stdin", "program": program, "stdin": case["input"], **limits}
        else:
            entry = tests.names[0]
            request = {"mode": "call", "program": program, "entry_point": entry, "args": case["args"], **limits}
            request["prelude"] = tests.prelude
        reply = box.run(request, b"", min(wall, max(left, 1.0)))
        if reply["status"] == "wall":
            cut = "time was up" if left < wall else f"test {number} took longer than {reply['seconds']:.0f} s"
            break
        tried += 1
        trouble = _trouble(reply, settings, limits["cpu"])
        if trouble is None and _right(tests.style, case["output"], reply):
            passed += 1
            continue
        what, dear = trouble or ("wrong output", False)
        failure = failure or f"test {number}: {what}"
        if dear:
            break
    total = len(tests.cases)
    if failure:
        rest = "" if tried == total else f", {total - tried} not run"
        return {"verdict": "incorrect", "reason": f"{passed} of {total} tests{rest}; first failure: {failure}"}
    if tried < total:
        return clock.timeout(f"the first {tried} of {total} tests passed, then {cut or 'time was up'}")
    return {"verdict": "correct", "reason": f"{total} of {total} tests"}


class _Clock:
    """Measures how long a program was judged, and whether the machine had a core for it all the while."""

    def __init__(self) -> None:
        self._started, self._stalled = time.monotonic(), _stalled_seconds()

    def timeout(self, what: str) -> dict[str, Any]:
        """The verdict on a program that ran out of wall time: undecided, and by its own doing where the kernel says
        that hardly anything on this machine waited for a core meanwhile."""
        seconds, now = time.monotonic() - self._started, _stalled_seconds()
        idle = None if now is None or self._stalled is None else now - self._stalled < _IDLE * seconds
        why = {None: "", True: "waiting of its own accord: ", False: "with too few cores for it: "}
        return {"verdict": "timeout", "reason": why[idle] + what, "own_doing": idle is True}


def _stalled_seconds() -> float | None:
    """Seconds since the machine's start in which something that could run had no core; None: it is not counted."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as pressure:
            return int(pressure.readline().rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None


def _right(style: str, expected: Any, reply: dict[str, Any]) -> bool:
    if style == "stdin":
        return same_output(expected, reply["stdout"])
    try:
        return same_value(expected, json.loads(reply["result"]))
    except (ValueError, RecursionError):
        return False


def _check(box: Box, tests: Tests, program: str, settings: SandboxSettings) -> dict[str, Any]:
    """The test's source runs in a second process of the box and calls the program's functions over a pipe."""
    limits, wall = _limits(tests, settings)
    hidden = json.dumps({"test": tests.source}).encode("ascii")
    request = {"mode": "check", "program": program, "names": tests.names, "prelude": tests.prelude, **limits}
    clock = _Clock()
    reply = box.run(request, hidden, wall)
    try:
        result = json.loads(reply["result"])
    except ValueError:
        result = None
    if result and result["passed"]:
        return {"verdict": "correct", "reason": "all checks"}
    if result and result.get("test"):
        return {"verdict": "error", "reason": f"the gold cannot be used: {result['why']}"}
    # Who is ended by the clock may be seen to end by the checking process, which then says so before it is ended too.
    if reply["status"] == "wall" and (result is None or result["why"] == "the program ended"):
        return clock.timeout(f"the check took longer than {reply['seconds']:.0f} s")
    trouble = _trouble(reply, settings, limits["cpu"])
    why = result["why"] if result else f"the check did not end {reply['checker'][:100]}".rstrip()
    known = reply["signal"] or reply["error"] or reply["status"] != "failed"
    if trouble and (result is None or (why == "the program ended" and known)):
        why = trouble[0]
    return {"verdict": "incorrect", "reason": f"failed: {why}"}
