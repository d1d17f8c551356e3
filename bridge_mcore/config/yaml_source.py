"""YAML read with what a good error message needs: the line of each key, and scalars as they were written.

Differences from ``yaml.safe_load``, each because it would surprise in a configuration: ``5e-7`` is a number (YAML 1.1
wants ``5.0e-7``), ``010`` is ten, ``1:30`` and ``2026-01-01`` stay text, and a key given twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bridge_mcore.config.json_file import one_line, read_limited
from bridge_mcore.config.keys import KeyPath, dotted
from bridge_mcore.errors import ConfigError

_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(
    r"""^[-+]?(?: [0-9][0-9_]* (?:\.[0-9_]*)? (?:[eE][-+]?[0-9]+)?   # 1  1.  1.5  5e-7  1.e3
               | \.[0-9]+ (?:[eE][-+]?[0-9]+)?                       # .5  .5e3
               | \.(?:inf|Inf|INF) )$ | ^\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
_REPLACED_TAGS = ("int", "float", "timestamp")
#: Marks a value that could not be understood and was already reported.
UNREADABLE = object()
#: No configuration is as long, and none repeats as many values by aliases: ten lines of them can mean a billion.
_MOST_BYTES = 256 << 10
_MOST_REPEATED = 10_000
#: More digits than any key needs, and fewer than Python itself refuses to read or show.
_MOST_DIGITS = 300
_NULLS = ("", "~", "null", "Null", "NULL")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers below in place of its own for numbers and dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - this is how PyYAML is extended
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _REPLACED_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows both kinds of resolvers: text which any reader would take for a number is quoted."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


@dataclass
class Source:
    """What was read: plain dicts, lists and scalars, and where each came from."""

    name: str
    tree: Any = None
    where: dict[KeyPath, str] = field(default_factory=dict)
    text: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """'file:line' or 'command line' of a key, or of the nearest section around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.where:
                return self.where[path[:end]]
        return self.name

    def forget(self, path: KeyPath) -> None:
        """Drops what is known about `path` and below: a new value is about to replace it."""
        for known in (self.where, self.text):
            for key in [key for key in known if key[: len(path)] == path]:
                del known[key]


def read_yaml(path: Path) -> Source:
    """Reads a file. Syntax errors are raised at once, everything else goes to `problems`."""
    if not path.exists():
        raise ConfigError(f"there is no file {path}")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; give the YAML file itself")
    content = read_limited(path, _MOST_BYTES)
    if content is None:
        raise ConfigError(f"{path} has more than {_MOST_BYTES >> 10} KiB, which no configuration needs; is it YAML?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text; is it a YAML file?") from error
    source = Source(name=str(path))
    try:
        source.tree = _Reader(source).read(text)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(path, error)) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    return source


def parse_value(text: str) -> Any:
    """The value of ``key=text`` on the command line; ValueError if it is no YAML value."""
    source = Source(name="")  # whoever asks says where it stands
    try:
        value = _Reader(source).read(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"'{one_line(text, 60)}' is not a value in YAML; quote it: '\"…\"'") from error
    if source.problems:
        raise ValueError("; ".join(source.problems))
    return value


def dump_yaml(data: Any) -> str:
    """YAML that :func:`read_yaml` reads back to the same data, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)


def _syntax_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    hint = "; indent with spaces, not tabs" if "\\t" in problem else ""
    return f"{place}: this is not valid YAML: {one_line(problem)}{hint}"


class _Reader:
    """Turns YAML nodes into plain data and remembers lines and texts in `source`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._open: set[int] = set()  # the nodes around the present one: an alias to one of them never ends
        self._seen: set[int] = set()  # nodes that were read: an alias brings them here again
        self._repeated = 0

    def read(self, text: str) -> Any:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            self._loader = loader
            return None if node is None else self._value(node, ())
        finally:
            loader.dispose()

    def _line(self, node: yaml.Node) -> str:
        return f"{self.source.name}:{node.start_mark.line + 1}"

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self._open:
            return self._problem(node, f"'{dotted(path)}' contains itself")
        if id(node) in self._seen:
            self._repeat(node)
        self._seen.add(id(node))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
                return [self._element(child, (*path, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, path)
            return self._problem(node, f"the tag {node.tag} is not allowed")
        finally:
            self._open.remove(id(node))

    def _repeat(self, node: yaml.Node) -> None:
        """Counts a value that an alias brings again. Raises YAMLError beyond what a configuration can mean."""
        self._repeated += 1
        if self._repeated > _MOST_REPEATED:
            text = f"its aliases (*name) repeat more than {_MOST_REPEATED:,} values; write out what is meant"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)

    def _problem(self, node: yaml.Node, message: str) -> Any:
        self.source.problems.append(f"{self._line(node)}: {message}" if self.source.name else message)
        return UNREADABLE

    def _element(self, node: yaml.Node, path: KeyPath) -> Any:
        self.source.where[path] = self._line(node)
        return self._value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._report_duplicates(node, path)
        result: dict[str, Any] = {}
        for name, (key_node, value_node) in self._pairs(node, path).items():
            child = (*path, name)
            self.source.where[child] = self._line(key_node)
            result[name] = self._value(value_node, child)
        return result

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values by name: those that `<<: *base` merges come first, of several bases the first one wins, and
        what the mapping says itself goes before them all."""
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                bases = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for base in reversed(bases):
                    merged |= self._merged(base, path)
            elif isinstance(key_node, yaml.ScalarNode):
                own[key_node.value] = (key_node, value_node)
            else:
                self._problem(key_node, f"a key of '{dotted(path)}' is a list or a mapping; keys are names")
        return merged | own

    def _merged(self, base: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(base, yaml.MappingNode):
            self._problem(base, "'<<' merges mappings, and this is none")
            return {}
        if id(base) in self._open:
            self._problem(base, f"'{dotted([*path, '<<'])}' contains itself")
            return {}
        self._open.add(id(base))
        try:
            pairs = self._pairs(base, path)
        finally:
            self._open.remove(id(base))
        for key_node, _ in pairs.values():
            self._repeat(key_node)
        return pairs

    def _report_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        lines: dict[str, str] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in lines:
                full = dotted([*path, key_node.value])
                self._problem(key_node, f"'{full}' is given twice, first at {lines[key_node.value]}; keep one of them")
            else:
                lines[key_node.value] = self._line(key_node)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.rpartition(":")[2]
        plain = node.style is None
        if plain and kind != "null":
            self.source.text[path] = node.value
        if kind == "null" and node.value in _NULLS:
            return None
        if kind == "bool" and node.value.lower() in self._loader.bool_values:
            return self._loader.construct_yaml_bool(node)
        if kind == "int" and _INT.match(node.value):
            digits = node.value.replace("_", "")
            if len(digits) <= _MOST_DIGITS:
                return int(digits)
            text = f"is a number of {len(digits.lstrip('+-'))} digits; {_MOST_DIGITS} are the most"
            return self._problem(node, f"{dotted(path) or 'this'} {text}")
        if kind in ("int", "float") and _FLOAT.match(node.value):
            return self._loader.construct_yaml_float(node)
        if kind == "str":
            return node.value
        return self._problem(
            node, f"'{one_line(node.value, 60)}' has the tag {node.tag}; remove the tag, or quote the value"
        )
