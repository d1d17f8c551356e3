"""SGLang's router in front of the servers (the package `sglang-router`), started and ended by the run."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from bridge_mcore.errors import TrainingError
from bridge_mcore.platform.ranks import free_port
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import entry_command
from bridge_mcore.rollout.remote.fleet import EngineLost, Fleet
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.process import Key, start_guarded

_START_S = 120.0


class Router:
    """Requests go to it; weights go to each server. Collective to make; the first rank runs it."""

    def __init__(
        self, http: Http, control: Control, python: Path, urls: list[str], directory: Path, url: str | None,
        start_seconds: float,
    ) -> None:  # fmt: skip
        """urls: of the servers, which are ready. url: of a router of the user's own; None starts one.

        Raises TrainingError if it does not come up within start_seconds.
        """
        self.http, self.control, self.python, self.urls = http, control, python, urls
        self.log, self.managed, self.start_seconds = directory / "servers" / "router.log", url is None, start_seconds
        self.process: subprocess.Popen | None = None
        self.host = urls[0].removeprefix("http://").rpartition(":")[0]
        self.url = url or control.gather(f"http://{self.host}:{free_port()}")[0]
        self._up()

    def _up(self) -> None:
        """Start it if it is ours and does not run, and wait for it. Collective."""
        problem = ""
        if self.control.is_main:
            if self.managed and (self.process is None or self.process.poll() is not None):
                command = [
                    *entry_command(self.python, "sglang_router.launch_router"), "--host", self.host,
                    "--port", self.url.rpartition(":")[2], "--worker-urls", *self.urls,
                    "--prometheus-port", str(free_port()), "--prometheus-host", "127.0.0.1",
                ]  # fmt: skip
                self.log.parent.mkdir(parents=True, exist_ok=True)
                key = None if self.http.key is None else Key(self.http.key)
                with open(self.log, "ab") as out:
                    self.process = start_guarded(command, dict(os.environ), out, key)
            problem = self._wait()
        problem = next((text for text in self.control.gather(problem) if text), "")
        if problem:
            raise TrainingError(problem)

    def revive(self, fleet: Fleet) -> None:
        """Have it back if it is lost, which counts as the loss of a server. Collective. Raises EngineLost."""
        lost = ""
        if self.control.is_main:
            if self.process is not None and self.process.poll() is not None:
                lost = f"the router ended with exit code {self.process.returncode}"
            else:
                try:
                    self.http.run(self.http.get(f"{self.url}/health", seconds=10.0))
                except (ServerLost, ServerRefused) as error:
                    lost = f"the router does not answer ({error})"
        lost = self.control.gather(lost)[0]
        if lost:
            fleet.count({self.url: lost})
            try:
                self._up()
            except TrainingError as error:
                raise EngineLost(str(error)) from error

    def _wait(self) -> str:
        """What keeps it from answering; "" once it does."""
        deadline = time.monotonic() + (_START_S if self.managed else self.start_seconds)
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                return f"the router ended while starting (is sglang-router installed beside sglang?):\n{lines}"
            with suppress(ServerLost, ServerRefused):
                self.http.run(self.http.get(f"{self.url}/health", seconds=5.0))
                return ""
            time.sleep(0.2)
        return f"the router at {self.url} does not answer; see {self.log}"

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
