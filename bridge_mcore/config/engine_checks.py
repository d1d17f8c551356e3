"""What a configuration can get wrong about the engine: found before a server is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from bridge_mcore.config.data_checks import evaluates, uses_rl
from bridge_mcore.config.engines import default_python
from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.parallel import data_size
from bridge_mcore.config.schema import Config


def engine_problems(config: Config, world: int) -> Iterator[str]:
    """Contradictions of `rollout`, `servers`, `sync` and `debug`."""
    yield from _debug(config)
    if not (uses_rl(config) or evaluates(config)) or config.debug.only == "training":
        return
    yield from _schedule(config, world)
    if config.rollout.engine == "embedded":
        if config.debug.only == "sync":
            yield "debug.only = sync needs servers that weights are sent to: set rollout.engine to sglang or vllm"
        return
    yield from _servers(config)
    yield from _sync(config)
    if config.rollout.engine == "vllm":
        yield from _vllm(config)


def is_url(text: str) -> bool:
    """Whether a server can be asked there: http or https, a host, and a port that there is."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:  # of a port, or of an IPv6 address
        return False


def unreachable(url: str, seconds: float = 10.0) -> str | None:
    """Why nobody can be asked at a URL; None where somebody listens."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _debug(config: Config) -> Iterator[str]:
    only, rollouts = config.debug.only, config.debug.rollouts
    if only == "training":
        if rollouts is None:
            yield "debug.only = training needs debug.rollouts, a directory that debug.save_rollouts has written"
        elif not rollouts.is_dir():
            yield f"debug.rollouts = {rollouts} is no directory"
        if config.auxiliary.rollouts == "own" and config.method.name == "bridge":
            yield "debug.only = training has no rollouts of θ̂'s own: set auxiliary.rollouts=shared"
    elif rollouts is not None:
        yield "debug.rollouts is read with debug.only = training: set that too, or remove debug.rollouts"


def _schedule(config: Config, world: int) -> Iterator[str]:
    schedule, engine = config.rollout.schedule, config.rollout.engine
    if schedule == "synchronous":
        return
    if engine == "embedded":
        yield (
            f"rollout.schedule = {schedule} generates while the model trains, which rollout.engine = embedded cannot: "
            "use sglang or vllm, or schedule synchronous"
        )
    if config.method.name == "bridge" and config.auxiliary.rollouts == "own":
        yield f"auxiliary.rollouts = own needs rollout.schedule = synchronous, not {schedule}"
    shares = data_size(config.parallel, world) * config.parallel.context
    if shares and config.training.prompts_per_step % shares:
        yield (
            f"rollout.schedule = {schedule} needs training.prompts_per_step ({config.training.prompts_per_step}) to be "
            f"a multiple of the {shares} replicas (data × context)"
        )
    if schedule == "partial" and config.sync.adapter == "adapter":
        yield "rollout.schedule = partial: answers that go on cannot change their adapter; use sync.adapter=merged"
    if config.servers.colocated:
        yield f"servers.colocated = true lets servers rest during training: use schedule synchronous, not {schedule}"


def _servers(config: Config) -> Iterator[str]:
    servers, engine = config.servers, config.rollout.engine
    if servers.mode == "external":
        if not servers.urls:
            yield "servers.mode = external needs servers.urls, such as [http://127.0.0.1:30000]"
        for key, urls in (("urls", servers.urls), ("auxiliary_urls", servers.auxiliary_urls)):
            for url in urls:
                if not is_url(url):
                    yield f"servers.{key}: '{one_line(url, 200)}' is no URL such as http://host:30000"
            if len(set(urls)) != len(urls):
                yield f"servers.{key} names a server twice"
    else:
        if servers.urls:
            yield "servers.urls are of external servers: set servers.mode=external, or remove them"
        python = servers.python or default_python(engine)
        if not python.is_file():
            yield (
                f"rollout.engine = {engine} needs a virtual environment of its own: {python} is not there; run "
                "`make engines` (CPU), or set servers.python to the interpreter that has it"
            )
    router = servers.router
    if router is not None:
        if engine != "sglang":
            yield f"servers.router is SGLang's: remove it for rollout.engine = {engine}"
        elif router == "managed" and servers.mode == "external":
            yield "servers.router = managed needs managed servers; give the URL of the router before the external ones"
        elif router != "managed" and not is_url(router):
            yield f"servers.router = {one_line(router, 200)}: give managed, or the router's URL"
        elif router != "managed" and servers.mode == "managed":
            yield "servers.router: a router of your own does not know managed servers; use managed, or external servers"
    if router is not None and config.sync.adapter == "adapter":
        yield "servers.router: behind it servers cannot have adapters of different versions; use sync.adapter=merged"
    if servers.devices is not None and engine == "sglang":
        for i in range(0, len(servers.devices), servers.tensor):
            part = servers.devices[i : i + servers.tensor]
            if part != list(range(part[0], part[0] + len(part))):
                yield f"servers.devices: SGLang takes consecutive GPUs, but a server would get {part}"
    if servers.devices is not None:
        needed = (servers.count + servers.auxiliary_count) * servers.tensor
        if config.device == "cpu":
            yield "servers.devices are GPUs, but device = cpu: remove them"
        elif len(servers.devices) < needed:
            yield (
                f"servers.devices names {len(servers.devices)} GPUs, but (count + auxiliary_count) × tensor = {needed} "
                "are needed"
            )
    own = config.method.name == "bridge" and config.auxiliary.rollouts == "own"
    if (servers.auxiliary_count or servers.auxiliary_urls) and not own:
        yield "servers of θ̂ (auxiliary_count, auxiliary_urls) are used with auxiliary.rollouts = own only"


def _sync(config: Config) -> Iterator[str]:
    if config.sync.method == "tensor" and config.servers.mode == "external":
        urls = (*config.servers.urls, *config.servers.auxiliary_urls)
        hosts = {urlsplit(url).hostname for url in urls if is_url(url)}
        if hosts - {"127.0.0.1", "localhost", "::1"}:
            yield "sync.method = tensor shares one host's memory, but servers.urls are elsewhere: use another method"
    if config.sync.check == "checksum" and (config.device != "cpu" or config.servers.tensor > 1):
        yield "sync.check = checksum needs CPU servers of servers.tensor = 1: use probe, or auto"
    if config.sync.adapter == "adapter" and config.method.name != "bridge":
        yield f"sync.adapter = adapter: method {config.method.name} trains no adapter; use merged"


def _vllm(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.temperature != 1 and (rollout.top_p < 1 or rollout.top_k):
        yield (
            f"rollout.temperature = {rollout.temperature:g} with top_p or top_k: vLLM reports log-probabilities either "
            "at temperature 1 or renormalised over the sampled set, and importance ratios would be wrong; set "
            "temperature=1, or top_p=1 and top_k=0, or use sglang"
        )
