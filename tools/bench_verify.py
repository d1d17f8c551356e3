r"""Answers per second of the verifier against plain Math-Verify, on one core and on two.

``python tools/bench_verify.py FILE.jsonl [--pairs N] [--seed N]``: FILE has rows with "answer" (and "solution"), such
as MATH500. One half of the responses is right: the solution itself, or a box with the gold spelled otherwise
(``\dfrac``, other spaces, a decimal for a fraction, an unreduced fraction, a label, ``7 + 2x - 7`` for 2x). The other
half is wrong: another row's gold, a digit changed, a value added, a decimal approximation. Every response has 200 words
before its box. No two answers to one gold are spelled alike, so no cache helps.

Both sides run on the same pairs in the same run, pinned to the cores (Linux). Plain Math-Verify is
``verify(parse(gold), parse(response))`` with its recommended extraction from the box; on two cores it runs in two
processes with half of the pairs each. Starting processes and imports are not counted, on either side.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.exact import canonical, clean, number
from bridge_mcore.rewards.same import decide

Pair = tuple[str, str]
_SENTENCE = "so we have then the sum of all terms is x and y with which it follows that for any n this holds too"
_WORDS = _SENTENCE.split()


def _filler(rng: random.Random) -> str:
    return " ".join(rng.choices([*_WORDS, "$x^2+1$", r"$\frac{a}{b}$", r"\[ y = \{1\} \]"], k=200))


def right(gold: str, solution: str, rng: random.Random) -> str:
    """A right response."""
    if solution and rng.random() < 0.3:
        return solution
    ways = [gold.replace(r"\frac", r"\dfrac"), f"$ {gold} $", f"{{{gold}}}" if "," not in gold else gold]
    value = number(canonical(clean(gold)))
    if value is not None:
        times = rng.randrange(2, 1000)
        ways += [f"x = {gold}", *[rf"\frac{{{times * value.numerator}}}{{{times * value.denominator}}}"] * 3]
        if Fraction(str(float(value))) == value:
            ways.append(str(float(value)))
    elif not re.search(r"[=,<>]|\\text|\\mbox|\\in|_|\\begin|\\circ", gold):
        n = rng.randrange(2, 1000)
        ways += [f"{n} + {gold} - {n}", rf"\frac{{{n}({gold})}}{{{n}}}"] * 3 if r"\pm" not in gold else []
    return rf"{_filler(rng)} so the answer is $\boxed{{{rng.choice(ways)}}}$."


def wrong(gold: str, other: str, rng: random.Random) -> str:
    """A wrong response."""
    ways = [
        other,
        f"{gold}, {other}",
        rf"{gold} \text{{ or }} {other}",
        f"-({gold})",
        f"{gold} + {rng.randrange(1, 1000)}",
    ]
    if digits := [found.start() for found in re.finditer(r"\d", gold)]:
        at = rng.choice(digits)
        ways += [gold[:at] + str((int(gold[at]) + rng.randrange(1, 10)) % 10) + gold[at + 1 :]] * 3
    value = number(canonical(clean(gold)))
    if value is not None and value.denominator > 1:
        ways.append(f"{float(value):.4f}" if Fraction(f"{float(value):.4f}") != value else f"{float(value) + 1:.4f}")
    return rf"{_filler(rng)} so the answer is $\boxed{{{rng.choice(ways)}}}$."


def make_pairs(path: Path, count: int, rng: random.Random) -> tuple[list[Pair], list[bool]]:
    """Pairs of gold and response, no two equal, and whether each is meant to be right."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs: list[Pair] = []
    meant: list[bool] = []
    seen: set[Pair] = set()
    while len(pairs) < count:
        row, other = rng.choice(rows), rng.choice(rows)
        gold, is_right = str(row["answer"]), rng.random() < 0.5
        solution = row.get("solution", "")
        response = right(gold, solution, rng) if is_right else wrong(gold, str(other["answer"]), rng)
        if (key := (gold, str(last_boxed(response)))) not in seen or rng.random() < 0.05:  # 0.05: so that it ends
            seen.add(key)
            pairs.append((gold, response))
            meant.append(is_right)
    return pairs, meant


Timed = tuple[float, float, list[bool]]


def plain(pairs: list[Pair]) -> Timed:
    """Seconds by the clock and of CPU time that Math-Verify takes alone, and its verdicts."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    read = (LatexExtractionConfig(boxed_match_priority=0),)
    verify(parse(r"$\frac12$", read), parse(r"$\boxed{0.5}$", read))
    start, cpu = time.perf_counter(), time.process_time()
    verdicts = [bool(verify(parse(f"${gold}$", read), parse(response, read))) for gold, response in pairs]
    return time.perf_counter() - start, time.process_time() - cpu, verdicts


def ours(pairs: list[Pair], workers: int) -> Timed:
    """The same of the verifier; CPU time is that of all its processes."""
    with MathVerifier(workers) as verifier:
        verifier.verify([(r"\sin 2x", rf"\boxed{{2\sin x\cos x+{n}-{n}}}") for n in range(8)])  # starts the workers
        start, cpu = time.perf_counter(), _cpu_seconds(verifier)
        verdicts = [verdict.verdict == "correct" for verdict in verifier.verify(pairs)]
        return time.perf_counter() - start, _cpu_seconds(verifier) - cpu, verdicts


def _cpu_seconds(verifier: MathVerifier) -> float:
    total = time.process_time()
    for pid in verifier._pool.pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--plain-pairs", type=int, default=600, help="as many of them go to Math-Verify")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.pairs} pairs from {options.file.name}")
    pairs, meant = make_pairs(options.file, options.pairs, random.Random(options.seed))
    few = pairs[: options.plain_pairs]
    asked = sum(decide(clean(gold), clean(str(last_boxed(response))))[0] is None for gold, response in pairs)
    print(f"{asked} of them are left to Math-Verify by the exact rules")
    every = sorted(os.sched_getaffinity(0))
    for cores in (1, 2):
        if len(every) < cores:
            break
        os.sched_setaffinity(0, every[:cores])
        runs = [ours(pairs, cores) for _ in range(options.repeats)]
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as executor:
            done = list(executor.map(plain, [few[i::cores] for i in range(cores)]))
        fast, fast_cpu = (len(pairs) / min(run[i] for run in runs) for i in (0, 1))
        slow, slow_cpu = len(few) / max(took for took, _, _ in done), len(few) / sum(cpu for _, cpu, _ in done)
        print(f"{cores} core(s), by the clock:   verifier {fast:6.0f} pairs/s, Math-Verify {slow:4.0f} pairs/s")
        print(f"{cores} core(s), per CPU second: verifier {fast_cpu:6.0f} pairs/s, Math-Verify {slow_cpu:4.0f} pairs/s")
        if cores == 1:
            compared = list(zip(meant[: len(few)], runs[0][2], done[0][2], strict=False))
            print(f"meant right, verifier, Math-Verify: {dict(Counter(compared))}")
            for (gold, response), (_, one, other) in zip(few, compared, strict=True):
                if one != other:
                    print(f"  {gold!r}, {last_boxed(response)!r}: verifier {one}, Math-Verify {other}")
    os.sched_setaffinity(0, every)


if __name__ == "__main__":
    main()
