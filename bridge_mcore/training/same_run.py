"""A resume is the same run: what a checkpoint records of its run, and how that is compared with the one that goes on.

What makes the policy or its data what they are must not change unseen: data, tokenizer, architecture, adapter, dtype,
template, reward. It is refused with both values, unless `run.resume_changes: allow`. Everything else (rates, λ, sizes,
schedules) may change; each change is said in a line and kept in changes.jsonl with the step from which it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge_mcore.config.data_checks import plugins_of
from bridge_mcore.config.json_file import parse_json, read_json, shown
from bridge_mcore.config.rewards import PLUGIN
from bridge_mcore.config.schema import Config
from bridge_mcore.data.card import file_hash
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.model.families.shape import ModelShape

#: Keys that say where a run is and how it starts, not what it is.
_NOT_OF_THE_RUN = (
    "run.directory", "run.resume", "run.resume_changes", "run.wait_seconds", "run.threads",
    "expected", "expected.accuracy", "expected.measured", "expected.settings",
)  # fmt: skip
#: Keys (and sections) that a resume must repeat whatever is allowed: the state in the checkpoint is of that kind.
_FIXED = ("run.seed", "method.name", "optimizer.name")
#: Keys (and sections) that make the policy, its data or its reward.
_REFUSED = (
    "model.generated", "model.dtype", "adapter.rank", "adapter.alpha", "adapter.targets", "data.template",
    "data.system_prompt", "data.instruction", "data.overlong", "reward.verifier", "reward.correct", "reward.incorrect",
    "reward.tolerance", "reward.partial", "reward.on_failure", "reward.noise", "reward.noise_seed", "reward.form",
    "reward.length",
)  # fmt: skip
#: What differs between two copies of one tokenizer.
_TOKENIZER_NOISE = ("name_or_path", "_name_or_path", "transformers_version", "tokenizer_class", "truncation", "padding")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_LARGEST_TOKENIZER = 512 << 20  # bytes
#: What is kept of a source's entry in data.json.
_OF_DATA = ("name", "sha256", "problems", "cut_traces")
_HELD_OUT = "data.evaluation"
CHANGES_FILE = "changes.jsonl"
_SHOWN = 8  # lines of a message about changes


def settings(config: Config) -> dict[str, Any]:
    """The resolved configuration, key by key: what a checkpoint carries of it."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(child, Mapping) for child in value):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}.{index}")
    else:
        yield path, value


def tokenizer_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint's tokenizer; of JSON, of its content without what copies differ in."""
    found = {}
    for name in _TOKENIZER_FILES:
        path = Path(directory) / name
        if not path.is_file():
            continue
        if name.endswith(".json"):
            read = read_json(path, _LARGEST_TOKENIZER)
            if isinstance(read, dict):
                read = {key: value for key, value in read.items() if key not in _TOKENIZER_NOISE}
            content = json.dumps(read, sort_keys=True).encode()
        else:
            content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def plugin_digests(config: Config) -> dict[str, str]:
    """SHA-256 of the file of each reward plugin that a configuration names by its file."""
    files = {name: Path(name.removeprefix(PLUGIN).rpartition(":")[0]).expanduser() for name in plugins_of(config)}
    # One that is missing is refused where it is loaded.
    return {name: file_hash(path) for name, path in files.items() if path.suffix == ".py" and path.is_file()}


def model_facts(shape: ModelShape, stops: Sequence[int]) -> dict[str, Any]:
    """What config.json and generation_config.json make of the model, as JSON has it."""
    return json.loads(json.dumps({**asdict(shape), "stop_token_ids": list(stops)}))


