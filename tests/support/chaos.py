"""A reverse proxy that loses, breaks and delays what goes through it, by a seeded random generator."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from aiohttp import web

from tests.support.servers import serve

#: fault -> what it does to a POST /generate
FAULTS = {
    "delay": "it is forwarded up to 0.3 s late",
    "busy": "503, not forwarded",
    "refused": "the connection breaks, not forwarded",
    "lost": "forwarded, but the connection breaks instead of an answer",
    "truncated": "forwarded, but the connection breaks amidst the answer",
    "error": "500 with text, not forwarded",
}
_LONGEST_DELAY_S = 0.3


class Chaos:
    """What the proxy did.

    Attributes:
        injected: faults, by kind.
        forwarded: ids of the requests that reached the server, in order.
        answered: ids of the requests whose whole answer went to the client.
    """

    def __init__(self, target: str, rates: Mapping[str, float], seed: int) -> None:
        assert rates.keys() <= FAULTS.keys() and sum(rates.values()) <= 1
        self.target = target
        self.url = ""
        self.injected: Counter[str] = Counter()
        self.forwarded: list[str] = []
        self.answered: list[str] = []
        self._kinds = [*rates, "none"]
        self._weights = [*rates.values(), 1 - sum(rates.values())]
        self._random = random.Random(seed)
        self._session: aiohttp.ClientSession | None = None

    async def _life(self, _: web.Application):
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self._session:
            yield

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes, str]:
        assert self._session is not None
        async with self._session.request(
            request.method, f"{self.target}{request.path_qs}", data=body, headers={"Content-Type": request.content_type}
        ) as answer:
            return answer.status, await answer.read(), answer.content_type

    async def _pass(self, request: web.Request) -> web.Response:
        status, body, kind = await self._forward(request, await request.read())
        return web.Response(status=status, body=body, content_type=kind)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        rid = (await request.json())["rid"]
        (fault,) = self._random.choices(self._kinds, self._weights)
        if fault != "none":
            self.injected[fault] += 1
        if fault == "busy":
            return web.Response(status=503, text="chaos: come again later")
        if fault == "error":
            return web.Response(status=500, text="chaos: an error in the server")
        if fault == "refused":
            return _break_off(request)
        if fault == "delay":
            await asyncio.sleep(self._random.uniform(0, _LONGEST_DELAY_S))
        self.forwarded.append(rid)
        status, answer, kind = await self._forward(request, body)
        if fault == "lost":
            return _break_off(request)
        if fault == "truncated":
            part = web.StreamResponse(status=status, headers={"Content-Type": kind})
            part.content_length = len(answer)
            await part.prepare(request)
            await part.write(answer[: len(answer) // 2])
            assert request.transport is not None
            request.transport.close()  # what was written still goes out
            return part
        self.answered.append(rid)
        return web.Response(status=status, body=answer, content_type=kind)


def _break_off(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # goes nowhere


@contextmanager
def chaos(target: str, rates: Mapping[str, float], seed: int) -> Iterator[Chaos]:
    """A proxy in front of the server at `target`; `rates`: probability of each of FAULTS. Only /generate suffers."""
    proxy = Chaos(target, rates, seed)
    app = web.Application(client_max_size=2**26)
    app.cleanup_ctx.append(proxy._life)
    app.router.add_post("/generate", proxy._generate)
    app.router.add_route("*", "/{rest:.*}", proxy._pass)
    with serve(app) as served:
        proxy.url = served.url
        yield proxy
