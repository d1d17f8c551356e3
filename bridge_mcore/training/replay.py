"""`bridge-mcore replay`: exactly one BRIDGE iteration (Algorithm 2) from a saved case.

It is how a bad step is reproduced and how correctness is checked from outside: the same build, passes and optimizer
as in training, with everything that varies read from files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.config import schema
from bridge_mcore.config.replay import ReplayOptions, ReplaySettings, read_batch, read_settings
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.errors import DataError
from bridge_mcore.methods.base import THETA, THETA_HAT, Pass
from bridge_mcore.methods.bridge import Bridge
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.training.case import write_weights
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy
from bridge_mcore.training.step import Updater

#: replay's names of the metrics (the issue's), from the step's
_METRICS = {
    "j_sft": "j_sft", "j_rl": "j_rl", "j_rl_auxiliary": "j_rl_auxiliary", "gain": "gain", "kl": "kl",
    "clip_fraction": "clip_fraction", "entropy": "entropy",
    **{f"grad_norm_{g}": f"grad_norm_{g}" for g in ("theta", "theta_hat", "w")},
    **{f"update_l2_{g}": f"update_norm_{g}" for g in ("theta", "theta_hat", "w")},
}  # fmt: skip


def replay_config(settings: ReplaySettings, options: ReplayOptions) -> schema.Config:
    """The run configuration that a case's settings stand for."""
    return schema.Config(
        device=options.device,
        model=schema.Model(dtype=options.dtype),
        method=schema.Method(name="bridge", lam=settings.lam),
        objective=schema.Objective(clip_range=settings.clip_range, kl_coefficient=settings.kl_coefficient),
        optimizer=schema.Optimizer(
            alpha=settings.alpha,
            beta=settings.beta,
            gradient_clip=settings.gradient_clip,
            **settings.optimizer.model_dump(),
        ),
        parallel=options.parallel,
    )


def replay(options: ReplayOptions) -> None:
    """Run the case on this rank of the layout; rank 0 writes metrics.json and prints them."""
    platform = setup_device(options.device)
    with process_groups(platform, options.parallel, seed=0) as layout:
        policy, (metrics,) = run_case(options, platform)
        report = {name: _number(metrics[key]) for name, key in _METRICS.items() if key in metrics}
        with atomic_directory(options.target) as target:
            write_weights(policy, target)
            if layout.is_main:
                (target / "metrics.json").write_text(json.dumps(report, indent=2))
        if layout.is_main:
            print(json.dumps(report, indent=2))
            print(f"updated θ, θ̂ and w: {options.target}")


@dataclass(frozen=True)
class Case:
    """A case's model in the current layout, with all that its update takes."""

    policy: Policy
    updater: Updater
    passes: list[Pass]
    samples: list[Sample]
    alpha: float
    beta: float

    def update(self) -> dict[str, float]:
        """One BRIDGE iteration on the batch; its metrics."""
        return self.updater.update(self.passes, self.samples, self.alpha, self.beta)


def run_case(
    options: ReplayOptions, platform: Platform, iterations: int = 1, config: schema.Config | None = None
) -> tuple[Policy, list[dict[str, float]]]:
    """Build the case's model in the current layout and perform `iterations` updates on its batch.

    Returns the policy and the metrics of each update. `config` replaces what the case's settings stand for.
    """
    case = open_case(options, platform, config)
    return case.policy, [case.update() for _ in range(iterations)]


def open_case(options: ReplayOptions, platform: Platform, config: schema.Config | None = None) -> Case:
    """Build the case's model in the current layout. `config` replaces what the case's settings stand for."""
    settings = read_settings(options.source / "settings.yaml")
    batch = read_batch(options.source / "batch.jsonl")
    config = config or replay_config(settings, options)
    policy = build_policy(
        config,
        platform,
        options.source / "model",
        adapter=True,
        auxiliary=True,
        reference=settings.kl_coefficient > 0 and settings.reference == "model",
        adapter_path=options.source / "adapter",
    )
    if (options.source / "auxiliary").is_dir():
        policy.load_slot(THETA_HAT, options.source / "auxiliary")
    samples = [
        Sample(s.kind, s.tokens, s.prompt_length, s.advantage or 0.0, s.behaviour_logprobs, s.temperature)
        for s in batch
    ]
    if settings.reference == "recorded" and settings.kl_coefficient > 0:
        for sample, s in zip(samples, batch, strict=True):
            if s.kind == RL and s.reference_logprobs is None:
                raise DataError(f"{options.source}: reference: recorded needs reference_logprobs in every rl sample")
            sample.reference = None if s.reference_logprobs is None else torch.tensor(s.reference_logprobs)
    check_tokens(samples, policy.shape.vocab_size, options.source / "batch.jsonl")
    runner = PassRunner(policy, config.objective, config.training.max_tokens_per_microbatch, options.micro_batch_size)
    if options.micro_batch_size is not None:  # then rows are what is asked for, however long
        runner.max_tokens = 2**62
    updater = Updater(policy, runner, config.auxiliary)
    updater.fill_reference(samples)  # nothing to do if it is recorded
    passes = Bridge(config).passes(0)
    if settings.lam == 0 and not any(s.kind == RL for s in batch):
        passes = [p for p in passes if p.slot == THETA]  # nothing that θ̂ could learn from
    beta = config.optimizer.beta or config.optimizer.alpha
    return Case(policy, updater, passes, samples, config.optimizer.alpha, beta)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_tokens(samples: Sequence[Sample], vocab_size: int, path: Path) -> None:
    """Raise DataError for a token id that the model does not have."""
    for line, sample in enumerate(samples, 1):
        if max(sample.tokens) >= vocab_size:
            raise DataError(
                f"{path}:{line}: token {max(sample.tokens)} is outside the model's vocabulary of {vocab_size}"
            )
