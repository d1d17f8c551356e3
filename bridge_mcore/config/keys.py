"""The keys of a schema as dotted paths: looking one up, naming the nearest one, and listing them for people."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.schema import Config
from bridge_mcore.config.types import Allowed, Section
from bridge_mcore.errors import ConfigError

#: A place in a configuration: names, and numbers for elements of lists.
KeyPath = tuple[str | int, ...]

#: What other trainers call a key of ours; only for "did you mean", never accepted in its place.
FOREIGN_NAMES = {
    "learning_rate": "optimizer.alpha",
    "lr": "optimizer.alpha",
    "lora_lr": "optimizer.beta",
    "adapter_lr": "optimizer.beta",
    "max_grad_norm": "optimizer.gradient_clip",
    "clip_grad": "optimizer.gradient_clip",
    "lambda": "method.lam",
    "algorithm": "method.name",
    "max_steps": "training.steps",
    "num_steps": "training.steps",
    "iterations": "training.steps",
    "batch_size": "training.prompts_per_step",
    "group_size": "rollout.samples_per_prompt",
    "num_generations": "rollout.samples_per_prompt",
    "max_tokens": "rollout.max_new_tokens",
    "max_completion_length": "rollout.max_new_tokens",
    "clip_eps": "objective.clip_range",
    "kl_coef": "objective.kl_coefficient",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "model_name_or_path": "model.path",
    "output_dir": "run.directory",
    "resume_from_checkpoint": "run.resume",
    "tp": "parallel.tensor",
    "pp": "parallel.pipeline",
    "dp": "parallel.data",
    "cp": "parallel.context",
    "ep": "parallel.expert",
    "sequence_parallel": "parallel.sequence",
}


@dataclass(frozen=True)
class Key:
    """One key as `bridge-mcore keys` shows it; N in `path` stands for the number of a list's element."""

    path: str
    type: str
    default: str
    description: str


def dotted(path: Sequence[str | int]) -> str:
    """('data', 'evaluation', 0) → 'data.evaluation.0'."""
    return ".".join(str(part) for part in path)


def members(annotation: Any) -> list[Any]:
    """The alternatives of a type without None and without the bounds: `Annotated[int, …] | None` → [int]."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for alternative in get_args(annotation) for m in members(alternative)]
    return [] if annotation is type(None) else [annotation]


def optional(annotation: Any) -> bool:
    """Whether null is allowed."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def section_of(annotation: Any) -> type[Section] | None:
    """The section among the alternatives of a type, if there is one."""
    found = [m for m in members(annotation) if isinstance(m, type) and issubclass(m, Section)]
    return found[0] if found else None


def element_of(annotation: Any) -> Any | None:
    """The type of a list's elements, or None if it is no list."""
    found = [get_args(m)[0] for m in members(annotation) if get_origin(m) is list]
    return found[0] if found else None


def is_text(annotation: Any) -> bool:
    """Whether values are text or paths, never numbers: such values are taken as they are written."""
    return all(m in (str, Path) for m in members(annotation))


def field_at(model: type[Section], path: Sequence[str | int]) -> FieldInfo | Any | None:
    """The field at `path` (for an element of a list, the element's type), or None if there is no such key."""
    section: type[Section] | None = model
    found: Any = None
    for part in path:
        if section is not None and part in section.model_fields:
            found = section.model_fields[str(part)]
        elif isinstance(part, int) and found is not None and element_of(annotation_of(found)) is not None:
            found = element_of(annotation_of(found))
        else:
            return None
        section = section_of(annotation_of(found))
    return found


def annotation_of(field: FieldInfo | Any) -> Any:
    """The type of what :func:`field_at` found."""
    return field.annotation if isinstance(field, FieldInfo) else field


def allowed_text(field: FieldInfo | Any) -> str:
    """What a key allows, in words: 'a whole number > 0, or null'."""
    metadata = field.metadata if isinstance(field, FieldInfo) else []
    return _type_text(annotation_of(field), metadata)


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    for mark in metadata:
        if isinstance(mark, Allowed):
            return mark.text
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *marks = get_args(annotation)
        nested = [mark.metadata if isinstance(mark, FieldInfo) else [mark] for mark in marks]
        return _type_text(base, [mark for group in nested for mark in group])
    if origin in (Union, types.UnionType):
        texts = [_type_text(a) for a in get_args(annotation) if a is not type(None)]
        return ", or ".join(texts + (["null"] if optional(annotation) else []))
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin is list:
        return f"a list, each element {_type_text(get_args(annotation)[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_text(a) for a in get_args(annotation))}]"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        names = list(annotation.model_fields)
        return f"a section with keys such as {', '.join(names[:4])}"
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}[annotation]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {_bound(getattr(m, attr))}" for m in metadata for attr, sign in signs.items() if hasattr(m, attr)
    ]
    return " ".join([name, " and ".join(bounds)]).strip()


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**10 else f"{value:g}"


