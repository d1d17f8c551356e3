"""The dispatcher: every request is answered exactly once, whatever servers and connections do.

First against a real SGLang server, behind a proxy that injects faults; then against a fake server, for answers and
silences that a real one does not produce when it is told to.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web

from bridge_mcore.config.engines import Servers
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote import dispatch
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dispatch import Dispatcher, Limits
from bridge_mcore.rollout.remote.fleet import Fleet
from bridge_mcore.rollout.remote.http import Http
from bridge_mcore.rollout.remote.sglang import SGLang
from tests.models import save_tiny
from tests.support.chaos import FAULTS, chaos
from tests.support.servers import Served, launch_options, real_server

VOCAB = 120
STOP = 7
LABEL = "run.1"


@contextmanager
def dispatching(urls: list[str], directory: Path, *, is_open: bool = True, **limits: Any) -> Iterator[Dispatcher]:
    """A dispatcher that asks `urls`, which hold version 1 under LABEL, unless it is not open yet."""
    bounds = {"in_flight": 4, "request_seconds": 30.0, "health_seconds": 10.0, "retries": 3} | limits
    with Http() as http:
        dispatcher = Dispatcher(http, SGLang(), urls, Limits(**bounds), VOCAB, directory / "failed", "test")
        dispatcher.versions[LABEL] = 1
        if is_open:
            dispatcher.reopen({url: (LABEL, None) for url in urls})
        yield dispatcher
        dispatcher.close()


def wait_for(dispatcher: Dispatcher, keys: set[int], watch: Callable[[], None] | None = None, seconds=60.0) -> bool:
    """Dispatcher.wait for these keys, in a thread: a test must not hang if it does."""
    results: list[bool] = []
    thread = threading.Thread(
        target=lambda: results.append(dispatcher.wait(lambda done: keys <= done.keys(), watch or (lambda: None))),
        daemon=True,
    )
    thread.start()
    thread.join(seconds)
    assert results, f"no end after {seconds:g} s: {len(dispatcher.done)} of {len(keys)} answers"
    return results[0]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def some_requests(count: int, first: int = 0) -> list[Request]:
    return [Request(key, (3, 4, 5 + key % 100)) for key in range(first, first + count)]


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, torch.nn.Module]]:
    """(URL of a real server that holds LABEL, the same model in transformers)."""
    directory = tmp_path_factory.mktemp("real")
    model = save_tiny("qwen2", directory / "model", vocab=VOCAB)
    with real_server(directory / "model", directory) as server:
        with Http() as http:
            http.run(server.dialect.set_label(http, server.url, LABEL, 30.0))
        yield server.url, model


def reference_logprobs(model: torch.nn.Module, rollouts: list[Rollout]) -> list[np.ndarray]:
    """Log-probabilities of the responses by transformers; padding at the end is not seen by causal attention."""
    texts = [r.prompt + r.tokens for r in rollouts]
    width = max(map(len, texts))
    tokens = torch.tensor([text + (0,) * (width - len(text)) for text in texts])
    with torch.no_grad():
        logprobs = model(tokens).logits.float().log_softmax(-1)
    taken = logprobs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return [
        row[len(r.prompt) - 1 : len(r.prompt) + len(r.tokens) - 1].numpy()
        for row, r in zip(taken, rollouts, strict=True)
    ]


def test_nothing_is_lost_and_nothing_counts_twice_in_chaos(
    real: tuple, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 requests through a proxy that breaks a fifth of all attempts; answers agree with transformers within 1e-5."""
    monkeypatch.setattr(dispatch, "_BACKOFF_S", (0.1, 0.5))  # the rare request with many failures must not take long
    url, model = real
    rng = random.Random(seed)
    requests = [
        Request(key, tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 24))))
        for key in rng.sample(range(10**6), 500)
    ]
    params = SamplingParams(max_new_tokens=8, stop_token_ids=tuple(range(STOP)), seed=rng.randrange(1000))
    rates = {"delay": 0.05, "busy": 0.04, "refused": 0.04, "lost": 0.04, "truncated": 0.04, "error": 0.04}
    with chaos(url, rates, seed) as proxy:
        with dispatching([proxy.url], tmp_path, in_flight=64, retries=12, request_seconds=60.0) as dispatcher:
            dispatcher.submit(requests, params)
            keys = [r.key for r in requests]
            assert wait_for(dispatcher, set(keys), seconds=120), dispatcher.fatal or dispatcher.lost
            assert not dispatcher.lost and dispatcher.done.keys() == set(keys)
            rollouts = dispatcher.take(keys)
            assert not dispatcher.done and dispatcher.asked == 0 and dispatcher.unfinished() == []
            retried = dispatcher.counts.take().retried
    # Every kind of fault has happened, and each but a delay has cost one attempt.
    assert all(proxy.injected[kind] > 0 for kind in FAULTS), proxy.injected
    assert retried == sum(proxy.injected.values()) - proxy.injected["delay"]
    # No id was used twice, and of each request one answer came through: none was asked for without need.
    assert len(set(proxy.forwarded)) == len(proxy.forwarded)
    assert len(proxy.forwarded) == 500 + proxy.injected["lost"] + proxy.injected["truncated"]
    assert Counter(rid.split("-")[-2] for rid in proxy.answered) == Counter(str(key) for key in keys)
    # The answers are those of the requests.
    ends = Counter(r.finished for r in rollouts)
    assert ends[True] > 50 and ends[False] > 50
    for request, rollout in zip(requests, rollouts, strict=True):
        assert (rollout.key, rollout.prompt) == (request.key, request.prompt)
        assert (rollout.version, rollout.spans) == (1, ((1, len(rollout.tokens)),))
        assert rollout.finished == (rollout.tokens[-1] < STOP)
        assert rollout.finished or len(rollout.tokens) == 8
    wanted = reference_logprobs(model, rollouts)
    gap = max(np.abs(w - r.logprobs).max() for w, r in zip(wanted, rollouts, strict=True))
    assert gap < 1e-5, f"log-probabilities differ by {gap:.2g} from those of transformers"


