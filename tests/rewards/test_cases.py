"""The table of answers, and what is published of Math-Verify's behaviour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from math_verify import LatexExtractionConfig, parse, verify

from bridge_mcore.rewards import MathVerifier
from tests.rewards import cases, spellings, verdicts

#: By a name for each kind, which several files may have.
RIGHT, WRONG = (
    {f"{name}{kind}": pairs for name, table in tables.items() for kind, pairs in table.items()}
    for tables in (
        {"": cases.RIGHT, "spelling: ": spellings.RIGHT, "verdict: ": verdicts.RIGHT},
        {"": cases.WRONG, "spelling: ": spellings.WRONG, "verdict: ": verdicts.WRONG},
    )
)
_TABLE = [
    (expected, kind, gold, answer)
    for expected, table in (("correct", RIGHT), ("incorrect", WRONG))
    for kind, pairs in table.items()
    for gold, answer in pairs
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=1, cpu_seconds=10.0) as shared:
        yield shared


def boxed(answer: str) -> str:
    return f"So the answer is $\\boxed{{{answer}}}$."


def test_the_table_is_large_and_names_no_pair_twice() -> None:
    pairs = [(gold, answer) for _, _, gold, answer in _TABLE]
    assert len(pairs) >= 300 and len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(("expected", "kind"), sorted({row[:2] for row in _TABLE}))
def test_table(verifier: MathVerifier, expected: str, kind: str) -> None:
    rows = [(gold, answer) for verdict, name, gold, answer in _TABLE if (verdict, name) == (expected, kind)]
    verdicts = verifier.verify([(gold, boxed(answer)) for gold, answer in rows])
    failed = [(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.verdict != expected]
    assert not failed


@pytest.mark.parametrize("kind", RIGHT)
def test_every_gold_accepts_itself(verifier: MathVerifier, kind: str) -> None:
    golds = [gold for gold, _ in RIGHT[kind] + WRONG.get(kind, [])]
    verdicts = verifier.verify([(gold, boxed(gold)) for gold in golds])
    assert all(verdict.verdict == "correct" for verdict in verdicts), [
        pair for pair in zip(golds, verdicts, strict=True) if pair[1].verdict != "correct"
    ]


#: What Math-Verify 0.9.0 says of (gold, answer) by its README and its behaviour, and what is said here.
AGREED = [
    (r"\frac{9}{4}\pi", r"\frac94\pi", True),
    ("1000.99", "1,000.99", True),
    (r"28\%", "28 percent", True),
    (r"\frac13", r"\frac{1}{3}\text{meters}", True),
    ("1 < x < 2", "(1,2)", True),
    ("a<2", "2>a", True),
    (r"\boxed{1}\boxed{2}", "1,2", True),
    (r"\{1,3\}\cup\{2,4\}", r"\{1,2,3,4\}", True),
    ("32349", r"32,\! 349", True),
    ("32349", "32, 349", False),
    ("(3,1)", r"\{1,3\}", False),
    ("(0,9)", "[0,9)", False),
    ("x+2n+1", "x+1", False),
    ("34x+45y-20z+100=0", "-34x-45y+20z-100=0", True),
    ("x=1", "y=1", False),
    (r"15\mbox{ cm}^2", r"15\text{ square centimeters}", True),
]
#: (gold, answer, Math-Verify, here, why here)
DIFFERENT = [
    (r"\frac13", "0.333333", True, False, "an approximation of an exact answer"),
    ("(1,2)", r"\{1,2\}", True, False, "a set has no order"),
    ("101", "a+2z = 2z+a = 101", True, False, "every member of a chain must be the answer"),
    (r"5\text{ cm}", r"5\text{ m}", True, False, "a different unit"),
    ("12_7", "12_8", True, False, "a different base"),
    ("5", r"500\%", True, False, "n% is n or n/100, not both"),
    ("3:30", "1:10", True, False, "a time is no ratio"),
    (r"\cos 36^\circ", r"\cos 36", True, False, "an angle in degrees"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}", False, True, "an angle in degrees"),
    (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1", False, True, "odd roots of negative numbers are real"),
    ("(1,2)", "1 < x < 2", False, True, "a solved inequality is the interval; x^2 < 4 for (-2,2) is refused"),
    ("1500", "1.5e3", False, True, "scientific notation"),
    (r"\text{no solution}", r"\emptyset", False, True, "both say that there is nothing"),
    ("x", r"\frac{2x}{2}", False, True, "a lone variable is compared like any formula"),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), AGREED)
def test_agrees_with_math_verify(verifier: MathVerifier, gold: str, answer: str, expected: bool) -> None:
    assert (verifier.verify([(gold, boxed(answer))])[0].verdict == "correct") is expected
    assert plain_math_verify(gold, answer) is expected


@pytest.mark.parametrize(("gold", "answer", "theirs", "ours", "why"), DIFFERENT)
def test_differs_from_math_verify_on_purpose(
    verifier: MathVerifier, gold: str, answer: str, theirs: bool, ours: bool, why: str
) -> None:
    assert (verifier.verify([(gold, boxed(answer))])[0].verdict == "correct") is ours, why
    assert plain_math_verify(gold, answer) is theirs, "Math-Verify has changed; look at the rule again"


def plain_math_verify(gold: str, answer: str) -> bool:
    read = (LatexExtractionConfig(boxed_match_priority=0),)
    one, other = (parse(text, read, parsing_timeout=None) for text in (f"${gold}$", f"$\\boxed{{{answer}}}$"))
    return bool(verify(one, other, timeout_seconds=None))
