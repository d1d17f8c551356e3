"""What the sandbox offers on this machine, and how many programs a second it judges.

    python tools/bench_sandbox.py                # 2 workers
    python tools/bench_sandbox.py --workers 8 --programs 400

Programs are short, so the figures are the sandbox's own cost; with all layers, then with some left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from bridge_mcore.errors import BridgeError
from bridge_mcore.rewards.code import CodeReward
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, sandbox_layers

ADD = "a, b = map(int, input().split())\nprint(a + b)"
FUNCTION = "def add(a, b):\n    return a + b"


def attempts(kind: str, programs: int, tests: int) -> list[Attempt]:
    """Right programs of one kind, with so many tests each."""
    cases = [(i, i + 1, 2 * i + 1) for i in range(tests)]
    if kind == "stdin":
        gold: dict = {"style": "stdin", "tests": [{"input": f"{a} {b}\n", "output": f"{c}\n"} for a, b, c in cases]}
    elif kind == "function":
        gold = {
            "style": "function",
            "entry_point": "add",
            "tests": [{"args": [a, b], "output": c} for a, b, c in cases],
        }
    else:
        lines = "".join(f"    assert candidate({a}, {b}) == {c}\n" for a, b, c in cases)
        gold = {"style": "function", "entry_point": "add", "test": f"def check(candidate):\n{lines}"}
    program = ADD if kind == "stdin" else FUNCTION
    return [Attempt(json.dumps(gold), f"```python\n{program}\n```") for _ in range(programs)]


def bare(programs: int) -> float:
    """Seconds of one fresh interpreter without any sandbox, for comparison."""
    started = time.perf_counter()
    for _ in range(programs):
        subprocess.run([sys.executable, "-I", "-S", "-c", ADD], input=b"1 2\n", capture_output=True, check=True)
    return (time.perf_counter() - started) / programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--programs", type=int, default=200, help="of each kind")
    parser.add_argument("--tests", type=int, default=10, help="of each program")
    options = parser.parse_args()
    print(sandbox_layers(SandboxSettings()).table())
    load = os.getloadavg()[0]
    print(f"\n{options.workers} workers, {os.cpu_count()} cores, load {load:.1f} before, {options.tests} tests each\n")
    print("| layers | kind | programs/s | runs/s |\n|---|---|--:|--:|")
    for name, without in (
        ("all", ()),
        ("namespaces alone", ("seccomp", "landlock")),
        ("no namespaces", ("namespaces",)),
        ("none", ("namespaces", "seccomp", "landlock")),
    ):
        try:
            reward = CodeReward(SandboxSettings(without=without, unsafe=True), options.workers)
        except BridgeError as error:
            print(f"| {name} | | {error} | |")
            continue
        for kind in ("stdin", "function", "check") if name == "all" else ("stdin",):
            reward.judge(attempts(kind, 2 * options.workers, 1))  # start the workers and their boxes
            batch = attempts(kind, options.programs, options.tests)
            started = time.perf_counter()
            verdicts = reward.judge(batch)
            seconds = time.perf_counter() - started
            assert {verdict.verdict for verdict in verdicts} == {"correct"}, verdicts[0]
            runs = options.programs * (1 if kind == "check" else options.tests)
            print(f"| {name} | {kind} | {options.programs / seconds:.0f} | {runs / seconds:.0f} |")
        reward.close()
    print(f"\none bare interpreter after another: {1 / bare(50):.0f} runs/s")


if __name__ == "__main__":
    main()
