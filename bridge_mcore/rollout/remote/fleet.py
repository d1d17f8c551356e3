"""All servers of a run: who starts which, waiting for them, and what happens when one is lost."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bridge_mcore.config.engines import Servers, default_python
from bridge_mcore.errors import ConfigError, RunStopped, TrainingError
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.ranks import free_port, gpu_memories, own_address
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import Dialect, LaunchOptions
from bridge_mcore.rollout.remote.http import Http, ServerLost, ServerRefused
from bridge_mcore.rollout.remote.process import Key, ServerProcess

_SAY_EVERY_S = 15.0
#: A guard whose server has died has so long to clear up and to end; then it is known how the server died.
_CLEARING_S = 10.0


class EngineLost(RunStopped):
    """Servers were lost more often than servers.max_restarts allows: the run checkpoints and ends."""


class Fleet:
    """Servers of one model. Methods are collective unless they say otherwise."""

    def __init__(
        self,
        http: Http,
        dialect: Dialect,
        control: Control,
        settings: Servers,
        options: LaunchOptions,
        logs: Path,
        *,
        urls: Sequence[str],
        count: int,
        first: int = 0,
    ) -> None:
        """options: of managed servers, port and host aside. urls: external ones. count: managed ones of each host.
        first: how many servers of other fleets this host has already."""
        self.http, self.dialect, self.control, self.settings = http, dialect, control, settings
        self.restarts = 0
        self.owned: dict[str, ServerProcess] = {}
        if settings.mode == "external":
            self.urls = [url.rstrip("/") for url in urls]
            return
        names = control.gather(socket.gethostname())
        one_host = len(set(names)) == 1
        first_here = names.index(names[control.rank]) == control.rank
        host = "127.0.0.1" if one_host else own_address()
        # SGLang's router sends its key with every request but those by which it looks whether a server lives.
        key = Key(http.key, ("/health",) if settings.router is not None else ()) if http.key is not None else None

        def prepare() -> None:
            # The first rank of each host starts and watches that host's servers.
            for i in range(first, first + count) if first_here else ():
                port = settings.port + i if settings.port else free_port()
                devices = self._devices(i, options, trainers=names.count(names[control.rank]))
                place = replace(options, host=host, port=port, first_device=devices[0] if devices else 0)
                if dialect.sees_all_devices:
                    devices = None  # it is told the first of them
                name = f"{dialect.name} server {i}" + ("" if one_host else f" on {names[control.rank]}")
                log = logs / f"{dialect.name}-{control.rank}-{i}.log"
                server = ServerProcess(name, dialect, place, log, devices, settings.environment, key)
                self.owned[server.url] = server

        self._together(prepare)
        self.urls = [url for part in control.gather(list(self.owned)) for url in part]

    def _devices(self, index: int, options: LaunchOptions, trainers: int) -> list[int] | None:
        """GPUs of a server, among those this host shows: the configured ones, or those after the trainer's own (from
        the first one on if they are shared). None on CPU."""
        if options.device == "cpu" and self.settings.devices is None:
            return None
        place = range(index * options.tensor, (index + 1) * options.tensor)
        if self.settings.devices is not None:
            return [self.settings.devices[i] for i in place]
        chosen = [i + (0 if options.colocated else trainers) for i in place]
        there = len(gpu_memories())
        if there and chosen[-1] >= there:
            raise TrainingError(
                f"{self.dialect.name} server {index} needs GPUs {chosen}, beside the trainer's {trainers}, but this "
                f"host shows {there}: set servers.devices, servers.colocated=true, or fewer trainer processes"
            )
        return chosen

    def launch(self) -> None:
        """Start the managed servers; returns while they are starting."""

        def start() -> None:
            for server in self.owned.values():
                server.start()

        self._together(start)

    def wait(self, urls: Sequence[str] | None = None) -> None:
        """Return when the servers generate. Raises TrainingError with a server's last words if one does not start."""
        urls = self.urls if urls is None else urls
        self._together(lambda: self._wait([u for u in urls if u in self.owned or self._asks(u)]))

    def _asks(self, url: str) -> bool:
        return self.settings.mode == "external" and self.control.is_main and url in self.urls

    def _together(self, work: Callable[[], object]) -> None:
        """Do it here; if it fails anywhere, fail everywhere with what the first rank says."""
        message, failed = "", False
        try:
            work()
        except TrainingError as error:
            message, failed = str(error), True
        found = [text for text, bad in self.control.gather((message, failed)) if bad]
        if found:
            raise TrainingError(found[0])

    def _wait(self, urls: Sequence[str]) -> None:
        began = said = time.monotonic()
        waiting = list(urls)
        while waiting:
            for url in list(waiting):
                server = self.owned.get(url)
                if server is not None and server.exit_code() is not None:
                    raise TrainingError(self._last_words(server, f"{server.describe_exit()} while starting"))
                try:
                    if server is None:  # a trainer that was killed may have left it paused
                        self.http.run(self.dialect.resume(self.http, url, 20.0))
                    self.http.run(self.dialect.ready(self.http, url, 20.0))
                    if server is not None and server.key is not None:
                        self._check_guarded(server)
                except (ServerLost, ServerRefused) as error:
                    if time.monotonic() - began > self.settings.start_seconds:
                        what = server.name if server is not None else url
                        text = f"{what} is not ready after {self.settings.start_seconds:g} s ({error})"
                        if server is not None:
                            raise TrainingError(self._last_words(server, text)) from None
                        raise TrainingError(f"{text}; start it, or mend servers.urls") from None
                    continue
                waiting.remove(url)
                if server is not None:
                    server.note_segments()
                    say(f"· {server.name} is ready at {url} after {time.monotonic() - server.started:.0f} s")
            if waiting:
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    names, most = ", ".join(self._name(u) for u in waiting), self.settings.start_seconds
                    say(f"· waiting for {names}: {said - began:.0f} s of at most {most:g} s (servers.start_seconds)")
                time.sleep(0.25)

    def _check_guarded(self, server: ServerProcess) -> None:
        """Raises TrainingError if a server lets somebody without the run's key in."""
        if not self.http.run(self.http.refuses_strangers(server.url, 20.0)):
            raise TrainingError(
                f"{server.name} answers without the run's key: remove what has it serve in another way "
                "(servers.arguments, servers.environment)"
            )

    def _name(self, url: str) -> str:
        return self.owned[url].name if url in self.owned else url

    @staticmethod
    def _last_words(server: ServerProcess, what: str) -> str:
        known = server.diagnosis()
        return f"{what}{': ' + known if known else ''}; the end of its log, {server.log}:\n{server.last_lines()}"

    def reads_text(self) -> bool:
        """Whether all servers can see a text that ends an answer; the main rank says which cannot. Not collective."""
        deaf = []
        for url in self.urls:
            try:
                if self.http.run(self.dialect.reads_text(self.http, url, 60.0)):
                    continue
            except (ServerLost, ServerRefused):  # one that does not say; what it cannot do could end it
                pass
            deaf.append(url)
        if deaf and self.control.is_main:
            say(
                f"· {', '.join(deaf)}: without a tokenizer no stop text ends an answer there; answers are generated to "
                "max_new_tokens and cut afterwards (start SGLang without --skip-tokenizer-init)"
            )
        return not deaf

    def dead(self) -> dict[str, str]:
        """This rank's servers that have ended, and how. Not collective."""
        return {url: s.describe_exit() for url, s in self.owned.items() if s.exit_code() is not None}

    def check(self) -> dict[str, str]:
        """Servers that have ended, on all ranks."""
        return {url: why for part in self.control.gather(self.dead()) for url, why in part.items()}

    def revive(self, lost: Mapping[str, str], label: str) -> list[str]:
        """Have lost servers back: those that live are kept, managed ones that do not are started anew, external ones
        are waited for. Returns those that do not hold the weights called `label` ("": all of them).

        Raises EngineLost when servers are lost more often than servers.max_restarts allows.
        """
        gone: dict[str, str] = {}
        forgot: dict[str, str] = {}
        for url in lost:
            if url in self.owned or self._asks(url):
                why, held = self._state(url)
                if why is not None:
                    gone[url] = why
                elif held != label:
                    forgot[url] = f"{self._name(url)} holds other weights ({held or 'those it started with'})"
        everywhere = {url: why for part in self.control.gather(gone) for url, why in part.items()}
        others = {url: why for part in self.control.gather(forgot) for url, why in part.items()}
        # With "" a server that lives was only taken as lost: it is no loss.
        self.count({**everywhere, **others} if label else everywhere)

        def restart() -> None:
            for url in everywhere:
                if url in self.owned:
                    self.owned[url].close()
                    self.owned[url].start()

        try:
            self._together(restart)
            self.wait(list(everywhere))
        except TrainingError as error:
            raise EngineLost(str(error)) from error
        return [*everywhere, *others]

    def end(self, failing: Mapping[str, str]) -> None:
        """Servers that live and do not work: managed ones are ended, so that `revive` starts them anew; of external
        ones nothing but EngineLost can come."""
        for url, why in failing.items():
            if self.settings.mode == "external":
                raise EngineLost(f"{url} lives, but fails again and again: {why}")
            if url in self.owned:
                self.owned[url].close()
        self.control.barrier()

    def count(self, everywhere: Mapping[str, str]) -> None:
        """Count losses and say them; EngineLost if there are too many."""
        if not everywhere:
            return
        self.restarts += len(everywhere)
        if self.restarts > self.settings.max_restarts:
            url, why = next(iter(everywhere.items()))
            words = self._last_words(self.owned[url], why) if url in self.owned else why
            words = next((w for w in self.control.gather(words if url in self.owned else "") if w), words)
            raise EngineLost(
                f"{words}\nservers were lost {self.restarts} times, servers.max_restarts = "
                f"{self.settings.max_restarts} is the most this run survives"
            )
        if self.control.is_main:
            for url, why in everywhere.items():
                verb = "starting it again" if self.settings.mode == "managed" else "waiting for it"
                say(f"· {why}; {verb} ({self.restarts} of at most {self.settings.max_restarts} losses) [{url}]")

    def _state(self, url: str) -> tuple[str | None, str | None]:
        """(why a server must be started anew or waited for, None if it lives after all; label of what it holds)."""
        server = self.owned.get(url)
        if server is not None and server.exit_code() is not None:
            return server.describe_exit(), None
        try:
            return None, self.http.run(self.dialect.label(self.http, url, self.settings.health_seconds))
        except (ServerLost, ServerRefused) as error:
            was_broken = isinstance(error, ServerLost) and error.how != "silent"
            if server is not None and server.ends_within(_CLEARING_S if was_broken else 1.0):
                return server.describe_exit(), None
            return f"{self._name(url)} does not answer ({error})", None

    def close(self) -> None:
        """End the managed servers, all at once. Not collective."""
        for server in self.owned.values():
            server.ask_to_end()
        for server in self.owned.values():
            server.close()


def access_key(settings: Servers, control: Control) -> str | None:
    """What all that is asked of the servers must bring: managed ones get a random key, the same on all ranks, that of
    external ones is in the environment. Collective. Raises ConfigError if it is not there."""
    if settings.mode == "managed":
        return control.gather(secrets.token_urlsafe(32))[0]
    if settings.key_environment is None:
        return None
    key = os.environ.get(settings.key_environment, "").strip()
    if not all(control.gather(bool(key))):
        raise ConfigError(f"servers.key_environment: {settings.key_environment} is not set on every host of the run")
    return key


def find_python(engine: str, settings: Servers) -> Path:
    """The interpreter of managed servers. Raises TrainingError if there is none."""
    if settings.python is not None:
        path = settings.python
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise TrainingError(f"servers.python = {path} is no executable file")
        return path.absolute()
    path = default_python(engine)
    if path.is_file():
        return path.absolute()
    found = shutil.which("python3")
    raise TrainingError(
        f"rollout.engine = {engine} needs an interpreter with {engine}: {path} is not there. Run `make engines` (CPU), "
        f"or set servers.python, for example to {found or 'python3'}, if {engine} is installed there"
    )
