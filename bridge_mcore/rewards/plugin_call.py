"""Call a user's reward function. Runs in the workers of :class:`bridge_mcore.rewards.plugin.PluginReward`."""

from __future__ import annotations

import importlib
import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_functions: dict[str, Callable[..., Any]] = {}


def load(target: str) -> Callable[..., Any]:
    """The function of `module:function` or `path/to/file.py:function`. Raises whatever importing it raises."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        spec = importlib.util.spec_from_file_location(f"reward_plugin_{path.stem}", path)
        if spec is None or spec.loader is None or not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.append(str(path.parent))  # for what it imports from beside it
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise AttributeError(f"{place} has no function '{name}'")
    return function


def run(job: dict[str, Any]) -> dict[str, Any]:
    """``{"correct", "score", "reason"}`` from the function; or, without a response, whether it can be loaded."""
    target = job["target"]
    if target not in _functions:
        _functions[target] = load(target)
    if "response" not in job:
        return {}
    return read_result(_functions[target](job["response"], job["gold"], job["prompt"]))


def read_result(value: Any) -> dict[str, Any]:
    """What a function returned, as correct, score and reason. Raises TypeError or ValueError for what it may not."""
    if isinstance(value, Mapping):
        unknown = set(value) - {"correct", "score", "reason"}
        if unknown or (value.get("correct") is None and value.get("score") is None):
            raise ValueError(f"a dict with {sorted(map(str, value))}; it may have correct, score and reason")
        score = _score(value["score"]) if value.get("score") is not None else None
        correct = value.get("correct")
        if correct is None:
            correct = score is not None and score >= 1
        if type(correct).__name__ not in ("bool", "bool_"):
            raise TypeError(f"'correct' is a {type(correct).__name__}; it must be True or False")
        return {"correct": bool(correct), "score": score, "reason": str(value.get("reason", ""))[:300]}
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's too
        return {"correct": bool(value), "score": None, "reason": ""}
    score = _score(value)
    return {"correct": score >= 1, "score": score, "reason": f"score {score:.4g}"}


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"a {type(value).__name__}; it must be a bool, a number or a dict")
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"the score {score}; it must be finite")
    return score
