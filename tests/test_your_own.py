"""docs/your_own.md as a reader would follow it: its files are written, its commands run, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_mcore.config.json_file import read_json_object

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/your_own.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """In the page's order: (name, content) of each file, ("", line) of each command."""
    pattern = r"^```\w+\n# ([\w.]+)\n(.*?)^```$|^    ((?:python|bridge-mcore) [^\n]*)$"
    return [(m[1] or "", m[2] if m[1] else m[3]) for m in re.finditer(pattern, text, re.M | re.S)]


def follow(place: Path, *overrides: str) -> dict[str, str]:
    """What each command of the page printed, by its words; each must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    printed = {}
    for name, content in blocks(PAGE.read_text()):
        if name:
            (place / name).write_text(content)
            continue
        words = shlex.split(content)
        command = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "bridge_mcore"]
        more = overrides if words[:2] == ["bridge-mcore", "train"] else ()
        done = subprocess.run(
            [*command, *words[1:], *more], cwd=place, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{content}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed[content] = done.stdout
    return printed


def test_every_command_of_the_page_works(tmp_path):
    printed = follow(tmp_path, "training.steps=12", "evaluation.every=6", "training.traces_per_step=8")
    assert len(printed) == 8
    preview = printed["bridge-mcore data preview own.yaml"]
    assert "even or odd?" in preview and "Answer: " in preview and "boxed" not in preview
    assert read_json_object(tmp_path / "runs/own/summary.json")["steps"] == 12
    assert printed["python use.py"].startswith("Is 374 even or odd?")


@pytest.mark.slow
def test_the_page_s_run_learns(tmp_path):
    follow(tmp_path)
    summary = json.loads((tmp_path / "runs/own/summary.json").read_text())
    assert summary["accuracy_before"] < 0.1 and summary["accuracy_after"] > 0.8
