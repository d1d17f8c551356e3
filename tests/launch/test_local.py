"""A run of several processes on this machine: nobody from outside reaches it, and what only it may read is private."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge_mcore.config.load import load_config
from bridge_mcore.config.schema import Config
from bridge_mcore.launch import local
from bridge_mcore.platform.ranks import RENDEZVOUS
from tests.support.processes import family, listening, listening_abroad
from tests.support.servers import ROOT

TINY = (
    "model.generated.warm_start.steps=2", "training.prompts_per_step=4", "training.traces_per_step=4",
    "rollout.samples_per_prompt=2", "data.evaluation=[]", "evaluation={}", "checkpoint.export=false",
    "checkpoint.export_adapter=false", "monitoring.figure=false", "monitoring.tensorboard=false",
)  # fmt: skip


def start(directory: Path, *overrides: str, **variables: str) -> subprocess.Popen[str]:
    """`bridge-mcore train` of the quickstart, made tiny; its output goes to DIRECTORY.out."""
    command = [sys.executable, "-m", "bridge_mcore", "train", "examples/quickstart.yaml", f"run.directory={directory}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | variables
    with open(directory.with_suffix(".out"), "w") as out:
        return subprocess.Popen(
            [*command, *TINY, *overrides], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment
        )


def test_ranks_listen_on_loopback_only(tmp_path: Path) -> None:
    """A real run of two processes, looked at while it steps."""
    run = start(tmp_path / "run", "parallel.data=2", "training.steps=5000", "optimizer.warmup_steps=1")
    said = tmp_path / "run.out"
    try:
        deadline = time.monotonic() + 180
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert run.poll() is None and time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.2)
        assert len(family(run.pid)) >= 3  # the launcher and two ranks
        assert sum(map(len, listening(run.pid).values())) >= 2, "gloo's sockets are not seen: the test sees nothing"
        assert listening_abroad(run.pid) == {}
    finally:
        run.kill()  # the kernel kills the ranks
        run.wait()


def test_a_world_of_one_listens_on_loopback_only() -> None:
    """With threads and groups of gloo, as an evaluation or a run of one process has them."""
    code = """
import os, time
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world
import torch.distributed as dist
with joined_world(setup_device("cpu")):
    dist.new_group(backend="gloo")
    print("joined", flush=True)
    time.sleep(300)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while "joined" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        assert listening_abroad(process.pid) == {}
    finally:
        process.kill()
        process.wait()


def test_ranks_meet_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's ranks are told of no port; the directory is for its user only and is gone afterwards."""
    seen: list[tuple[int, str]] = []

    def run(count: int, arguments: list[str], variables: dict[str, str], keep: tuple[int, ...]) -> None:
        directory = Path(variables[RENDEZVOUS]).parent
        seen.append((stat.S_IMODE(directory.stat().st_mode), str(directory)))

    monkeypatch.setattr(local, "_launch", run)
    local.launch(2, ["train"], 1)
    ((mode, directory),) = seen
    assert mode == 0o700 and not Path(directory).exists()


def test_the_ranks_configuration_is_private_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hands a configuration to the ranks has its secrets, so it is memory of theirs and no file on a disk."""
    config = load_config(
        ROOT / "examples" / "quickstart.yaml",
        ["parallel.data=2", "servers.environment=[HF_TOKEN=canary]", "servers.arguments=[--hf-token, bird]"],
    )
    read: list[Config] = []

    def run(count: int, arguments: list[str], threads: int, keep: tuple[int, ...]) -> None:
        path = Path(arguments[1])
        assert path == Path(f"/proc/self/fd/{keep[0]}") and os.readlink(path).startswith("/memfd:")
        assert not os.get_inheritable(keep[0])  # only the ranks are given it
        read.extend(load_config(path) for _ in range(2))  # each rank reads it from its beginning

    monkeypatch.setattr(local, "launch", run)
    local.run_training(config)
    assert read == [config, config]


def test_a_world_of_two_meets_in_the_file(tmp_path: Path) -> None:
    """Two processes that know nothing but the file, and their ranks."""
    code = """
import torch, torch.distributed as dist
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world
with joined_world(setup_device("cpu")):
    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    print("total", total.item())
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    environment |= {"WORLD_SIZE": "2", RENDEZVOUS: str(tmp_path / "rendezvous")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment | {"RANK": rank}
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all("total 3.0" in text for text in said)


def test_tokens_of_the_environment_are_written_nowhere(tmp_path: Path) -> None:
    """A real run of two processes whose servers do not start (their interpreter has no engine), and one that trains:
    neither their folders nor what they print has a token of the environment, the configuration or a command line."""
    tokens = {name: f"canary-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MY_TOKEN")}
    hidden = ("servers.environment=[MY_TOKEN=canary-x, OTHER=canary-y]", "servers.arguments=[--hf-token, canary-z]")
    served = (f"servers.python={sys.executable}", "rollout.engine=sglang", "parallel.data=2", "servers.in_flight=4")
    runs = {
        "served": start(tmp_path / "served", *hidden, *served, **tokens),
        "trained": start(tmp_path / "trained", *hidden, "training.steps=2", "optimizer.warmup_steps=1", **tokens),
    }
    assert {name: run.wait(timeout=300) for name, run in runs.items()} == {"served": 3, "trained": 0}
    log = next((tmp_path / "served" / "servers").iterdir()).read_text()
    assert "--hf-token '<hidden>'" in log and "no such engine" in (tmp_path / "served.out").read_text()
    assert "OTHER" in (tmp_path / "trained" / "config.yaml").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert b"canary" not in path.read_bytes(), path
