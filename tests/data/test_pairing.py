"""The normal form of problems, and which prompt a question is: the same, respelt, reworded, or another one."""

from __future__ import annotations

import random
import string

import pytest

from bridge_mcore.data.prepare.pairing import TIERS, PromptIndex
from bridge_mcore.data.prepare.text import normal_form
from bridge_mcore.data.prepare.wording import without_request

SAME = [
    (r"Find $\dfrac{1}{2}+x^{10}$.", r"find \( \frac12 + x^10 \)"),
    (r"What is $1{,}000 - 5$?", "What is 1,000 − 5 ?"),
    (r"\[f'(x) \leq 3 \cdot 4\]", r"$f^{\prime}(x)\le3\times 4$"),
    (r"$\left(3,\, \frac{\pi}{2}\right)$", "(3, \\frac π 2)"),
    (r"an angle of $30^{\circ}$", "an angle of 30°"),
    ("a two-digit “number”, x²", 'A two digit "number" , $x^2$'),
    (r"$jx^2 + kx$ and \textbf{roots}", r"$j x^{2}+k x$ and roots"),
    ("ﬁnd  .5\n\nof it", "find 0.5 of it"),
    ("How many zeros has $20!$!", "how many zeros has 20 !"),
    (r"It costs \$5.50, or \$$1{,}000$.", "It costs $5.50 or $1000"),
]
OTHER = [
    ("$x^{2n}$", "$x^2 n$"),
    (r"$\frac{a+b}{c}$", r"$a+\frac{b}{c}$"),
    ("$f'(x)$", "$f(x)$"),
    ("$n!$", "$n$"),
    ("$3 - 5$", "$3 5$"),
    ("$1.5$", "$15$"),
    (r"$\{1, 2\}$", "$(1, 2)$"),
    ("$x^2$", "$x2$"),
    ("$-5$", "$5$"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_problem(one, other):
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_has_meaning_stays(one, other):
    assert normal_form(one) != normal_form(other)


def test_the_normal_form_takes_any_text(seed):
    rng = random.Random(seed)
    signs = string.printable + "\\{}$^_'!√²½’−\u2028é漢"
    for _ in range(300):
        text = "".join(rng.choices(signs, k=rng.randint(0, 60)))
        once = normal_form(text)
        assert isinstance(once, str) and "  " not in once
        assert normal_form(f" {text}\n") == normal_form(text)


def test_only_a_request_without_numbers_is_taken_off():
    ask = "What is it? Express your answer as a common fraction."
    assert without_request(ask) == "What is it?"
    rounded = "What is it? Give your answer to 2 decimals."
    assert without_request(rounded) == rounded
    assert without_request("Express your answer in words.") == "Express your answer in words."


PROMPTS = [
    "What is the largest integer value of $x$ for which $5-4x>17$?",
    "Find the smallest positive integer $n$ such that $2n$ is a perfect square and $3n$ is a perfect cube.",
    "How many ways are there to put 4 balls in 3 boxes if the balls are not distinguishable but the boxes are?",
    "In triangle $PQR$, $\\angle Q = \\angle R$ and $QR = 6\\sqrt{2}$. What is the area of triangle $PQR$?",
    "How many distinct diagonals of a convex pentagon can be drawn?",
    "Let $a$ and $b$ be positive with $a + 2b = 1$. Find the minimum value of $\\frac{1}{a} + \\frac{2}{b}$.",
    "Two fair dice are rolled and the numbers are added. What is the probability that the sum is odd?",
    "How many whole numbers below 90 are multiples of both 4 and 6, and lie above the median of all of them?",
]


def found(question: str, tiers=TIERS, threshold: float = 0.8):
    match = PromptIndex(PROMPTS, tiers, threshold).find(question)
    return None if match is None else (match.prompt, match.tier)


def test_tiers():
    assert found(PROMPTS[0]) == (0, "exact")
    assert found(f"\n{PROMPTS[0]} ") == (0, "exact")
    assert found("what is the  largest integer value of \\(x\\) for which \\(5 - 4x > 17\\)") == (0, "normalised")
    assert found("What is the greatest integer value of $x$ for which $5-4x>17$?") == (0, "fuzzy")
    assert found("What is the largest integer value of $x$ for which $5-4x>17$?", ["fuzzy"]) == (0, "fuzzy")
    assert found("what is the greatest integer value of $x$ for which $5-4x>17$?", ["exact", "normalised"]) is None
    # An instruction that asks for nothing more, a letter that slipped, a word inflected.
    assert found(PROMPTS[6] + " Express your answer as a common fraction.") == (6, "fuzzy")
    assert found(PROMPTS[6].replace("probability", "probabilty")) == (6, "fuzzy")
    assert found(PROMPTS[4].replace("diagonals", "diagonal")) == (4, "fuzzy")
    assert found("") is None and found("$$") is None


@pytest.mark.parametrize(
    ("number", "old", "new"),
    [
        (0, "17", "13"),
        (0, "4x", "7x"),
        (0, "largest", "smallest"),
        (0, ">", "<"),
        (0, "integer", "even integer"),
        (0, "integer", "real"),
        (1, "$2n$ is a perfect square and $3n$", "$3n$ is a perfect square and $2n$"),
        (2, "are not distinguishable but the boxes are", "are distinguishable but the boxes are not"),
        (2, "not distinguishable", "not indistinguishable"),
        (2, "4 balls", "five balls"),
        (3, "QR = 6", "PR = 6"),
        (3, "area", "perimeter"),
        (4, "pentagon", "hexagon"),
        (4, "distinct ", ""),
        (5, "\\frac{1}{a} + \\frac{2}{b}", "\\frac{2}{a} + \\frac{1}{b}"),
        (5, "minimum", "maximum"),
        (6, "odd", "even"),
        (6, "added", "multiplied"),
        (7, "both 4 and 6", "4 or 6"),
        (7, "above", "below"),
        (7, "How many", "Exactly how many"),
    ],
)
def test_another_problem_never_pairs_however_alike(number, old, new):
    question = PROMPTS[number].replace(old, new)
    assert question != PROMPTS[number]
    for threshold in (0.55, 0.9):
        assert found(question, threshold=threshold) is None


def test_every_changed_number_is_seen(seed):
    """Numbers of long random problems, one changed at a time: whatever the place, nothing pairs."""
    rng = random.Random(seed)
    words = [
        "a",
        "train",
        "passes",
        "through",
        "towns",
        "with",
        "houses",
        "people",
        "coins",
        "apples",
        "and",
        "returns",
        "before",
        "noon",
        "each",
        "morning",
    ]
    prompts = []
    for _ in range(40):
        parts = [rng.choice(words) if rng.random() < 0.8 else str(rng.randint(2, 99)) for _ in range(50)]
        prompts.append([*parts, str(rng.randint(2, 99))])
    index = PromptIndex([" ".join(p) for p in prompts], TIERS, 0.6)
    for number, parts in enumerate(prompts):
        match = index.find(" ".join(["please", *parts]))
        assert match is not None and (match.prompt, match.tier) == (number, "fuzzy")
        place = rng.choice([i for i, part in enumerate(parts) if part.isdigit()])
        changed = [*parts[:place], str(int(parts[place]) + 1), *parts[place + 1 :]]
        assert index.find(" ".join(changed)) is None


def test_candidates_are_all_pairs_that_are_alike(seed):
    """The index finds what comparing all pairs finds."""
    from difflib import SequenceMatcher

    from bridge_mcore.data.prepare.text import tokens
    from bridge_mcore.data.prepare.wording import same_question

    rng = random.Random(seed)
    filler = ["find", "the", "value", "of", "please", "compute", "let", "us", "say", "that", "we", "have", "what", "is"]
    prompts = [
        " ".join(rng.sample(filler, rng.randint(3, 9)) + ["apples", "pears", "plums"][: rng.randint(1, 3)] + ["x", "+"])
        for _ in range(80)
    ]
    threshold = rng.choice([0.55, 0.7, 0.85])
    index = PromptIndex(prompts, ["fuzzy"], threshold)
    for prompt in prompts:
        wanted = set()
        for number, other in enumerate(prompts):
            matcher: SequenceMatcher[str] = SequenceMatcher(None, tokens(other), tokens(prompt), autojunk=False)
            if matcher.ratio() >= threshold and same_question(tokens(other), tokens(prompt), matcher):
                wanted.add(number)
        assert {match.prompt for match in index.alike(prompt)} == wanted
