"""One event loop in a thread, one connection pool: all that the trainer says to servers goes through here."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal, TypeVar

import aiohttp

T = TypeVar("T")


class ServerLost(Exception):
    """No answer: the connection was refused or broke, or the time limit passed.

    how: silent (the time limit), broken (the connection), or dead (nobody listens, or the server says that it cannot
    work any more).
    """

    def __init__(self, message: str, how: Literal["silent", "broken", "dead"]) -> None:
        super().__init__(message)
        self.how = how


class ServerRefused(Exception):
    """An answer with an error status. `status` is HTTP's; str() is what the server says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Http:
    """Asynchronous HTTP with connection reuse, usable from synchronous code.

    Coroutines run in a thread of their own, so that answers arrive while the main thread trains. Usable as a context
    manager; connections are unbounded here, because callers bound what they have in flight.
    """

    def __init__(self, key: str | None = None) -> None:
        """key: sent with every request, for servers that demand one."""
        self.key = key
        self.loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._thread = threading.Thread(target=self.loop.run_forever, name="rollout http", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine; its result is waited for through the returned future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.start(work).result()

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Idle connections end before a server's own keep-alive limit (uvicorn: 5 s) closes them under a request.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
            headers = None if self.key is None else {"Authorization": f"Bearer {self.key}"}
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        return self._session

    async def ask(
        self, method: str, url: str, body: Any = None, *, seconds: float, headers: dict[str, str] | None = None
    ) -> Any:
        """The JSON (or text) answer of one request.

        Raises ServerLost (no answer), ServerRefused (an error status). Never retries: the caller knows what may be
        asked twice.
        """
        session = await self._opened()
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 10.0))
        try:
            async with session.request(method, url, json=body, timeout=timeout, headers=headers) as answer:
                text = await answer.text()
                if answer.status >= 400:
                    raise ServerRefused(answer.status, f"{url} answered {answer.status}: {_short(text)}")
        except TimeoutError as error:
            raise ServerLost(f"{url}: no answer within {seconds:g} s", "silent") from error
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            how: Literal["dead", "broken"] = "dead" if isinstance(error, aiohttp.ClientConnectorError) else "broken"
            raise ServerLost(f"{url}: {type(error).__name__}: {error}", how) from error
        try:
            return json.loads(text)
        except ValueError:
            return text

    async def post(self, url: str, body: Any = None, *, seconds: float) -> Any:
        """POST JSON; see `ask`."""
        return await self.ask("POST", url, {} if body is None else body, seconds=seconds)

    async def get(self, url: str, *, seconds: float) -> Any:
        """GET; see `ask`."""
        return await self.ask("GET", url, seconds=seconds)

    async def refuses_strangers(self, url: str, seconds: float) -> bool:
        """Whether the server at `url` refuses a wrong key. Raises ServerLost if it does not answer."""
        try:
            await self.ask("GET", url, seconds=seconds, headers={"Authorization": "Bearer none"})
        except ServerRefused as error:
            return error.status == 401
        return False

    def close(self) -> None:
        """Close all connections and end the thread; what still runs is cancelled."""

        async def finish() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if self._session is not None:
                await self._session.close()

        if self._thread.is_alive():
            with suppress(Exception):  # closing must not hide what the run ended with
                self.start(finish()).result(timeout=10)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=10)
            if not self._thread.is_alive():
                self.loop.close()

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(text: str, limit: int = 600) -> str:
    """An error text that fits a line or two."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"
