"""The directory that `data prepare` leaves: data, card, report and figure, whole or not at all."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bridge_mcore import __version__
from bridge_mcore.data.card import CARD, FORMAT, file_hash
from bridge_mcore.data.prepare.figure import draw_lengths
from bridge_mcore.data.prepare.recipe import Recipe
from bridge_mcore.data.prepare.report import report_text
from bridge_mcore.data.prepare.run import (
    CONTACTS_FILE,
    DROPPED_FILE,
    RL_FILE,
    SFT_FILE,
    Result,
    Show,
    contact_row,
    prepare,
)
from bridge_mcore.errors import DataError

REPORT, FIGURE = "report.md", "lengths.png"
_PACKAGES = ("math-verify", "sympy", "transformers", "tokenizers", "datasets", "pyarrow")


def write_prepared(recipe: Recipe, force: bool, show: Show) -> dict[str, Any]:
    """Prepare a recipe into its `output` directory, which appears when it is complete. Returns the card.

    Raises DataError for bad input, and if something else than prepared data lies there, or (without `force`) that.
    """
    from bridge_mcore.checkpoint.atomic import atomic_directory  # imports torch

    target = recipe.output
    occupied = target.is_dir() and any(target.iterdir())
    if occupied and not (target / CARD).is_file():
        raise DataError(f"{target} holds something else than prepared data; give another output=DIRECTORY")
    if occupied and not force:
        raise DataError(f"{target} holds prepared data; give --force to replace it, or another output=DIRECTORY")
    with atomic_directory(target) as directory:
        result = prepare(recipe, directory, show)
        draw_lengths(result, directory / FIGURE)
        card = make_card(result, directory)
        (directory / REPORT).write_text(report_text(card), encoding="utf-8")
        card["outputs"][REPORT] = _described(directory / REPORT)
        (directory / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def make_card(result: Result, directory: Path) -> dict[str, Any]:
    """The card of what lies in a directory."""
    names = [RL_FILE, SFT_FILE, DROPPED_FILE, CONTACTS_FILE, FIGURE]
    decontaminate = result.recipe.decontaminate
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": result.recipe.model_dump(mode="json"),
        "sources": result.sources,
        "counts": {
            "prompts": _plain(result.prompts),
            "trace_rows": _plain(result.trace_rows),
            "traces": dict(result.traces),
            "rl_rows": len(result.prompt_lengths),
            "sft_rows": result.sft_rows,
            "cut_traces": result.unfinished,
        },
        "coverage": _plain(result.coverage),
        "decontamination": {
            "ngram": decontaminate.ngram,
            "overlap": decontaminate.overlap,
            "policy": decontaminate.policy,
            "evaluation": result.evaluation,
            "matches": [_short(contact_row(item, contact)) for item, contact in result.contacts],
        },
        "statistics": {
            "unit": result.unit,
            "prompt_length": summary(result.prompt_lengths),
            "trace_length": {tier: summary(found) for tier, found in sorted(result.trace_lengths.items())},
            "difficulty": summary(result.difficulties),
        },
        "outputs": {name: _described(directory / name) for name in names if (directory / name).is_file()},
        "versions": _versions(),
    }


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Number, mean and quantiles; None of nothing."""
    if not len(values):
        return None
    found = np.asarray(values, dtype=np.float64)
    low, q10, median, q90, q99, high = np.quantile(found, [0, 0.1, 0.5, 0.9, 0.99, 1])
    names = ("min", "p10", "median", "p90", "p99", "max")
    quantiles = zip(names, (low, q10, median, q90, q99, high), strict=True)
    rounded = {name: round(float(value), 2) for name, value in quantiles}
    return {"n": len(found), "mean": round(float(found.mean()), 2)} | rounded


def _plain(counts: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(found.items())) for name, found in counts.items()}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Without the texts, which contamination.jsonl holds."""
    return {key: value for key, value in row.items() if not key.endswith("prompt")}


def _described(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            found["rows"] = sum(1 for _ in file)
    return found


def _versions() -> dict[str, str]:
    versions = {"bridge-mcore": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
