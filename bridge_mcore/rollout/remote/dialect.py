"""What one kind of server understands: its command line, its requests and answers, its ways to take weights.

A dialect holds no state. Everything that is asked over HTTP and differs between SGLang and vLLM is here; what does not
differ (balancing, retries, checks, restarts, buckets) is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bridge_mcore.platform.ranks import is_loopback, loopback_interface
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.remote.http import Http

_ENTRY = Path(__file__).parent / "entry" / "bridge_entry.py"


def entry_command(python: Path, module: str) -> list[str]:
    """The beginning of the command line that runs an engine's module behind the run's key."""
    return [str(python), str(_ENTRY), module]


def local_environment(host: str) -> dict[str, str]:
    """Environment variables of a server that listens on loopback: its processes' sockets are there too."""
    if not is_loopback(host):
        return {}
    found = {"VLLM_HOST_IP": host, "SGLANG_HOST_IP": host}
    interface = loopback_interface()
    return found if interface is None else found | {"GLOO_SOCKET_IFNAME": interface}


class GarbageAnswer(Exception):
    """An answer that cannot be a sample: str() says what is wrong with it."""


@dataclass(frozen=True)
class LaunchOptions:
    """What a managed server is started with."""

    python: Path
    model: Path
    dtype: str
    device: str  # cpu | cuda | rocm
    host: str
    port: int
    tensor: int
    context: int  # tokens
    in_flight: int
    first_device: int = 0  # GPU of its first worker
    lora_rank: int = 0  # 0: no live adapter
    lora_targets: tuple[str, ...] = ()
    memory_fraction: float | None = None
    colocated: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    reads_text: bool = False  # it must know stop texts when they come
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One sampled response, as a server gave it.

    `spans`: (label of the weights, number of tokens) in order; None where the server does not say.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    reason: str  # stop | length | abort
    spans: tuple[tuple[str, int], ...] | None


@dataclass(frozen=True)
class Entry:
    """One tensor of a bucket: its HF name, and where its bytes lie."""

    name: str
    dtype: str  # torch's name: float32, bfloat16
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Group:
    """A process group of one trainer rank (rank 0) and all ranks of some servers."""

    name: str
    address: str
    port: int
    world: int
    backend: str
    offsets: dict[str, int] = field(default_factory=dict)  # url -> rank of the server's first worker


