"""A run with the embedded engine that samples exactly the tokens another run has saved.

python -m tests.training.forced_job ROLLOUTS CONFIG.yaml [key=value …]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.config.load import load_config
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import SamplingParams
from bridge_mcore.training import session
from bridge_mcore.training.loop import train


def forced_engine(rollouts: Path, answers: int) -> type[EmbeddedEngine]:
    """An embedded engine whose draws are replaced by saved tokens; everything else is its own."""

    class Forced(EmbeddedEngine):
        def _sample(self, logits: Tensor | None, keys: Tensor, step: int, params: SamplingParams) -> Any:
            assert logits is not None
            tokens = []
            for key in keys.tolist():
                number, index = divmod(key, 2 * answers)  # numbers between are of θ̂'s own rollouts
                lines = (rollouts / f"step_{number + 1:08d}.jsonl").read_text().splitlines()
                row = json.loads(lines[index])
                response = row["tokens"][row["prompt_length"] :]
                tokens.append(response[min(step, len(response) - 1)])
            chosen = torch.tensor(tokens)
            return chosen, logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]

    return Forced


if __name__ == "__main__":
    config = load_config(Path(sys.argv[2]), sys.argv[3:])
    count = config.training.prompts_per_step * config.rollout.samples_per_prompt
    session.EmbeddedEngine = forced_engine(Path(sys.argv[1]), count)  # type: ignore[misc]
    train(config)
