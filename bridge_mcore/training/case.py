"""Cases for `bridge-mcore replay`: the weights and the batch of one step, in open formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.config import schema
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.methods.base import THETA_HAT
from bridge_mcore.training.policy import Policy


def write_weights(policy: Policy, directory: Path) -> None:
    """Write model/ (θ), auxiliary/ (θ̂) and adapter/ (w), fp32. Collective."""
    policy.export_theta(directory / "model", dtype=torch.float32)
    if THETA_HAT in policy.slots:
        policy.export_theta(directory / "auxiliary", THETA_HAT, dtype=torch.float32)
    if policy.lora is not None:
        policy.export_adapter(directory / "adapter", "../model")


def save_case(
    directory: Path,
    policy: Policy,
    samples: Sequence[Sample],
    config: schema.Config,
    lam: float,
    alpha: float,
    beta: float,
    stepped: Sequence[str] = (),
) -> None:
    """Write the current weights and this step's batch as a case that `replay` runs. Collective.

    The case has fresh optimizer state, as replay has: with AdamW its update is the step's direction, not its size.
    """
    rows = [sample_row(s) for s in samples]
    recorded = all("reference_logprobs" in row for row in rows if row["kind"] == RL)
    settings = {
        "lam": lam, "alpha": alpha, "beta": beta,
        "optimizer": config.optimizer.model_dump(
            include={"name", "betas", "eps", "weight_decay", "weight_decay_1d"}, mode="json"
        ),
        "clip_range": config.objective.model_dump(mode="json")["clip_range"],
        "kl_coefficient": config.objective.kl_coefficient, "kl_estimator": "k3",
        "reference": "recorded" if recorded and config.objective.kl_coefficient else "model",
        "loss_aggregation": "token_mean", "gradient_clip": config.optimizer.gradient_clip,
    }  # fmt: skip
    with atomic_directory(directory) as target:
        write_weights(policy, target)
        if dist.get_rank() == 0:
            notes = _notes(config, stepped)
            if notes:
                (target / "notes.txt").write_text("\n".join(notes) + "\n")
            (target / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
            with open(target / "batch.jsonl", "w") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)


def _notes(config: schema.Config, stepped: Sequence[str]) -> list[str]:
    """Where replaying the case differs from the step of the run, beyond the optimizer's fresh state."""
    notes = [f"{group} had already been stepped when this was saved" for group in stepped]
    if config.method.name != "bridge":
        notes.append(f"the run's method is {config.method.name}; replay performs BRIDGE iterations only")
    auxiliary = config.auxiliary
    for key, default in (("mode", "persistent"), ("rollouts", "shared"), ("optimizer", "same")):
        if getattr(auxiliary, key) != default:
            notes.append(f"the run has auxiliary.{key}: {getattr(auxiliary, key)}; replay takes {default}")
    return notes


def sample_row(sample: Sample) -> dict[str, Any]:
    """A line of batch.jsonl."""
    row: dict[str, Any] = {
        "kind": sample.component,
        "tokens": list(sample.tokens),
        "prompt_length": sample.prompt_length,
    }
    if sample.component == RL:
        assert sample.behaviour is not None
        row["advantage"] = sample.advantage
        row["behaviour_logprobs"] = [float(x) for x in sample.behaviour]
        if sample.temperature != 1.0:
            row["temperature"] = sample.temperature
        if sample.reference is not None:
            row["reference_logprobs"] = sample.reference.tolist()
    return row
