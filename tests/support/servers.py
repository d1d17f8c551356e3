"""Servers for tests: real engines, started as a run starts them, and applications in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from bridge_mcore.config.engines import default_python
from bridge_mcore.platform.ranks import free_port
from bridge_mcore.rollout.remote.build import DIALECTS
from bridge_mcore.rollout.remote.dialect import LaunchOptions
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.process import Key, ServerProcess

ROOT = Path(__file__).parents[2]
_START_S = 120.0


def python_of(engine: str) -> Path:
    """The interpreter of an engine's environment. Without one the test is skipped; under CI it fails."""
    path = ROOT / default_python(engine)
    if not path.is_file():
        message = f"{path} is not there: run `make engine-{engine}`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def launch_options(model: Path, engine: str = "sglang", **options: Any) -> LaunchOptions:
    """Of a small server on this machine's CPU, at a free port; `options` replace some of them."""
    chosen = {
        "model": model, "dtype": "float32", "device": "cpu", "host": "127.0.0.1", "tensor": 1, "context": 256,
        "in_flight": 16,
    } | options  # fmt: skip
    if "python" not in chosen:
        chosen["python"] = python_of(engine)
    chosen.setdefault("port", free_port())
    return LaunchOptions(**chosen)


@contextmanager
def real_server(
    model: Path, directory: Path, engine: str = "sglang", key: Key | None = None, **options: Any
) -> Iterator[ServerProcess]:
    """A real server of `model` (an HF directory) that is ready to generate, and is ended afterwards.

    key: that it demands. options: of LaunchOptions, for instance context, in_flight, lora_rank, lora_targets. Its log
    is in `directory`.
    """
    dialect = DIALECTS[engine]()
    chosen = launch_options(model, engine, **options)
    log = directory / f"{engine}-{chosen.port}.log"
    server = ServerProcess(f"{engine} server", dialect, chosen, log, None, [], key)
    server.start()
    try:
        wait_ready(server)
        yield server
    finally:
        server.close()


def wait_ready(server: ServerProcess, seconds: float = _START_S) -> None:
    """Return when it generates; AssertionError with the end of its log if it does not."""
    deadline = time.monotonic() + seconds
    problem = ""
    with Http(None if server.key is None else server.key.text) as http:
        while time.monotonic() < deadline:
            assert server.exit_code() is None, f"{server.describe_exit()}\n{server.last_lines(40)}"
            try:
                http.run(server.dialect.ready(http, server.url, 20.0))
                return
            except (ServerLost, ServerRefused) as error:
                problem = str(error)
            time.sleep(0.2)
    raise AssertionError(f"{server.name} is not ready after {seconds:g} s: {problem}\n{server.last_lines(40)}")


def server_pid(server: ServerProcess, seconds: float = 10.0) -> int:
    """The process id of the server itself, which runs under the guard that `server.process` is."""
    assert server.process is not None
    guard = psutil.Process(server.process.pid)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if children := guard.children():
            return children[0].pid
        time.sleep(0.02)
    raise AssertionError(f"{server.name} has no process under its guard")


def is_gone(pid: int) -> bool:
    """Whether no process runs under this id; one that has ended and is not waited for is gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def serve(app: web.Application) -> Iterator[Served]:
    """Run an aiohttp application at a free port of this machine, in a thread with an event loop of its own."""
    served = Served(app)
    try:
        yield served
    finally:
        served.close()


class Served:
    """An application that listens at `url`."""

    def __init__(self, app: web.Application) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test server", daemon=True)
        self._thread.start()
        # Handlers that never answer must not delay the end.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._run(self._open(port))

    async def _open(self, port: int) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, backlog=1024).start()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def close(self) -> None:
        """Break all connections, and listen no more."""
        if self._thread.is_alive():
            self._run(self._runner.cleanup())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=10)
            self.loop.close()
