"""Random kills of ranks, launcher and workers in every phase: the tool that counts them finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kill_runs.py"


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_runs_that_are_killed_end_as_if_nobody_had_come(tmp_path, seed, processes):
    command = [sys.executable, str(TOOL), "--kills", "6", "--processes", processes, "--seed", str(seed)]
    command += ["--directory", str(tmp_path), "--json", str(tmp_path / "found.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["runs"] == found["equal"] > 0 and not found["left"] and not found["different"]