def walk_fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a schema with its field, sections before what they hold, in the order of the schema."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        element = element_of(field.annotation)
        section = section_of(element if element is not None else field.annotation)
        if section is not None:
            yield from walk_fields(section, f"{path}.N." if element is not None else f"{path}.")


def suggestion(model: type[Section], path: Sequence[str | int]) -> str:
    """'; did you mean …?' for a key that does not exist: misspelt, in the wrong section, or another trainer's name."""
    known = [key for key, _ in walk_fields(model)]
    parent, leaf = path[:-1], str(path[-1])
    foreign = FOREIGN_NAMES.get(leaf)
    found = [foreign] if foreign in known else _same_name(known, leaf)
    if not found:
        section = _section_at(model, parent)
        siblings = difflib.get_close_matches(leaf, section.model_fields if section else [], n=1, cutoff=0.6)
        found = [dotted([*parent, sibling]) for sibling in siblings]
    if not found and len(leaf) > 2:  # the beginning of a name: warmup for warmup_steps
        found = [key for key in known if key.rpartition(".")[2].startswith(f"{leaf}_")][:3]
    if not found:
        same_leaf = difflib.get_close_matches(leaf, {key.rpartition(".")[2] for key in known}, n=1, cutoff=0.7)
        found = _same_name(known, same_leaf[0]) if same_leaf else []
    if not found:
        return nearest(dotted(path), [key for key, field in walk_fields(model) if section_of(field.annotation) is None])
    return f"; did you mean {' or '.join(repr(key) for key in found)}?"


def _same_name(known: Sequence[str], leaf: str) -> list[str]:
    """The keys called `leaf`, only those in the shallowest sections, at most three."""
    same = [key for key in known if key.rpartition(".")[2] == leaf]
    depth = min((key.count(".") for key in same), default=0)
    return [key for key in same if key.count(".") == depth][:3]


def _section_at(model: type[Section], path: Sequence[str | int]) -> type[Section] | None:
    if not path:
        return model
    field = field_at(model, path)
    return None if field is None else section_of(annotation_of(field))


def schema_keys(model: type[Section] = Config, prefix: str = "") -> list[Key]:
    """The keys at and below `prefix`. Without a prefix, a section that stands in several places is listed once."""
    prefix = ".".join("N" if part.isdigit() else part for part in prefix.split("."))
    keys: list[Key] = []
    listed: dict[type[Section], str] = {}
    skipped: list[str] = []
    for path, field in walk_fields(model):
        if not _below(path, prefix) or any(_below(path, section) for section in skipped):
            continue
        element = element_of(field.annotation)
        section = section_of(field.annotation if element is None else element)
        allowed = allowed_text(field)
        if section is not None:
            if members(field.annotation) == [section] and not optional(field.annotation):
                continue  # a section that is always there: only its keys are worth a line
            allowed = allowed_text(field).replace(_type_text(section), "a section")
            if not prefix and listed.setdefault(section, path) != path:
                allowed += f" with the keys of {listed[section]}"
                skipped += [f"{path}.N" if element is not None else path]
        keys.append(Key(path, allowed, _default_text(field), field.description or ""))
    if not keys:
        names = [path for path, _ in walk_fields(model)]
        raise ConfigError(f"no key or section is called '{prefix}'{nearest(prefix, names)}")
    return keys


def _below(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, list | tuple):
        return f"[{', '.join(str(element) for element in default)}]"
    return str(default)


def key_help(prefix: str = "", model: type[Section] = Config, markdown: bool = False) -> str:
    """All keys at and below `prefix` with type, default and description, as text for a terminal or a Markdown table."""
    keys = schema_keys(model, prefix)
    if not markdown:
        meanings = ["; ".join(filter(None, [k.type, k.description])) for k in keys]
        return "\n".join(f"{k.path} = {k.default}\n    {meaning}" for k, meaning in zip(keys, meanings, strict=True))
    lines = ["| Key | Allowed | Default | Meaning |", "|---|---|---|---|"]
    for k in keys:
        cells = (f"`{k.path}`", k.type, f"`{k.default}`", k.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)
