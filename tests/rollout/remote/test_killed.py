"""Runs whose real SGLang server is killed (SIGKILL): the steps complete, nothing is lost, nothing counts twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT, python_of

MOMENTS = ("idle", "generating", "begin", "bucket", "proof")
PROMPTS, SAMPLES = 4, 3
SETTINGS = (
    "model.generated.warm_start.steps=30", f"training.prompts_per_step={PROMPTS}", "training.traces_per_step=4",
    f"rollout.samples_per_prompt={SAMPLES}", "data.evaluation=[]", "evaluation={}", "evaluation.before=false",
    "evaluation.after=false", "rollout.engine=sglang", "servers.in_flight=4", "debug.save_rollouts=true",
    "checkpoint.every=0", "checkpoint.export=false", "checkpoint.export_adapter=false", "monitoring.figure=false",
)  # fmt: skip


def run(moments: str, directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run in which the server is killed at these moments."""
    command = [
        sys.executable, "-m", "tests.rollout.remote.kill_job", moments, "examples/quickstart.yaml",
        f"run.directory={directory}", f"servers.python={python_of('sglang')}", *SETTINGS, *overrides,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    # Files, not pipes: what shares memory with the server outlives the run for a moment and holds them.
    with open(directory.with_suffix(".out"), "w+") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=1500, env=environment)
        out.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), "")


def check_steps(directory: Path, steps: int) -> list[dict[str, float]]:
    """Every step has all its answers once, from exactly the weights that were trained."""
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, steps + 1))
    for m in metrics:
        rows = [json.loads(r) for r in (directory / f"rollouts/step_{m['step']:08d}.jsonl").read_text().splitlines()]
        assert len(rows) == PROMPTS * SAMPLES
        groups = [tuple(r["tokens"][: r["prompt_length"]]) for r in rows]
        assert all(groups.count(g) == SAMPLES for g in groups)
        assert m["logprob_gap_max"] <= 1e-5 and m["rollouts_stale"] == 0
    return metrics


@pytest.mark.slow
def test_killed_at_five_moments(tmp_path: Path) -> None:
    done = run(",".join(MOMENTS), tmp_path / "run", "training.steps=7", "servers.max_restarts=5")
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.findall(r"KILLED (\w+)", done.stdout) == list(MOMENTS)
    assert done.stdout.count("was killed by SIGKILL; starting it again") == len(MOMENTS)
    metrics = check_steps(tmp_path / "run", 7)
    assert metrics[-1]["server_losses"] == len(MOMENTS)


@pytest.mark.slow
def test_killed_in_a_broadcast(tmp_path: Path) -> None:
    """distributed: before the process group forms, and while a bucket is broadcast."""
    overrides = ("training.steps=3", "sync.method=distributed")
    done = run("begin,bucket", tmp_path / "run", *overrides)
    assert done.returncode == 0, done.stdout[-4000:]
    metrics = check_steps(tmp_path / "run", 3)
    assert metrics[-1]["server_losses"] == 2
    assert max(m["seconds_step"] for m in metrics) < 90, "a dead member was waited for"


def test_a_loss_is_survived_and_one_too_many_ends_the_run_which_goes_on(tmp_path: Path) -> None:
    """Killed while weights come, started again; killed while it works, saved and resumed."""
    directory = tmp_path / "run"
    done = run("bucket,generating", directory, "training.steps=3", "servers.max_restarts=1")
    assert done.returncode == 3, done.stdout[-4000:]
    assert re.findall(r"KILLED (\w+) at version (\d)", done.stdout) == [("bucket", "1"), ("generating", "2")]
    assert done.stdout.count("was killed by SIGKILL; starting it again (1 of at most 1 losses)") == 1
    error = done.stdout[done.stdout.index("ERROR 3") :]
    assert "was killed by SIGKILL; the end of its log" in error and "servers.max_restarts = 1" in error
    assert re.search(r"^ {4}\[20\d\d-", error, re.MULTILINE), "the server's last lines are shown"
    assert "the run is saved after step 2; go on with run.resume=auto" in error
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["step_00000002"]
    again = run("", directory, "training.steps=3", "run.resume=auto")
    assert again.returncode == 0, again.stdout[-4000:]
    check_steps(directory, 3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_what_works_for_a_server_is_killed(tmp_path: Path, engine: str) -> None:
    """vLLM's HTTP side lives on without its engine core, SGLang's for some seconds without its scheduler."""
    done = run(
        "core:idle,core:generating,core:bucket", tmp_path / "run", "training.steps=4", f"rollout.engine={engine}",
        f"servers.python={python_of(engine)}", "servers.max_restarts=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.findall(r"KILLED core:(\w+)", done.stdout) == ["idle", "generating", "bucket"]
    metrics = check_steps(tmp_path / "run", 4)
    assert metrics[-1]["server_losses"] == 3
    assert max(m["seconds_step"] for m in metrics) < 500, "a dead core was waited for"


@pytest.mark.slow
def test_one_of_two_servers_is_killed_and_the_other_goes_on(tmp_path: Path) -> None:
    done = run("generating", tmp_path / "run", "training.steps=3", "servers.count=2", "servers.in_flight=2")
    assert done.returncode == 0, done.stdout[-4000:]
    assert check_steps(tmp_path / "run", 3)[-1]["server_losses"] == 1
