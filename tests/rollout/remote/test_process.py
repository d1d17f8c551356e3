"""Managed servers: what keeps one from starting is said in words, and nothing of one outlives it or the trainer.

Where SGLang's own words matter the server is real; else it is a small Python program under the same guard.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge_mcore.config.engines import Servers
from bridge_mcore.errors import TrainingError
from bridge_mcore.rollout.remote import process
from bridge_mcore.rollout.remote.control import Control
from bridge_mcore.rollout.remote.dialect import LaunchOptions
from bridge_mcore.rollout.remote.fleet import EngineLost, Fleet, find_python
from bridge_mcore.rollout.remote.http import Http
from bridge_mcore.rollout.remote.process import ServerProcess
from bridge_mcore.rollout.remote.sglang import SGLang
from tests.models import save_tiny
from tests.support.processes import mapped_segments, shared_segments
from tests.support.servers import is_gone, launch_options, python_of, server_pid

ROOT = Path(__file__).parents[3]
PYTHON = Path(sys.executable)
#: A server with a worker, that says its own and its worker's process id, and then serves for ever. With "stubborn" both
#: ignore what asks them to end.
FAMILY = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("pids", os.getpid(), worker.pid, flush=True)
time.sleep(300)
"""


class StandIn:
    """A dialect whose servers are a Python program: {port} in it is theirs."""

    name = "stand-in"
    sees_all_devices = False

    def __init__(self, program: str, *arguments: str) -> None:
        self.program, self.arguments = program, arguments

    def command(self, options: LaunchOptions) -> tuple[list[str], dict[str, str]]:
        program = self.program.replace("{port}", str(options.port))
        return [str(options.python), "-c", program, *self.arguments], {"STAND_IN": "yes"}

    async def ready(self, http: Http, url: str, seconds: float) -> None:
        await http.get(f"{url}/", seconds=seconds)

    async def label(self, http: Http, url: str, seconds: float) -> str | None:
        await http.get(f"{url}/", seconds=seconds)
        return None


#: A server that answers everything with an empty page.
SERVES = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Makes ServerProcess of a program, its log in tmp_path; all are closed in the end."""
    with ExitStack() as stack:

        def make(program: str = FAMILY, *arguments: str, extra: list[str] | None = None, **options: Any):
            chosen = launch_options(tmp_path, **({"python": PYTHON} | options))
            devices = [2, 3] if extra else None
            log = tmp_path / "logs" / "server.log"
            server = ServerProcess("the server", StandIn(program, *arguments), chosen, log, devices, extra or [])
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def fleet_of(tmp_path: Path, world: object) -> Iterator[Callable[..., Fleet]]:
    """Makes a Fleet of one managed server; what it started is ended."""
    with ExitStack() as stack:
        http = stack.enter_context(Http())
        numbers = itertools.count()

        def make(dialect: Any, model: Path = tmp_path, python: Path = PYTHON, **settings: Any) -> Fleet:
            servers = Servers(**({"start_seconds": 240.0} | settings))
            options = launch_options(model, python=python, port=0)
            logs = tmp_path / f"servers{next(numbers)}"
            fleet = Fleet(http, dialect, Control(), servers, options, logs, urls=[], count=1)
            stack.callback(fleet.close)
            return fleet

        yield make


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def family_of(server: ServerProcess) -> list[int]:
    """Process ids of server and worker, when both run."""
    until(lambda: len(server.last_lines(1).split()) == 3)  # the whole line: pids, and both of them
    pids = [int(word) for word in server.last_lines(1).split()[1:]]
    assert server_pid(server) == pids[0] and not any(map(is_gone, pids))
    return pids


# --- what keeps a server from starting -------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_before_anything_starts(made: Callable, fleet_of: Callable) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = made(port=port)
        with pytest.raises(TrainingError, match=rf"cannot listen on http://127.0.0.1:{port}: .*; set servers.port"):
            server.start()
        assert server.process is None and not server.log.exists()
        assert server.describe_exit() == "the server was not started"
        fleet = fleet_of(StandIn(FAMILY), port=port)
        with pytest.raises(TrainingError, match=f"stand-in server 0 cannot listen on http://127.0.0.1:{port}"):
            fleet.launch()
    server.start()  # the port is free again
    assert server.exit_code() is None


def test_an_interpreter_that_is_missing_is_said_before_anything_starts(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = made(python=tmp_path / "python3")
    with pytest.raises(TrainingError, match=r"python3 is no executable file; set servers\.python"):
        server.start()
    assert server.process is None and not server.log.exists()

    with pytest.raises(TrainingError, match=r"servers.python = .*python3 is no executable file"):
        find_python("sglang", Servers(python=tmp_path / "python3"))
    assert find_python("sglang", Servers(python=PYTHON)) == PYTHON.absolute()
    monkeypatch.chdir(tmp_path)  # no .venv-sglang is here
    with pytest.raises(TrainingError, match=r"\.venv-sglang/bin/python is not there. Run `make engines`"):
        find_python("sglang", Servers())


def test_an_interpreter_without_the_engine_is_said_with_the_remedy(fleet_of: Callable, tmp_path: Path) -> None:
    """The trainer's own interpreter, which has no SGLang."""
    fleet = fleet_of(SGLang())
    fleet.launch()
    began = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        fleet.wait()
    assert time.monotonic() - began < 20  # a fraction of a second when the machine is quiet
    message = str(caught.value)
    assert "sglang server 0 ended with exit code 1 while starting: its interpreter has no such engine" in message
    assert "make engines" in message and "servers.python" in message
    assert "No module named 'sglang'" in message and str(tmp_path / "servers0" / "sglang-0-0.log") in message


