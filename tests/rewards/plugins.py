"""Reward functions of a user, good and bad, for test_plugin.py."""

from __future__ import annotations

import time
from typing import Any


def same(response: str, gold: str, prompt: str) -> bool:
    return response == gold


def value(response: str, gold: str, prompt: str) -> Any:
    """Whatever the response spells."""
    return eval(response)


def misbehave(response: str, gold: str, prompt: str) -> Any:
    if response == "loop":
        while True:
            pass
    if response == "sleep":
        time.sleep(100)
    if response == "memory":
        return len(bytes(1 << 35)) > 0
    if response == "print":
        print("noise" * 1000)
    return True


not_callable = 5
