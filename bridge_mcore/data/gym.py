"""Problems of reasoning-gym's generators, by name (an optional package: `pip install reasoning-gym`).

A problem is a test problem if a hash of its prompt says so (:func:`bridge_mcore.data.tasks.held_out`), whatever its
seed. The prompt is the generator's question and where to put the answer; the gold answer holds the whole entry, as the
scorers need it (:mod:`bridge_mcore.rewards.gym`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bridge_mcore.config.nearest import nearest
from bridge_mcore.data.problem import Problem, problem_id
from bridge_mcore.data.tasks import held_out
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.box.values import NotPlain, encode
from bridge_mcore.rewards.gym import require_gym

_INSTRUCTION = "\nPut your final answer between <answer> and </answer>."
# So many entries are looked at for each that is wanted: one in ten is a test problem, and some generators repeat.
_DRAWS = 200


def gym_names() -> list[str]:
    """The names of all generators, in order. ConfigError without the package."""
    require_gym()
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def check_gym_name(name: str) -> None:
    """Raises ConfigError for a generator that does not exist, with the nearest that does."""
    if name not in (names := gym_names()):
        raise ConfigError(
            f"reasoning-gym has no task '{name}'{nearest(name, names)}; `python -c 'from bridge_mcore.data.gym import "
            "gym_names; print(*gym_names())'` lists them"
        )


def generate_gym(
    name: str, seed: int, split: str, size: int, options: Mapping[str, Any] | None = None, source: str | None = None
) -> list[Problem]:
    """`size` different problems of one generator; a smaller size gives the first of a larger one.

    :param options: settings of the generator, such as its sizes, as reasoning-gym names them.
    :raises ConfigError: an unknown name, split or option. DataError: it has not so many different problems.
    """
    check_gym_name(name)
    if split not in ("train", "test"):
        raise ConfigError(f"split: a generated task has the splits train and test, not '{split}'")
    import reasoning_gym

    try:
        entries = reasoning_gym.create_dataset(name, **{**(options or {}), "seed": seed, "size": _DRAWS * size})
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"reasoning-gym's {name} does not take these options: {error}") from None
    problems: dict[str, Problem] = {}
    for index in range(_DRAWS * size):
        problem = gym_problem(name, entries[index], source or name)
        if held_out(problem.prompt) == (split == "test"):
            problems.setdefault(problem.prompt, problem)
            if len(problems) == size:
                return list(problems.values())
    raise DataError(
        f"reasoning-gym's {name} gave only {len(problems)} different problems in its {split} split, {size} are asked "
        "for; lower size, or change the generator's options"
    )


def gym_problem(name: str, entry: Mapping[str, Any], source: str) -> Problem:
    """One entry of a generator as a problem. DataError if it holds what cannot be written down."""
    prompt = f"{entry['question'].rstrip()}{_INSTRUCTION}"
    try:
        gold = json.dumps({"dataset": name, "entry": encode(_plain(entry))})
    except NotPlain as error:
        raise DataError(f"reasoning-gym's {name} cannot be used: its entries hold {error}") from None
    return Problem(problem_id(prompt, gold), prompt, gold, None, source, "gym")


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's, inside lists, tuples and dicts."""
    if isinstance(value, (str, bytes, int, float, complex)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_plain(item) for item in value)
    return value