@pytest.mark.parametrize(
    ("says", "meaning"),
    [
        ("OSError: [Errno 98] Address already in use", "its port is taken: set servers.port"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "memory is short: lower"),
        ("ValueError: No available memory for the cache blocks", "memory is short: lower"),
        ("launch_server.py: error: unrecognized arguments: --wings", "servers.arguments has one"),
        ("a thing that nobody has seen before", "while starting; the end of its log"),
    ],
)
def test_what_a_log_says_is_put_in_words(says: str, meaning: str, fleet_of: Callable) -> None:
    """The error has the exit code, the meaning if it is known, and the last twelve lines, long ones cut."""
    program = f"for i in range(30): print('line', i)\nprint({says!r} + ' ' + 'x' * 500)\nraise SystemExit(3)"
    fleet = fleet_of(StandIn(program))
    fleet.launch()
    with pytest.raises(TrainingError) as caught:
        fleet.wait()
    message = str(caught.value)
    assert "stand-in server 0 ended with exit code 3 while starting" in message
    assert meaning in message and says in message
    lines = message.splitlines()[1:]
    assert len(lines) == 12 and lines[0].strip() == "line 19" and max(map(len, lines)) < 240


def test_a_server_that_does_not_come_up_in_time(fleet_of: Callable) -> None:
    fleet = fleet_of(StandIn("import time; print('loading', flush=True); time.sleep(300)"), start_seconds=5.0)
    fleet.launch()
    with pytest.raises(TrainingError, match=r"(?s)is not ready after 5 s .*the end of its log.*    loading"):
        fleet.wait()


# --- how servers end -------------------------------------------------------------------------------------------------


