"""Who gets into a server: nobody without the run's key, which is nowhere to be found. Real SGLang and vLLM servers."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from bridge_mcore.config.engines import Servers, default_python
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import ConfigError, RunStopped, TrainingError
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.rollout.remote.build import EngineRoom
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.fleet import Fleet, access_key
from bridge_mcore.rollout.remote.http import Http, ServerRefused
from bridge_mcore.rollout.remote.process import Key, ServerProcess
from bridge_mcore.rollout.remote.router import Router
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import build_policy
from tests.models import save_tiny
from tests.support.processes import family, listening, listening_abroad
from tests.support.servers import ROOT, launch_options, python_of, real_server

#: Requests by which a stranger would read, stop or change what a server holds.
ATTACKS = {
    "sglang": (
        ("POST", "/update_weights_from_disk", {"model_path": "{model}", "weight_version": "stolen"}),
        ("POST", "/pause_generation", {"mode": "retract"}), ("POST", "/generate", {"input_ids": [1, 2, 3]}),
        ("POST", "/abort_request", {"abort_all": True}), ("POST", "/flush_cache", None),
        ("POST", "/release_memory_occupation", {}), ("POST", "/weights_checker", {"action": "checksum"}),
        ("GET", "/server_info", None), ("GET", "/model_info", None), ("GET", "/health", None),
    ),
    "vllm": (
        ("POST", "/collective_rpc", {"method": "bridge_set_version", "kwargs": {"version": "stolen"}}),
        ("POST", "/pause", None), ("POST", "/reset_prefix_cache", None), ("POST", "/abort_requests", {}),
        ("POST", "/inference/v1/generate", {"token_ids": [1, 2, 3]}), ("GET", "/server_info", None),
        ("GET", "/v1/models", None), ("GET", "/health", None),
    ),
}  # fmt: skip
#: Paths that no list of routes names: pages, mounts, and what is not there.
MORE = (
    "/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/metrics",
    "/health",
    "/healthy/../generate",
    "//generate",
    "/no/such",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_tiny("qwen3", directory)
    return directory


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def guarded(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServerProcess, str]]:
    """(engine, server, key)."""
    engine = request.param
    if not (ROOT / default_python(engine)).is_file() and engine == "vllm":
        pytest.skip("vLLM is not installed: run `make engine-vllm`")
    key = secrets.token_urlsafe(32)
    with real_server(model, tmp_path_factory.mktemp(engine), engine=engine, key=Key(key)) as server:
        yield engine, server, key


async def statuses(url: str, asked: list[tuple[str, str, Any]], headers: dict[str, str]) -> dict[str, int]:
    """HTTP status of each request, without following anything."""
    found: dict[str, int] = {}
    async with aiohttp.ClientSession(headers=headers) as session:
        for method, path, body in asked:
            async with session.request(method, url + path, json=body, allow_redirects=False) as answer:
                found[f"{method} {path}"] = answer.status
    return found


def routes(url: str, key: str) -> list[tuple[str, str, Any]]:
    """Every route that the server names, by each of its methods; and what it does not name."""
    with Http(key) as http:
        spec = http.run(http.get(f"{url}/openapi.json", seconds=30))
    named = [(m.upper(), p, None) for p, methods in spec["paths"].items() for m in methods]
    named = [(m, p.replace("{", "").replace("}", ""), body) for m, p, body in named]
    return named + [(m, p, None) for p in MORE for m in ("GET", "POST", "HEAD", "OPTIONS", "PUT")]


def test_every_route_demands_the_key(guarded: tuple[str, ServerProcess, str]) -> None:
    """No route answers without the key, with a wrong one, or with the right one in a wrong form: the list of those
    that may is empty. With the key they do."""
    _, server, key = guarded
    asked = routes(server.url, key)
    assert len(asked) > 80
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {key}x"}, {"Authorization": key})
    for headers in wrong:
        found = asyncio.run(statuses(server.url, asked, headers))
        assert {route: status for route, status in found.items() if status != 401} == {}
    for headers in ({"Authorization": f"Basic {key}"}, {"Authorization": f"Bearer {key[:-1]}"}, {"X-Api-Key": key}):
        found = asyncio.run(statuses(server.url, asked[:5], headers))
        assert set(found.values()) == {401}
    right = {"Authorization": f"bearer {key}"}  # the scheme's case does not matter
    assert asyncio.run(statuses(server.url, [("GET", "/health", None)], right)) == {"GET /health": 200}


def test_a_stranger_reads_and_changes_nothing(guarded: tuple[str, ServerProcess, str], model: Path) -> None:
    engine, server, key = guarded
    attacks = [(m, p, json.loads(json.dumps(b).replace("{model}", str(model)))) for m, p, b in ATTACKS[engine]]
    with Http(key) as http:
        ask = server.dialect
        before = http.run(ask.checksums(http, server.url, 60)), http.run(ask.label(http, server.url, 60))
        assert before[0]
        found = asyncio.run(statuses(server.url, attacks, {}))
        assert set(found.values()) == {401}, found
        assert before == (http.run(ask.checksums(http, server.url, 60)), http.run(ask.label(http, server.url, 60)))
        request, params = Request(0, (1, 2, 3)), SamplingParams(4)
        _, answer = http.run(ask.generate(http, server.url, request, params, "mine", None, 60))
        assert len(answer.tokens) == 4
    with Http() as http:  # the trainer itself, had it no key
        with pytest.raises(ServerRefused, match="401"):
            http.run(server.dialect.healthy(http, server.url, 30))


def test_a_websocket_is_closed(guarded: tuple[str, ServerProcess, str]) -> None:
    _, server, _ = guarded

    async def connect() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{server.url}/v1/realtime"):
                pass

    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        asyncio.run(connect())
    assert caught.value.status in (401, 403)  # as uvicorn has websockets or not


def test_the_key_is_nowhere(guarded: tuple[str, ServerProcess, str]) -> None:
    """On no command line and in no environment of the server's processes, and not in its log."""
    _, server, key = guarded
    assert server.process is not None
    everyone = family(server.process.pid)
    assert len(everyone) >= 4
    for process in everyone:
        for name in ("cmdline", "environ"):
            assert key.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes(), f"{name} of {process.name()}"
    log = server.log.read_bytes()
    assert len(log) > 1000 and key.encode() not in log
    with Http(key) as http:
        assert key not in str(http.run(http.get(f"{server.url}/server_info", seconds=30)))
    assert "--host" in server.log.read_text(), "the command line is logged"


