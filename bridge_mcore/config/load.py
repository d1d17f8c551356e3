"""Reads a configuration: a YAML file plus ``dotted.key=value`` from the command line, checked as a whole.

Every problem is reported at once, each with the place it came from and what to change. Relative paths in a
configuration are relative to the directory the command runs in, not to the file; ``~`` is the home directory.
What needs more than one key or the file system to judge is in :mod:`bridge_mcore.config.checks`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge_mcore.config.json_file import printable
from bridge_mcore.config.keys import (
    KeyPath,
    allowed_text,
    annotation_of,
    dotted,
    element_of,
    field_at,
    is_text,
    key_help,
    members,
    optional,
    section_of,
    suggestion,
)
from bridge_mcore.config.schema import Config
from bridge_mcore.config.types import Section
from bridge_mcore.config.yaml_source import UNREADABLE, Source, dump_yaml, parse_value, read_yaml
from bridge_mcore.errors import ConfigError

__all__ = ["dump_config", "key_help", "load_config", "load_section", "load_values", "raise_problems"]

COMMAND_LINE = "command line"
AnySection = TypeVar("AnySection", bound=Section)
#: A message lists so many problems and counts the others; only of these the nearest names are looked for.
MOST_PROBLEMS = 20
_SHOWN, _LONGEST_LINE = 60, 1000  # characters: of a key or value, and of a message


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `path`, changed by ``dotted.key=value`` overrides (the last one of a key wins)."""
    return load_section(Config, path, overrides)


def load_section(model: type[AnySection], path: Path, overrides: Sequence[str] = ()) -> AnySection:
    """As :func:`load_config`, for a file with another schema."""
    source = read_yaml(path)
    if source.tree is None:
        source.tree = {}
    if not isinstance(source.tree, dict):
        kind = "list" if isinstance(source.tree, list) else "single value"
        example = next(iter(model.model_fields))
        raise ConfigError(f"{path}: holds a {kind}; expected sections and keys, such as '{example}:'")
    return _checked(model, source, overrides)


def load_values(model: type[AnySection], overrides: Sequence[str]) -> AnySection:
    """As :func:`load_section`, of ``dotted.key=value`` alone."""
    return _checked(model, Source(COMMAND_LINE, {}), overrides)


def _checked(model: type[AnySection], source: Source, overrides: Sequence[str]) -> AnySection:
    for override in overrides:
        _apply(override, source, model)
    _prepare(source.tree, model, (), source)
    config = None
    try:
        config = model.model_validate(source.tree)
    except ValidationError as error:
        source.problems += _messages(error.errors(include_url=False), source, model)
    raise_problems(source.problems, f"{source.name} cannot be used as it is")
    assert config is not None
    return config


def raise_problems(problems: Sequence[str], heading: str) -> None:
    """Raises one ConfigError that lists all problems; does nothing if there are none."""
    unique = [
        "\n".join(printable(line, _LONGEST_LINE) for line in problem.split("\n")) for problem in dict.fromkeys(problems)
    ]
    if len(unique) == 1:
        raise ConfigError(unique[0])
    if unique:
        lines = [f"{heading} ({len(unique)} problems):", *(f"  - {problem}" for problem in unique[:MOST_PROBLEMS])]
        if len(unique) > MOST_PROBLEMS:
            lines.append(f"  … and {len(unique) - MOST_PROBLEMS} more")
        raise ConfigError("\n".join(lines))


def dump_config(config: BaseModel) -> str:
    """The whole configuration, defaults included, as YAML in the schema's order; loads back to an equal one."""
    return dump_yaml(config.model_dump(mode="json"))


# --- overrides -------------------------------------------------------------------------------------------------------


def _apply(override: str, source: Source, model: type[Section]) -> None:
    name, equals, text = override.partition("=")
    name = name.strip()
    path: KeyPath = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in name.split("."))
    if not equals or not all(str(part) for part in path):
        hint = "" if equals else _hint(model, path, source.problems)
        source.problems.append(
            f"{COMMAND_LINE}: '{_shown(override)}' is not KEY=VALUE, for example training.steps=10 "
            f"(KEY= sets null){hint}"
        )
        return
    field = field_at(model, path)
    if field is None:
        source.problems.append(f"{COMMAND_LINE}: {_unknown(model, path, source.problems)}")
        return
    try:
        value = _text_value(text) if is_text(annotation_of(field)) else parse_value(text)
    except ValueError as error:
        source.problems.append(f"{COMMAND_LINE}: {_shown(name)}: {error}")
        return
    _set(source, model, path, value)


def _text_value(text: str) -> Any:
    """A text or path as typed, so that `run.directory=2026` and colons need no quotes; quotes and null still work."""
    if text.strip() in ("", "null", "~"):
        return None
    return parse_value(text) if text.lstrip()[0] in "\"'" else text