def test_real_servers_one_without_a_model_and_one_that_is_killed(fleet_of: Callable, tmp_path: Path) -> None:
    """A model that is not there is said with SGLang's words, in seconds. SIGKILL of the process under the guard: its
    exit is described, and its workers end. One test: starting takes long, and they start together."""
    save_tiny("qwen2", tmp_path / "model")
    without = fleet_of(SGLang(), model=tmp_path / "no_model", python=python_of("sglang"))
    fleet = fleet_of(SGLang(), model=tmp_path / "model", python=python_of("sglang"))
    without.launch()
    fleet.launch()
    began = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        without.wait()
    assert time.monotonic() - began < 230  # 8 s alone on a quiet machine
    message = str(caught.value)
    assert "sglang server 0 ended with exit code 1 while starting: it cannot read the model directory" in message
    assert "no_model" in message and "the end of its log" in message
    assert 2 < len(message.splitlines()) <= 13

    fleet.wait()
    ((url, server),) = fleet.owned.items()
    assert fleet.dead() == {} and server.describe_exit() == "sglang server 0 is running"
    pid = server_pid(server)
    everyone = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(everyone) >= 3  # it has a scheduler and a detokenizer
    segments = mapped_segments(pid)
    assert any("sglang_loads" in path for path in segments)
    os.kill(pid, signal.SIGKILL)
    until(lambda: all(map(is_gone, everyone)), 10.0)
    until(lambda: not any(map(os.path.exists, segments)), 10.0)
    until(fleet.dead, 10.0)
    assert fleet.check() == {url: "sglang server 0 was killed by SIGKILL"}
    # Nobody listens there any more, so that a new attempt may begin; the first one's words are not shown again.
    assert "fired up" in server.last_lines(100)
    server.start()
    assert "fired up" not in server.last_lines(100) and "fired up" in server.log.read_text()


def test_closing_ends_server_and_worker(made: Callable) -> None:
    server = made()
    server.start()
    pids = family_of(server)
    server.close()
    assert server.describe_exit() == "the server was killed by SIGTERM"
    until(lambda: all(map(is_gone, pids)), 2.0)
    server.close()


def test_nothing_outlives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the process that started servers: guards end servers and workers, and themselves."""
    script = f"""
import sys, time
from pathlib import Path
from bridge_mcore.rollout.remote.process import start_guarded
for temper in ("polite", "stubborn"):
    with open(Path({str(tmp_path)!r}) / temper, "wb") as log:
        print(start_guarded([sys.executable, "-c", {SHARING!r}, temper], {{}}, log).pid, flush=True)
time.sleep(300)
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(trainer.stdout.readline()) for _ in range(2)]
        for temper in ("polite", "stubborn"):
            log = tmp_path / temper
            until(lambda log=log: "mapped" in log.read_text() and "pids" in log.read_text())
            pids += map(int, re.search(r"pids (\d+) (\d+)", log.read_text()).groups())
        assert len(pids) == 6 and not any(map(is_gone, pids))
        assert sum(len(shared_segments(f"test-{pid}-")) for pid in pids) == 4
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    # 5 s of grace for the stubborn one, and what a busy machine takes
    until(lambda: all(map(is_gone, pids)), 15.0)
    until(lambda: not any(shared_segments(f"test-{pid}-") for pid in pids), 5.0)


def test_a_guard_whose_trainer_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    """The trainer was killed before the guard could ask the kernel to be told of it."""
    guard = [sys.executable, "-I", "-S", str(Path(process.__file__).with_name("guard.py"))]
    done = subprocess.run([*guard, "1", "touch", str(tmp_path / "started")], timeout=120)
    assert done.returncode == 128 + signal.SIGTERM and not (tmp_path / "started").exists()


def test_a_killed_guard_takes_the_server_with_it(made: Callable) -> None:
    """The kernel kills the server, the trainer its worker."""
    server = made()
    server.start()
    pids = family_of(server)
    server.process.kill()
    until(lambda: is_gone(pids[0]), 5.0)
    until(lambda: server.exit_code() is not None)
    assert server.describe_exit() == "the server was killed by SIGKILL"
    until(lambda: all(map(is_gone, pids)), 2.0)