def test_requests_that_a_server_breaks_off_are_asked_again(real: tuple, tmp_path: Path) -> None:
    """Somebody else ends all that the server works on and what waits in it; SGLang answers with reason abort."""
    url, model = real
    params = SamplingParams(max_new_tokens=60)
    with dispatching([url], tmp_path, in_flight=32) as dispatcher:
        dispatcher.submit(some_requests(40), params)
        until(lambda: len(dispatcher._servers[url].running) == 32)
        time.sleep(0.3)  # 16 generate, the others wait in the server
        dispatcher.http.run(dispatcher.http.post(f"{url}/abort_request", {"abort_all": True}, seconds=10))
        assert wait_for(dispatcher, set(range(40))), dispatcher.fatal
        assert dispatcher.counts.take().retried > 0
        rollouts = dispatcher.take(range(40))
    assert all(len(r.tokens) == 60 for r in rollouts)
    gap = max(np.abs(w - r.logprobs).max() for w, r in zip(reference_logprobs(model, rollouts), rollouts, strict=True))
    assert gap < 1e-5, f"log-probabilities differ by {gap:.2g} from those of transformers"


def test_a_second_run_may_ask_what_the_first_one_still_has_in_the_server(real: tuple, tmp_path: Path) -> None:
    """A resumed run asks for the same keys; SGLang refuses an id that it works on already."""
    url, _ = real
    params = SamplingParams(max_new_tokens=100)
    with dispatching([url], tmp_path) as first, dispatching([url], tmp_path) as second:
        first.submit(some_requests(4), params)
        until(lambda: len(first._servers[url].running) == 4)
        second.submit(some_requests(4), params)
        assert wait_for(second, set(range(4))), second.fatal
        assert wait_for(first, set(range(4))), first.fatal


