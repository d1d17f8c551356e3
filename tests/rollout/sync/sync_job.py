"""Rank program: weights to a real server in every way, from one layout.

python -m tests.rollout.sync.sync_job PLAN.json OUT_DIR      # started once per rank

PLAN: {"engine", "url", "model", "parallel", "ways": [[method, adapter], …], "seed", "bucket_mib"}. Before each way all
weights change. OUT_DIR gets, for each way, WAY.json (rank 0: rollouts, the largest difference from the trainer's
log-probabilities, and what the sync said) and WAY/base, WAY/adapter: the policy as HF checkpoint and PEFT adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.methods.base import THETA
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.remote.build import EngineRoom
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy

CONTEXT, NEW_TOKENS = 64, 16


def config_of(plan: dict[str, Any], method: str, adapter: str, directory: Path) -> Config:
    """The configuration of one way."""
    return Config.model_validate(
        {
            "run": {"directory": directory},
            "model": {"path": plan["model"]},
            "adapter": {"rank": 4, "alpha": 8},
            "parallel": plan["parallel"],
            "rollout": {"engine": plan["engine"]},
            "servers": {"mode": "external", "urls": [plan["url"]], "tensor": plan.get("tensor", 1)},
            "sync": {"method": method, "adapter": adapter, "bucket_mib": plan["bucket_mib"]},
        }
    )


def change_weights(policy: Policy, seed: int) -> None:
    """New values of θ and w (B ≠ 0), the same in every layout but for how they are cut."""
    with torch.no_grad():
        for name, p in ((n, p) for chunk in policy.chunks for n, p in chunk.named_parameters()):
            if ".lora.B." in name:
                generator = torch.Generator().manual_seed(seed + p.numel())
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
            else:
                p.mul_(1 + 0.02 * (seed % 5))
    policy.changes[THETA] += 1


def run(plan: dict[str, Any], out: Path) -> None:
    """All ways of the plan."""
    platform = setup_device("cpu")
    first = config_of(plan, "disk", "merged", out)
    with joined_world(platform), layout_groups(first.parallel, seed=0) as layout:
        policy = build_policy(first, platform, Path(plan["model"]), adapter=True, auxiliary=False, reference=False)
        runner = PassRunner(policy, first.objective, 256)
        for number, (method, adapter) in enumerate(plan["ways"], start=1):
            way = f"{method}-{adapter}"
            config = config_of(plan, method, adapter, out / way)
            change_weights(policy, plan["seed"] + number)
            before = {n: p.detach().clone() for c in policy.chunks for n, p in c.named_parameters()}
            room = EngineRoom(config, platform, layout, Path(plan["model"]), policy.shape, policy.lora, CONTEXT)
            try:
                (engine,) = room.open(policy.live_source(), runner.score_prompts)
                metrics = engine.refresh(number)
                again = engine.refresh(number)
                generator = np.random.default_rng(plan["seed"])
                prompts = [tuple(map(int, generator.integers(0, policy.shape.vocab_size, n))) for n in (3, 9, 20, 41)]
                requests = [Request(10 * i + j, p) for i, p in enumerate(prompts) for j in range(2)]
                rollouts = engine.generate(requests, SamplingParams(NEW_TOKENS))
                counts = engine.counts()
                shared: list[Any] = [rollouts]
                dist.broadcast_object_list(shared)  # replicas sample answers of their own
                (rollouts,) = shared
            finally:
                room.close()
            scored = runner.score([Sample(RL, (*r.prompt, *r.tokens), len(r.prompt)) for r in rollouts])
            gap = max(
                float((s - torch.from_numpy(np.array(r.logprobs))).abs().max())
                for s, r in zip(scored, rollouts, strict=True)
            )
            unchanged = all(torch.equal(p, before[n]) for c in policy.chunks for n, p in c.named_parameters())
            policy.export_theta(out / way / "base", dtype=torch.float32)
            policy.export_adapter(out / way / "adapter", "../base")
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, unchanged)
            if layout.is_main:
                result = {
                    "gap": gap, "metrics": metrics, "again": again, "counts": counts, "unchanged": all(everywhere),
                    "rollouts": [
                        {"prompt": r.prompt, "tokens": r.tokens, "logprobs": [float(x) for x in r.logprobs],
                         "version": r.version, "spans": r.spans}
                        for r in rollouts
                    ],
                }  # fmt: skip
                (out / f"{way}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
