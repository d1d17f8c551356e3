"""A run directory as a training run leaves it, made from a formula and a seed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import yaml

from bridge_mcore.monitoring.metrics import MetricsWriter


def write_run(
    directory: Path,
    steps: int = 60,
    total: int = 60,
    every: int = 20,
    start: float = 0.27,
    end: float = 0.75,
    problems: int = 256,
    method: str = "bridge",
    model: dict | None = None,
    seed: int = 0,
) -> Path:
    """Accuracy rises from ``start`` to ``end``; fewer ``steps`` than ``total`` leave an unfinished run."""
    chance = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "run": {"directory": str(directory), "seed": seed},
        "model": model or {"generated": {"architecture": "qwen2", "layers": 2, "hidden_size": 64}},
        "method": {"name": method, "lam": 0.5},
        "adapter": {"rank": 16},
        "training": {"steps": total},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))

    def level(step: int) -> float:
        return start + (end - start) * (1 - math.exp(-3 * step / total)) / (1 - math.exp(-3))

    with MetricsWriter(directory, tensorboard=False, resume_step=None) as writer:

        def evaluate(step: int) -> float:
            accuracy = round((level(step) + chance.gauss(0, 0.01)) * problems) / problems
            writer.write_evaluation(
                step, {"accuracy": accuracy, "sets": {"running_sums": accuracy}, "problems": problems}
            )
            return accuracy

        before = after = evaluate(0)
        for step in range(1, steps + 1):
            metrics = {
                "reward": min(max(level(step) - 0.05 + chance.gauss(0, 0.05), 0.0), 1.0),
                "response_length": 18 + 6 * level(step) + chance.gauss(0, 0.7),
                "j_sft": -0.9 + 0.5 * level(step),
                "gain": 0.002 * level(step) + chance.gauss(0, 0.0005),
                "lam": 0.5,
                "tokens_per_second": 1900 + chance.gauss(0, 80),
                "seconds_step": 4.0,
                "seconds_rollout": 2.0,
                "seconds_reward": 0.2,
                "seconds_reference": 0.2,
                "seconds_train": 1.4,
                "memory_gib": 1.3,
                "verifier_timeouts": 0,
                "verifier_errors": 0,
            }
            if step % every == 0 or step == total:
                metrics |= {"accuracy": (after := evaluate(step)), "seconds_evaluation": 6.0, "seconds_step": 10.0}
            writer.write(step, metrics)
    if steps == total:
        summary = {"accuracy_before": before, "accuracy_after": after, "seconds": 290.0}
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory
