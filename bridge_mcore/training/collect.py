"""From prompts to training samples: generate, verify, compare within groups."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu

from bridge_mcore.config.schema import Config
from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.monitoring.progress import say
from bridge_mcore.objectives.advantages import group_relative, with_signal
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards import Verdict
from bridge_mcore.rewards.judge import Judge
from bridge_mcore.rewards.shaping import Adjustment, FormatShaping, LengthShaping, adjustment
from bridge_mcore.rollout.engine import Engine, Request, Rollout, SamplingParams
from bridge_mcore.training.undecided import UndecidedWatch

_NO_ADJUSTMENT = Adjustment()


@dataclass
class Collected:
    """One step's rollouts.

    Attributes:
        samples: of the whole step, in the order of the prompts, the same on every rank.
        rollouts, verdicts: of this rank's share.
        metrics: over all ranks; "undecided", where verdicts were not reached, is the reason of the first in words.
        prompts: of the whole step, where they are known before it is generated.
    """

    samples: list[Sample]
    rollouts: list[Rollout]
    verdicts: list[Verdict]
    metrics: dict[str, Any] = field(default_factory=dict)
    prompts: list[EncodedPrompt] = field(default_factory=list)


class Collector:
    """Rolls out, verifies and turns verdicts into advantages."""

    def __init__(self, config: Config, engine: Engine, judge: Judge, layout: Layout) -> None:
        self.config, self.engine, self.judge, self.layout = config, engine, judge, layout
        self.form = FormatShaping(**config.reward.form.model_dump())
        self.length = LengthShaping(**config.reward.length.model_dump())
        self.watch = UndecidedWatch(config.reward.stop_undecided, layout)
        self._scores_said = config.reward.partial
        #: the reward is not the share of correct answers
        self._is_apart = self.form.required or self.length.limit is not None or config.reward.partial

    def collect(
        self, prompts: Sequence[EncodedPrompt], first_key: int, params: SamplingParams, version: int
    ) -> Collected:
        """Roll out this step's prompts (all of them are passed; each rank generates its share).

        Args:
            first_key: number of the first answer within the run, so that no two draws coincide.
            version: of the live weights.
        """
        n = self.config.rollout.samples_per_prompt
        mine = range(self.layout.share, len(prompts), self.layout.shares)
        requests = [Request(first_key + i * n + j, tuple(prompts[i].tokens)) for i in mine for j in range(n)]
        start = time.perf_counter()
        rollouts = self.engine.generate(requests, params)
        return self.judged([prompts[i] for i in mine], rollouts, params, time.perf_counter() - start, version)

    def judged(
        self,
        prompts: Sequence[EncodedPrompt],
        rollouts: Sequence[Rollout],
        params: SamplingParams,
        seconds: float,
        version: int,
    ) -> Collected:
        """Verify this share's rollouts (a group for each of `prompts`, in order) and compare them within groups.

        seconds: that were waited for them. version: of the live weights. Raises RunStopped where the reward is dead.
        """
        n = self.config.rollout.samples_per_prompt
        rollouts = self.judge.stopped(rollouts)
        generated = time.perf_counter()
        problems, numbers = [p.problem for p in prompts for _ in range(n)], [*range(n)] * len(prompts)
        verdicts = self.judge.verify(problems, rollouts, numbers)
        judged = time.perf_counter()
        shaped = self.shaping(problems, rollouts, verdicts)
        values = [self.reward(v) + s.total for v, s in zip(verdicts, shaped, strict=True)]
        rewards = torch.tensor(values).view(len(prompts), n)  # a share may be empty
        advantages = group_relative(rewards, self.config.objective.advantage_std).flatten().tolist()
        samples = {
            r.key: Sample(RL, (*r.prompt, *r.tokens), len(r.prompt), a, r.logprobs, params.temperature)
            for r, a, reward in zip(rollouts, advantages, rewards.flatten().tolist(), strict=True)
            if not math.isnan(reward)  # on_failure: drop; counted in the metrics
        }
        metrics = self._metrics(rollouts, verdicts, rewards, shaped, version)
        undecided = int(metrics["verifier_timeouts"] + metrics["verifier_errors"])
        names, keys = [p.reward for p in problems], [r.key for r in rollouts]
        self._say_unused_score(names, verdicts)
        if reason := self.watch.see(names, keys, verdicts, undecided, int(metrics["verdicts"])):
            metrics["undecided"] = reason
        metrics |= {"seconds_rollout": seconds, "seconds_reward": judged - generated}
        return Collected(self._shared(samples), list(rollouts), verdicts, metrics)

    def _shared(self, samples: dict[int, Sample]) -> list[Sample]:
        """All shares' samples by number: the same list, in the same order, whatever the layout."""
        if self.layout.shares > 1:
            parts: list[dict[int, Sample]] = [{}] * self.layout.shares
            dist.all_gather_object(parts, samples, group=mpu.get_data_parallel_group(with_context_parallel=True))
            samples = {key: sample for part in parts for key, sample in part.items()}
        return [samples[key] for key in sorted(samples)]

    def reward(self, verdict: Verdict) -> float:
        """Reward of a verdict; NaN for one that was not reached, if such samples are to be left out."""
        settings = self.config.reward
        if verdict.score is not None and settings.partial and verdict.decided:
            return settings.incorrect + (settings.correct - settings.incorrect) * verdict.score
        if verdict.verdict == "correct":
            return settings.correct
        if verdict.verdict != "incorrect" and settings.on_failure == "drop":
            return float("nan")
        return settings.incorrect

    def _say_unused_score(self, names: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Say once that a reward gives scores between right and wrong, which count only with `reward.partial`."""
        if self._scores_said or not self.layout.is_main:
            return
        for name, v in zip(names, verdicts, strict=True):
            if v.decided and v.score is not None and v.score != float(v.verdict == "correct"):
                self._scores_said = True
                say(
                    f"warning: the reward {name} gives scores (the first: {v.score:.4g}), and none of them counts, "
                    "only right and wrong: set reward.partial=true to make the score the reward"
                )
                return

    def shaping(
        self, problems: Sequence[Problem], rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]
    ) -> list[Adjustment]:
        """What form and length add to each reward; nothing, and at no cost, where both are off."""
        if not self.form.required and self.length.limit is None:
            return [_NO_ADJUSTMENT] * len(verdicts)
        attempts = self.judge.attempts(problems, rollouts)
        return [adjustment(a, v, self.form, self.length) for a, v in zip(attempts, verdicts, strict=True)]

    def _metrics(
        self,
        rollouts: Sequence[Rollout],
        verdicts: list[Verdict],
        rewards: torch.Tensor,
        shaped: Sequence[Adjustment],
        version: int,
    ) -> dict[str, Any]:
        known = rewards[~rewards.isnan()]
        spread = with_signal(rewards)
        sums = [
            len(rollouts), len(known), float(known.sum()), float(known.pow(2).sum()), len(spread), int(spread.sum()),
            sum(len(r.tokens) for r in rollouts), sum(not r.finished for r in rollouts),
            sum(v.verdict == "timeout" for v in verdicts), sum(v.verdict == "error" for v in verdicts),
            sum(len(r.prompt) for r in rollouts),
            sum((version - v) * count for r in rollouts for v, count in r.spans),
            sum(v.verdict == "correct" for v in verdicts), sum(v.unanswered for v in verdicts),
            sum(s.format for s in shaped), sum(s.length for s in shaped),
        ]  # fmt: skip
        if self.layout.shares > 1:
            tensor = torch.tensor(sums, dtype=torch.float64)
            if dist.get_backend() != "gloo":
                tensor = tensor.cuda()
            dist.all_reduce(tensor, group=mpu.get_data_parallel_group(with_context_parallel=True))
            sums = tensor.tolist()
        (
            answers, judged, total, squares, groups, signal, tokens, cut, timeouts, errors, prompt_tokens, age, correct,
            unanswered, form, length,
        ) = sums  # fmt: skip
        mean = total / max(judged, 1)
        return {
            "reward": mean,
            "reward_std": float(np.sqrt(max(squares / max(judged, 1) - mean**2, 0.0))),
            "response_length": tokens / max(answers, 1),
            "truncated": cut / max(answers, 1),
            "unanswered": unanswered / max(answers, 1),
            "groups_with_signal": signal / max(groups, 1),
            "verdicts": answers,
            "verifier_timeouts": timeouts,
            "verifier_errors": errors,
            "rollout_tokens": tokens + prompt_tokens,
            **({"correct": correct / max(answers, 1)} if self._is_apart else {}),
            **({"reward_form": form / max(judged, 1)} if self.form.required else {}),
            **({"reward_length": length / max(judged, 1)} if self.length.limit is not None else {}),
            **({"staleness": age / max(tokens, 1)} if self.config.rollout.schedule != "synchronous" else {}),
        }
