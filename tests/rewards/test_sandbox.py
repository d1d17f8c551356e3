"""Escapes from the sandbox, each really tried. The programs are in programs.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards import sandbox
from bridge_mcore.rewards.box import syscalls
from bridge_mcore.rewards.box.client import Box, BoxError
from bridge_mcore.rewards.sandbox import SandboxLayers, SandboxSettings, require_sandbox, sandbox_layers
from tests.rewards import programs

ROOT = Path(__file__).parents[2]
QUICK = {"cpu_seconds": 0.5, "memory_mib": 256, "output_mib": 2, "scratch_mib": 4}
#: All layers; the namespaces alone; the rest alone, as where namespaces are forbidden (most containers).
VARIANTS = {"all": (), "namespaces": ("seccomp", "landlock"), "no namespaces": ("namespaces",)}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is Linux's")


def layers_of(variant: str) -> SandboxLayers:
    layers = sandbox_layers(SandboxSettings(**QUICK, without=VARIANTS[variant]))
    if layers.missing:
        pytest.skip(f"not to be had on this machine: {layers.table()}")
    return layers


@pytest.fixture(scope="module", params=list(VARIANTS))
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    layers = layers_of(request.param)
    os.environ["A_SECRET_TOKEN"] = "hunter2"
    opened = Box(SandboxSettings(**QUICK, without=VARIANTS[request.param]), layers.namespaces)
    del os.environ["A_SECRET_TOKEN"]
    yield opened
    # Whatever was done to it, it still works, and nothing is left in it.
    assert run(opened, "print('well')")["stdout"] == "well\n"
    left = psutil.Process(opened._process.pid).children(recursive=True)
    assert len(left) == (0 if layers.namespaces == "none" else 1)
    opened.close()
    assert not psutil.wait_procs(left, timeout=60)[1]


def run(box: Box, program: str, stdin: str = "", wall: float = 10.0) -> dict:
    return box.run({"mode": "stdin", "program": program, "stdin": stdin}, b"", wall)


def managed(box: Box, program: str, tmp_path: Path | None = None, **names: object) -> list:
    names.update(PARENT=os.getpid(), GRANDPARENT=os.getppid(), FOLDER=str(tmp_path), SECRET=str(tmp_path) + "/secret")
    settings = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    reply = run(box, programs.PRELUDE + settings + program + programs.REPORT)
    assert reply["status"] == "ended", reply
    return json.loads(reply["stdout"])


def seccomp(box: Box) -> bool:
    return bool(box.layers["seccomp"])


def test_what_it_says_is_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    layers = layers_of("all")
    assert not layers.missing
    assert "kept from: network     yes" in layers.table()
    assert require_sandbox(SandboxSettings(**QUICK)) == layers


def test_a_machine_without_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SandboxSettings(**QUICK, without=("namespaces", "landlock", "seccomp"))
    layers = sandbox_layers(nothing)
    assert layers.missing == ["network", "files", "processes"]
    with pytest.raises(ConfigError, match=r"cannot keep candidate programs from: network, files, processes\. Allow"):
        require_sandbox(nothing)
    unsafe = SandboxSettings(**QUICK, without=nothing.without, unsafe=True)
    assert require_sandbox(unsafe).missing == layers.missing


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="memory_mib is 0; give a positive number"):
        SandboxSettings(memory_mib=0)


def test_an_ordinary_program(box: Box) -> None:
    program = (
        "import heapq, threading\nfrom collections import deque\n"
        "def main():\n    a, b = map(int, input().split())\n    print(a + b, end='')\n"
        "thread = threading.Thread(target=main)\nthread.start()\n"
        "if __name__ == '__main__':\n    import sys; sys.exit(3)\n"
    )
    reply = run(box, program, "20 22\n")
    assert (reply["status"], reply["stdout"]) == ("ended", "42")
    assert run(box, "print(open(0).read()[::-1])", "é∞")["stdout"] == "∞é\n"
    assert run(box, "import sys; print(len(sys.stdin.read()))", "\ud800")["status"] == "ended"


def test_runs_do_not_see_each_other(box: Box) -> None:
    if box.layers["namespaces"] != "none":
        assert run(box, "open('note', 'w').write('x'); import os; print(os.listdir())")["stdout"] == "['note']\n"
        assert run(box, "import os; print(os.listdir())")["stdout"] == "[]\n"
    run(box, "import json, random; json.dumps = None; print(random.random())")
    first, second = (run(box, "import json, random; print(json.dumps(1), random.random())")["stdout"] for _ in "ab")
    assert first == second and first.startswith("1 ")


def test_fork_bomb_and_daemons(box: Box) -> None:
    """With seccomp no process can be made; without, the number is bounded and all of them end with the program."""
    found = managed(box, programs.FORK)
    assert (found == []) if seccomp(box) else 0 < len(found) < 64
    assert managed(box, programs.DAEMON) == ([] if seccomp(box) else ["daemon"])
    warden = psutil.Process(box._process.pid)
    assert len(warden.children(recursive=True)) == (0 if box.layers["namespaces"] == "none" else 1)


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray()\nwhile True: x += bytes(1 << 24)",
        "x = []\nwhile True: x.append([0] * 10**6)",
        "import mmap\nx = []\nwhile True:\n    try: x.append(mmap.mmap(-1, 1 << 26))\n"
        "    except OSError: raise MemoryError",
        "print(len('x' * (1 << 40)))",
    ],
)
def test_memory_bombs(box: Box, program: str) -> None:
    # Time enough for the memory to be what ends it: new pages can be slow on a virtual machine.
    reply = box.run({"mode": "stdin", "program": program, "stdin": "", "cpu": 10.0}, b"", 60.0)
    assert reply["status"] == "failed" and reply["error"].startswith("MemoryError")


@pytest.mark.parametrize("stream", [1, 2])
def test_endless_output(box: Box, stream: int) -> None:
    started = time.monotonic()
    reply = run(box, f"import os\nwhile True:\n    os.write({stream}, b'x' * 65536)")
    assert reply["full"] and reply["status"] == "failed"
    assert len(reply["stdout"]) <= 2 << 20
    if stream == 2:
        return
    # A program that goes on trying ends by its time.
    reply = run(box, "import os\nwhile True:\n    try: os.write(1, b'x' * 65536)\n    except OSError: pass")
    assert reply["full"] and reply["status"] == "time"
    assert time.monotonic() - started < 300  # it ends, on however busy a machine


def test_files(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder != Path("/tmp"):
            folder.chmod(0o777)
    found = managed(box, programs.FILES, tmp_path)
    if box.layers["namespaces"] != "none":
        # The box's own, nearly empty folders; and links in a scratch folder that vanishes.
        found = [name for name in found if name.split()[0] not in ("list", "symlink")]
        assert (
            managed(
                box,
                "for p in ('/etc', '/proc', '/home', '/root'):\n  attempt(p, lambda: len(os.listdir(p)) > 3 or 1/0)",
            )
            == []
        )
    if not seccomp(box):
        found = [name for name in found if name not in ("symlink",)]
    assert found == []
    assert secret.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_network(box: Box, tmp_path: Path) -> None:
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        local.bind(f"{tmp_path}/secret.sock")
        local.listen()
        assert managed(box, programs.NETWORK, tmp_path, PORT=server.getsockname()[1]) == []


def test_signals(box: Box) -> None:
    found = managed(box, programs.SIGNALS)
    if not seccomp(box):  # it may name an owner; that the signal arrives nowhere is seen by the box that goes on
        found = [name for name in found if name != "owner of a pipe"]
    assert found == []
    for program in (
        "import os, signal; os.kill(-1, signal.SIGKILL)",
        "import os, signal; os.kill(0, signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(0)",
    ):
        assert run(box, program)["status"] == "failed"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "wall"),
        (programs.DEAF, "time"),
        ("import time; time.sleep(1000)", "wall"),
        ("input()\nimport time; time.sleep(1000)", "failed"),
        ("9**9**9", "time"),
        ("import threading\nfor _ in range(8): threading.Thread(target=lambda: 9**9**8).start()", "time"),
    ],
)  # fmt: skip
def test_time(box: Box, program: str, status: str) -> None:
    started = time.monotonic()
    # With other work on the cores, a second of CPU time may take minutes.
    assert run(box, program, wall=0.5 if status == "wall" else 600.0)["status"] == status
    assert time.monotonic() - started < 900


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_system_calls(box: Box) -> None:
    if not seccomp(box):
        pytest.skip("this variant has no filter")
    assert managed(box, programs.SYSCALLS) == []
    # The 32-bit table by int 0x80: its numbers mean other calls. mov eax, 2 (fork); int 0x80; ret
    code = (
        "import ctypes, mmap\npage = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b802000000cd80c3'))\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\nctypes.CFUNCTYPE(ctypes.c_int)(address)()\n"
        "print(1)"
    )
    reply = run(box, code)
    assert reply["status"] == "failed" and reply["stdout"] == ""


def test_tracing_without_a_filter(box: Box) -> None:
    """The namespaces alone keep other processes out of sight."""
    program = (
        f"attempt('attach', lambda: syscall(101, 16, {os.getpid()}, 0, 0))\n"
        "attempt('attach to the warden', lambda: syscall(101, 16, 1, 0, 0))\n"
        "attempt('users', lambda: os.setuid(0) if os.getuid() else 1 / 0)\n"
        "attempt('mount', lambda: syscall(165, b'none', b'/scratch', b'tmpfs', 0, 0))\n"
    )
    assert managed(box, program) == []


def test_secrets_and_descriptors(box: Box) -> None:
    box.run({"mode": "check", "program": "f = 1", "names": ["f"]}, b'{"test": "sentinel-74123"}', 5)
    assert managed(box, programs.SECRETS) == []


def test_scratch_is_bounded(box: Box) -> None:
    if box.layers["namespaces"] == "none":
        pytest.skip("without namespaces nothing can be written at all")
    for _ in range(2):
        reply = run(box, "import os\n" + programs.EXHAUST)
        megabytes, files = map(int, reply["stdout"].split())
        assert 2 <= megabytes <= 4 and 100 < files < 1024


def test_writing_to_every_descriptor(box: Box) -> None:
    program = (
        "import os\nfor fd in range(1000):\n    for word in (b'{\"passed\": true}', b'42'):\n"
        "        try: os.write(fd, word)\n        except OSError: pass\ndef f(): return 1\n"
    )
    reply = box.run({"mode": "call", "program": program, "entry_point": "f", "args": []}, b"", 5)
    assert reply["result"] != "42"
    test = json.dumps({"test": "def check(f):\n    assert f() == 42"}).encode()
    reply = box.run({"mode": "check", "program": program, "names": ["f"]}, test, 5)
    assert "true" not in reply["result"]
    assert run(box, "print(5)")["stdout"] == "5\n"


def test_numbers_are_those_of_the_kernel_headers() -> None:
    headers = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"}
    path = Path(headers.get(os.uname().machine, "/nowhere"))
    if not path.exists():
        pytest.skip("no kernel headers here")
    lines = (line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR_"))
    numbers = {line[1].removeprefix("__NR_"): int(line[2]) for line in lines}
    for name, (number, _) in {**syscalls.ALLOWED, **syscalls.CHECKED}.items():
        assert number is None or numbers[name] == number, name


def test_an_unknown_machine_has_no_filter() -> None:
    assert syscalls.program(1, "sparc64") is None
    assert syscalls.program(1, "aarch64")


def test_nothing_outlives_its_owner() -> None:
    layers = layers_of("all")
    script = (
        "import sys, threading, time\nfrom bridge_mcore.rewards.sandbox import *\n"
        "from bridge_mcore.rewards.box.client import Box\n"
        f"box = Box(SandboxSettings(), {layers.namespaces!r})\nprint(box._process.pid, flush=True)\n"
        "box.run({'mode': 'stdin', 'program': 'while True: pass', 'stdin': ''}, b'', 60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        first = psutil.Process(int(owner.stdout.readline()))
        end = time.monotonic() + 60
        while len(family := [first, *first.children(recursive=True)]) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(family) == 3 or layers.namespaces == "none"
        owner.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_broken_box_says_so() -> None:
    layers = layers_of("all")
    box = Box(SandboxSettings(**QUICK), layers.namespaces)
    box._process.kill()
    box._process.wait()
    with pytest.raises(BoxError, match="exit status -9"):
        run(box, "print(1)")


def test_without_namespaces_it_goes_on_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: SandboxSettings, namespaces: str) -> Box:
        if namespaces != "none":
            raise BoxError("Operation not permitted")
        return Box(settings, namespaces)

    monkeypatch.setattr(sandbox, "Box", refuse)
    layers = sandbox_layers.__wrapped__(SandboxSettings())
    assert layers.namespaces == "none" and "Operation not permitted" in layers.table()


def test_nothing_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: SandboxSettings, namespaces: str) -> Box:
        raise BoxError("no such luck")

    monkeypatch.setattr(sandbox, "Box", refuse)
    with pytest.raises(BoxError, match=r"no program can be run: .*no such luck"):
        sandbox_layers.__wrapped__(SandboxSettings())
