"""One run, one directory: whoever comes second is refused or waits, and what is there is whole afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.test_runs import config_for, metrics_of, run, start


def long_config(directory: Path, tmp_path: Path, steps: int) -> Path:
    text = config_for(directory, tmp_path).read_text()
    text = re.sub(r"  evaluation:\n(  - .*\n)+", "", text).replace("evaluation: {every: 3}", "evaluation: {every: 0}")
    text = text.replace("warm_start: {steps: 80,", "warm_start: {steps: 2,").replace("steps: 8,", f"steps: {steps},")
    path = tmp_path / "long.yaml"
    path.write_text(text + "\n")
    return path


def until(directory: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has recorded a step."""
    deadline = time.monotonic() + 240
    path = directory / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come")


def is_whole(directory: Path, steps: int) -> bool:
    names = sorted(p.name for p in (directory / "checkpoints").iterdir())
    return [row["step"] for row in metrics_of(directory)] == [*range(1, steps + 1)] and names == [
        f"step_{steps - 2:08d}",
        f"step_{steps:08d}",
    ]


def test_nothing_touches_a_live_run(tmp_path):
    """auto waits and gives up, restart and never do so at once, and the first one ends as if nobody had come."""
    directory, steps = tmp_path / "run", 60
    path = long_config(directory, tmp_path, steps)
    first = start(path)
    until(directory, 3, first)
    first.send_signal(signal.SIGSTOP)  # alive, and not in a hurry, while the others try
    try:
        before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
        out = run(path, "run.resume=auto", "run.wait_seconds=2", code=2)
        assert f"is being written by process {first.pid} on " in out and "waiting up to 2 s" in out
        assert "also after 2 s (run.wait_seconds)" in out
        out = run(path, "run.resume=restart", code=2)
        assert f"is being written by process {first.pid} on " in out and "waiting" not in out
        assert "holds a run already" in run(path, code=2)
        waiting = start(path, "run.resume=auto")
        assert waiting.stdout is not None and "waiting up to 120 s" in waiting.stdout.readline()
        waiting.terminate()  # it has nothing to save: it does not wait to its end first
        assert waiting.wait(60) != 0
        assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before
        assert not list(tmp_path.glob("run.old*"))
    finally:
        first.send_signal(signal.SIGCONT)
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert is_whole(directory, steps)
    assert not (directory / ".lock").exists()


def test_two_that_start_at_once_are_one(tmp_path):
    """In a directory that is not there yet; the loser says who won, and costs it nothing."""
    directory, steps = tmp_path / "run", 4
    path = long_config(directory, tmp_path, steps)
    both = [start(path) for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], outs
    winner = both[codes.index(0)]
    assert f"is being written by process {winner.pid} on " in outs[codes.index(2)]
    assert is_whole(directory, steps)


def test_a_requeued_job_waits_for_its_predecessor_and_a_killed_one_leaves_the_directory_at_once(tmp_path):
    directory, steps = tmp_path / "run", 40
    path = long_config(directory, tmp_path, steps)
    first = start(path)
    until(directory, 5, first)
    first.send_signal(signal.SIGSTOP)
    second = start(path, "run.resume=auto")
    assert second.stdout is not None
    assert "waiting up to 120 s" in second.stdout.readline()
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert first.communicate(timeout=120) and first.returncode == 128 + signal.SIGTERM
    until(directory, 8, second)
    second.kill()
    second.communicate()
    assert (directory / ".lock").exists()
    out = run(path, "run.resume=auto")
    assert "waiting" not in out and "resuming from" in out
    assert is_whole(directory, steps)


def test_ranks_that_outlive_their_first_one_are_waited_for(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); "
        "time.sleep(60)"
    )
    rank = subprocess.Popen([sys.executable, "-c", hold, str(directory / ".ranks")], stdout=subprocess.PIPE)
    try:
        assert rank.stdout is not None and rank.stdout.readline()
        path = long_config(directory, tmp_path, 2)
        assert "ranks of a run whose first rank has ended" in run(path, code=2)
    finally:
        rank.kill()
        rank.wait()
    run(path)


@pytest.mark.slow
def test_restart_keeps_the_old_run_and_takes_the_new_directory(tmp_path):
    directory = tmp_path / "run"
    path = long_config(directory, tmp_path, 2)
    run(path)
    out = run(path, "run.resume=restart", "run.seed=8")
    assert f"an earlier run is kept in {directory}.old-1" in out
    assert json.loads((tmp_path / "run.old-1" / "summary.json").read_text())["seed"] == 3
    assert json.loads((directory / "summary.json").read_text())["seed"] == 8
    assert not (directory / ".lock").exists() and not (tmp_path / "run.old-1" / ".lock").exists()


@pytest.mark.slow
def test_each_rank_holds_its_share(tmp_path):
    """Rank 1 of a real two-process run keeps the directory while it lives."""
    directory = tmp_path / "run"
    path = long_config(directory, tmp_path, 400)
    first = start(path, "parallel.data=2")
    until(directory, 2, first)
    ranks = [int(p) for p in os.popen(f"pgrep -P {first.pid}").read().split()]
    by_rank = {}
    for pid in ranks:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        by_rank[next(int(e[5:]) for e in environment if e.startswith(b"RANK="))] = pid
    os.kill(by_rank[1], signal.SIGSTOP)
    os.kill(by_rank[0], signal.SIGKILL)
    with open(directory / ".ranks") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.communicate(timeout=120)
    with open(directory / ".ranks") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_two_runs_do_not_share_a_directory_of_weights(world, tmp_path):
    """sync.directory holds weights for a run's servers: another run's would be served in their place."""
    from bridge_mcore.config.schema import Config
    from bridge_mcore.errors import ConfigError
    from bridge_mcore.training.run_lock import run_lock

    def config(name: str) -> Config:
        made = Config()
        made.run.directory, made.rollout.engine, made.sync.directory = tmp_path / name, "sglang", tmp_path / "weights"
        return made

    with run_lock(config("a")):
        with pytest.raises(ConfigError, match=r"sync.directory = \S+ is being written by process \d+"):
            with run_lock(config("b")):
                raise AssertionError("not reached")
    with run_lock(config("b")):
        pass
    assert not (tmp_path / "weights" / ".lock").exists()