def test_servers_listen_on_loopback_only(guarded: tuple[str, ServerProcess, str]) -> None:
    """The rendezvous of their own workers too."""
    _, server, _ = guarded
    assert server.process is not None
    assert sum(map(len, listening(server.process.pid).values())) > 2
    assert listening_abroad(server.process.pid) == {}


# --- the trainer's side ----------------------------------------------------------------------------------------------


def test_a_server_that_answers_strangers_is_not_used(world: object, tmp_path: Path) -> None:
    """Whatever switched the guard off: a stand-in that answers everything, as a second server process would."""
    program = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""
    from tests.rollout.remote.test_process import StandIn

    with Http("the key") as http:
        options = launch_options(tmp_path, python=Path(sys.executable), port=0)
        fleet = Fleet(http, StandIn(program), Control(), Servers(), options, tmp_path / "servers", urls=[], count=1)
        try:
            fleet.launch()
            with pytest.raises(TrainingError, match="stand-in server 0 answers without the run's key"):
                fleet.wait()
        finally:
            fleet.close()


def test_keys_of_external_servers_come_from_the_environment(world: object, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control()
    assert access_key(Servers(mode="external", urls=["http://a:1"]), control) is None
    named = Servers(mode="external", urls=["http://a:1"], key_environment="THEIR_KEY")
    monkeypatch.delenv("THEIR_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"servers\.key_environment: THEIR_KEY is not set"):
        access_key(named, control)
    monkeypatch.setenv("THEIR_KEY", "abc\n")
    assert access_key(named, control) == "abc"
    first, second = (access_key(Servers(), control) for _ in range(2))
    assert first and second and first != second and len(first) > 40


def test_a_swap_after_the_proof_is_noticed(
    world: Any, model: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with the key gives the server other weights under the trainer's own label, after the sync: its answers
    are not used. With checksums, and with the probe alone. The next sync puts it right."""
    platform, layout = world
    other = tmp_path / "other"
    save_tiny("qwen3", other, seed=seed % 1000 + 1)
    monkeypatch.setenv("THEIR_KEY", key := secrets.token_urlsafe(32))
    with real_server(model, tmp_path, key=Key(key)) as server:
        for check in ("auto", "probe"):
            values = {
                "run": {"directory": tmp_path}, "model": {"path": model}, "rollout": {"engine": "sglang"},
                "servers": {"mode": "external", "urls": [server.url], "key_environment": "THEIR_KEY"},
                "sync": {"method": "tensor", "check": check},
            }  # fmt: skip
            config = Config.model_validate(values)
            policy = build_policy(config, platform, model, adapter=True, auxiliary=False, reference=False)
            runner = PassRunner(policy, config.objective, 256)
            room = EngineRoom(config, platform, layout, model, policy.shape, policy.lora, 64)
            try:
                (engine,) = room.open(policy.live_source(), runner.score_prompts)
                requests = [Request(i, (5, 6, 7)) for i in range(3)]
                engine.refresh(1)
                assert len(engine.generate(requests, SamplingParams(8))) == 3
                label = engine.http.run(engine.dialect.label(engine.http, server.url, 60))
                assert label is not None
                swap = engine.dialect.load_directory(engine.http, server.url, other, label, 60)
                engine.http.run(swap)
                assert engine.http.run(engine.dialect.label(engine.http, server.url, 60)) == label
                with pytest.raises(RunStopped, match=r"(?s)hold.* weights .*were sent.*nothing that this step has"):
                    engine.generate([Request(10 + r.key, r.prompt) for r in requests], SamplingParams(8))
                engine.refresh(2)
                assert len(engine.generate([Request(20, (5, 6, 7))], SamplingParams(8))) == 1
                assert engine.counts()["seconds_confirm"] > 0
            finally:
                room.close()


def test_a_run_ends_when_its_weights_are_swapped(tmp_path: Path) -> None:
    """A real run with a managed server: nothing is trained on what the other weights have sampled."""
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "tests.rollout.remote.swap_job", str(directory), str(python_of("sglang"))]
    with open(tmp_path / "out", "w+") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=300)
        out.seek(0)
        said = out.read()
    assert "SWAPPED at version 2" in said and done.returncode == 3, said[-4000:]
    assert "holds other weights than were sent" in said and "nothing that this step has sampled is used" in said
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2]
    key = said[said.index("KEY ") + 4 :].split()[0]
    assert len(key) > 40
    for path in directory.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), f"{path} holds the key"
    assert not any(key in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def test_the_router_demands_the_key_and_brings_it(world: object, model: Path, tmp_path: Path) -> None:
    """SGLang's router before a server: who has no key neither generates nor sees or changes its list of servers."""
    key = secrets.token_urlsafe(32)
    closed: list[tuple[str, str, Any]] = [
        ("POST", "/generate", {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 1}}),
        ("GET", "/workers", None), ("POST", "/workers", {"url": "http://127.0.0.1:1"}), ("GET", "/get_loads", None),
        ("POST", "/flush_cache", None), ("POST", "/v1/completions", {"model": "x", "prompt": "a"}),
        ("POST", "/wasm", {}),
    ]  # fmt: skip
    with real_server(model, tmp_path, key=Key(key, ("/health",))) as server, Http(key) as http:
        # What the router looks at before it sends its key; nothing else of the server is open.
        assert asyncio.run(statuses(server.url, [("GET", "/health", None)], {})) == {"GET /health": 200}
        others: list[tuple[str, str, Any]] = [("POST", "/health", None), ("GET", "/health_generate", None)]
        assert set(asyncio.run(statuses(server.url, others, {})).values()) == {401}
        router = Router(http, Control(), python_of("sglang"), [server.url], tmp_path, None, 60.0)
        try:
            assert router.process is not None
            found = asyncio.run(statuses(router.url, closed, {"Authorization": "Bearer wrong"}))
            assert set(found.values()) == {401}, found
            deadline, ready = time.monotonic() + 60, [("GET", "/readiness", None)]
            while asyncio.run(statuses(router.url, ready, {})) != {"GET /readiness": 200}:  # it looks for its servers
                assert time.monotonic() < deadline, router.log.read_text()[-3000:]
                time.sleep(0.2)
            asked = server.dialect.generate(http, router.url, Request(0, (1, 2)), SamplingParams(3), "a", None, 60)
            assert len(http.run(asked)[1].tokens) == 3
            assert listening(router.process.pid) and listening_abroad(router.process.pid) == {}
            for process in family(router.process.pid):
                for name in ("cmdline", "environ"):
                    assert key.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert key.encode() not in router.log.read_bytes()
        finally:
            router.close()
