"""Every key of every schema refuses what means nothing, says which key it is, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_mcore.config.keys import key_help
from bridge_mcore.config.load import load_section
from bridge_mcore.config.replay import ReplaySettings
from bridge_mcore.config.schema import Config
from bridge_mcore.config.types import Section
from bridge_mcore.data.prepare.recipe import Recipe
from bridge_mcore.errors import ConfigError
from bridge_mcore.evaluation.suites import Suite
from tests.support.nonsense import Key, bounds_of, file_with, keys_of, nonsense

SCHEMAS: dict[str, type[Section]] = {
    "config": Config,
    "replay": ReplaySettings,
    "recipe": Recipe,
    "suite": Suite,
}
KEYS = [(model, key) for model in SCHEMAS.values() for key in keys_of(model)]
NUMBERS = [(model, key) for model, key in KEYS if bounds_of(key) is not None and key.kind != "pair"]
LONGEST_MESSAGE = 700
Problem = Callable[[type[Section], Key, object], str | None]


def names(cases: list[tuple[type[Section], Key]]) -> list[str]:
    return [f"{model.__name__}:{key.path}" for model, key in cases]


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """problem(model, key, value) → what is said about the key; None if a file with this value is taken."""
    path = tmp_path / "c.yaml"

    def find(model: type[Section], key: Key, value: object) -> str | None:
        path.write_text(file_with(key.path, value))
        try:
            load_section(model, path)
        except ConfigError as error:
            lines = [line for line in str(error).splitlines() if key.path in line]
            return lines[0] if lines else None
        return None

    return find


@pytest.mark.parametrize(("model", "key"), KEYS, ids=names(KEYS))
def test_nonsense_is_refused(problem: Problem, model: type[Section], key: Key) -> None:
    for value in nonsense(key):
        found = problem(model, key, value)
        assert found is not None, f"{key.path} accepts {value!r:.80}"
        assert len(found) < LONGEST_MESSAGE and found.isprintable(), found


@pytest.mark.parametrize(("model", "key"), NUMBERS, ids=names(NUMBERS))
def test_numbers_have_both_bounds(problem: Problem, model: type[Section], key: Key) -> None:
    """What lies beyond a bound is refused; with the nonsense above: infinity is no bound."""
    bounds = bounds_of(key)
    assert bounds is not None and all(math.isfinite(bound) for bound in bounds), f"{key.path} has no bound: {bounds}"
    low, high = bounds
    assert -1e18 <= low < high <= 1e18
    as_list = key.kind == "list"
    for beyond in (low - 1, high + max(1, abs(high) / 1000)):
        value = int(beyond) if float(beyond).is_integer() else beyond
        assert problem(model, key, [value] if as_list else value) is not None, f"{key.path} accepts {value}"


@pytest.mark.parametrize(("model", "key"), NUMBERS, ids=names(NUMBERS))
def test_the_default_lies_within(model: type[Section], key: Key) -> None:
    bounds, default = bounds_of(key), key.field.default
    assert bounds is not None
    if isinstance(default, int | float):
        assert bounds[0] <= default <= bounds[1]


def test_the_documentation_has_the_bounds() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert key_help(markdown=True) in documented
