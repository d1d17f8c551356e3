"""SGLang or vLLM serving a checkpoint as it is: no trainer, no weight sync. For evaluation and generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from bridge_mcore.config.engines import Servers
from bridge_mcore.errors import TrainingError
from bridge_mcore.monitoring.progress import phase, say
from bridge_mcore.platform.device import Platform
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.build import DIALECTS
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import Dialect, GarbageAnswer, LaunchOptions
from bridge_mcore.rollout.remote.dispatch import Dispatcher, Limits
from bridge_mcore.rollout.remote.fleet import Fleet, access_key, find_python
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.sync.proof import TOLERANCE, probe_prompts, scores_gap

#: Room for the prompts that weights are known by.
_LEAST_CONTEXT = 16
#: Answers that come within so many seconds are handed on together.
_GATHER_S = 0.25


class FixedEngine:
    """Asks servers whose weights do not change. One process."""

    def __init__(
        self,
        http: Http,
        dialect: Dialect,
        fleet: Fleet,
        dispatcher: Dispatcher,
        context: int,
        probe: SamplingParams,
        tolerance: float,
    ) -> None:
        """context: tokens of prompt and response. probe: of the token that tells which weights a server holds.
        tolerance: largest mean difference of one server's log-probabilities of the same prompts."""
        self.http, self.dialect, self.fleet, self.dispatcher = http, dialect, fleet, dispatcher
        self.context, self.tolerance = context, tolerance
        self._probe = probe
        self._prompts = probe_prompts(dispatcher.vocab_size, context - 1)
        #: url -> what the server calls its weights; its log-probabilities of the prompts that they are known by
        self.labels: dict[str, str] = {}
        self._scores: dict[str, list[np.ndarray]] = {}
        self._open(fleet.urls)

    def _open(self, urls: Sequence[str]) -> None:
        """Find out what servers call their weights: an answer by others is noticed."""
        for url in urls:
            request = Request(0, (1,))
            try:
                _, answer = self.http.run(
                    self.dialect.generate(self.http, url, request, self._probe, "bridge-probe", None, 300.0)
                )
            except (ServerLost, ServerRefused, GarbageAnswer) as error:
                raise TrainingError(f"{url} does not generate: {error}") from error
            label = answer.spans[0][0] if answer.spans else ""
            if self.labels.setdefault(url, label) != label:
                raise TrainingError(f"{url} came back with other weights ('{label}') than it had")
            self._compare(url)
            self.dispatcher.versions[label] = 0
        self.dispatcher.reopen({url: (self.labels[url], None) for url in urls})

    def _compare(self, url: str) -> None:
        """Raises TrainingError if a server's weights are not those that it had at first, whatever it calls them."""
        try:
            scores = self.http.run(self.dialect.score(self.http, url, self._prompts, None, 300.0))
        except (ServerLost, ServerRefused) as error:
            if isinstance(error, ServerLost) and url in self.fleet.owned:
                return  # nobody else has its key, and it is started anew before it is asked again
            raise TrainingError(f"{url} does not say which weights it holds: {error}") from error
        if not scores_gap(self._scores.setdefault(url, scores), scores) <= self.tolerance:
            raise TrainingError(
                f"{url} has been given other weights since its first answer, so nobody knows what was measured: find "
                "out who else reaches it, and evaluate anew with --restart"
            )

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Rollout]]:
        """Answers as they come in, about twice a second; all are asked at once.

        Raises TrainingError for an answer that is wrong, with the request saved, and EngineLost when servers are lost
        too often.
        """
        self.dispatcher.submit(requests, params)
        left = {r.key for r in requests}
        while left:
            alive = self.dispatcher.wait(lambda done: bool(done), self._watch)
            if self.dispatcher.fatal is not None:
                raise TrainingError(self.dispatcher.fatal)
            if alive:
                time.sleep(_GATHER_S)
            ready = [key for key in list(self.dispatcher.done) if key in left]
            if ready:
                left -= set(ready)
                yield self.dispatcher.take(ready)
            elif not alive:
                lost = dict(self.dispatcher.lost)
                self.fleet.revive(lost, "")
                self._open(list(lost))
        for url in self.fleet.urls:
            if url not in self.dispatcher.lost:
                self._compare(url)

    def _watch(self) -> None:
        for url, why in self.fleet.dead().items():
            self.dispatcher.lose(url, why)

    def close(self) -> None:
        """Stop asking; managed servers end."""
        self.dispatcher.close()
        self.fleet.close()


@contextmanager
def serve(
    model: Path,
    engine: str,
    servers: Servers,
    platform: Platform,
    dtype: str,
    context: int,
    vocab_size: int,
    sampling: SamplingParams,
    directory: Path,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> Iterator[FixedEngine]:
    """Servers of an HF checkpoint, started or (servers.mode external) found, and ended with the context.

    Args:
        context: tokens of prompt and response.
        sampling: of the answers; vLLM is told its temperature at the start.
        directory: of logs and of requests that fail.
        decode: token ids to text, as answers are read.
    Raises:
        TrainingError: with a server's last words, if one does not start.
    """
    control = Control()
    context = max(context, _LEAST_CONTEXT)
    http = Http(access_key(servers, control))
    try:
        dialect: Dialect = DIALECTS[engine]()
        options = LaunchOptions(
            python=find_python(engine, servers) if servers.mode == "managed" else Path("python"),
            model=model.absolute(), dtype=dtype, device=platform.kind, host="", port=0, tensor=servers.tensor,
            context=context + dialect.reserve, in_flight=servers.in_flight, memory_fraction=servers.memory_fraction,
            temperature=sampling.temperature or 1.0, top_p=sampling.top_p, top_k=sampling.top_k, seed=sampling.seed,
            reads_text=bool(sampling.stop_texts), arguments=tuple(servers.arguments),
        )  # fmt: skip
        fleet = Fleet(
            http, dialect, control, servers, options, directory / "servers", urls=servers.urls, count=servers.count
        )
        try:
            with phase(f"waiting for {engine}"):
                fleet.launch()
                fleet.wait()
            limits = Limits(servers.in_flight, servers.request_seconds, servers.health_seconds, servers.retries)
            dispatcher = Dispatcher(
                http, dialect, fleet.urls, limits, vocab_size, directory / "failed_requests", "eval",
                decode if sampling.stop_texts and fleet.reads_text() else None,
            )  # fmt: skip
            probe = SamplingParams(1, sampling.temperature, sampling.top_p)
            found = FixedEngine(http, dialect, fleet, dispatcher, context, probe, TOLERANCE[dtype])
            if servers.mode == "external":
                say(f"· asking {', '.join(fleet.urls)}: that they serve {model} is taken on trust")
            try:
                yield found
            finally:
                found.close()
        finally:
            fleet.close()
    finally:
        with suppress(Exception):
            http.close()
