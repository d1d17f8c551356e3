"""Whether the rewards that a configuration names can be there; none is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from bridge_mcore.config.data_checks import evaluates, used_sources, uses_rl
from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.rewards import PLUGIN
from bridge_mcore.config.schema import Config


def reward_problems(config: Config) -> Iterator[str]:
    """Plugins that are nowhere, of reward.verifier and of the data that is judged."""
    if not (uses_rl(config) or evaluates(config)):
        return
    named = {"reward.verifier": config.reward.verifier}
    named |= {f"{key}.reward": source.reward for key, source in used_sources(config).items() if source.reward}
    for key, name in named.items():
        if name.startswith(PLUGIN) and (problem := plugin_problem(name)) is not None:
            yield f"{key} = {one_line(name, 200)}: {problem}"


def plugin_problem(name: str) -> str | None:
    """Why `plugin:MODULE:FUNCTION` or `plugin:FILE.py:FUNCTION` cannot be loaded; its code is not run."""
    place, _, _ = name.removeprefix(PLUGIN).rpartition(":")
    if place.endswith(".py"):
        try:
            path = Path(place).expanduser()
            return None if path.is_file() else f"there is no file {one_line(path, 200)} (in {Path.cwd()})"
        except (OSError, RuntimeError, ValueError) as error:
            return f"this is no path ({error})"
    inside: Sequence[str] | None = None
    for end, _ in enumerate(parts := place.split("."), start=1):
        module = ".".join(parts[:end])
        spec = _find(module, inside)
        if spec is None:
            return f"no module '{one_line(module, 200)}' can be found from {Path.cwd()} (PYTHONPATH)"
        inside = spec.submodule_search_locations
        if inside is None and end < len(parts):
            return f"'{module}' is a module and no package, so it has no '{parts[end]}'"
    return None


def _find(module: str, inside: Sequence[str] | None) -> ModuleSpec | None:
    """As importlib.util.find_spec, which would import the packages around the module."""
    found = (finder.find_spec(module, inside, None) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)
