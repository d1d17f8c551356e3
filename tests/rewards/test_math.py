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

from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards import MathVerifier, Verdict, reward
from bridge_mcore.rewards import math as rewards_math
from bridge_mcore.rewards.exact import clean
from bridge_mcore.rewards.pool import Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.same import decide

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
    assert time.monotonic() - start < 600  # it ends: 1 s of CPU time, on however busy a machine


def test_huge_tower_is_a_timeout_and_says_so(verifier: MathVerifier) -> None:
    verdict = one(verifier, "5", "7^{7^{7^{7^7}}}")
    assert verdict.verdict == "timeout" and "1 s of CPU time" in verdict.reason


def test_megabytes_of_response_and_of_answer(verifier: MathVerifier) -> None:
    start = time.process_time()
    filler = "so {x} = \\{y\\} " * 200_000
    verdicts = verifier.verify(
        [("5", filler + r"\boxed{5}" + filler), ("5", "\\boxed{" + "1" * 3_000_000 + "}"), ("9" * 5000, r"\boxed{x}")]
    )
    assert [verdict.verdict for verdict in verdicts] == ["correct", "incorrect", "error"]
    assert "3000000 characters" in verdicts[1].reason
    assert time.process_time() - start < 20


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
    pool = Pool("tests.rewards.math_jobs:math_verify", workers=1, wall_seconds=600)
    outcomes = pool.map([[clean(gold), clean(answer)] for gold, answer in pairs])
    pool.close()
    for (gold, answer), outcome in zip(pairs, outcomes, strict=True):
        decision, _ = decide(clean(gold), clean(answer))
        assert decision is outcome.value, (gold, answer, decision, outcome)


def test_decided_pairs_are_remembered_and_timeouts_are_not(verifier: MathVerifier, monkeypatch) -> None:
    asked: list[object] = []
    run = verifier._pool.map
    monkeypatch.setattr(verifier._pool, "map", lambda jobs: asked.extend(jobs) or run(jobs))
    pairs = [
        (r"\sin 2y", r"\boxed{2\sin y\cos y}"),
        ("y^2+1", r"\boxed{\int_0^1 y dt}"),
        ("5", r"\boxed{8^{8^{8^8}}}"),
    ]
    first = verifier.verify(pairs * 3)
    assert len(asked) == 3  # equal pairs of a batch are asked once
    assert [verdict.verdict for verdict in first] == ["correct", "incorrect", "timeout"] * 3
    assert verifier.verify(pairs) == first[:3]
    assert asked[3:] == [["5", "8^{8^{8^8}}", 0.0]]


