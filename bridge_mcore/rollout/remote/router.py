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
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.process import start_guarded

_START_S = 120.0


class Router:
    """Requests go to it; weights go to each server. Collective to make; the first rank runs it."""

    def __init__(self, http: Http, control: Control, python: Path, urls: list[str], directory: Path) -> None:
        """urls: of the servers, which are ready. Raises TrainingError if the router does not come up."""
        self.process: subprocess.Popen | None = None
        host = urls[0].removeprefix("http://").rpartition(":")[0]
        self.url = control.gather(f"http://{host}:{free_port()}")[0]
        problem = ""
        if control.is_main:
            log = directory / "servers" / "router.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            port = self.url.rpartition(":")[2]
            command = [
                str(python), "-m", "sglang_router.launch_router", "--host", host, "--port", port,
                "--worker-urls", *urls, "--prometheus-port", str(free_port()),
            ]  # fmt: skip
            with open(log, "ab") as out:
                self.process = start_guarded(command, dict(os.environ), out)
            problem = self._wait(http, log)
        problem = next((text for text in control.gather(problem) if text), "")
        if problem:
            raise TrainingError(problem)

    def _wait(self, http: Http, log: Path) -> str:
        """What keeps it from answering; "" once it does."""
        assert self.process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                lines = log.read_text(errors="replace").splitlines()[-8:]
                return "the router ended while starting (is sglang-router installed beside sglang?):\n" + "\n".join(
                    lines
                )
            with suppress(ServerLost, ServerRefused):
                http.run(http.get(f"{self.url}/health", seconds=5.0))
                return ""
            time.sleep(0.2)
        return f"the router did not answer within {_START_S:g} s; see {log}"

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