def test_a_server_without_a_tokenizer_is_not_told_stop_texts(
    real: tuple, world: object, tmp_path: Path, capsys
) -> None:
    """SGLang would die of one. Its answers are whole, and the user is told."""
    url, _ = real
    with Http() as http:
        servers, options = Servers(mode="external", urls=[url]), launch_options(tmp_path)
        fleet = Fleet(http, SGLang(), Control(), servers, options, tmp_path, urls=[url], count=0)
        assert not fleet.reads_text()
    said = capsys.readouterr().out
    assert said.startswith(f"· {url}: without a tokenizer no stop text ends an answer there") and said.count("\n") == 1
    with dispatching([url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(3), SamplingParams(8, stop_texts=("a",)))
        assert wait_for(dispatcher, {0, 1, 2}), dispatcher.fatal
        assert all(len(r.tokens) == 8 for r in dispatcher.done.values())


# --- a fake server ----------------------------------------------------------------------------------------------------


def answer_to(body: dict[str, Any], *, label: str = LABEL, tokens: Any = None, **changes: Any) -> dict[str, Any]:
    """What SGLang answers, cut at its length; `changes` replace parts of meta_info."""
    length = body["sampling_params"]["max_new_tokens"]
    tokens = [10 + (sum(body["input_ids"]) + i) % 100 for i in range(length)] if tokens is None else tokens
    meta = {
        "id": body["rid"],
        "finish_reason": {"type": "length", "length": length},
        "weight_version": label,
        "output_token_logprobs": [[-1.5, token, None] for token in tokens],
        "weight_versions": [{"version": label, "start": 0, "end": len(tokens)}],
    }
    return {"output_ids": tokens, "meta_info": meta | changes}


Reply = Callable[["Fake", dict[str, Any]], Awaitable[Any]]


class Fake:
    """A fake SGLang server: it answers at once and always the same, unless `reply` does something else.

    Attributes:
        reply: given (this server, a request's body), returns a JSON answer or a response.
        bodies: of the requests, in order of arrival.
        most: the most requests that it worked on at the same time.
    """

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.is_silent = False
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.now = self.most = 0
        self.gate = threading.Event()
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_get("/model_info", self._info)
        self.served = Served(app)

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def keys(self) -> list[int]:
        """Keys of the requests, in order of arrival."""
        return [int(body["rid"].split("-")[-2]) for body in self.bodies]

    async def opened(self) -> None:
        """Wait until the test opens the gate."""
        while not self.gate.is_set():
            await asyncio.sleep(0.01)

    async def _silence(self) -> None:
        while self.is_silent:
            await asyncio.sleep(0.05)

    async def _info(self, _: web.Request) -> web.Response:
        await self._silence()
        return web.json_response({"weight_version": LABEL})

    async def _abort(self, request: web.Request) -> web.Response:
        await self._silence()
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._silence()
            answer = answer_to(body) if self.reply is None else await self.reply(self, body)
        finally:
            self.now -= 1
        return answer if isinstance(answer, web.Response) else web.Response(text=json.dumps(answer))


@contextmanager
def fakes(count: int) -> Iterator[list[Fake]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Fake())
            stack.callback(made[-1].served.close)
        yield made


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fakes(1) as (server,):
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other quickly."""
    monkeypatch.setattr(dispatch, "_BACKOFF_S", (0.02,))


def always(answer: Callable[[dict[str, Any]], Any]) -> Reply:
    async def reply(_: Fake, body: dict[str, Any]) -> Any:
        return answer(body)

    return reply


async def after_the_gate(fake: Fake, body: dict[str, Any]) -> Any:
    await fake.opened()
    return answer_to(body)


def pairs(*tokens: int, logprob: float | None = -1.0) -> list[list]:
    return [[logprob, token, None] for token in tokens]


#: name -> (answer to a request of four tokens, what the message says of it)
GARBAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no tokens": (lambda b: answer_to(b, tokens=[]), "no tokens"),
    "None": (lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(*[9] * 4, logprob=None)), "not finite"),
    "NaN": (
        lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(*[9] * 4, logprob=float("nan"))),
        "not finite",
    ),
    "-inf": (
        lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(*[9] * 4, logprob=-float("inf"))),
        "not finite",
    ),
    "above 0": (
        lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(*[9] * 4, logprob=0.25)),
        "a log-probability of 0.25, above 0",
    ),
    "too few": (lambda b: answer_to(b, tokens=[9] * 3), "cut after 3 tokens, before the 4 that were asked for"),
    "too many": (lambda b: answer_to(b, tokens=[9] * 5), "5 tokens, but at most 4"),
    "outside": (lambda b: answer_to(b, tokens=[9, VOCAB, 9, 9]), f"token {VOCAB}, which is not in the vocabulary"),
    "negative": (lambda b: answer_to(b, tokens=[9, -1, 9, 9]), "token -1, which is not in the vocabulary"),
    "others": (
        lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(9, 9, 8, 9)),
        "log-probabilities of other tokens",
    ),
    "fewer": (
        lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(9, 9, 9)),
        "log-probabilities of other tokens",
    ),
    "no stop": (lambda b: answer_to(b, tokens=[9], finish_reason={"type": "stop"}), "token 9, which is no stop token"),
    "late stop": (lambda b: answer_to(b, tokens=[9, STOP, 9, 9]), "4 tokens, but a stop token at 2"),
    "reason": (lambda b: answer_to(b, finish_reason={"type": "whim"}), "ended for the reason 'whim'"),
    "spans": (
        lambda b: answer_to(b, weight_versions=[{"version": LABEL, "start": 0, "end": 3}]),
        "weight versions of 3 tokens, but 4 tokens",
    ),
    "part": (lambda b: {"output_ids": [9] * 4}, "KeyError: 'meta_info'"),
    "list": (lambda b: [answer_to(b)], "cannot be read"),
    "not JSON": (lambda b: web.Response(text="<html>Welcome to nginx!</html>"), "Welcome to nginx!"),
    "empty": (lambda b: web.Response(text=""), "cannot be read"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_wrong_answer_ends_the_run_with_the_request_saved(kind: str, fake: Fake, tmp_path: Path) -> None:
    """One attempt; the message says what is wrong, whose answer it is, and where the request is."""
    answer, says = GARBAGE[kind]
    fake.reply = always(answer)
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit([Request(5, (3, 4))], SamplingParams(4, stop_token_ids=(STOP,)))
        assert wait_for(dispatcher, {5}) is False
        assert dispatcher.fatal is not None and says in dispatcher.fatal
        assert fake.url in dispatcher.fatal and "gave a wrong answer" in dispatcher.fatal
        assert not dispatcher.done and not dispatcher.lost
    assert len(fake.bodies) == 1
    path = tmp_path / "failed" / "request_5.json"
    assert str(path) in dispatcher.fatal
    saved = json.loads(path.read_text())
    assert saved["request"] == {"key": 5, "prompt": [3, 4]} and says in saved["problem"]


def test_right_answers_pass_the_same_checks(fake: Fake, tmp_path: Path) -> None:
    """Cut at the length, ended by a stop token, a log-probability of 0, and weights that changed on the way."""
    answers = {
        0: lambda b: answer_to(b),
        1: lambda b: answer_to(b, tokens=[9, STOP], finish_reason={"type": "stop", "matched": STOP}),
        2: lambda b: answer_to(b, tokens=[9, 9, 9, STOP], finish_reason={"type": "stop", "matched": STOP}),
        3: lambda b: answer_to(b, tokens=[9] * 4, output_token_logprobs=pairs(9, 9, 9, 9, logprob=0.0)),
        4: lambda b: answer_to(
            b,
            weight_versions=[{"version": LABEL, "start": 0, "end": 3}, {"version": "run.2", "start": 3, "end": 4}],
        ),
    }

    async def reply(_: Fake, body: dict[str, Any]) -> Any:
        return answers[body["input_ids"][0]](body)

    fake.reply = reply
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.versions["run.2"] = 2
        dispatcher.submit([Request(i, (i,)) for i in answers], SamplingParams(4, stop_token_ids=(STOP,)))
        assert wait_for(dispatcher, set(answers)), dispatcher.fatal
        rollouts = dispatcher.take(answers)
    assert [r.finished for r in rollouts] == [False, True, True, False, False]
    assert [len(r.tokens) for r in rollouts] == [4, 2, 4, 4, 4]
    assert (rollouts[4].version, rollouts[4].spans) == (1, ((1, 3), (2, 1)))


def test_weights_that_this_run_has_not_sent_make_a_server_lost(fake: Fake, tmp_path: Path) -> None:
    """A server that was restarted behind the trainer's back answers from other weights: none of it is used."""
    fake.reply = always(lambda b: answer_to(b, label="default"))
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(20), SamplingParams(4))
        assert wait_for(dispatcher, set(range(20))) is False
        assert dispatcher.fatal is None and dispatcher.is_blocked and not dispatcher.done
        assert "holds weights 'default', which this run has not sent" in dispatcher.lost[fake.url]
        fake.reply = None
        dispatcher.reopen({fake.url: (LABEL, None)})
        assert wait_for(dispatcher, set(range(20))), dispatcher.fatal


