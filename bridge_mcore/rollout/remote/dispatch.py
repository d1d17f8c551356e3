"""Requests to servers: bounded, balanced, asked again after failures, each answered exactly once.

Every server has as many lanes as requests it may work on; lanes take requests from one queue in order. So servers that
are faster get more, and what cannot be in flight waits. A request belongs to one lane at a time, and its answer is kept
under its key: nothing is lost and nothing counts twice, whatever fails. A request that is asked again keeps its place.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.dialect import Answer, Dialect, GarbageAnswer, check_answer
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.stop_text import StopTexts

_TRY_LATER = (408, 425, 429, 500, 502, 503, 504)
_BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
#: What goes first has numbers so much lower than the rest.
_FIRST = 1 << 60


@dataclass(frozen=True)
class Limits:
    """How requests are asked; see the keys of `servers`."""

    in_flight: int  # of one server, from this trainer rank
    request_seconds: float
    health_seconds: float
    retries: int
    accept_stale: bool = False


@dataclass
class _Server:
    url: str
    open: asyncio.Event
    label: str = ""  # of the weights it was given last
    adapter: str | None = None
    running: set[asyncio.Task] = field(default_factory=set)


@dataclass
class Counts:
    """What happened since they were last read."""

    retried: int = 0
    stale: int = 0

    def take(self) -> Counts:
        """The counts, which start anew."""
        taken = Counts(**asdict(self))
        self.retried = self.stale = 0
        return taken


class Dispatcher:
    """Asks `urls` (servers, or the router before them) for answers. Its methods are for the main thread."""

    def __init__(
        self,
        http: Http,
        dialect: Dialect,
        urls: Sequence[str],
        limits: Limits,
        vocab_size: int,
        failures: Path,
        name: str,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """failures: directory in which a request is saved that got a wrong answer. name: begins request ids. decode:
        token ids to text; None where the servers cannot see stop texts, which they are not told then."""
        self.http, self.dialect, self.limits = http, dialect, limits
        self.decode = decode
        self.vocab_size, self.failures = vocab_size, failures
        # An external server may still work on what an earlier run asked: it refuses ids that it knows.
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.counts = Counts()
        #: label of weights -> their version, of all weights that this run has sent
        self.versions: dict[str, int] = {}
        #: the oldest version that is accepted
        self.oldest = 0
        self.lost: dict[str, str] = {}
        self.fatal: str | None = None
        self.done: dict[int, Rollout] = {}
        self.tokens = 0
        self._asked: dict[int, tuple[Request, SamplingParams]] = {}
        self._order = 0
        self._attempts = 0
        self._changed = threading.Condition()
        self._servers: dict[str, _Server] = {}
        self._queue: asyncio.PriorityQueue[tuple[int, Request, SamplingParams]] | None = None
        http.run(self._open(urls))

    async def _open(self, urls: Sequence[str]) -> None:
        self._queue = asyncio.PriorityQueue()
        self._servers = {url: _Server(url, asyncio.Event()) for url in urls}
        # Lane by lane over all servers: the first requests spread evenly.
        self._lanes = [
            asyncio.create_task(self._lane(server))
            for _ in range(self.limits.in_flight)
            for server in self._servers.values()
        ]
        self._pulse = asyncio.create_task(self._watch())

    # --- the main thread's side --------------------------------------------------------------------------------------

    def submit(self, requests: Iterable[Request], params: SamplingParams, first: bool = False) -> None:
        """Ask for answers; they are under way when this returns. Keys that are under way already are refused.

        first: before all that waits for a server now.
        """
        if self.decode is None:
            params = replace(params, stop_texts=())
        items: dict[int, tuple[int, Request, SamplingParams]] = {}
        for request in requests:
            if request.key in self._asked or request.key in items:
                raise ValueError(f"request {request.key} is under way already")
            items[request.key] = (self._order + len(items) - (_FIRST if first else 0), request, params)
        self._order += len(items)
        self._asked |= {key: (request, params) for key, (_, request, params) in items.items()}
        self.http.run(self._enqueue(items.values()))

    async def _enqueue(self, items: Iterable[tuple[int, Request, SamplingParams]]) -> None:
        assert self._queue is not None
        for item in items:
            self._queue.put_nowait(item)

    def wait(self, finished: Callable[[Mapping[int, Rollout]], bool], watch: Callable[[], None]) -> bool:
        """Wait until `finished` holds for the answers so far: True; or until no server is left, or all is lost: False.

        watch: called about twice a second.
        """
        while True:
            with self._changed:
                if self.fatal is not None:
                    return False
                if finished(self.done):
                    return True
                if self.is_blocked:
                    return False
                self._changed.wait(0.5)
            watch()  # without the lock: it may lose a server, which the event loop notifies of

    @property
    def servers(self) -> list[str]:
        """What it asks."""
        return list(self._servers)

    @property
    def asked(self) -> int:
        """Requests that are under way or answered, and not taken yet."""
        return len(self._asked)

    @property
    def is_blocked(self) -> bool:
        """Whether no server is left to ask."""
        return all(url in self.lost for url in self._servers)

    def take(self, keys: Iterable[int]) -> list[Rollout]:
        """Answers, which are forgotten here."""
        with self._changed:
            taken = [self.done.pop(key) for key in keys]
            for rollout in taken:
                self._asked.pop(rollout.key, None)
        return taken

    def unfinished(self) -> list[Request]:
        """Requests under way, in the order they were asked."""
        with self._changed:
            return [request for key, (request, _) in self._asked.items() if key not in self.done]

    def lose(self, url: str, reason: str) -> None:
        """Take a server as lost: nothing is asked of it until `reopen`."""
        self.http.run(self._lose(url, reason))

    def reopen(self, held: Mapping[str, tuple[str, str | None]]) -> None:
        """Ask these servers (again). held: url -> (label of the weights it holds, its adapter)."""
        self.http.run(self._reopen(held))

    async def _reopen(self, held: Mapping[str, tuple[str, str | None]]) -> None:
        for url, (label, adapter) in held.items():
            if url in self._servers:
                self.lost.pop(url, None)
                server = self._servers[url]
                server.label, server.adapter = label, adapter
                server.open.set()

    def shut(self) -> None:
        """Ask nothing for now; what is in flight goes on."""
        self.http.run(self._shut())

    async def _shut(self) -> None:
        for server in self._servers.values():
            server.open.clear()

    def close(self) -> None:
        """Stop asking."""
        with suppress(Exception):
            self.http.run(self._cancel())

    async def _cancel(self) -> None:
        for task in (*self._lanes, self._pulse):
            task.cancel()

    # --- the event loop's side ---------------------------------------------------------------------------------------

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _lose(self, url: str, reason: str) -> None:
        server = self._servers.get(url)
        if server is None or url in self.lost:
            return
        self.lost[url] = reason
        server.open.clear()
        for task in server.running:
            task.cancel()
        self._notify()

    async def _watch(self) -> None:
        """A server that works on requests and is silent is lost, though its connections stay open."""
        interval = max(self.limits.health_seconds / 3, 0.2)
        while True:
            await asyncio.sleep(interval)
            busy = [s.url for s in self._servers.values() if s.running and s.url not in self.lost]
            await asyncio.gather(*(self._doubt(url) for url in busy))

    async def _doubt(self, url: str) -> bool:
        """Whether a server lives; takes it as lost if not."""
        deadline = time.monotonic() + self.limits.health_seconds
        reason = ""
        while time.monotonic() < deadline:
            try:
                await self.dialect.healthy(self.http, url, max(deadline - time.monotonic(), 0.1))
                return True
            except (ServerLost, ServerRefused) as error:
                if isinstance(error, ServerRefused) and error.status < 500:
                    return True  # it lives; SGLang's router does not know every path
                reason = str(error)
                if isinstance(error, ServerLost) and error.how == "dead":
                    break
            await asyncio.sleep(0.2)
        await self._lose(url, reason)
        return False

    async def _lane(self, server: _Server) -> None:
        assert self._queue is not None
        while True:
            await server.open.wait()
            item = await self._queue.get()
            if not server.open.is_set():
                self._queue.put_nowait(item)
                await asyncio.sleep(0)
                continue
            _, request, params = item
            if request.key not in self._asked or request.key in self.done:
                continue
            try:
                settled = await self._ask(server, request, params)
            except Exception as error:  # a bug here must end the run, not hang it
                self._fail(request, None, f"{type(error).__name__}: {error}")
                settled = True
            if not settled:
                self._queue.put_nowait(item)

    async def _ask(self, server: _Server, request: Request, params: SamplingParams) -> bool:
        """Ask one server; False if the request must be asked again (elsewhere, as it may be)."""
        for attempt in range(self.limits.retries + 1):
            self._attempts += 1
            rid = f"{self.name}-{request.key}-{self._attempts}"
            label = server.label
            task = asyncio.create_task(
                self.dialect.generate(
                    self.http, server.url, request, params, rid, server.adapter, self.limits.request_seconds
                )
            )
            server.running.add(task)
            try:
                raw, answer = await task
            except asyncio.CancelledError:
                lane = asyncio.current_task()
                if lane is None or lane.cancelling():
                    raise
                self.counts.retried += 1
                return False  # the server is lost; whether it has answered cannot be known, so it is asked again
            except ServerLost as error:
                problem = str(error)
                with suppress(ServerLost, ServerRefused):
                    await self.dialect.abort(self.http, server.url, rid)
                if not await self._doubt(server.url):
                    self.counts.retried += 1
                    return False
            except ServerRefused as error:
                problem = str(error)
                if error.status not in _TRY_LATER:
                    return self._fail(request, None, problem)
                if error.status >= 500 and not await self._doubt(server.url):
                    self.counts.retried += 1
                    return False
            except GarbageAnswer as error:
                return self._fail(request, None, f"{server.url} gave a wrong answer: {error}")
            else:
                if self._has_no_end(answer, params):
                    problem = f"{server.url} ended an answer for a stop text that it does not have"
                    params = replace(params, stop_texts=())
                else:
                    problem = await self._settle(server, request, params, raw, answer, label) or ""
                    if not problem:
                        return True
                if server.url in self.lost:
                    return False
            finally:
                server.running.discard(task)
            self.counts.retried += 1
            if attempt < self.limits.retries:
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                if not server.open.is_set():  # lost, or its weights are about to change
                    return False
        return self._fail(request, None, f"no answer after {self.limits.retries + 1} attempts; the last: {problem}")

    def _has_no_end(self, answer: Answer, params: SamplingParams) -> bool:
        """Whether a server has read a stop text where we read none, and so has ended an answer too early."""
        if answer.reason != "stop" or not params.stop_texts or self.decode is None or not answer.tokens:
            return False
        if answer.tokens[-1] in params.stop_token_ids or not all(0 <= t < self.vocab_size for t in answer.tokens):
            return False  # it may be wrong in another way
        return not StopTexts(params.stop_texts, self.decode).stand_in(answer.tokens)

    async def _settle(
        self, server: _Server, request: Request, params: SamplingParams, raw: Any, answer: Answer, label: str
    ) -> str | None:
        """Keep an answer; or say why the request must be asked again."""
        if answer.reason == "abort":
            return f"{server.url} broke the request off"
        try:
            check_answer(answer, request, params, self.vocab_size)
        except GarbageAnswer as error:
            self._fail(request, raw, f"{server.url} gave a wrong answer: {error}")
            return None
        labels = answer.spans if answer.spans is not None else ((label, len(answer.tokens)),)
        unknown = [name for name, _ in labels if name not in self.versions]
        if unknown:
            # It was restarted, or another run has given it weights.
            await self._lose(server.url, f"it holds weights '{unknown[0]}', which this run has not sent")
            return self.lost[server.url]
        spans = tuple((self.versions[name], count) for name, count in labels)
        oldest = min(version for version, _ in spans)
        if oldest < self.oldest:
            self.counts.stale += 1
            if not self.limits.accept_stale:
                self._fail(
                    request, raw,
                    f"{server.url} answered with weights of version {oldest}; {self.oldest} is the oldest that "
                    "rollout.schedule allows (sync.stale: correct accepts them)",
                )  # fmt: skip
                return None
        rollout = Rollout(
            request.key, request.prompt, answer.tokens, answer.logprobs, answer.reason == "stop", oldest, spans
        )
        with self._changed:
            self.done[request.key] = rollout
            self.tokens += len(rollout.tokens)
            self._changed.notify_all()
        return None

    def _fail(self, request: Request, raw: Any, message: str) -> bool:
        """End the run's generation: save the request that could not be answered."""
        saved = ""
        try:
            self.failures.mkdir(parents=True, exist_ok=True)
            path = self.failures / f"request_{request.key}.json"
            path.write_text(json.dumps({"problem": message, "request": asdict(request), "answer": raw}, default=str))
            saved = f"\nthe request is saved: {path}"
        except OSError as error:
            saved = f"\n(the request could not be saved: {error})"
        with self._changed:
            self.fatal = self.fatal or f"{message}{saved}"
            self._changed.notify_all()
        return True
