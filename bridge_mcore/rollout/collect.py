"""From prompts to training samples: generate, verify, compare within groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu

from bridge_mcore.config.schema import Config
from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.objectives.advantages import group_relative
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards import MathVerifier, Verdict
from bridge_mcore.rollout.engine import Engine, Request, Rollout, SamplingParams
from bridge_mcore.training.batch import RL, Sample


@dataclass
class Collected:
    """One step's rollouts on this data-parallel rank, and what they say over all ranks."""

    samples: list[Sample]
    rollouts: list[Rollout]
    verdicts: list[Verdict]
    metrics: dict[str, float] = field(default_factory=dict)


def replica_broadcast(value: object) -> object:
    """The value of this replica's first rank: model-parallel ranks must not judge one answer twice."""
    group = mpu.get_model_parallel_group()
    if dist.get_world_size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    return box[0]


def is_replica_first() -> bool:
    """True on the one rank of each data-parallel replica that talks to the outside."""
    return dist.get_rank(mpu.get_model_parallel_group()) == 0


class Collector:
    """Rolls out, verifies and turns verdicts into advantages."""

    def __init__(self, config: Config, engine: Engine, verifier: MathVerifier, decode: object, layout: Layout) -> None:
        """decode: token ids -> text that the verifier reads (special tokens left out)."""
        self.config, self.engine, self.verifier, self.decode, self.layout = config, engine, verifier, decode, layout

    def verify(self, answers: Sequence[str], rollouts: Sequence[Rollout]) -> list[Verdict]:
        """Verdict of each rollout against its gold answer; the same on every rank of the replica."""
        verdicts: list[Verdict] | None = None
        if is_replica_first():
            verdicts = self.verifier.verify([(a, self.decode(r.tokens)) for a, r in zip(answers, rollouts, strict=True)])
        return replica_broadcast(verdicts)

    def collect(self, prompts: Sequence[EncodedPrompt], first_key: int, params: SamplingParams) -> Collected:
        """Roll out this step's prompts (all of them are passed; this rank takes its share).

        Args:
            first_key: number of the first answer within the run, so that no two draws coincide.
        """
        n = self.config.rollout.samples_per_prompt
        mine = range(self.layout.data_rank, len(prompts), self.layout.data)
        requests = [Request(first_key + i * n + j, tuple(prompts[i].tokens)) for i in mine for j in range(n)]
        start = time.perf_counter()
        rollouts = self.engine.generate(requests, params)
        generated = time.perf_counter()
        verdicts = self.verify([prompts[i].problem.answer for i in mine for _ in range(n)], rollouts)
        judged = time.perf_counter()
        rewards = torch.tensor([self.reward(v) for v in verdicts]).view(-1, n)
        advantages = group_relative(rewards, self.config.objective.advantage_std).flatten().tolist()
        samples = [
            Sample(RL, (*r.prompt, *r.tokens), len(r.prompt), a, r.logprobs, params.temperature)
            for r, a in zip(rollouts, advantages, strict=True)
        ]
        metrics = self._metrics(rollouts, verdicts, rewards)
        metrics |= {"seconds_rollout": generated - start, "seconds_reward": judged - generated}
        return Collected(samples, rollouts, verdicts, metrics)

    def reward(self, verdict: Verdict) -> float:
        """Reward of a verdict; NaN for one that was not reached, if such samples are to be left out."""
        settings = self.config.reward
        if verdict.verdict == "correct":
            return settings.correct
        if verdict.verdict != "incorrect" and settings.on_failure == "drop":
            return float("nan")
        return settings.incorrect

    def _metrics(self, rollouts: list[Rollout], verdicts: list[Verdict], rewards: torch.Tensor) -> dict[str, float]:
        known = rewards[~rewards.isnan()]
        spread = torch.where(rewards.isnan(), torch.inf, rewards).amin(1) < torch.where(
            rewards.isnan(), -torch.inf, rewards
        ).amax(1)
        sums = [
            len(rollouts), len(known), float(known.sum()), float(known.pow(2).sum()), len(spread), int(spread.sum()),
            sum(len(r.tokens) for r in rollouts), sum(not r.finished for r in rollouts),
            sum(v.verdict == "timeout" for v in verdicts), sum(v.verdict == "error" for v in verdicts),
            sum(len(r.prompt) for r in rollouts),
        ]  # fmt: skip
        if self.layout.data > 1:
            tensor = torch.tensor(sums, dtype=torch.float64)
            if dist.get_backend() != "gloo":
                tensor = tensor.cuda()
            dist.all_reduce(tensor, group=mpu.get_data_parallel_group())
            sums = tensor.tolist()
        answers, judged, total, squares, groups, signal, tokens, cut, timeouts, errors, prompt_tokens = sums
        mean = total / max(judged, 1)
        return {
            "reward": mean,
            "reward_std": float(np.sqrt(max(squares / max(judged, 1) - mean**2, 0.0))),
            "response_length": tokens / answers,
            "truncated": cut / answers,
            "groups_with_signal": signal / groups,
            "verifier_timeouts": timeouts,
            "verifier_errors": errors,
            "rollout_tokens": tokens + prompt_tokens,
        }
