"""What the worker processes of test_math.py run: Math-Verify without the rules that come before it."""

from __future__ import annotations

from bridge_mcore.rewards import equivalence


def math_verify(job: list[str]) -> bool:
    gold, answer = job
    return equivalence.math_verify(gold, answer)


def warm_up() -> None:
    equivalence.warm_up()