def test_the_cache_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(rewards_math, "CACHE_PAIRS", 3)
    with MathVerifier(workers=1) as small:
        gold = r"\sin 2x"
        answers = [rf"2\sin x\cos x+\int_0^{n} t dt" for n in range(2, 8)]
        small.verify([(gold, f"\\boxed{{{answer}}}") for answer in answers])
        assert list(small._cache) == [(gold, answer) for answer in answers[3:]]
        long = r"\int_0^1 t dt+" * 40 + "x"
        small.verify([(gold, f"\\boxed{{{long}}}")])
        assert len(small._cache) == 3 and (gold, long) not in small._cache


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
    done = subprocess.run([sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "correct\n", "")


def test_a_closed_verifier_says_so() -> None:
    closed = MathVerifier()
    closed.close()
    with pytest.raises(BridgeError, match="closed"):
        closed.verify([("x", r"\boxed{y}")])


def test_reward() -> None:
    assert [reward(Verdict(name, "")) for name in ("correct", "incorrect", "timeout", "error")] == [1, 0, 0, 0]
    assert reward(Verdict("incorrect", ""), correct=1.0, incorrect=-1.0) == -1.0


def test_an_answer_that_repeats_the_question_is_no_answer(verifier: MathVerifier) -> None:
    def judged(gold: str, answer: str, prompt: str) -> str:
        return verifier.judge([Attempt(gold=gold, response=f"\\boxed{{{answer}}}", prompt=prompt)])[0].verdict

    before = verifier.counts.copy()
    assert judged("70", r"\binom{8}{4}", r"Compute $\dbinom{8}{4}$.") == "incorrect"
    assert judged("70", r"\frac{140}{2}", r"Compute $\dbinom{8}{4}$.") == "correct"
    assert judged("70", r"\dbinom{8}{4}", r"Compute $\dbinom{8}{4}$.") == "incorrect"
    assert judged("6", r"\sqrt{36}", r"What is $\sqrt{36}$?") == "incorrect"
    assert judged("391", r"17 \cdot 23", r"What is $17\cdot23$?") == "incorrect"
    assert judged("391", "391", r"What is $17\cdot23$? Not 391!") == "correct"
    assert judged("90", r"90^\circ", r"How large is an angle of $90^\circ$?") == "correct"
    assert judged("1/2", r"\frac{1}{2}", r"Is it $\frac{1}{2}$ or $\frac{1}{3}$?") == "correct"
    assert judged(r"\sqrt{2}", r"\sqrt{2}", r"Is it $\sqrt{2}$ or $\sqrt{3}$?") == "correct"
    assert judged("70", r"\dbinom{8}{4}", "") == "correct"
    assert verifier.counts - before == {"correct": 6, "incorrect": 4}


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "near"),
    [
        ("4.49", "4.5", False, True),
        ("4.49", "4.6", False, False),
        ("4.5e33", r"4.53 \times 10^{33}", False, True),
        ("4.5e33", r"4.53 \times 10^{32}", False, False),
        ("300", "299", False, True),
        ("3.14", r"\pi", False, True),
        ("0.1", r"\frac{1}{9.95}", False, True),
        ("6.28 cm", r"2\pi\text{ cm}", False, True),
        ("6.28 cm", r"2\pi\text{ m}", False, False),
        (r"\frac13", "0.3333", False, False),
        (r"\pi", "3.14", False, False),
        ("0", "0.001", False, False),
        ("-2", "2", False, False),
    ],
)
def test_a_tolerance_is_for_decimals_and_off_by_default(gold: str, answer: str, exact: bool, near: bool) -> None:
    with MathVerifier(workers=1) as strict, MathVerifier(workers=1, tolerance=0.01) as lenient:
        assert (one(strict, gold, answer).verdict == "correct") is exact
        assert (one(lenient, gold, answer).verdict == "correct") is near


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_tolerance_must_be_a_relative_error(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="tolerance"):
        MathVerifier(tolerance=tolerance)


def test_a_large_batch_is_shared_and_decided_alike(verifier: MathVerifier, seed: int, monkeypatch) -> None:
    rng = random.Random(seed)
    pairs = [(str(n), f"\\boxed{{{n + rng.choice([0, 0, 1])}.0}}") for n in range(200)] + [
        (r"\sin 2x", r"\boxed{2\sin x\cos x}"),
        (r"\sin 2x", r"\boxed{9^{9^{9^9}}}"),
    ]
    rng.shuffle(pairs)
    alone = verifier.verify(pairs)
    monkeypatch.setattr(rewards_math, "SHARED_BATCH", 16)
    assert verifier.verify(pairs) == alone


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("27.0", r"\boxed{27}"),
        ("$69$,$84$", r"\boxed{84, 69}"),
        (r"45 \text{ minute}", r"\boxed{45\text{ minutes}}"),
        (r"166 \text{ cm^2}", r"\boxed{166\text{ cm}^2}"),
        (r"4.2\%", r"\boxed{4.2}"),
        (r"\angle B E A_{1}=90,\angle A E B_{1}=90^{\circ}", r"\boxed{\angle BEA_1=90^\circ, \angle AEB_1=90^\circ}"),
        ("6.5e-2", r"\boxed{6.5 \times 10^{-2}}"),
        ("025", r"\boxed{25}"),
    ],
)
def test_golds_as_the_data_sets_have_them(verifier: MathVerifier, gold: str, response: str) -> None:
    assert verifier.verify([(gold, response)])[0].verdict == "correct"
