"""Programs judged by tests: right ones pass, wrong ones fail with a reason, and no verdict can be forged."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards import code_judge
from bridge_mcore.rewards.code import CodeReward, last_program
from bridge_mcore.rewards.code_compare import same_output, same_value
from bridge_mcore.rewards.code_judge import GoldError, parse_gold
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, sandbox_layers
from bridge_mcore.rewards.verdict import Verdict

LIMITS = {"cpu_seconds": 1.0, "memory_mib": 256, "output_mib": 2}


@pytest.fixture(scope="module")
def code() -> Iterator[CodeReward]:
    if sandbox_layers(SandboxSettings(**LIMITS)).missing:
        pytest.skip("this machine offers no sandbox")
    reward = CodeReward(SandboxSettings(**LIMITS), workers=2)
    yield reward
    reward.close()


def fenced(program: str) -> str:
    return f"Here it is.\n```python\n{program}\n```\nDone."


def stdin(*cases: tuple[str, str], **more: object) -> str:
    return json.dumps({"style": "stdin", "tests": [{"input": i, "output": o} for i, o in cases], **more})


def calls(*cases: tuple[list, object], name: str = "f") -> str:
    tests = [{"args": args, "output": output} for args, output in cases]
    return json.dumps({"style": "function", "entry_point": name, "tests": tests})


def check(source: str, **more: object) -> str:
    return json.dumps({"style": "function", "entry_point": "f", "test": source, **more})


def judge(code: CodeReward, gold: str, program: str) -> Verdict:
    return code.judge([Attempt(gold, fenced(program))])[0]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Verdict]]:
    """Judges in this process, with a clock that runs out for nobody: with other work on the cores, a program may not
    get its second of CPU time before the usual one has run out, and is undecided then."""
    settings = SandboxSettings(**LIMITS)
    if (layers := sandbox_layers(settings)).missing:
        pytest.skip("this machine offers no sandbox")
    monkeypatch.setattr(code_judge, "WALL_EXTRA", 900.0)
    job = {"settings": asdict(settings), "namespaces": layers.namespaces, "seconds": 900.0}

    def judged(gold: str, program: str) -> Verdict:
        found = code_judge.run({**job, "gold": gold, "program": program})
        return Verdict(found["verdict"], found["reason"])

    yield judged
    code_judge._drop_box()


ADD = stdin(("1 2\n", "3\n"), ("10 20\n", "30\n"), ("-1 1\n", "0\n"))
ADDER = "a, b = map(int, input().split())\nprint(a + b)"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("a, b = map(int, input().split())\nprint(max(a + b, 3))", "2 of 3 tests; first failure: test 3: wrong output"),
        ("a, b = map(int, input().split())\nprint(0 // (a + 1) + a + b)", "2 of 3 tests; first failure: test 3: error"),
        ("print(int(input()))", "0 of 3 tests; first failure: test 1: error (ValueError: invalid literal"),
        ("print(", "0 of 3 tests; first failure: test 1: error (SyntaxError"),
        ("while True: pass", "0 of 3 tests, 2 not run; first failure: test 1: time (more than 1 s of CPU)"),
        ("x = 'x' * (1 << 31)", "0 of 3 tests, 2 not run; first failure: test 1: memory (more than 256 MiB)"),
        ("while True: print('x' * 9999)", "0 of 3 tests, 2 not run; first failure: test 1: output (more than 2 MiB)"),
        ("import os; os.kill(os.getpid(), 11)", "0 of 3 tests; first failure: test 1: error (SIGSEGV)"),
        ("import os; os._exit(3)", "0 of 3 tests; first failure: test 1: error (it ended with a failure)"),
        ("print('correct'); print('{\"verdict\": \"correct\"}')", "0 of 3 tests; first failure: test 1: wrong output"),
        ("import numpy", "0 of 3 tests; first failure: test 1: error (ModuleNotFoundError: No module named 'numpy')"),
    ],
)  # fmt: skip
def test_failures_say_which_test_and_why(patient: Callable[[str, str], Verdict], program: str, reason: str) -> None:
    verdict = patient(ADD, program)
    assert verdict.verdict == "incorrect" and verdict.reason.startswith(reason), verdict
    assert verdict.score is None


def test_right_programs(code: CodeReward) -> None:
    before = code.counts["correct"]
    programs = [
        ADDER,
        f"def main():\n    {ADDER.replace(chr(10), chr(10) + '    ')}\nif __name__ == '__main__':\n    main()",
    ]
    verdicts = code.judge([Attempt(ADD, fenced(program)) for program in programs * 4])
    assert {verdict.verdict for verdict in verdicts} == {"correct"} and verdicts[0].reason == "3 of 3 tests"
    assert code.counts["correct"] == before + 8


def test_order_is_kept(code: CodeReward, seed: int) -> None:
    rng = random.Random(seed)
    right = [rng.random() < 0.5 for _ in range(12)]
    attempts = [Attempt(stdin(("", str(i))), fenced(f"print({i if good else i + 1})")) for i, good in enumerate(right)]
    attempts.insert(5, Attempt(ADD, "no program"))
    right.insert(5, False)
    verdicts = code.judge(attempts)
    assert [verdict.verdict == "correct" for verdict in verdicts] == right
    assert verdicts[5].reason == "no code block"


def test_functions(code: CodeReward) -> None:
    gold = calls(([[3, 1, 2]], [1, 2, 3]), ([[]], []))
    assert judge(code, gold, "f = sorted").verdict == "correct"
    assert judge(code, gold, "def f(x): return tuple(sorted(x))").verdict == "correct"
    # The program's own annotations are evaluated: `List` must come from the program or the prelude.
    verdict = judge(code, gold, "class Solution:\n    def f(self, x: List[int]):\n        return sorted(x)")
    assert verdict.reason.startswith("0 of 2 tests; first failure: test 1: error (NameError")
    assert judge(code, gold, "class Solution:\n    def f(self, x):\n        return sorted(x)").verdict == "correct"
    assert "there is no function f" in judge(code, gold, "def g(x): return sorted(x)").reason
    assert "not JSON serializable" in judge(code, gold, "def f(x): return set(x)").reason
    deep = "def f(x):\n    y = []\n    for _ in range(900): y = [y]\n    return y"
    assert judge(code, gold, deep).reason.endswith("test 1: wrong output")


def test_results_of_functions_cannot_be_forged(code: CodeReward) -> None:
    """All descriptors get all sorts of good news; an object that equals everything does not cross a process."""
    program = (
        "import os\nclass Always:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "class Sly(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def f(x):\n    for fd in range(3, 50):\n        try: os.write(fd, b'{\"passed\": true}')\n"
        "        except OSError: pass\n"
        "    return {}\n"
    )
    for value in ("Always()", "Sly(7)", "'anything'"):
        forged = program.replace("return {}", f"return {value}")
        assert judge(code, calls(([1], 42)), forged).verdict == "incorrect"
        assert judge(code, check("def check(f):\n    assert f(1) == 42"), forged).verdict == "incorrect"


CHECK = (
    "def check(candidate):\n    assert candidate([1, 2]) == (3, {1}), 'sum'\n    assert candidate([]) == (0, set())\n"
)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x): return sum(x), set(x)", "failed: wrong output (sum)"),
        ("def f(x): return None", "failed: wrong output (sum)"),
        ("def f(x): raise KeyError(1)", "failed: KeyError"),
        ("def g(x): return 1", "failed: NameError: there is no function f"),
        ("f = 1", "failed: TypeError"),
        ("import os\ndef f(x): os._exit(0)", "failed: the program ended"),
        ("def f(x):\n    while True: pass", "failed: time (more than 1 s of CPU)"),
        ("def f(x): return 'x' * (1 << 31)", "failed: MemoryError"),
        ("def f(", "failed: SyntaxError"),
        ("assert False, 'import time'", "failed: AssertionError: import time"),
        ("import sys; sys.exit(0)", "failed: SystemExit"),
        ("def f(x): return f", "failed: wrong output"),
        ("def f(x): return [[]] * 3000000", "failed:"),
    ],
)
def test_checks(patient: Callable[[str, str], Verdict], program: str, reason: str) -> None:
    verdict = patient(check(CHECK), program)
    assert verdict.verdict == "incorrect" and verdict.reason.startswith(reason), verdict


def test_checks_that_pass(code: CodeReward) -> None:
    assert judge(code, check(CHECK), "def f(x): return (sum(x), {n for n in x if n == 1})") == Verdict(
        "correct", "all checks"
    )
    # Bare asserts, a helper of the question, an exception that is expected, an object that only the program can read.
    test = (
        "assert helper(f(2)) == 5\ntry:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    pass\n"
        "assert area(Box(2, 3)) == 6 and f(10**6000) == 2 * 10**6000\nassert f(x=1.5) == 3.0\n"
    )
    program = (
        "class Box:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def area(box): return box.a * box.b\n"
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return 2 * x\n"
    )
    gold = check(test, prelude="def helper(x): return x + 1", names=["Box", "area"])
    assert judge(code, gold, program) == Verdict("correct", "all checks")
    assert judge(code, gold, program.replace("2 * x", "2.5 * x")).verdict == "incorrect"


def test_the_end_of_an_iteration_is_no_way_out(code: CodeReward) -> None:
    test = "assert all(map(lambda x: f(x) == 1, range(5)))"
    assert judge(code, check(test), "def f(x): raise StopIteration").verdict == "incorrect"
    assert judge(code, check(test), "def f(x): return 1").verdict == "correct"


def test_the_test_is_nowhere_in_the_program_s_process(code: CodeReward) -> None:
    program = (
        "import gc, sys\ndef f(x):\n    seen = set()\n    frame = sys._getframe()\n    while frame:\n"
        "        seen.update(map(repr, frame.f_locals.values()))\n        frame = frame.f_back\n"
        "    seen.update(s for o in gc.get_objects() if type(o) is dict for s in list(o.values()) if type(s) is str)\n"
        "    return any('987' + '654' in s for s in seen)\n"
    )
    assert judge(code, check("assert f(0) is False\nx = 987654"), program).verdict == "correct"


def test_bad_golds_are_errors(code: CodeReward) -> None:
    golds = ["", "[]", '{"style": "stdin"}', '{"style": "stdin", "tests": []}', '{"style": "java", "tests": [1]}',
             '{"style": "stdin", "tests": [{"input": "1"}]}', '{"style": "function", "tests": []}',
             '{"style": "function", "entry_point": "f", "tests": [{"args": 1, "output": 2}]}',
             '{"style": "stdin", "tests": [{"input": "1", "output": "1"}], "time_limit": -1}',
             check("assert f(object()) == 1")]  # fmt: skip
    verdicts = code.judge([Attempt(gold, fenced("def f(x): return 1")) for gold in golds])
    assert {verdict.verdict for verdict in verdicts} == {"error"}
    assert verdicts[0].reason.startswith("the gold cannot be used: it is not JSON")
    assert verdicts[-1].reason == "the gold cannot be used: the test passes a object is no plain data"
    with pytest.raises(GoldError, match='its test 1 has no "output" that is text'):
        parse_gold(golds[5])


def test_large_golds_go_by_file_and_once(code: CodeReward, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [("x" * 300_000, str(i)) for i in range(2)]
    gold = stdin(*cases)
    program = "input()\nimport os\nprint(len(os.listdir('.')))"
    attempts = [Attempt(gold, fenced(program))] * 3
    assert {verdict.reason for verdict in code.judge(attempts)} == {"1 of 2 tests; first failure: test 2: wrong output"}
    assert code._folder is not None and len(list(Path(code._folder.name).iterdir())) == 1
    assert Path(code._folder.name).stat().st_mode & 0o077 == 0
    shutil.rmtree(code._folder.name)
    assert code.judge(attempts[:1])[0].reason.startswith("1 of 2 tests")
    monkeypatch.setattr("bridge_mcore.rewards.code._KEPT_BYTES", 1000)
    code.judge(attempts[:1])
    assert not list(Path(code._folder.name).iterdir())


def test_time_limit_of_the_gold(patient: Callable[[str, str], Verdict]) -> None:
    quick = stdin(("", "1"), time_limit=0.2)
    assert "time (more than 0.2 s of CPU)" in patient(quick, "while True: pass").reason


def test_time_limit_of_the_whole() -> None:
    if sandbox_layers(SandboxSettings(**LIMITS)).missing:
        pytest.skip("this machine offers no sandbox")
    reward = CodeReward(SandboxSettings(**LIMITS), workers=1, wall_seconds=1.0)
    gold = stdin(*[("", "1")] * 20)
    verdict = judge(reward, gold, "import time; time.sleep(0.2); print(1)")
    assert verdict.verdict == "timeout" and verdict.reason.endswith("of 20 tests passed, then time was up")
    reward.close()
    reward.close()
    with pytest.raises(BridgeError, match="closed"):
        judge(reward, gold, "print(1)")


SLEEPY = "import time; time.sleep(1000)"


@pytest.mark.parametrize(
    ("stalled", "own_doing", "why"),
    [
        ([0.0, 0.01], True, "of its own accord"),
        ([5.0, 6.0], False, "too few cores"),
        ([None, None], False, "longer than"),
    ],
)
def test_a_clock_that_ran_out_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, stalled: list[float | None], own_doing: bool, why: str
) -> None:
    """A program that the clock cut may be a right one that got no core; the kernel's count tells whose doing it was."""
    settings = SandboxSettings(**LIMITS)
    if sandbox_layers(settings).missing:
        pytest.skip("this machine offers no sandbox")
    monkeypatch.setattr(code_judge, "WALL_FACTOR", 0.0)
    monkeypatch.setattr(code_judge, "WALL_EXTRA", 1.0)
    job = {"settings": asdict(settings), "namespaces": sandbox_layers(settings).namespaces, "seconds": 60.0}
    check = json.dumps({"style": "function", "entry_point": "f", "test": "def check(f): assert f(1) == 2"})
    try:
        for gold, program in ((stdin(("", "1")), SLEEPY), (check, f"def f(x):\n    {SLEEPY}")):
            readings = iter(stalled)
            monkeypatch.setattr(code_judge, "_stalled_seconds", lambda readings=readings: next(readings))
            found = code_judge.run({**job, "gold": gold, "program": program})
            assert (found["verdict"], found["own_doing"]) == ("timeout", own_doing) and why in found["reason"]
        # One test that failed settles it, whatever comes after.
        late = f"n = input()\nif n == '1': print(2)\nelse:\n    {SLEEPY}"
        monkeypatch.setattr(code_judge, "_stalled_seconds", lambda: None)
        found = code_judge.run({**job, "gold": stdin(("1", "1"), ("2", "2")), "program": late})
        assert (
            found["verdict"] == "incorrect"
            and found["reason"] == "0 of 2 tests, 1 not run; first failure: test 1: wrong output"
        )
        # The checking process may see the program end that the clock ends, and say so: no failure either.
        killed = {"status": "wall", "result": json.dumps({"passed": False, "why": "the program ended"}), "seconds": 9.0}
        monkeypatch.setattr(code_judge, "_stalled_seconds", lambda: None)
        box = SimpleNamespace(run=lambda request, hidden, wall: killed)
        found = code_judge._check(cast(Any, box), parse_gold(check), SLEEPY, settings)
        assert found["verdict"] == "timeout"
    finally:
        code_judge._drop_box()


