"""What one rank finds out must not leave the others waiting."""

from __future__ import annotations

import subprocess
import sys
import time

from bridge_mcore.launch.local import _Stop, _wait
from tests.models import save_tiny
from tests.parallel.processes import run_ranks

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def test_a_full_disk_of_one_rank_ends_an_export_on_all(tmp_path):
    save_tiny("qwen2_untied", tmp_path / "model")
    run_ranks(2, "tests.parallel.export_job", str(tmp_path / "model"), str(tmp_path / "out"), timeout=90)


def test_ranks_that_hang_are_killed_after_a_second_signal():
    ranks = [subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) for _ in range(2)]
    for rank in ranks:
        rank.stdout.readline()
    began = time.monotonic()
    failed = _wait(ranks, _Stop(asked=2, deadline=began + 0.5))
    assert failed == (0, -9)
    assert time.monotonic() - began < 10
    for rank in ranks:
        rank.stdout.close()
