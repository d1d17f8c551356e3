"""`bridge-mcore replay` in several processes that it starts itself, and under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.parallel.test_layouts import check
from tests.reference.algorithm2 import run_reference
from tests.reference.cases import make_case

OURS = [sys.executable, "-m", "bridge_mcore"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(
    ("command", "layout"),
    [
        (OURS, "--pp 2 --micro-batch-size 1"),
        ([*TORCHRUN, "-m", "bridge_mcore"], "--tp 2 --sp"),
        pytest.param(OURS, "--tp 2 --pp 2 --vpp 2", marks=pytest.mark.slow),
    ],
    ids=["started-pp2", "torchrun-tp2-sp", "started-tp2-pp2-vpp2"],
)
def test_replay_computes_the_same_update(tmp_path, seed, command, layout):
    make_case(tmp_path / "case", "llama", seed % 10_000, layers=4, kl_coefficient=0.1)
    arguments = ["replay", str(tmp_path / "case"), str(tmp_path / "out" / "it"), *layout.split()]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    want = run_reference(tmp_path / "case")
    metrics = json.loads((tmp_path / "out" / "it" / "metrics.json").read_text())
    for name, value in want.metrics.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    # `check` reads what the rank program of the matrix leaves
    renamed = {name.replace("update_l2", "update_norm"): value for name, value in metrics.items()}
    (tmp_path / "out" / "it" / "metrics.json").write_text(json.dumps([renamed]))
    check(tmp_path, "it", want)
