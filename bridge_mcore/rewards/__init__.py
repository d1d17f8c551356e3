"""Rewards that are checked, not guessed. Importing this loads neither torch nor sympy."""

from bridge_mcore.rewards.math import MathVerifier
from bridge_mcore.rewards.verdict import Verdict, reward

__all__ = ["MathVerifier", "Verdict", "reward"]