def test_older_weights_are_refused(fake: Fake, tmp_path: Path) -> None:
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.oldest = 2
        dispatcher.submit(some_requests(1), SamplingParams(4))
        assert wait_for(dispatcher, {0}) is False
        assert "answered with weights of version 1; 2 is the oldest" in dispatcher.fatal
        assert "sync.stale: correct" in dispatcher.fatal
        assert dispatcher.counts.take().stale == 1 and not dispatcher.done
    saved = json.loads((tmp_path / "failed" / "request_0.json").read_text())
    assert saved["answer"]["meta_info"]["weight_version"] == LABEL


def test_older_weights_are_counted_where_they_are_corrected(fake: Fake, tmp_path: Path) -> None:
    with dispatching([fake.url], tmp_path, accept_stale=True) as dispatcher:
        dispatcher.oldest = 2
        dispatcher.submit(some_requests(10), SamplingParams(4))
        assert wait_for(dispatcher, set(range(10))), dispatcher.fatal
        assert dispatcher.counts.take().stale == 10 and dispatcher.counts.take().stale == 0
        assert all(r.version == 1 for r in dispatcher.take(range(10)))


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_request_that_the_server_refuses_is_not_asked_again(status: int, fake: Fake, tmp_path: Path) -> None:
    fake.reply = always(lambda b: web.Response(status=status, text='{"error": "input is too long"}'))
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(1), SamplingParams(4))
        assert wait_for(dispatcher, {0}) is False
        assert f"answered {status}" in dispatcher.fatal and "input is too long" in dispatcher.fatal
    assert len(fake.bodies) == 1 and (tmp_path / "failed" / "request_0.json").exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(status: int, fake: Fake, tmp_path: Path, hasty: None) -> None:
    async def reply(fake: Fake, body: dict[str, Any]) -> Any:
        refused = fake.keys.count(0) if body["input_ids"] == [3, 4, 5] else 99
        return web.Response(status=status, text="busy") if refused <= 2 else answer_to(body)

    fake.reply = reply
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(6), SamplingParams(4))
        assert wait_for(dispatcher, set(range(6))), dispatcher.fatal
        assert dispatcher.counts.take().retried == 2
        assert Counter(fake.keys) == Counter({0: 3} | dict.fromkeys(range(1, 6), 1))


