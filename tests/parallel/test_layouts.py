"""Replay in several real processes (gloo) against the independent float64 implementation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.reference.algorithm2 import run_reference
from tests.reference.cases import make_case

#: ‖ours - reference‖ / ‖update‖; fp32 rounding alone gives about 2e-6 with SGD.
TOLERANCE = 1e-4


def read(directory: Path) -> dict[str, torch.Tensor]:
    out = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as handle:
            out.update({k: handle.get_tensor(k) for k in handle.keys()})  # noqa: SIM118 - not a dict
    return out


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("qwen3", "--tp 2 --sp"),
        ("llama", "--pp 2"),
        ("qwen2", "--dp 2 --micro-batch-size 1"),
        pytest.param("qwen2", "--tp 2 --pp 2", marks=pytest.mark.slow),
        pytest.param("qwen2_untied", "--tp 2 --dp 2", marks=pytest.mark.slow),
        pytest.param("qwen2", "--tp 2", marks=pytest.mark.slow),
    ],
)
def test_every_layout_computes_the_same_update(tmp_path, seed, family, layout):
    make_case(tmp_path / "case", family, seed % 10_000, kl_coefficient=0.1)
    command = [sys.executable, "-m", "bridge_mcore", "replay", str(tmp_path / "case"), str(tmp_path / "out")]
    done = subprocess.run([*command, *layout.split()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    want = run_reference(tmp_path / "case")
    for group, name, after in (
        ("theta", "model", want.theta),
        ("theta_hat", "auxiliary", want.theta_hat),
        ("w", "adapter", want.w),
    ):
        got = read(tmp_path / "out" / name)
        error = sum((got[k].double() - v).pow(2).sum() for k, v in after.items()) ** 0.5
        size = sum((v - want.before[group][k]).pow(2).sum() for k, v in after.items()) ** 0.5
        assert error / size < TOLERANCE, group
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name, value in want.metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
