"""What data a run saw, in its own directory: `data.json`, with hashes and the cards of prepared files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_mcore.config.data_checks import plugins_of
from bridge_mcore.config.schema import Config, DataSource
from bridge_mcore.data.card import card_of, file_hash
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.problems import load_problems, source_name

DATA_FILE = "data.json"


class DataRecord:
    """Loads sources for a run and notes what each one held."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.entries: dict[str, dict[str, Any]] = {}
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def load(self, key: str, *sources: DataSource) -> list[Problem]:
        """The problems of several sources, one after another; `key` is where the first stands in the configuration.

        Raises DataError if a prepared file is no longer the one that its card describes.
        """
        problems: list[Problem] = []
        for number, source in enumerate(sources):
            found = load_problems(source, self.config.reward.verifier, plugins_of(self.config))
            self._note(f"{key}_more.{number - 1}" if number else key, source, found)
            problems += found
        return problems

    def _note(self, key: str, source: DataSource, problems: Sequence[Problem]) -> None:
        rewards = sorted({p.reward for p in problems})
        entry: dict[str, Any] = {"name": source_name(source), "problems": len(problems), "rewards": rewards}
        entry["sha256"] = digest(problems)
        if source.path is not None:
            card = card_of(source.path)
            # The card was just verified: its hash is the file's, which need not be read again.
            known = card["outputs"][source.path.name]["sha256"] if card is not None else None
            entry["file"] = {"path": str(source.path.absolute()), **_file_facts(source.path, known)}
            if card is not None:
                entry["card"] = card
        elif source.dataset is not None:
            entry["dataset"] = {
                "id": source.dataset, "config": source.dataset_config, "revision": source.dataset_revision,
                "split": source.split,
            }  # fmt: skip
        self.entries[key] = entry

    def counts(self, key: str, what: str) -> Counter[str]:
        """Where the encoding of a source (and of those mixed with it) counts what it kept, cut and dropped."""
        return self._counts.setdefault((key, what), Counter())

    def text(self) -> str:
        """The content of data.json."""
        for (key, what), counts in self._counts.items():
            self.entries[key][what] = dict(counts)
        return json.dumps(self.entries, indent=1, ensure_ascii=False) + "\n"


def digest(problems: Sequence[Problem]) -> str:
    """SHA-256 of problems in their order: prompts, answers, traces and rewards."""
    found = hashlib.sha256()
    for p in problems:
        found.update(json.dumps([p.prompt, p.answer, p.trace, p.reward]).encode() + b"\n")
    return found.hexdigest()


def _file_facts(path: Path, sha256: str | None) -> dict[str, Any]:
    path = path.expanduser()
    if path.is_dir():  # all files of a directory are one source
        return {"files": {str(p.relative_to(path)): file_hash(p) for p in sorted(path.rglob("*")) if p.is_file()}}
    return {"sha256": sha256 or file_hash(path), "bytes": path.stat().st_size}
