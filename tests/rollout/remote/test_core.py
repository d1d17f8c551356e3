"""vLLM's HTTP side outlives its engine core: what is asked then is lost at once, neither refused nor waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from bridge_mcore.rollout.remote import vllm
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.vllm import VLLM
from bridge_mcore.rollout.sync.transports import Outcome
from tests.support.servers import Served, serve


class Front:
    """vLLM's HTTP side. health: status of /health. work: what becomes of a request for the core."""

    def __init__(self) -> None:
        self.health, self.work = 200, "done"
        self.served: Any = None

    async def answer_health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def answer(self, _: web.Request) -> web.Response:
        while self.work == "hangs":
            await asyncio.sleep(0.01)
        if self.work == "done":
            return web.json_response({"results": [{"version": "run.1"}]})
        return web.json_response({"error": "EngineCore encountered an issue."}, status=500)


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Front, str, Http]]:
    monkeypatch.setattr(vllm, "_LOOK_S", 0.1)
    found = Front()
    app = web.Application()
    app.router.add_get("/health", found.answer_health)
    app.router.add_post("/{path:.*}", found.answer)
    with serve(app) as served, Http() as http:
        found.served = served
        yield found, served.url, http


def test_a_living_core_is_waited_for_and_its_errors_are_refusals(front: tuple[Front, str, Http]) -> None:
    found, url, http = front
    asked = http.start(VLLM().label(http, url, 60.0))
    assert asked.result(timeout=20) == "run.1"
    found.work = "hangs"
    slow = http.start(VLLM().label(http, url, 60.0))
    time.sleep(0.5)  # several looks
    assert not slow.done()
    found.work = "done"
    assert slow.result(timeout=20) == "run.1"
    found.work = "fails"
    with pytest.raises(ServerRefused, match="EngineCore encountered"):
        http.run(VLLM().label(http, url, 60.0))


@pytest.mark.parametrize("work", ["hangs", "fails"])
@pytest.mark.parametrize("end", ["says so", "listens no more"])
def test_a_dead_core_is_lost(front: tuple[Front, str, Http], work: str, end: str) -> None:
    """Whether the request was sent before or after: in every call that has the core do something."""
    found, url, http = front
    found.work = work
    dialect = VLLM()
    calls = [
        dialect.begin(http, url, 60.0), dialect.pause(http, url, 60.0), dialect.flush(http, url, 60.0),
        dialect.set_label(http, url, "a", 60.0), dialect.checksums(http, url, 60.0), dialect.take_memory(http, url, 60),
        dialect.score(http, url, [[1, 2]], None, 60.0), dialect.load_shared(http, url, {"method": "m"}, 60.0),
    ]  # fmt: skip
    asked = []
    if work == "hangs":
        asked = [http.start(call) for call in calls]
        time.sleep(0.3)
        assert not any(one.done() for one in asked)
    if end == "says so":
        found.health = 503
    elif isinstance(found.served, Served):
        found.served.close()
    asked = asked or [http.start(call) for call in calls]
    outcome = Outcome()
    for number, one in enumerate(asked):
        with pytest.raises(ServerLost) as lost:
            one.result(timeout=20)
        assert lost.value.how in (("dead",) if end == "says so" else ("dead", "broken"))
        outcome.note(f"{number}", lost.value)
    assert len(outcome.lost) == len(calls) and not outcome.refused
