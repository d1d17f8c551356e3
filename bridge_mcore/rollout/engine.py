"""The engine protocol: what asks for rollouts, and what answers. Embedded here; SGLang and vLLM speak it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled.

    temperature 0 is greedy. Reported log-probabilities are those of the whole distribution at `temperature` (at 1 when
    greedy): top_p restricts what may be sampled and does not renormalise what is reported, so that importance ratios
    against the trainer's log-probabilities stay right.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One answer asked for. `key` numbers it within the run: with the seed it fixes the random draws."""

    key: int
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One answer.

    Attributes:
        tokens: the response, its stop token included if it ended with one.
        logprobs: fp32 log-probability of each response token (see SamplingParams).
        finished: it ended with a stop token; False means it was cut at max_new_tokens.
        version: of the weights that sampled it.
    """

    key: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    finished: bool
    version: int


class Engine(Protocol):
    """Serves rollouts from the weights of `version`."""

    version: int

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        """One rollout per request, in the order of the requests; the same requests and seed give the same answers."""
        ...
