"""Which training prompts meet an evaluation problem."""

from __future__ import annotations

import random

from bridge_mcore.data.prepare.decontaminate import EvaluationIndex
from bridge_mcore.data.problem import Problem, problem_id

LONG = (
    "A bakery sells round loaves for three coins and long loaves for five coins each, and on Sunday it sold twice as "
    "many round loaves as long ones and took 88 coins in all. How many loaves did it sell?"
)
BOILERPLATE = "The answer can be written as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime. Find $m+n$."


def index(*prompts: str, ngram: int = 13, overlap: float = 0.5) -> EvaluationIndex:
    return EvaluationIndex([Problem(problem_id(p, "1"), p, "1", None, "held-out") for p in prompts], ngram, overlap)


def test_the_same_problem_however_it_is_spelt():
    contact = index(LONG).find(LONG.upper().replace(" ", "  "))
    assert contact is not None and (contact.rule, contact.overlap) == ("exact", 1.0)
    drawn = LONG + "\n[asy]\ndraw((0,0)--(1,1));\n[/asy]"
    contact = index(LONG).find(drawn)
    assert contact is not None and contact.rule == "exact"


def test_a_problem_inside_a_longer_prompt():
    contact = index(LONG).find(f"Read this with care. {LONG} And why?")
    assert contact is not None and contact.rule == "n-gram" and contact.overlap == 1.0


def test_a_changed_number_is_a_contact_and_its_share_is_told():
    contact = index(LONG).find(LONG.replace("88", "99"))
    assert contact is not None and contact.rule == "n-gram" and 0.6 < contact.overlap < 1


def test_boilerplate_alone_is_none():
    held_out = f"Ten people sit around a table and shake hands with both neighbours, at random times. {BOILERPLATE}"
    prompt = f"A frog jumps from leaf to leaf until it meets another frog, or falls into the pond. {BOILERPLATE}"
    assert index(held_out, overlap=0.9).find(prompt) is None
    any_passage = index(held_out, overlap=0.0).find(prompt)
    assert any_passage is not None and 0 < any_passage.overlap < 0.7


def test_short_problems_must_stand_in_the_prompt_whole():
    short = index("Compute $\\sin 45^\\circ$.", "What is $2+2$?", "$x$?")
    assert short.find("First compute \\sin 45°, then square it.") is not None
    assert short.find("Compute $\\sin 60^\\circ$.") is None
    assert short.find("What is 2 + 2").rule == "exact"
    assert short.find("Solve for $x$: what is $2+3$?") is None  # a one-token problem meets only itself


def test_the_most_covered_problem_is_named(seed):
    rng = random.Random(seed)
    words = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}o" for i in range(400)]
    problems = [" ".join(rng.choices(words, k=60)) for _ in range(20)]
    found = index(*problems, overlap=0.3)
    number = rng.randrange(20)
    parts = problems[number].split()
    contact = found.find(" ".join(parts[:40] + rng.choices(words, k=30)))
    assert contact is not None and contact.problem.prompt == problems[number]
    assert contact.overlap >= 40 / 60 - 1e-9
    assert found.find(" ".join(parts[:12])) is None
