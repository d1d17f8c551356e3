"""What data a run saw, in its own directory: `data.json`, with hashes and the cards of prepared files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from bridge_mcore.config.data_checks import plugins_of
from bridge_mcore.config.schema import Config, DataSource
from bridge_mcore.data.card import card_of, file_hash
from bridge_mcore.data.contradictions import JudgeAll, note_contradictions
from bridge_mcore.data.notes import Notes, lines
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.problems import load_problems, source_name
from bridge_mcore.data.sources import pinned
from bridge_mcore.errors import DataError

DATA_FILE = "data.json"
_CONTRADICTIONS = {
    "two_golds": "rows that ask what another row asks, with another right answer",
    "contradicting_traces": "traces that end in another answer than their row's",
}


class DataRecord:
    """Loads sources for a run and notes what each one held, and what was done to it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.entries: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, Notes] = {}
        self._problems: dict[str, list[Problem]] = {}
        self._encoded: dict[tuple[str, str], Notes] = {}

    def load(self, key: str, *sources: DataSource) -> list[Problem]:
        """The problems of several sources, one after another; `key` is where the first stands in the configuration.

        Raises DataError if a prepared file is no longer the one that its card describes.
        """
        problems: list[Problem] = []
        seen: set[tuple[str, str | None]] = set()
        for number, source in enumerate(sources):
            name, notes = f"{key}_more.{number - 1}" if number else key, Notes()
            repeats: Literal["bad", "once"] = "once" if key.startswith("data.evaluation") else "bad"
            source, commit = pinned(source, notes)
            found = load_problems(source, self.config.reward.verifier, plugins_of(self.config), notes, repeats)
            self._rows[name], self._problems[name] = notes, found
            self._note(name, source, found, commit)
            if again := [p for p in found if (p.id, p.trace) in seen]:
                notes.add("again", str(again[0]), len(again))
            seen.update((p.id, p.trace) for p in found)
            problems += found
        return problems

    def check_contradictions(self, judge: JudgeAll) -> None:
        """Note rows that contradict each other or themselves. Raises DataError if `data.contradictions` is error."""
        held_out = [name for name in self._rows if name.startswith("data.evaluation")]
        trained = [name for name in self._rows if name not in held_out]
        learned = [(self._rows[n], p) for n in trained if self._is_learned(n) for p in self._problems[n]]
        note_contradictions([(self._rows[n], p) for n in trained for p in self._problems[n]], learned, judge)
        for name in held_out:
            note_contradictions([(self._rows[name], p) for p in self._problems[name]], [], judge)
        if self.config.data.contradictions == "error":
            for name, notes in self._rows.items():
                for key, what in _CONTRADICTIONS.items():
                    if notes[key]:
                        raise DataError(
                            f"{name} has {notes[key]} {what}; the first: {notes.first[key]}. Mend the rows, or set "
                            "data.contradictions: report"
                        )

    def _is_learned(self, name: str) -> bool:
        """Whether traces of a source are learned from."""
        return (name.partition("_more.")[0], "traces") in self._encoded

    def lines(self) -> Iterator[str]:
        """What was done to the data, a line each."""
        for name, rows in self._rows.items():
            made = {what: notes for (key, what), notes in self._encoded.items() if key == name}
            yield from lines(name, rows, made, self._is_learned(name))

    def _note(self, key: str, source: DataSource, problems: Sequence[Problem], commit: str | None) -> None:
        rewards = sorted({p.reward for p in problems})
        entry: dict[str, Any] = {"name": source_name(source), "problems": len(problems), "rewards": rewards}
        entry["sha256"] = digest(problems)
        entry["cut_traces"] = cut_digest(problems)
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
                "commit": commit, "split": source.split,
            }  # fmt: skip
        self.entries[key] = entry

    def counts(self, key: str, what: Literal["prompts", "traces"]) -> Notes:
        """Where the encoding of a source (and of those mixed with it) counts what it kept, cut and dropped."""
        return self._encoded.setdefault((key, what), Notes())

    def text(self) -> str:
        """The content of data.json."""
        for name, notes in self._rows.items():
            self.entries[name]["rows"] = dict(notes)
        for (key, what), notes in self._encoded.items():
            self.entries[key][what] = dict(notes)
        return json.dumps(self.entries, indent=1, ensure_ascii=False) + "\n"


def digest(problems: Sequence[Problem]) -> str:
    """SHA-256 of problems in their order: prompts, answers, traces, rewards and system messages."""
    found = hashlib.sha256()
    for p in problems:
        system = [] if p.system is None else [p.system]  # as before there were any
        found.update(json.dumps([p.prompt, p.answer, p.trace, p.reward, *system]).encode() + b"\n")
    return found.hexdigest()


def cut_digest(problems: Sequence[Problem]) -> str | None:
    """SHA-256 of the places of problems whose traces were cut, apart from `digest`; None if there are none."""
    cut = [number for number, problem in enumerate(problems) if not problem.finished]
    return hashlib.sha256(json.dumps(cut).encode()).hexdigest() if cut else None


def _file_facts(path: Path, sha256: str | None) -> dict[str, Any]:
    path = path.expanduser()
    if path.is_dir():  # all files of a directory are one source
        return {"files": {str(p.relative_to(path)): file_hash(p) for p in sorted(path.rglob("*")) if p.is_file()}}
    return {"sha256": sha256 or file_hash(path), "bytes": path.stat().st_size}
