"""The verifier as the trainer uses it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from bridge_mcore.errors import BridgeError
from bridge_mcore.rewards import MathVerifier, Verdict, reward
from bridge_mcore.rewards import math as rewards_math
from bridge_mcore.rewards.exact import clean, compare
from bridge_mcore.rewards.pool import Pool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, cpu_seconds=1.0, memory_gib=1.0) as shared:
        yield shared


def one(verifier: MathVerifier, gold: str, answer: str) -> Verdict:
    return verifier.verify([(gold, f"So the answer is $\\boxed{{{answer}}}$.")])[0]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
        ("x^2-1", "(x-1)(x+1)"),
        ("x", "2x/2"),
        (r"\frac{x}{2}", "0.5x"),
        (r"2\pi", "2π"),
        ("(1,2)", "1<x<2"),
        ("[1,2]", r"1 \le x \le 2"),
        ("-1", r"e^{i\pi}"),
        (r"\left(\frac12,3\right)", "(0.5, 3)"),
        (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{pmatrix}0.5\\2\end{pmatrix}"),
        ("1,2", "2, 1"),
        (r"\frac12", r"50\%"),
        ("5", "x=5"),
        (r"\text{(C)}", "C"),
        (r"90^\circ", "90"),
        (r"5\text{ cm}", "5"),
        (r"\boxed{7}", "7.0"),
        (r"\text{no solution}", r"\emptyset"),
    ],
)
def test_right(verifier: MathVerifier, gold: str, answer: str) -> None:
    assert one(verifier, gold, answer).verdict == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac13", "0.333333"),
        (r"\pi", "3.14159265"),
        (r"3\sqrt2", "4.242641"),
        (r"\frac13, 2", "0.3333333, 2"),
        (r"\begin{pmatrix}1/3\\2\end{pmatrix}", r"\begin{pmatrix}0.3333333\\2\end{pmatrix}"),
        ("5 cm", "5 m"),
        ("12_7", "12_8"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("x^2", "x^3"),
        ("5", "1, 2, 5?"),
        ("5", "1 or 3 or 5"),
        ("5", "maybe 4 # 5"),
        ("5", r"\frac{5}{0}"),
        ("5", r"\text{five or so}"),
        (r"\infty", "5"),
    ],
)
def test_wrong(verifier: MathVerifier, gold: str, answer: str) -> None:
    assert one(verifier, gold, answer).verdict == "incorrect"


def test_reasons_of_what_needs_no_comparison(verifier: MathVerifier) -> None:
    before = verifier.counts.copy()
    verdicts = verifier.verify(
        [("5", "it is 5"), ("5", r"\boxed{}"), ("5", r"\boxed{$ $}"), ("", r"\boxed{5}"), (r"\boxed{}", r"\boxed{5}")]
    )
    assert [verdict.verdict for verdict in verdicts] == ["incorrect"] * 3 + ["error"] * 2
    assert verdicts[0].reason == "no \\boxed{} answer"
    assert "empty" in verdicts[1].reason and "empty" in verdicts[2].reason
    assert "gold" in verdicts[3].reason and "gold" in verdicts[4].reason
    assert verifier.counts - before == {"incorrect": 3, "error": 2}
    assert verifier.verify([]) == []


def test_order_is_kept_through_every_path(verifier: MathVerifier, seed: int) -> None:
    rng = random.Random(seed)
    kinds = [
        ("7", r"\boxed{7}", "correct"),
        ("7", r"\boxed{8}", "incorrect"),
        ("7", "seven", "incorrect"),
        ("", r"\boxed{7}", "error"),
        ("x+1", r"\boxed{1+x}", "correct"),
        ("x+1", r"\boxed{x+2}", "incorrect"),
        (r"\sqrt8", r"\boxed{2\sqrt2}", "correct"),
        ("5", r"\boxed{9^{9^{9^9}}}", "timeout"),
    ]
    batch = kinds + rng.choices(kinds[:-1], k=60)
    rng.shuffle(batch)
    verdicts = verifier.verify([(gold, response) for gold, response, _ in batch])
    assert [verdict.verdict for verdict in verdicts] == [expected for _, _, expected in batch]


@pytest.mark.parametrize(
    "answer",
    [
        r"9^{9^{9^9}}",
        "9**9**9**9",
        r"(10^9)!",
        r"\frac{" * 300 + "1" + "}{2}" * 300,
        "(" * 1500 + "1" + ")" * 1500,
        "{" * 1500 + "1" + "}" * 1500,
        "x" * 4000,
        "1+" * 1900 + "1",
        "-" * 4000,
        r"\sqrt" * 700 + "2",
        "1" * 4000,
        "a,b " * 1000,
        r"\binom{10^9}{10^8}",
        r"\prod_{k=1}^{10^9}k",
        r"\begin{pmatrix}" + r"1&2\\" * 500 + r"\end{pmatrix}",
        "$" * 3000,
        "\0\ud800\uffff" * 100,
        r"\input{/etc/passwd}",
        "__import__('os').system('true')",
    ],
)
def test_hostile_answers_are_never_right_and_end_in_time(verifier: MathVerifier, answer: str) -> None:
    start = time.monotonic()
    verdicts = verifier.verify([(r"\sqrt{17}", f"\\boxed{{{answer}}}"), ("x+1", r"\boxed{1+x}")])
    assert verdicts[0].verdict != "correct", verdicts[0]
    assert verdicts[1].verdict == "correct"
    assert time.monotonic() - start < 45  # 1 s of CPU time, on however busy a machine


def test_huge_tower_is_a_timeout_and_says_so(verifier: MathVerifier) -> None:
    verdict = one(verifier, "5", "7^{7^{7^{7^7}}}")
    assert verdict.verdict == "timeout" and "1 s of CPU time" in verdict.reason


def test_megabytes_of_response_and_of_answer(verifier: MathVerifier) -> None:
    start = time.monotonic()
    filler = "so {x} = \\{y\\} " * 200_000
    verdicts = verifier.verify(
        [("5", filler + r"\boxed{5}" + filler), ("5", "\\boxed{" + "1" * 3_000_000 + "}"), ("9" * 5000, r"\boxed{x}")]
    )
    assert [verdict.verdict for verdict in verdicts] == ["correct", "incorrect", "error"]
    assert "3000000 characters" in verdicts[1].reason
    assert time.monotonic() - start < 20


def random_spelling(rng: random.Random, value: Fraction) -> str:
    """One of the ways to write a rational that both the fast path and Math-Verify know."""
    sign, top, bottom = ("-" if value < 0 else ""), abs(value.numerator), value.denominator
    times = rng.randrange(1, 5)
    ways = [
        f"{sign}{top * times}/{bottom * times}",
        f"{sign}\\frac{{{top * times}}}{{{bottom * times}}}",
        f"{sign}\\dfrac{{{top}}}{{{bottom}}}",
    ]
    if bottom == 1:
        ways += [f"{sign}{top}", f"{sign}{top:,}", f"{sign}{top}.00"]
    elif 10**6 % bottom == 0:
        ways += [f"{sign}{float(abs(value)):.7f}".rstrip("0")]
    return rng.choice(ways)


def test_fast_path_agrees_with_math_verify_on_rationals(seed: int) -> None:
    rng = random.Random(seed)
    pairs = []
    for _ in range(150):
        value = Fraction(rng.randrange(-5000, 5000), rng.choice([1, 1, 2, 3, 4, 5, 7, 8, 20]))
        other = value if rng.random() < 0.5 else value + rng.choice([-1, 1]) * Fraction(1, rng.choice([1, 2, 5, 7]))
        pairs.append((random_spelling(rng, value), random_spelling(rng, other)))
    pool = Pool("bridge_mcore.rewards.equivalence:equivalent", workers=1, wall_seconds=600)
    outcomes = pool.map([[clean(gold), clean(answer)] for gold, answer in pairs])
    pool.close()
    for (gold, answer), outcome in zip(pairs, outcomes, strict=True):
        fast = compare(clean(gold), clean(answer))
        assert fast is not None, (gold, answer)
        assert (fast.verdict == "correct") == outcome.value["equal"], (gold, answer, fast, outcome)


def test_decided_pairs_are_remembered_and_timeouts_are_not(verifier: MathVerifier, monkeypatch) -> None:
    asked: list[tuple[str, str]] = []
    run = verifier._pool.map
    monkeypatch.setattr(verifier._pool, "map", lambda jobs: asked.extend(jobs) or run(jobs))
    pairs = [("y^2+1", r"\boxed{1+y^2}"), ("y^2+1", r"\boxed{y^2+2}"), ("5", r"\boxed{8^{8^{8^8}}}")]
    first = verifier.verify(pairs * 3)
    assert len(asked) == 3  # equal pairs of a batch are asked once
    assert [verdict.verdict for verdict in first] == ["correct", "incorrect", "timeout"] * 3
    assert verifier.verify(pairs) == first[:3]
    assert asked[3:] == [("5", "8^{8^{8^8}}")]


def test_the_cache_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(rewards_math, "CACHE_PAIRS", 3)
    with MathVerifier(workers=1) as small:
        small.verify([("x+y", f"\\boxed{{x+{n}y}}") for n in range(2, 8)])
        assert list(small._cache) == [("x+y", f"x+{n}y") for n in (5, 6, 7)]
        long = "x+" * 300 + "x"
        small.verify([("x", f"\\boxed{{{long}}}")])
        assert len(small._cache) == 3 and ("x", long) not in small._cache


def test_other_threads_may_verify(verifier: MathVerifier) -> None:
    results: list[str] = []

    def call(n: int) -> None:
        results.extend(
            verdict.verdict for verdict in verifier.verify([(f"x+{n}", f"\\boxed{{{n}+x}}"), ("z", r"\boxed{w}")])
        )

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["correct"] * 4 + ["incorrect"] * 4


def test_a_script_from_standard_input_needs_no_main_guard() -> None:
    script = (
        "import sys\nfrom bridge_mcore.rewards import MathVerifier\n"
        "assert not {'torch', 'sympy', 'typer'} & set(sys.modules), 'heavy import'\n"
        "v = MathVerifier(workers=1)\nprint(v.verify([('x+1', r'\\boxed{1+x}')])[0].verdict)\n"  # and no close()
    )
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "correct\n", "")


def test_a_closed_verifier_says_so() -> None:
    closed = MathVerifier()
    closed.close()
    with pytest.raises(BridgeError, match="closed"):
        closed.verify([("x", r"\boxed{y}")])


def test_reward() -> None:
    assert [reward(Verdict(name, "")) for name in ("correct", "incorrect", "timeout", "error")] == [1, 0, 0, 0]
    assert reward(Verdict("incorrect", ""), correct=1.0, incorrect=-1.0) == -1.0