def test_attempts_that_are_used_up_end_the_run(fake: Fake, tmp_path: Path, hasty: None) -> None:
    fake.reply = always(lambda b: web.Response(status=503, text="still loading"))
    with dispatching([fake.url], tmp_path, retries=3) as dispatcher:
        dispatcher.submit(some_requests(1), SamplingParams(4))
        assert wait_for(dispatcher, {0}) is False
        assert "no answer after 4 attempts" in dispatcher.fatal and "still loading" in dispatcher.fatal
        assert not dispatcher.lost  # it is healthy
    assert len(fake.bodies) == 4 and len({body["rid"] for body in fake.bodies}) == 4


def test_an_answer_that_takes_too_long_is_broken_off_and_asked_again(fake: Fake, tmp_path: Path, hasty: None) -> None:
    """The server lives: it is told to stop working on the first attempt."""

    async def reply(fake: Fake, body: dict[str, Any]) -> Any:
        if len(fake.bodies) == 1:
            await fake.opened()
        return answer_to(body)

    fake.reply = reply
    with dispatching([fake.url], tmp_path, request_seconds=0.5) as dispatcher:
        dispatcher.submit(some_requests(1), SamplingParams(4))
        assert wait_for(dispatcher, {0}), dispatcher.fatal
        assert dispatcher.counts.take().retried == 1 and not dispatcher.lost
    assert fake.aborted == [fake.bodies[0]["rid"]]