class Dialect(Protocol):
    """Every method that asks raises what `Http.ask` raises. Seconds are time limits of one request."""

    name: str
    reserve: int  # tokens of its context that an answer cannot use
    sees_all_devices: bool  # its GPUs are chosen by number, so that workers can open memory of the trainer's
    alignment: int  # of tensors in a bucket, bytes
    positive_zeros: bool  # its checksums take -0 as 0

    def command(self, options: LaunchOptions) -> tuple[list[str], dict[str, str]]:
        """(command line, environment variables) of a managed server."""
        ...

    async def healthy(self, http: Http, url: str, seconds: float) -> None:
        """Return if the server answers, also while it is paused; raise otherwise."""
        ...

    async def ready(self, http: Http, url: str, seconds: float) -> None:
        """Return if the server can generate; raise otherwise."""
        ...

    async def generate(
        self,
        http: Http,
        url: str,
        request: Request,
        params: SamplingParams,
        rid: str,
        adapter: str | None,
        seconds: float,
    ) -> tuple[Any, Answer]:
        """(raw answer, parsed answer). Raises GarbageAnswer for one that cannot be parsed."""
        ...

    async def reads_text(self, http: Http, url: str, seconds: float) -> bool:
        """Whether the server has a tokenizer, so that a text can end an answer."""
        ...

    async def abort(self, http: Http, url: str, rid: str) -> None:
        """Stop working on a request, if the server still does."""
        ...

    async def score(
        self, http: Http, url: str, prompts: Sequence[Sequence[int]], adapter: str | None, seconds: float
    ) -> list[np.ndarray]:
        """Log-probability at temperature 1 of every token of each prompt but its first."""
        ...

    async def label(self, http: Http, url: str, seconds: float) -> str | None:
        """Label of the weights that the server holds; None before any update since its start."""
        ...

    async def set_label(self, http: Http, url: str, label: str, seconds: float) -> None:
        """Call the weights so, after an update that did not change θ."""
        ...

    async def pause(self, http: Http, url: str, seconds: float) -> None:
        """Hold what is being generated, so that it goes on with other weights (the cache is computed anew)."""
        ...

    async def resume(self, http: Http, url: str, seconds: float) -> None:
        """Go on after `pause`."""
        ...

    async def flush(self, http: Http, url: str, seconds: float) -> None:
        """Forget cached prefixes: they were computed with older weights."""
        ...

    async def begin(self, http: Http, url: str, seconds: float) -> None:
        """Before the first bucket of an update."""
        ...

    async def end(self, http: Http, url: str, label: str, seconds: float) -> None:
        """After the last bucket: what the server derives from weights is made anew, and they get their label."""
        ...

    async def load_directory(self, http: Http, url: str, directory: Path, label: str, seconds: float) -> None:
        """Read all weights from an HF checkpoint."""
        ...

    def shared_buffer(self, size: int, device: torch.device) -> Tensor:
        """An uninitialised buffer, uint8 [size], that workers on this host can open."""
        ...

    def shared_payload(self, bucket: Tensor, entries: Sequence[Entry], ranks: int) -> Any:
        """What tells `ranks` workers of a server on this host where the bucket's memory is."""
        ...

    async def load_shared(self, http: Http, url: str, payload: Any, seconds: float) -> None:
        """Load a bucket from memory of this host; returns when it has been copied."""
        ...

    async def join(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """Join a process group, which the trainer joins at the same time."""
        ...

    async def receive(self, http: Http, url: str, group: Group, entries: Sequence[Entry], seconds: float) -> None:
        """Take part in the broadcast of a bucket, and load it."""
        ...

    async def leave(self, http: Http, url: str, group: Group, seconds: float) -> None:
        """End the process group."""
        ...

    async def load_adapter(
        self, http: Http, url: str, name: str, directory: Path, old: str | None, seconds: float
    ) -> None:
        """Load a PEFT adapter under `name`; `old` is not asked for any more."""
        ...

    async def checksums(self, http: Http, url: str, seconds: float) -> dict[str, str] | None:
        """Digest of each parameter that the server holds, under the server's names; None if it cannot say."""
        ...

    def hexdigest(self, digest: Any) -> str:
        """How `checksums` writes a SHA-256 (a hashlib object)."""
        ...

    async def release_memory(self, http: Http, url: str, seconds: float) -> None:
        """Give up the memory of weights and cache."""
        ...

    async def take_memory(self, http: Http, url: str, seconds: float) -> None:
        """Take back the memory that `release_memory` gave up."""
        ...


def check_answer(answer: Answer, request: Request, params: SamplingParams, vocab_size: int) -> None:
    """Raises GarbageAnswer unless the answer can be a sample of the policy."""
    n = len(answer.tokens)
    if n == 0:
        raise GarbageAnswer("no tokens")
    if len(answer.logprobs) != n:
        raise GarbageAnswer(f"{n} tokens, but {len(answer.logprobs)} log-probabilities")
    if not np.isfinite(answer.logprobs).all():
        raise GarbageAnswer("log-probabilities that are not finite")
    if (answer.logprobs > 1e-3).any():
        raise GarbageAnswer(f"a log-probability of {float(answer.logprobs.max()):.3g}, above 0")
    wrong = [t for t in answer.tokens if not 0 <= t < vocab_size]
    if wrong:
        raise GarbageAnswer(f"token {wrong[0]}, which is not in the vocabulary of {vocab_size}")
    if n > params.max_new_tokens:
        raise GarbageAnswer(f"{n} tokens, but at most {params.max_new_tokens} were asked for")
    stops = set(params.stop_token_ids)
    early = next((i for i, t in enumerate(answer.tokens[:-1]) if t in stops), None)
    if early is not None:
        raise GarbageAnswer(f"{n} tokens, but a stop token at {early + 1}")
    if answer.reason not in ("stop", "length"):
        raise GarbageAnswer(f"ended for the reason '{answer.reason}', which is none that was asked for")
    if answer.reason == "length" and n < params.max_new_tokens:
        raise GarbageAnswer(f"cut after {n} tokens, before the {params.max_new_tokens} that were asked for")
    if answer.reason == "stop" and answer.tokens[-1] not in stops and not params.stop_texts:
        raise GarbageAnswer(f"ended with token {answer.tokens[-1]}, which is no stop token")
    if answer.spans is not None and sum(count for _, count in answer.spans) != n:
        raise GarbageAnswer(f"weight versions of {sum(c for _, c in answer.spans)} tokens, but {n} tokens")
