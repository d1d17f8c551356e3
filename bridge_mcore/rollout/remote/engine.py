"""SGLang and vLLM as the engine of a run: collective over the trainer's ranks, asynchronous underneath.

Each replica's first rank asks for its own prompts and gives the answers to its tensor- and pipeline-parallel peers;
there is no central process. All ranks meet when generation ends or a server is lost: then those that are lost are
started anew (or waited for), all of them get the current weights, and what is not answered yet is asked again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from bridge_mcore.errors import TrainingError
from bridge_mcore.methods.base import THETA
from bridge_mcore.monitoring.progress import say
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import Dialect
from bridge_mcore.rollout.remote.dispatch import Dispatcher
from bridge_mcore.rollout.remote.fleet import Fleet
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.router import Router
from bridge_mcore.rollout.sync.deliver import Delivered, Delivery


class RemoteEngine:
    """See `Engine`; besides, answers may be under way across updates: `submit`, `collect`."""

    def __init__(
        self,
        http: Http,
        dialect: Dialect,
        control: Control,
        fleet: Fleet,
        delivery: Delivery,
        dispatcher: Dispatcher | None,
        router: Router | None = None,
        *,
        context: int,
        vocab_size: int,
        colocated: bool,
        staleness: int,
    ) -> None:
        """dispatcher: on leaders. router: what stands before the servers, if something does. context: tokens of prompt
        and response. staleness: versions an answer may be old."""
        self.http, self.dialect, self.control = http, dialect, control
        self.fleet, self.delivery, self.dispatcher, self.router = fleet, delivery, dispatcher, router
        self.context, self.vocab_size = context, vocab_size
        self.colocated, self.staleness = colocated, staleness
        self.version = -1
        self._nonce = control.gather(secrets.token_hex(4))[0]
        self._count = 0
        self._slot = THETA
        #: url -> label of the weights it was given last; label -> version
        self._held: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._resting = False
        self._seconds_confirm = 0.0
        #: servers whose generation is held
        self._paused: set[str] = set()
        #: called with (answers finished, answers asked for, tokens so far); for progress
        self.on_progress: Callable[[int, int, int], None] | None = None

    # --- weights -----------------------------------------------------------------------------------------------------

    def refresh(self, version: int, slot: str = THETA) -> dict[str, float]:
        """See Engine.refresh. `slot`: whose base weights are live."""
        wanted = (version, slot)
        lost = self._lost()
        if wanted == (self.version, self._slot) and not lost and not self._resting:
            return {}
        began = time.perf_counter()
        self._wake()
        self._pause()
        self.version, self._slot = version, slot
        for url in self.fleet.revive(lost, ""):  # whatever they hold, they get the new weights now
            self.delivery.forget(url)
        delivered = self._deliver(self.fleet.urls, version)
        self._open(self.fleet.urls)
        return {
            "seconds_sync": time.perf_counter() - began,
            "sync_mib": delivered.bytes / 2**20,
            "sync_probe_gap": delivered.gap,
        }

    def _deliver(self, urls: Sequence[str], version: int) -> Delivered:
        """Send the live weights until all of `urls` have them, whatever is lost on the way."""
        self._count += 1
        label = f"{self._nonce}.{self._count}.{self._slot}"
        self._versions[label] = version
        if self.dispatcher is not None:  # what was in flight goes on with these weights before `_open`
            self.dispatcher.versions[label] = version
        total = Delivered()
        failures: dict[str, int] = {}
        while urls:
            done = self.delivery.deliver(urls, label, self._slot, self._resume)
            total.bytes += done.bytes
            total.buckets += done.buckets
            total.gap, total.checked = max(total.gap, done.gap), max(total.checked, done.checked)
            self._held |= {url: label for url in urls if url not in done.lost}
            for url, why in done.lost.items():
                self.delivery.forget(url)
                failures[url] = failures.get(url, 0) + 1
                if self.control.is_main:
                    say(f"· the weights did not reach {url}: {why}")
            # A server that lives and fails twice hangs, or cannot take them: it is started anew, if it is ours.
            self.fleet.end({url: why for url, why in done.lost.items() if failures[url] > 1})
            self.fleet.revive(done.lost, "")
            urls = list(done.lost)
        return total

    def _open(self, urls: Iterable[str]) -> None:
        """Let leaders ask servers that hold weights of this run."""
        if self.dispatcher is not None:
            held = {url: (self._held[url], self.delivery.adapters.get(url)) for url in urls}
            if self.router is not None:
                newest = max((self._held[url] for url in self.fleet.urls), key=lambda label: self._versions[label])
                held = dict.fromkeys(self.dispatcher.servers, (newest, None))
            self.dispatcher.versions |= self._versions
            self.dispatcher.oldest = self.version - self.staleness
            self.dispatcher.reopen(held)

    def _lost(self) -> dict[str, str]:
        """Servers that any rank takes as lost. Collective."""
        mine = dict(self.dispatcher.lost) if self.dispatcher is not None else {}
        if self.router is not None:  # which server behind it is lost is found out by looking at all
            mine = {url: why for why in mine.values() for url in self.fleet.urls}
        mine |= self.fleet.dead()
        return {url: why for part in self.control.gather(mine) for url, why in part.items()}

    def _in_flight(self) -> bool:
        count = len(self.dispatcher.unfinished()) if self.dispatcher is not None else 0
        return any(self.control.gather(count))

    def _everywhere(self, ask: Callable, seconds: float, urls: Iterable[str]) -> None:
        """Rank 0 asks all servers; one that is lost is found out by what follows. Collective."""
        refused = ""
        if self.control.is_main:
            for answer in [self.http.start(ask(self.http, url, seconds)) for url in urls]:
                try:
                    answer.result()
                except ServerLost:
                    continue
                except ServerRefused as error:
                    refused = str(error)
        refused = self.control.gather(refused)[0]
        if refused:
            raise TrainingError(refused)

    def _pause(self) -> None:
        """Hold what is in flight while the weights change."""
        if self._in_flight():
            if self.dispatcher is not None:
                self.dispatcher.shut()
            self._paused = set(self.fleet.urls)
            self._everywhere(self.dialect.pause, 120.0, self.fleet.urls)

    def _resume(self, urls: Sequence[str]) -> None:
        """Let servers go on that have all of the weights."""
        held = [url for url in urls if url in self._paused]
        if held:
            self._everywhere(self.dialect.resume, 120.0, held)
            self._paused -= set(held)

    def rest(self) -> dict[str, float]:
        """See Engine.rest: colocated servers give their memory to training."""
        if not self.colocated or self._resting:
            return {}
        began = time.perf_counter()
        self._everywhere(self.dialect.release_memory, 300.0, self.fleet.urls)
        self.delivery.forget_weights()
        self._resting = True
        return {"seconds_release": time.perf_counter() - began}

    def _wake(self) -> None:
        if self._resting:
            self._everywhere(self.dialect.take_memory, 300.0, self.fleet.urls)
            self._resting = False

    # --- answers -----------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        """See Engine.generate. Every rank of a replica passes the same requests; what else is under way waits."""
        self.submit(requests, params, first=True)
        keys = [r.key for r in requests]
        wanted = set(keys)
        return self.collect(lambda done: wanted <= done.keys(), lambda done: keys, self.version)

    def submit(self, requests: Sequence[Request], params: SamplingParams, first: bool = False) -> None:
        """Ask for answers, which `collect` takes later; they are under way meanwhile. first: before those that wait."""
        for r in requests:
            if not r.prompt or len(r.prompt) + params.max_new_tokens > self.context:
                raise TrainingError(
                    f"a prompt of {len(r.prompt)} tokens and {params.max_new_tokens} new ones do not fit the servers' "
                    f"context of {self.context}; lower max_new_tokens or drop the prompt"
                )
            if not all(0 <= t < self.vocab_size for t in r.prompt):  # SGLang dies of such a token
                raise TrainingError(f"a prompt has a token that is not in the vocabulary of {self.vocab_size}")
        if self.dispatcher is not None:
            self.dispatcher.submit(requests, params, first)

    def collect(
        self,
        finished: Callable[[Mapping[int, Rollout]], bool],
        choose: Callable[[Mapping[int, Rollout]], Sequence[int]],
        version: int,
    ) -> list[Rollout]:
        """Wait until `finished` holds for the answers of this replica, and take those that `choose` names. Collective.

        Both are called on leaders only. version: of the live weights, which servers get that are lost meanwhile.
        Raises TrainingError for an answer that is wrong, with the request saved, EngineLost when servers are lost too
        often, and WeightsReplaced if a server does not hold the weights any more that were sent.
        """
        while True:
            ok, fatal = True, None
            if self.dispatcher is not None:
                ok = self.dispatcher.wait(finished, self._watch)
                fatal = self.dispatcher.fatal
            states = self.control.gather((ok, fatal))
            wrong = next((text for _, text in states if text is not None), None)
            if wrong is not None:
                raise TrainingError(wrong)
            if all(ready for ready, _ in states):
                break
            self._recover(version)
        taken: list[Rollout] = []
        if self.dispatcher is not None:
            taken = self.dispatcher.take(choose(self.dispatcher.done))
        taken = self.control.replica(taken)
        began = time.perf_counter()
        lost = self.dispatcher.lost if self.dispatcher is not None else {}
        self.delivery.confirm([url for url in self.fleet.urls if url not in lost])
        self._seconds_confirm += time.perf_counter() - began
        return taken

    def _recover(self, version: int) -> None:
        """Have lost servers back, with the live weights; what the others work on goes on."""
        if self.router is not None:
            self.router.revive(self.fleet)
        lost = self._lost()
        needy = [url for url in lost if url not in self._held]
        for label in sorted(set(self._held.values())):
            mine = {url: why for url, why in lost.items() if self._held.get(url) == label}
            needy += self.fleet.revive(mine, label)
        for url in needy:
            self.delivery.forget(url)
        if needy:
            self._deliver(needy, version)
        self._open(lost)

    def _watch(self) -> None:
        """While a leader waits: what ends here is noticed at once."""
        if self.dispatcher is None:
            return
        for url, why in self.fleet.dead().items():
            self.dispatcher.lose(url, why)
        if self.on_progress is not None:
            self.on_progress(len(self.dispatcher.done), self.dispatcher.asked, self.dispatcher.tokens)

    def unfinished(self) -> list[Request]:
        """Requests of this replica that are under way, on all its ranks. Collective over the replica."""
        return self.control.replica(self.dispatcher.unfinished() if self.dispatcher is not None else [])

    def counts(self) -> dict[str, float]:
        """Requests asked again and stale answers since the last call, over all ranks. Collective."""
        mine = self.dispatcher.counts.take() if self.dispatcher is not None else None
        parts = [part for part in self.control.gather(mine) if part is not None]
        return {
            "rollouts_retried": float(sum(p.retried for p in parts)),
            "rollouts_stale": float(sum(p.stale for p in parts)),
            "server_losses": float(self.fleet.restarts),
            "seconds_confirm": self._taken_seconds(),
        }

    def _taken_seconds(self) -> float:
        """Seconds in which servers confirmed their weights, since the last call."""
        seconds, self._seconds_confirm = self._seconds_confirm, 0.0
        return seconds

    def close(self) -> None:
        """Stop asking, and end managed servers. Not collective."""
        if self.dispatcher is not None:
            self.dispatcher.close()
        if self.control.is_main and self.fleet.settings.mode == "external":  # they must not stay as a failure left them
            for url in self.fleet.urls:
                with suppress(Exception):
                    if self._resting:
                        self.http.run(self.dialect.take_memory(self.http, url, 30.0))
                    if url in self._paused:
                        self.http.run(self.dialect.resume(self.http, url, 5.0))
        self.fleet.close()
        if self.control.is_main:
            self.delivery.clean()