def test_a_bug_of_the_trainer_ends_the_run(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in the event loop must not only end a lane."""

    async def broken(*_: Any) -> None:
        raise AttributeError("no such thing")

    with dispatching([fake.url], tmp_path) as dispatcher:
        monkeypatch.setattr(dispatcher.dialect, "generate", broken, raising=False)
        dispatcher.submit(some_requests(1), SamplingParams(4))
        assert wait_for(dispatcher, {0}) is False
        assert "AttributeError: no such thing" in dispatcher.fatal


def test_a_silent_server_is_noticed_and_its_requests_go_to_another(tmp_path: Path) -> None:
    """It accepts connections and answers nothing, health included. Health is asked for every third of health_seconds,
    so it is lost after 4/3 of them at most; a busy machine has 20 s more here (the requests themselves have 30 s)."""
    with fakes(2) as (silent, other):
        silent.is_silent = True
        with dispatching([silent.url, other.url], tmp_path, health_seconds=1.5) as dispatcher:
            began = time.monotonic()
            dispatcher.submit(some_requests(40), SamplingParams(4))
            until(lambda: silent.url in dispatcher.lost)
            assert 1.4 < time.monotonic() - began < 2.0 + 20.0
            assert wait_for(dispatcher, set(range(40))), dispatcher.fatal
            assert dispatcher.counts.take().retried == 4 == len(silent.bodies)
            assert not dispatcher.is_blocked and list(dispatcher.lost) == [silent.url]
            assert sorted(other.keys) == list(range(40))
            # It comes back, and gets work again.
            silent.is_silent = False
            silent.bodies.clear()
            dispatcher.reopen({silent.url: (LABEL, None)})
            assert not dispatcher.lost
            dispatcher.submit(some_requests(40, first=100), SamplingParams(4))
            assert wait_for(dispatcher, set(range(100, 140))), dispatcher.fatal
            assert silent.bodies


def test_load_is_spread_by_speed_and_one_server_does_what_a_killed_one_leaves(tmp_path: Path) -> None:
    async def fast(fake: Fake, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.02)
        return answer_to(body)

    async def slow(fake: Fake, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.06)
        return answer_to(body)

    with fakes(2) as (first, second):
        first.reply, second.reply = fast, slow
        with dispatching([first.url, second.url], tmp_path, in_flight=8) as dispatcher:
            dispatcher.submit(some_requests(200), SamplingParams(4))
            assert wait_for(dispatcher, set(range(200))), dispatcher.fatal
            assert sorted(first.keys + second.keys) == list(range(200))
            assert len(first.bodies) > len(second.bodies) >= 8
            assert first.most == second.most == 8

            dispatcher.submit(some_requests(200, first=1000), SamplingParams(4))
            until(lambda: len(dispatcher.done) > 240)
            first.served.close()  # its connections break, as when it is killed
            assert wait_for(dispatcher, set(range(1000, 1200))), dispatcher.fatal
            assert list(dispatcher.lost) == [first.url] and "Cannot connect" in dispatcher.lost[first.url]
            assert 1 <= dispatcher.counts.take().retried <= 8
            rollouts = dispatcher.take(range(1000, 1200))
    assert [r.key for r in rollouts] == list(range(1000, 1200))
    for r in rollouts:
        assert r.tokens == tuple(10 + (sum(r.prompt) + i) % 100 for i in range(4))


def test_what_is_in_flight_is_bounded_and_submitting_does_not_wait(fake: Fake, tmp_path: Path) -> None:
    """2000 requests are under way before one is answered; the server never works on more than in_flight of them."""
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path, in_flight=16) as dispatcher:
        requests = some_requests(2000)
        dispatcher.submit(requests, SamplingParams(4))
        assert not dispatcher.done and dispatcher.asked == 2000 and dispatcher.unfinished() == requests
        until(lambda: fake.now == 16)
        time.sleep(0.2)
        assert len(fake.bodies) == 16 and not dispatcher.done
        fake.gate.set()
        assert wait_for(dispatcher, set(range(2000))), dispatcher.fatal
        assert fake.most == 16
        assert sorted(fake.keys) == list(range(2000))
        assert dispatcher.tokens == 8000


def test_keys_are_asked_once(fake: Fake, tmp_path: Path) -> None:
    """A key is refused while it is under way, until its answer was taken; a refusal leaves nothing behind."""
    fake.reply = after_the_gate
    params = SamplingParams(4)
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(3), params)
        with pytest.raises(ValueError, match="request 2 is under way already"):
            dispatcher.submit(some_requests(4, first=2), params)
        with pytest.raises(ValueError, match="request 7 is under way already"):
            dispatcher.submit([*some_requests(3, first=6), Request(7, (1,))], params)
        assert dispatcher.asked == 3
        fake.gate.set()
        assert wait_for(dispatcher, {0, 1, 2}), dispatcher.fatal
        with pytest.raises(ValueError, match="request 0 is under way already"):
            dispatcher.submit(some_requests(1), params)
        assert [r.key for r in dispatcher.take([1, 0])] == [1, 0]
        dispatcher.submit([*some_requests(2), *some_requests(4, first=5)], params)
        assert wait_for(dispatcher, {0, 1, 2, 5, 6, 7, 8}), dispatcher.fatal
        assert fake.keys.count(0) == 2 and fake.keys.count(2) == 1


def test_when_all_servers_are_lost_the_rest_is_answered_after_they_are_back(tmp_path: Path) -> None:
    with fakes(2) as (first, second):

        async def dies_at_thirty(fake: Fake, body: dict[str, Any]) -> Any:
            await asyncio.sleep(0.01)
            if len(fake.bodies) > 30:
                await fake.opened()
            return answer_to(body)

        first.reply = second.reply = dies_at_thirty
        with dispatching([first.url, second.url], tmp_path) as dispatcher:
            dispatcher.submit(some_requests(200), SamplingParams(4))
            until(lambda: min(len(first.bodies), len(second.bodies)) > 30 and first.now == second.now == 4)
            until(lambda: len(dispatcher.done) == len(first.bodies + second.bodies) - 8)
            answered = dict(dispatcher.done)
            assert 50 < len(answered) <= 60 and not dispatcher.is_blocked
            dispatcher.lose(first.url, "it was killed")
            assert not dispatcher.is_blocked
            dispatcher.lose(second.url, "it was killed")
            dispatcher.lose(second.url, "it was killed again")
            assert dispatcher.is_blocked and dispatcher.lost[second.url] == "it was killed"
            assert wait_for(dispatcher, set(range(200))) is False
            assert dispatcher.fatal is None
            assert {r.key for r in dispatcher.unfinished()} == set(range(200)) - set(answered)
            first.gate.set()
            asked_before = len(second.bodies)
            dispatcher.reopen({first.url: (LABEL, None)})
            assert not dispatcher.is_blocked
            assert wait_for(dispatcher, set(range(200))), dispatcher.fatal
            assert len(second.bodies) == asked_before
            assert all(dispatcher.done[key] is rollout for key, rollout in answered.items())
            assert dispatcher.counts.take().retried == 8


def test_retried_requests_keep_their_place(fake: Fake, tmp_path: Path) -> None:
    """What was in flight when the server was lost is asked before what waited, and before what came later."""
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(12), SamplingParams(4))
        until(lambda: fake.now == 4)
        assert sorted(fake.keys) == [0, 1, 2, 3]
        dispatcher.lose(fake.url, "it was killed")
        dispatcher.submit(some_requests(8, first=12), SamplingParams(4))
        fake.bodies.clear()
        fake.gate.set()
        until(lambda: fake.now == 0)
        dispatcher.reopen({fake.url: (LABEL, None)})
        assert wait_for(dispatcher, set(range(20))), dispatcher.fatal
        # Four lanes ask at the same time: arrivals may swap within them.
        assert sorted(fake.keys[:4]) == [0, 1, 2, 3]
        assert all(abs(key - place) < 4 for place, key in enumerate(fake.keys))


def test_what_goes_first_is_asked_before_what_waits(fake: Fake, tmp_path: Path) -> None:
    """An evaluation beside rollouts: what is in flight goes on, what waits for a lane waits longer."""
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(12), SamplingParams(4))
        until(lambda: fake.now == 4)
        dispatcher.submit(some_requests(6, first=100), SamplingParams(2), first=True)
        fake.gate.set()
        assert wait_for(dispatcher, {*range(12), *range(100, 106)}), dispatcher.fatal
        assert sorted(fake.keys[:4]) == [0, 1, 2, 3] and set(fake.keys[4:8]) == {100, 101, 102, 103}
        assert set(fake.keys[8:10]) <= {104, 105, 4, 5} and {104, 105} <= set(fake.keys[:12])
        assert [len(dispatcher.done[key].tokens) for key in (0, 11, 100, 105)] == [4, 4, 2, 2]


#: token -> text, of the tests of stop texts
TEXT = {10: "x", 11: "\nQues", 12: "tion:", 13: " y"}


def test_an_answer_that_a_text_ends_passes(fake: Fake, tmp_path: Path) -> None:
    """SGLang is told the text as a pattern; of a server that cannot read, whole answers are taken."""
    fake.reply = always(lambda b: answer_to(b, tokens=[10, 11, 12], finish_reason={"type": "stop", "matched": "it"}))
    params = SamplingParams(9, stop_token_ids=(STOP,), stop_texts=("\nQuestion:",))
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.decode = lambda tokens: "".join(TEXT[t] for t in tokens)
        dispatcher.submit([Request(5, (3, 4))], params)
        assert wait_for(dispatcher, {5}), dispatcher.fatal
        assert dispatcher.done[5].finished and dispatcher.done[5].tokens == (10, 11, 12)
        (body,) = fake.bodies
        (pattern,) = body["sampling_params"]["stop_regex"]
        assert re.search(pattern, "a\nQuestion: b") and not re.search(pattern, "a\nQuestion b")
        fake.reply = None
        dispatcher.decode = None
        dispatcher.submit([Request(6, (3, 4))], params)
        assert wait_for(dispatcher, {5, 6}), dispatcher.fatal
        assert "stop_regex" not in fake.bodies[1]["sampling_params"] and len(dispatcher.done[6].tokens) == 9


def test_an_answer_that_is_ended_for_a_text_it_has_not_is_asked_again(fake: Fake, tmp_path: Path, hasty: None) -> None:
    """A server may read tokens in another way than we do: nothing is cut that we would not cut."""

    async def hears(_: Fake, body: dict[str, Any]) -> Any:
        if "stop_regex" in body["sampling_params"]:
            return answer_to(body, tokens=[10, 11], finish_reason={"type": "stop", "matched": "it"})
        return answer_to(body, tokens=[10, 11, 13, STOP], finish_reason={"type": "stop", "matched": STOP})

    fake.reply = hears
    params = SamplingParams(9, stop_token_ids=(STOP,), stop_texts=("\nQuestion:",))
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.decode = lambda tokens: "".join(TEXT.get(t, "") for t in tokens)
        dispatcher.submit([Request(5, (3, 4))], params)
        assert wait_for(dispatcher, {5}), dispatcher.fatal
        assert dispatcher.done[5].tokens == (10, 11, 13, STOP) and dispatcher.counts.take().retried == 1


def test_a_server_may_be_lost_while_the_trainer_waits(fake: Fake, tmp_path: Path) -> None:
    """`wait` calls the watch, which finds out that a process has ended."""
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(10), SamplingParams(4))
        assert wait_for(dispatcher, {0}, lambda: dispatcher.lose(fake.url, "its process has ended"), 10) is False
        assert dispatcher.lost == {fake.url: "its process has ended"}


def test_a_server_that_is_back_at_once_gets_all_requests_again(fake: Fake, tmp_path: Path) -> None:
    """Lost and open again before those that waited for it have noticed."""
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path) as dispatcher:
        for first in (0, 100, 200):
            dispatcher.submit(some_requests(10, first), SamplingParams(4))
            until(lambda: fake.now == 4)

            async def both() -> None:
                await dispatcher._lose(fake.url, "it was taken as lost")
                await dispatcher._reopen({fake.url: (LABEL, None)})

            dispatcher.http.run(both())
            fake.gate.set()
            assert wait_for(dispatcher, set(range(first, first + 10))), dispatcher.fatal
            fake.gate.clear()
        assert dispatcher.counts.take().retried == 12


def test_nothing_is_asked_while_it_is_shut(fake: Fake, tmp_path: Path, hasty: None) -> None:
    """Weights change meanwhile: what is in flight goes on, what must be asked again waits, with the next adapter."""

    async def reply(fake: Fake, body: dict[str, Any]) -> Any:
        await fake.opened()
        return answer_to(body) if len(fake.bodies) > 2 or body["input_ids"] == [3, 4, 5] else web.Response(status=503)

    fake.reply = reply
    with dispatching([fake.url], tmp_path, in_flight=2, is_open=False) as dispatcher:
        dispatcher.submit(some_requests(4), SamplingParams(4))
        time.sleep(0.1)
        assert not fake.bodies
        dispatcher.reopen({fake.url: (LABEL, "adapter-1")})
        until(lambda: fake.now == 2)
        dispatcher.shut()
        fake.gate.set()
        until(lambda: set(dispatcher.done) == {0})
        time.sleep(0.3)
        assert len(fake.bodies) == 2 and not dispatcher.lost
        dispatcher.reopen({fake.url: (LABEL, "adapter-2")})
        assert wait_for(dispatcher, set(range(4))), dispatcher.fatal
    assert [body["lora_path"] for body in fake.bodies] == ["adapter-1"] * 2 + ["adapter-2"] * 3


def test_a_closed_dispatcher_asks_no_more(fake: Fake, tmp_path: Path) -> None:
    fake.reply = after_the_gate
    with dispatching([fake.url], tmp_path) as dispatcher:
        dispatcher.submit(some_requests(10), SamplingParams(4))
        until(lambda: fake.now == 4)
        dispatcher.close()
        until(lambda: fake.now == 0)
        fake.gate.set()
        time.sleep(0.1)
        assert len(fake.bodies) == 4 and not dispatcher.done


def test_connections_end_quietly(capfd: pytest.CaptureFixture) -> None:
    """What is under way when the connections are closed leaves no warnings and no thread."""
    with fakes(1) as (fake,):
        fake.reply = after_the_gate
        http = Http()
        asked = [http.start(http.post(f"{fake.url}/generate", answer_body, seconds=30)) for answer_body in [{}] * 3]
        for _ in range(3):
            asked.append(http.start(asyncio.sleep(30)))
        until(lambda: http._session is not None)
        http.close()
        http.close()
    assert all(a.cancelled() or a.done() for a in asked)
    assert "was destroyed" not in capfd.readouterr().err
