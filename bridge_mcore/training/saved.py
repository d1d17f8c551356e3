"""Rollouts on disk: what debug.save_rollouts writes, and debug.only training reads instead of generating."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge_mcore.config.json_file import read_json_object
from bridge_mcore.config.replay import read_batch
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.errors import DataError
from bridge_mcore.training.case import sample_row
from bridge_mcore.training.collect import Collected


def _path(directory: Path, step: int) -> Path:
    return directory / f"step_{step + 1:08d}.jsonl"


def save_rollouts(directory: Path, step: int, samples: Sequence[Sample], metrics: Mapping[str, Any]) -> None:
    """Write the rollouts of a step (rank 0), a line each in the format of a replay case, and their metrics."""
    if dist.get_rank() != 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = _path(directory, step)
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "w") as out:
        out.writelines(json.dumps(sample_row(s)) + "\n" for s in samples if s.component == RL)
    known = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    path.with_suffix(".json").write_text(json.dumps(known))
    unfinished.replace(path)


class SavedRollouts:
    """The schedule of debug.only training: step k trains on what step k of another run rolled out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def next(self, step: int) -> Collected:
        """See Schedule.next. Raises DataError if the step was not saved or cannot be read."""
        path = _path(self.directory, step)
        if not path.is_file():
            raise DataError(f"{path} is not there: debug.rollouts holds fewer steps than training.steps asks for")
        rows = read_batch(path)
        if any(r.advantage is None for r in rows):
            raise DataError(f"{path}: every line needs an advantage")
        samples = [
            Sample(RL, r.tokens, r.prompt_length, r.advantage or 0.0, r.behaviour_logprobs, r.temperature) for r in rows
        ]
        side = path.with_suffix(".json")
        metrics = read_json_object(side, kind=DataError) if side.is_file() else {}
        metrics.pop("tokens", None)
        metrics["rollout_tokens"] = sum(len(s.tokens) for s in samples)
        return Collected(samples, [], [], metrics)

    def settle(self, version: int) -> None:
        """See Schedule.settle."""

    def make_room(self, version: int) -> None:
        """See Schedule.make_room."""

    def state(self) -> list[dict[str, Any]]:
        """See Schedule.state."""
        return []

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """See Schedule.restore."""