class SameRun:
    """The run that goes on, beside what the checkpoint recorded of the one that wrote it (None: nothing to compare).

    `record` is what this run's own checkpoints carry; it is complete once `inputs` has been called.
    """

    def __init__(self, config: Config, before: Mapping[str, Any] | None, step: int) -> None:
        self.before, self.step = before, step
        self.allow = config.run.resume_changes == "allow"
        self.record: dict[str, Any] = {"config": settings(config), "plugins": plugin_digests(config)}
        #: what has changed and is allowed to: (key, before, after)
        self.changes: list[tuple[str, Any, Any]] = []

    def check_settings(self) -> None:
        """Compare the configurations. Raises ConfigError that lists what may not change, with both values."""
        if self.before is None:
            return
        before, now = self.before["config"], self.record["config"]
        keys = [key for key in {**before, **now} if key not in _NOT_OF_THE_RUN and _was_there(key, before)]
        changed = [
            (key, before.get(key), now.get(key))
            for key in keys
            if before.get(key) != now.get(key) and not _is_section(key, before) and not _is_section(key, now)
        ]
        fixed = [change for change in changed if _within(change[0], _FIXED)]
        refused = [change for change in changed if _within(change[0], _REFUSED)]
        code = self.before.get("plugins") or {}  # older checkpoints have none
        refused += [
            (f"the code of {name}", _digest(code[name]), _digest(digest))
            for name, digest in self.record["plugins"].items()
            if name in code and code[name] != digest
        ]
        if fixed:
            raise self._refusal(fixed, "start another run for that: a checkpoint cannot go on as one of another kind")
        self._decide(refused)
        self.changes += [change for change in changed if change not in refused]
        steps = now["training.steps"]
        if steps < self.step:
            raise ConfigError(
                f"training.steps = {steps}, but the checkpoint is after step {self.step}: there is nothing to train; "
                f"set it to at least {self.step}, or resume from an earlier checkpoint by its path"
            )

    def inputs(
        self, data: Mapping[str, Mapping[str, Any]], tokenizer: Mapping[str, str], model: Mapping[str, Any]
    ) -> None:
        """Compare what was read, before the model is loaded. data: entries of data.json. Raises ConfigError."""
        kept = {key: {name: entry.get(name) for name in _OF_DATA} for key, entry in data.items()}
        self.record |= {"data": kept, "tokenizer": dict(tokenizer), "model": dict(model)}
        if self.before is None:
            return
        refused: list[tuple[str, Any, Any]] = []
        for what, now in (("tokenizer", tokenizer), ("model", model)):
            then = self.before[what]
            refused += [
                (f"the {what}'s {key}", _digest(then.get(key)), _digest(now.get(key)))
                for key in {**then, **now}
                if then.get(key) != now.get(key)
            ]
        others = [*self._other_data(kept)]
        refused += [(what, old, new) for key, what, old, new in others if not key.startswith(_HELD_OUT)]
        self._decide(refused)
        # Nothing is trained on them: their accuracies are others from here on, which is said.
        self.changes += [(what, old, new) for key, what, old, new in others if key.startswith(_HELD_OUT)]

    def _other_data(self, now: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
        """(key, what, before, after) of sets that hold something else; evaluation sets under the same name only."""
        assert self.before is not None
        then = self.before["data"]
        held_out = {entry["name"]: entry for key, entry in then.items() if key.startswith(_HELD_OUT)}
        for key in {**then, **now}:
            entry = now.get(key)
            if key.startswith(_HELD_OUT):
                old = None if entry is None else held_out.get(entry["name"], entry)
            else:
                old = then.get(key)
            if (old or {}).get("sha256") != (entry or {}).get("sha256"):
                yield key, f"the problems of {key}", _summary(old), _summary(entry)
            elif old and entry and "cut_traces" in old and old["cut_traces"] != entry["cut_traces"]:
                what = f"which traces of {key} are cut (finished: false)"
                yield key, what, _digest(old["cut_traces"]) or "none", _digest(entry["cut_traces"]) or "none"

    def _decide(self, refused: list[tuple[str, Any, Any]]) -> None:
        if refused and not self.allow:
            raise self._refusal(
                refused,
                "that would be another run under the same name; put it back, start a new run, or, if it is meant, say "
                "run.resume_changes=allow",
            )
        self.changes += refused

    def _refusal(self, changes: Sequence[tuple[str, Any, Any]], hint: str) -> ConfigError:
        lines = [f"{key} was {_value(before)}, now it is {_value(after)}" for key, before, after in changes[:_SHOWN]]
        if len(changes) > _SHOWN:
            lines.append(f"and {len(changes) - _SHOWN} more")
        return ConfigError(f"the checkpoint of step {self.step} is of another run: {'; '.join(lines)}\n{hint}")

    def lines(self) -> list[str]:
        """What has changed, for people: a line each."""
        if self.before is None:
            return []
        return [
            f"· changed since step {self.step}: {key} {_value(before)} → {_value(after)}"
            for key, before, after in self.changes
        ]

    def keep_earlier(self, directory: Path, config: str, data: str) -> None:
        """Write config.yaml and data.json; those of a resumed run that say something else stay beside them.

        config.step_6.yaml is what held until step 6. Changes are added to changes.jsonl, in place of those of attempts
        that were lost.
        """
        for name, content, differs in (
            ("config.yaml", config, bool(self.changes)),
            ("data.json", data, _text(directory / "data.json") != data),
        ):
            path = directory / name
            if self.before is not None and differs and (old := _text(path)) is not None:
                aside = path.with_name(f"{path.stem}.step_{self.step}{path.suffix}")
                if not aside.exists():  # the first one of that step is what the checkpoint's run had
                    _replace(aside, old)
            _replace(path, content)
        if self.before is None:
            return
        path = directory / CHANGES_FILE
        kept = [line for line in _changes(path) if line["step"] < self.step]
        kept += [{"step": self.step, "key": k, "before": b, "after": a} for k, b, a in self.changes]
        if kept or path.exists():
            _replace(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def recorded(extra: Any, origin: Path) -> dict[str, Any] | None:
    """What a checkpoint's state says of its run; None for one of a version that did not say it.

    Raises CheckpointError for anything else.
    """
    found = extra.get("run") if isinstance(extra, dict) else None
    if found is None:
        return None
    parts = ("config", "data", "tokenizer", "model")
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in parts):
        raise CheckpointError(f"{origin}: what it records of its run cannot be read")
    entries = found["data"].values()
    if not all(isinstance(entry, dict) and {"name", "sha256", "problems"} <= entry.keys() for entry in entries):
        raise CheckpointError(f"{origin}: what it records of its run's data cannot be read")
    return found


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _was_there(key: str, before: Mapping[str, Any]) -> bool:
    """Whether the version that wrote `before` had a key: itself, as a part of what was null or a word, or in a list."""
    parts = key.split(".")
    return any(".".join(parts[:end]) in before for end in range(1, len(parts) + 1)) or any(map(str.isdecimal, parts))


def _is_section(key: str, leaves: Mapping[str, Any]) -> bool:
    """A value in the one configuration, a section in the other: its keys say more."""
    return key not in leaves and any(other.startswith(f"{key}.") for other in leaves)


def _digest(value: Any) -> Any:
    """A SHA-256 as people compare it."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


def _summary(entry: Mapping[str, Any] | None) -> str:
    return "none" if entry is None else f"{entry['problems']} with SHA-256 {_digest(entry['sha256'])}"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value and len(value) < 80 else shown(value)


def _changes(path: Path) -> list[dict[str, Any]]:
    """The lines of changes.jsonl that can be read."""
    found = []
    try:
        for line in path.read_text().splitlines():
            read = parse_json(line)
            if isinstance(read, dict) and isinstance(read.get("step"), int):
                found.append(read)
    except (OSError, ValueError):
        pass  # none yet, or its last line is torn
    return found


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _replace(path: Path, content: str) -> None:
    """Write a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content)
    os.replace(temporary, path)
