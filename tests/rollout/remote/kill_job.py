"""A training run whose server is killed: python -m tests.rollout.remote.kill_job MOMENTS CONFIG.yaml [key=value …]

MOMENTS, comma-separated, in the order they happen, each on the next step after the last one:
    idle        the server has the step's weights and nothing to do
    generating  it works on answers, some of which are there
    begin       an update has begun, no bucket was sent
    bucket      a bucket is on its way
    proof       the weights are there, the probe is asked
Every kill is a SIGKILL of the real server's process under its guard; of "core:MOMENT", of what works for it and not of
the server itself: vLLM's engine core, SGLang's scheduler. Each moment is printed when it happens.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bridge_mcore.config.checks import check_config
from bridge_mcore.config.load import load_config
from bridge_mcore.errors import BridgeError
from bridge_mcore.rollout.remote.dispatch import Dispatcher
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.rollout.remote.sglang import SGLang
from bridge_mcore.rollout.remote.vllm import VLLM
from bridge_mcore.rollout.sync.deliver import Delivery


class Killer:
    """Kills the first server when a moment comes, once a step."""

    def __init__(self, moments: list[str]) -> None:
        self.moments = moments
        self.engine: RemoteEngine | None = None
        self.version = 0
        self.killed_at = 0

    def at(self, moment: str) -> None:
        """Called whenever a moment has come."""
        if self.engine is None or not self.moments or moment != self.moments[0].removeprefix("core:"):
            return
        if self.engine.version <= self.killed_at:
            return
        moment = self.moments.pop(0)
        self.killed_at = self.engine.version
        server = next(iter(self.engine.fleet.owned.values()))
        (child,) = psutil.Process(server.process.pid).children()
        if moment.startswith("core:"):
            (child,) = (p for p in child.children() if "EngineCore" in p.name() or "scheduler" in p.name())
        os.kill(child.pid, signal.SIGKILL)
        print(f"KILLED {moment} at version {self.engine.version}", flush=True)


def before(owner: Any, name: str, action: Callable[[Any], None]) -> None:
    """Have `action` run before each call of a method."""
    method = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        action(self)
        return method(self, *args, **kwargs)

    setattr(owner, name, wrapped)


def main(moments: list[str], config: str, overrides: list[str]) -> None:
    """Run it."""
    killer = Killer(moments)

    def refreshing(engine: RemoteEngine) -> None:
        killer.engine = engine

    before(RemoteEngine, "refresh", refreshing)
    before(RemoteEngine, "submit", lambda _: killer.at("idle"))

    def waiting(dispatcher: Dispatcher) -> None:
        if 0 < len(dispatcher.done) < dispatcher.asked:
            killer.at("generating")

    # `_settle` runs for each answer: the moment is there as soon as some have come.
    before(Dispatcher, "_settle", waiting)
    before(Delivery, "_send", lambda _: killer.at("begin"))
    for dialect in (SGLang, VLLM):
        before(dialect, "load_shared", lambda _: killer.at("bucket"))
        before(dialect, "receive", lambda _: killer.at("bucket"))
        before(dialect, "score", lambda _: killer.at("proof"))
    checked = load_config(Path(config), overrides)
    check_config(checked)
    from bridge_mcore.training.loop import train

    try:
        train(checked)
    except BridgeError as error:
        print(f"ERROR {error.exit_code}: {error}", flush=True)
        raise SystemExit(error.exit_code) from None
    if killer.moments:
        raise SystemExit(f"never came: {killer.moments}")


if __name__ == "__main__":
    main([m for m in sys.argv[1].split(",") if m], sys.argv[2], sys.argv[3:])
