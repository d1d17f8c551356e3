"""A few whole steps, generation included, in two processes against one."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.training.test_runs import config_for, metrics_of, run, start, whole

__all__ = ["whole"]


@pytest.mark.parametrize("override", ["parallel.tensor=2", "parallel.data=2"])
def test_two_processes_take_the_steps_of_one(whole, tmp_path, override):
    """The same answers are sampled and verified, and metrics agree within fp32 rounding over three AdamW steps."""
    directory = tmp_path / "run"
    run(config_for(directory, tmp_path), override, "training.steps=3", "evaluation.every=0", "checkpoint.export=false")
    ours, theirs = metrics_of(directory), metrics_of(whole)
    for mine, one in zip(ours, theirs[:3], strict=True):
        for name in ("reward", "response_length", "truncated", "groups_with_signal"):
            assert mine[name] == one[name], name
        for name in ("j_sft", "j_rl", "j_rl_auxiliary", "kl", "entropy", "grad_norm_theta", "grad_norm_w"):
            assert mine[name] == pytest.approx(one[name], rel=2e-3, abs=1e-6), name


def test_a_killed_rank_ends_the_run_and_is_named(tmp_path):
    """SIGKILL of one rank of two: the launcher names it and ends within a minute, no process is left over."""
    directory = tmp_path / "run"
    path = config_for(directory, tmp_path, **{"training: {steps: 8": "training: {steps: 4000"})
    process = start(path, "parallel.data=2")
    launcher = psutil.Process(process.pid)
    deadline = time.time() + 120
    while time.time() < deadline and not (directory / "metrics.jsonl").exists():
        time.sleep(0.05)
    ranks = [c for c in launcher.children() if "bridge_mcore.launch.worker" in c.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "rank 1 of 2 was killed by SIGKILL" in out and "report it" not in out
    assert not any(r.is_running() and r.status() != psutil.STATUS_ZOMBIE for r in ranks)