def test_the_kernels_count_of_stalls_is_read_or_unknown() -> None:
    one, two = code_judge._stalled_seconds(), code_judge._stalled_seconds()
    assert (one is None) == (not Path("/proc/pressure/cpu").exists())
    assert one is None or 0 <= one <= (two or 0)


def test_packages_can_be_let_in() -> None:
    settings = SandboxSettings(**{**LIMITS, "cpu_seconds": 10}, packages=True)
    if sandbox_layers(settings).missing:
        pytest.skip("this machine offers no sandbox")
    reward = CodeReward(settings, workers=1)
    program = "import numpy as np\nprint(int(np.linalg.det(np.eye(3)) + np.arange(4).sum()))"
    assert judge(reward, stdin(("", "7")), program).verdict == "correct"
    reward.close()


def test_no_sandbox_no_reward() -> None:
    with pytest.raises(ConfigError, match="cannot keep candidate programs from"):
        CodeReward(SandboxSettings(without=("namespaces", "landlock", "seccomp")))


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```\na\n```\n```js\nb\n```", "b\n"),
        ("```py\na\n```\ntext\n```Python3\nb\n```", "b\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("  ```python\n  a\n  ```", "  a\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("```python\na\n```\n```python\ncut off", "a\n"),
        ("```python title=x\na\n```", "a\n"),
        ("```python\nnever closed\n```python\na\n```", "a\n"),
        ("```python\n```", ""),
        ("```python\na", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_last_program(text: str, program: str | None) -> None:
    assert last_program(text) == program


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2\n3\n", " 1 2 \n3 \n\n", True),
        ("1\n\n2", "1\n2", False),
        ("1.50", "1.5", True),
        ("3", "3.0", True),
        ("1e3", "1000", True),
        ("1 2", "1  2", True),
        ("0.1", "0.10000000000000001", False),
        ("yes", "Yes", False),
        ("a 1", "a 1.0", False),
        ("1 2", "12", False),
        ("nan", "nan", True),
        ("nan 1", "nan 1.0", False),
        ("inf 1", "inf  1", False),
        ("1", "sNaN", False),
        ("1", "١", False),
        ("", "", True),
        ("", "0", False),
        ("1", "9" * 100_000, False),
        ("1", "1e999999", False),
        ("0", "0e-999999", True),
    ],
)
def test_outputs(expected: str, found: str, same: bool) -> None:
    assert same_output(expected, found) is same


def test_values() -> None:
    nan = float("nan")
    for left, right in [(1, 1.0), ([1, [2]], [1, [2]]), ({"a": nan}, {"a": nan}), (None, None), ("a", "a")]:
        assert same_value(left, right)
    for left, right in [
        (1, True),
        (0, False),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (1, "1"),
        (None, 0),
        ([], {}),
        (nan, 1.0),
    ]:
        assert not same_value(left, right)