#: FAMILY whose members have a segment of shared memory each, and share one.
SHARING = """
import mmap, os
def share(name):
    with open(f"/dev/shm/{name}", "w+b") as file:
        file.truncate(4096)
        return mmap.mmap(file.fileno(), 4096)
mine, ours = share(f"test-{os.getpid()}-mine"), share(f"test-{os.getpid()}-ours")
""" + FAMILY.replace(
    '"import time; time.sleep(300)"', 'f"import mmap, time; f = open(\'/dev/shm/test-{os.getpid()}-ours\', \'r+b\'); '
    'm = mmap.mmap(f.fileno(), 4096); print(\'mapped\', flush=True); time.sleep(300)"'
)  # fmt: skip


@pytest.mark.parametrize("death", ["regular", "server", "guard", "guard and server at once"])
def test_nothing_of_a_server_stays_in_shared_memory(made: Callable, death: str) -> None:
    """However it ends; what another process has too is that process's."""
    server = made(SHARING)
    server.start()
    until(lambda: {"mapped", "pids"} <= {*server.last_lines().split()})
    pid = server_pid(server)
    names = {f"test-{pid}-mine", f"test-{pid}-ours"}
    assert shared_segments(f"test-{pid}-") == names
    server.note_segments()
    with open(f"/dev/shm/test-{pid}-mine", "r+b") as file, mmap.mmap(file.fileno(), 0) if death == "server" else file:
        if death == "regular":
            server.close()
        if death.endswith("at once"):
            os.kill(server.process.pid, signal.SIGSTOP)  # it cannot act before it is killed itself
        if "server" in death:
            os.kill(pid, signal.SIGKILL)
        if "guard" in death:
            server.process.kill()
        until(lambda: server.exit_code() is not None)
        left = {f"test-{pid}-mine"} if death == "server" else set()
        until(lambda: shared_segments(f"test-{pid}-") == left, 5.0)
    for name in left:
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.parametrize("death", ["server", "guard"])
def test_a_segment_that_nobody_has_seen_is_removed_by_its_name(made: Callable, death: str) -> None:
    """A server that dies while it starts, before the guard has looked at it; an earlier one's segment is not ours."""
    earlier = Path(f"/dev/shm/sglang_loads_test_{os.getpid()}_earlier")
    earlier.write_bytes(b"x")
    os.utime(earlier, (time.time() - 100, time.time() - 100))
    name = f"sglang_loads_test_{os.getpid()}_{death}"
    then = "os.kill(os.getpid(), 9)" if death == "server" else "time.sleep(300)"
    server = made(f"import os, time; open('/dev/shm/{name}', 'wb').write(b'x' * 4096); {then}")
    try:
        server.start()
        until(lambda: shared_segments(name) or server.exit_code() is not None)
        if death == "guard":
            server.process.kill()
        until(lambda: server.exit_code() is not None)
        until(lambda: not shared_segments(name), 10.0)
        assert earlier.exists()
    finally:
        earlier.unlink()


def test_workers_end_with_a_server_that_ends_itself(made: Callable) -> None:
    server = made(FAMILY.replace("time.sleep(300)\n", "sys.exit(5)\n"))
    server.start()
    until(lambda: server.exit_code() is not None)
    assert server.describe_exit() == "the server ended with exit code 5"
    pids = [int(word) for word in server.last_lines(1).split()[1:]]
    until(lambda: all(map(is_gone, pids)), 2.0)


def test_a_restarted_server_has_its_own_words_only(made: Callable) -> None:
    """The log keeps both attempts and their commands; what is shown and diagnosed is what the last one has said."""
    server = made("import os; print('CUDA out of memory' if os.environ['ATTEMPT'] == '1' else 'all is well')")
    for attempt, word in (("1", "CUDA out of memory"), ("2", "all is well")):
        server.extra = [f"ATTEMPT={attempt}"]
        server.start()
        until(lambda: server.exit_code() is not None)
        shown = server.last_lines().splitlines()
        assert [line.strip() for line in shown] == [word]
        assert ("memory is short" in server.diagnosis()) == (attempt == "1")
    assert server.log.read_text().count("\n== ") == 2 and "CUDA out of memory" in server.log.read_text()