def _set(source: Source, model: type[Section], path: KeyPath, value: Any) -> None:
    holder: Any = source.tree
    for end in range(1, len(path)):
        field = field_at(model, path[:end])
        present = _get(holder, path[end - 1])
        if not isinstance(present, dict | list):
            alternatives = members(annotation_of(field))
            words = getattr(alternatives[0], "WORDS", {})
            word = words.get(present) if isinstance(present, str) else None
            if present is not None and len(alternatives) == 1 and word is None:
                return  # the file holds nonsense here: validation says so
            # absent, null or a plain value in place of a section (lam: 0.5, then lam.kind=linear): a fresh one;
            # a word that is short for a section (parallel: auto): that one
            is_list = element_of(annotation_of(field)) is not None
            present = list(getattr(field, "default", None) or []) if is_list else dict(word or {})
            if not _put(holder, path[end - 1], present, source, path[:end]):
                return
        holder = present
    _put(holder, path[-1], value, source, path)


def _get(holder: Any, part: str | int) -> Any:
    if isinstance(holder, list):
        return holder[part] if isinstance(part, int) and part < len(holder) else None
    return holder.get(part)


def _put(holder: Any, part: str | int, value: Any, source: Source, path: KeyPath) -> bool:
    if isinstance(holder, list):
        if not isinstance(part, int) or part > len(holder):
            last = f"the last one is {dotted([*path[:-1], len(holder) - 1])}" if holder else "it is empty"
            next_one = dotted([*path[:-1], len(holder)])
            source.problems.append(f"{COMMAND_LINE}: there is no {dotted(path)}: {last}; {next_one} would add one")
            return False
        holder[part : part + 1] = [value]
    else:
        holder[part] = value
    source.forget(path)
    source.where[path] = COMMAND_LINE
    return True


# --- what YAML cannot know -------------------------------------------------------------------------------------------


def _prepare(value: Any, annotation: Any, path: KeyPath, source: Source) -> Any:
    """`value` as pydantic should see it: empty sections are sections, text stays as written, true is no number."""
    section, element = section_of(annotation), element_of(annotation)
    if value is None and section is not None and not optional(annotation):
        return {}
    if isinstance(value, dict) and section is not None:
        for name in list(value):
            if value[name] is UNREADABLE:
                del value[name]
            elif name in section.model_fields:
                value[name] = _prepare(value[name], section.model_fields[name].annotation, (*path, name), source)
        return value
    if isinstance(value, list) and element is not None:
        children = [(i, child) for i, child in enumerate(value) if child is not UNREADABLE]
        return [_prepare(child, element, (*path, i), source) for i, child in children]
    if isinstance(value, bool | int | float) and is_text(annotation):
        return source.text.get(path, value)
    if isinstance(value, bool) and bool not in members(annotation):
        # pydantic would take true for 1; as text it is refused in the words of every other wrong value
        return str(value).lower()
    return value


# --- messages --------------------------------------------------------------------------------------------------------


def _messages(errors: Sequence[ErrorDetails], source: Source, model: type[Section]) -> list[str]:
    """One line per key, in the words of the schema; pydantic reports each alternative of a type on its own."""
    messages: dict[KeyPath, str] = {}
    for error in errors:
        extra = error["type"] == "extra_forbidden"
        key = _key_of(error["loc"][:-1] if extra else error["loc"], source.tree, model)
        if key is None:
            continue
        if extra:
            key = (*key, error["loc"][-1])
            messages[key] = _unknown(model, key, messages)
            continue
        field = field_at(model, key)
        name, value = dotted(key), _value_at(source.tree, key)
        if error["type"] == "missing" and value is None:
            messages[key] = f"'{name}' is missing; it must be {allowed_text(field)}"
        elif error["type"] == "value_error":
            messages[key] = f"{name} = {_shown(value)}: {error['msg'].removeprefix('Value error, ')}"
        elif key not in messages:
            messages[key] = f"{name} = {_shown(value)}: must be {allowed_text(field)}"
    return [f"{source.place(key)}: {message}" for key, message in messages.items()]


def _key_of(location: Sequence[str | int], tree: Any, model: type[Section]) -> KeyPath | None:
    """The key of the schema that a pydantic location is about; None for an alternative that was not meant."""
    key: KeyPath = ()
    section: type[Section] | None = model
    value = tree
    for part in location:
        if isinstance(value, dict) and section is not None:
            if part == section.__name__:
                continue  # pydantic names the alternative of a union
            if part not in section.model_fields:
                return None  # the other alternatives: a section was given, so the section was meant
        elif not (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            break
        found = field_at(model, (*key, part))
        if found is None:
            break
        key = (*key, part)
        value = _get(value, part)
        section = section_of(annotation_of(found))
    return key


def _value_at(tree: Any, path: KeyPath) -> Any:
    for part in path:
        tree = _get(tree, part) if isinstance(tree, dict | list) else None
    return tree


def _unknown(model: type[Section], key: KeyPath, before: Collection[object]) -> str:
    return f"unknown key '{_shown(dotted(key))}'{_hint(model, key, before)}"


def _hint(model: type[Section], key: KeyPath, before: Collection[object]) -> str:
    """The nearest name, where it can be one and there are not too many problems `before` this one: it takes time."""
    return suggestion(model, key) if len(before) < MOST_PROBLEMS and len(dotted(key)) <= _SHOWN else ""


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and value.isprintable() and value
    text = value if plain else json.dumps(value, ensure_ascii=isinstance(value, str), default=str)
    return printable(text, _SHOWN)
