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
    greedy): top_p and top_k (0: all) restrict what may be sampled and do not renormalise what is reported, so that
    importance ratios against the trainer's log-probabilities stay right.

    stop_texts end an answer too, with the token that completes one (see `stop_text`). An engine may go on for some more
    tokens, which `stop_text.cut_at_text` takes off.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    top_k: int = 0
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One answer asked for. `key` numbers it within the run: with the seed it fixes the random draws."""

    key: int
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One answer.

    Attributes:
        tokens: the response, with the stop token or the tokens of the stop text that ended it.
        logprobs: fp32 log-probability of each response token (see SamplingParams).
        finished: a stop token or text ended it; False means it was cut at max_new_tokens.
        version: of the weights that sampled it; of the oldest, if they changed on the way.
        spans: (version, number of tokens) of each stretch sampled by one set of weights; () means all by `version`.
    """

    key: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    finished: bool
    version: int
    spans: tuple[tuple[int, int], ...] = ()


class Engine(Protocol):
    """Serves rollouts from the weights of `version`. All methods are collective over the layout."""

    version: int

    def refresh(self, version: int, slot: str = "theta") -> dict[str, float]:
        """Answer from the live weights from now on, and call them `version`. Returns metrics of getting them there.

        slot: whose base weights are live (theta or theta_hat).
        """
        ...

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        """One rollout per request, in the order of the requests."""
        ...

    def counts(self) -> dict[str, float]:
        """What went wrong and was mended since the last call: metrics over all ranks."""
        ...

    def rest(self) -> dict[str, float]:
        """Nothing will be asked until the next `refresh`: give up what training can use. Returns metrics."""
        ...

    def close(self) -> None:
        """End what the engine has started."""
        ...