def test_a_server_gets_its_own_environment(made: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dialect's variables, the user's and its GPUs; nothing of the trainer's world."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    server = made("import os; print(sorted(os.environ.items()))", extra=["MINE=a=b", "STAND_IN=mine"])
    monkeypatch.setattr(process, "_readable", lambda line: line.decode().strip())
    server.start()
    until(lambda: server.exit_code() is not None)
    seen = dict(eval(server.last_lines(1)))
    assert seen["MINE"] == "a=b" and seen["STAND_IN"] == "mine" and seen["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & seen.keys()
    assert seen["PATH"] == os.environ["PATH"]


def test_lost_servers_are_started_again_as_often_as_allowed(fleet_of: Callable, capsys: pytest.CaptureFixture) -> None:
    """One that lives is kept; one that was killed comes back at its place; once too often ends the run."""
    fleet = fleet_of(StandIn(SERVES), max_restarts=1)
    fleet.launch()
    fleet.wait()
    ((url, server),) = fleet.owned.items()
    first = server_pid(server)
    # With "" every server gets weights, whatever it holds.
    assert fleet.revive({url: "a lane took it as lost"}, "") == [url] and fleet.restarts == 0
    assert server_pid(server) == first

    os.kill(first, signal.SIGKILL)
    until(fleet.dead)
    assert fleet.revive(fleet.dead(), "run.1") == [url] and fleet.restarts == 1
    assert server_pid(server) != first and fleet.urls == [url] == list(fleet.owned)
    said = capsys.readouterr()
    assert "was killed by SIGKILL; starting it again (1 of at most 1 losses)" in said.out + said.err

    os.kill(server_pid(server), signal.SIGKILL)
    until(fleet.dead)
    with pytest.raises(EngineLost, match=r"(?s)was killed by SIGKILL.*lost 2 times, servers.max_restarts = 1"):
        fleet.revive(fleet.dead(), "run.1")


def test_how_a_server_died_is_said_though_its_guard_still_clears_up(
    fleet_of: Callable, capsys: pytest.CaptureFixture
) -> None:
    """A connection breaks before the guard ends, which first waits for those who may map a segment that was left."""
    name = f"sglang_loads_test_{os.getpid()}_revived"
    fleet = fleet_of(StandIn(f"open('/dev/shm/{name}', 'wb').write(b'x' * 4096)\n{SERVES}"))
    fleet.launch()
    fleet.wait()
    ((url, server),) = fleet.owned.items()
    os.kill(server_pid(server), signal.SIGKILL)
    assert fleet.revive({url: "a request was broken off"}, "run.1") == [url]
    said = capsys.readouterr()
    assert "was killed by SIGKILL; starting it again (1 of at most " in said.out + said.err


def test_a_server_that_hangs_is_started_again(fleet_of: Callable) -> None:
    """It runs, but answers nothing: it has five seconds to end when it is asked to, and is killed then."""
    fleet = fleet_of(StandIn(SERVES), health_seconds=1.0)
    fleet.launch()
    fleet.wait()
    ((url, server),) = fleet.owned.items()
    first = server_pid(server)
    os.kill(first, signal.SIGSTOP)
    assert fleet.revive({url: "it is silent"}, "run.1") == [url]
    assert is_gone(first) and server_pid(server) != first and server.exit_code() is None


def test_two_servers_get_two_ports_and_logs(tmp_path: Path, world: object) -> None:
    with Http() as http:
        servers = Servers(count=2, tensor=2, devices=[4, 5, 6, 7], port=23450)  # nothing is started
        options = launch_options(tmp_path, python=PYTHON, port=0, tensor=2)
        fleet = Fleet(http, StandIn(SERVES), Control(), servers, options, tmp_path / "servers", urls=[], count=2)
        assert fleet.urls == [f"http://127.0.0.1:{servers.port + i}" for i in range(2)]
        assert [server.devices for server in fleet.owned.values()] == [[4, 5], [6, 7]]
        assert len({server.log for server in fleet.owned.values()}) == 2
