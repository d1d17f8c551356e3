"""Extraction of the answer."""

from __future__ import annotations

import random
import time

import pytest

from bridge_mcore.rewards.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("the answer is 5", None),
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{5\}", None),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\begin{aligned} x \\\boxed{5} \end{aligned}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{ 5 }", "5"),
        (r"\boxed 5", None),
        (r"\fbox{5}", "5"),
        (r"\framebox {5}, then \fbox{$\frac49$}", r"$\frac49$"),
        (r"\boxed{58}, not \fbox{59}", "58"),
        (r"\fbox{58} and \boxed{5", None),
        (r"\fbox{5", None),
        (r"\boxedx{5}", None),
        (r"\boxed{}", ""),
        (r"\boxed{1} or \boxed{ }", ""),
        (r"\boxed{5", None),
        (r"\boxed{5} but wait, \boxed{6", "5"),
        (r"\boxed{6 and \boxed{7}", "7"),
        (r"{ } } } { \boxed{5} {", "5"),
        ("\\boxed{5}\\", "5"),
        ("boxed{5}", None),
        ("\\boxed{\u00bd\ud800}", "\u00bd\ud800"),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def slow_last_boxed(text: str) -> str | None:
    """The definition, word for word: of all boxes, the last-starting one whose brace closes."""
    for start in range(len(text) - 1, -1, -1):
        if not text.startswith("\\boxed{", start):
            continue
        depth, position = 0, start + 6
        while position < len(text):
            if text[position] == "\\":
                position += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + 7 : position].strip()
            position += 1
    return None


def test_agrees_with_the_definition_on_random_text(seed: int) -> None:
    rng = random.Random(seed)
    pieces = ["\\boxed{", "{", "}", "}", "\\{", "\\}", " x", "\\frac{1}{2}", "7"]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(25)))
        assert last_boxed(text) == slow_last_boxed(text), text


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "{", "}", "\\boxed{1}", "\\", "\\\\boxed", "\\boxed ", "\\{", "x", "\\boxed{" + " " * 100, "{}"],
)
def test_megabytes_take_seconds_at_most(unit: str) -> None:
    text = unit * (2_000_000 // len(unit))
    start = time.process_time()
    last_boxed(text)
    assert last_boxed("\\boxed{1}" + text + "\\boxed{2}") == "2"
    assert time.process_time() - start < 10
