"""Servers, weight sync and engine of a run, put together from its configuration."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from bridge_mcore.config.schema import Config
from bridge_mcore.data.templates import STOP_TEXTS
from bridge_mcore.errors import TrainingError
from bridge_mcore.model.families.base import ModelShape
from bridge_mcore.model.lora import LoRAShape
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.device import Platform
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.platform.ranks import is_loopback, own_address
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import Dialect, LaunchOptions
from bridge_mcore.rollout.remote.dispatch import Dispatcher, Limits
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.rollout.remote.fleet import Fleet, access_key, find_python
from bridge_mcore.rollout.remote.http import Http
from bridge_mcore.rollout.remote.router import Router
from bridge_mcore.rollout.remote.sglang import SGLang
from bridge_mcore.rollout.remote.vllm import VLLM
from bridge_mcore.rollout.sync.deliver import Delivery
from bridge_mcore.rollout.sync.proof import TOLERANCE
from bridge_mcore.rollout.sync.source import Source

DIALECTS: dict[str, type] = {"sglang": SGLang, "vllm": VLLM}
#: Versions that an answer may be older than the live weights.
_STALENESS = {"synchronous": 0, "one_step_off": 1}

Probe = Callable[[Sequence[Sequence[int]]], list[np.ndarray]]


class EngineRoom:
    """Starts the servers at once and makes engines of them once the policy is there. Collective, but for `close`."""

    def __init__(
        self, config: Config, platform: Platform, layout: Layout, source: Path, shape: ModelShape,
        lora: LoRAShape | None, context: int,
    ) -> None:  # fmt: skip
        """source: HF directory that servers start from. context: tokens of prompt and response."""
        self.config, self.platform, self.layout, self.source = config, platform, layout, source
        self.control = Control()
        self.http = Http(access_key(config.servers, self.control))
        self.dialect: Dialect = DIALECTS[config.rollout.engine]()
        self.shape, self.context = shape, min(context, shape.max_positions - self.dialect.reserve)
        self.router: Router | None = None
        servers = config.servers
        colocated = servers.colocated
        if colocated and platform.kind == "rocm":
            colocated = False
            if self.control.is_main:
                say("· servers.colocated: releasing an engine's memory does not work on ROCm; it keeps what it has")
        self.colocated = colocated and platform.kind == "cuda"
        live = lora if config.sync.adapter == "adapter" else None
        self.options = LaunchOptions(
            python=find_python(config.rollout.engine, servers) if servers.mode == "managed" else Path("python"),
            model=source.absolute(), dtype=config.model.dtype, device=platform.kind, host="", port=0,
            tensor=servers.tensor, context=self.context + self.dialect.reserve, in_flight=servers.in_flight,
            lora_rank=live.rank if live else 0, lora_targets=live.projections if live else (),
            memory_fraction=servers.memory_fraction, colocated=self.colocated,
            temperature=config.rollout.temperature, top_p=config.rollout.top_p, top_k=config.rollout.top_k,
            seed=config.run.seed, reads_text=bool(STOP_TEXTS.get(config.data.template)),
            arguments=tuple(servers.arguments),
        )  # fmt: skip
        logs = config.run.directory / "servers"
        self.fleets = [
            Fleet(
                self.http, self.dialect, self.control, servers, self.options, logs,
                urls=servers.urls, count=servers.count,
            )
        ]  # fmt: skip
        if self.has_auxiliary:
            self.fleets.append(
                Fleet(
                    self.http, self.dialect, self.control, servers, self.options, logs,
                    urls=servers.auxiliary_urls, count=servers.auxiliary_count, first=servers.count,
                )
            )  # fmt: skip
        try:
            for fleet in self.fleets:
                fleet.launch()
        except BaseException:
            self.close()
            raise

    @property
    def has_auxiliary(self) -> bool:
        """Whether θ̂ has servers of its own."""
        servers = self.config.servers
        managed = servers.mode == "managed"
        return self.config.auxiliary.rollouts == "own" and bool(
            servers.auxiliary_count if managed else servers.auxiliary_urls
        )

    def method(self) -> str:
        """How weights are sent: sync.method, or the best for this placement."""
        chosen = self.config.sync.method
        names = self.control.gather(socket.gethostname())
        one_host = len(set(names)) == 1
        if chosen == "auto":
            managed = one_host and self.config.servers.mode == "managed"
            if self.platform.kind == "cpu":
                chosen = "tensor" if managed else "distributed"
            elif self.config.servers.colocated:  # two ranks of a process group cannot share a GPU
                chosen = "tensor" if managed and self.dialect.sees_all_devices else "disk"
            else:
                chosen = "distributed"
        if chosen == "tensor" and not one_host:
            raise TrainingError(
                "sync.method = tensor shares memory of one host, but this run has several; use distributed or disk"
            )
        return chosen

    def open(
        self, source: Source, probe: Probe, decode: Callable[[Sequence[int]], str] | None = None
    ) -> list[RemoteEngine]:
        """Engines of π(θ, w) and, with servers of its own, of π(θ̂, w), when their servers are ready. decode: token ids
        to text, as answers are read."""
        config, servers = self.config, self.config.servers
        for fleet in self.fleets:
            fleet.wait()
        if servers.router is not None:
            own = None if servers.router == "managed" else servers.router.rstrip("/")
            self.router = Router(
                self.http, self.control, self.options.python, self.fleets[0].urls, config.run.directory, own,
                servers.start_seconds,
            )  # fmt: skip
        limits = Limits(
            in_flight=-(-servers.in_flight // self.layout.shares),
            request_seconds=servers.request_seconds,
            health_seconds=servers.health_seconds,
            retries=servers.retries,
            accept_stale=config.sync.stale == "correct",
        )
        engines = []
        for index, fleet in enumerate(self.fleets):
            directory = config.sync.directory or config.run.directory / "sync"
            delivery = Delivery(
                self.http, self.dialect, self.control, self.layout, source, config.sync, self.method(),
                ranks=servers.tensor, directory=directory / str(index), host=self._address(),
                tolerance=config.sync.probe_tolerance or TOLERANCE[config.model.dtype], probe=probe,
            )  # fmt: skip
            dispatcher = None
            if self.control.is_leader:
                asked, bound = fleet.urls, limits
                if self.router is not None and index == 0:
                    asked = [self.router.url]
                    bound = replace(limits, in_flight=limits.in_flight * len(fleet.urls))
                dispatcher = Dispatcher(
                    self.http, self.dialect, asked, bound, self.shape.vocab_size,
                    config.run.directory / "failed_requests", f"r{self.layout.rank}.{index}",
                    decode if self.options.reads_text and fleet.reads_text() else None,
                )  # fmt: skip
            staleness = _STALENESS.get(config.rollout.schedule, config.training.steps)
            engine = RemoteEngine(
                self.http, self.dialect, self.control, fleet, delivery, dispatcher,
                self.router if index == 0 else None, context=self.context, vocab_size=self.shape.vocab_size,
                colocated=self.colocated, staleness=staleness,
            )  # fmt: skip
            engines.append(engine)
        return engines

    def _address(self) -> str:
        """Where servers reach this host: loopback if all are here, else the address of the way to one that is not."""
        hosts = [urlsplit(url).hostname or "" for fleet in self.fleets for url in fleet.urls]
        away = next((host for host in hosts if not is_loopback(host)), None)
        return "127.0.0.1" if away is None else own_address(away)

    def close(self) -> None:
        """End managed servers and the router, and close connections."""
        if self.router is not None:
            self.router.close()
        for fleet in self.fleets:
            fleet.close()
        self.http.close()
