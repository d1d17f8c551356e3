"""A few whole steps, generation included, in two processes against one."""

from __future__ import annotations

import pytest

from tests.training.test_runs import config_for, metrics_of, run, whole

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
