"""The generated base model: what it is shown, and what it can do whatever the kernels."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems
from bridge_mcore.training.generated import _hasty

ROOT = Path(__file__).resolve().parents[2]


def test_the_longer_the_sum_the_more_solutions_are_hasty(seed):
    problems = load_problems(DataSource(task="running_sums", difficulty=(2, 8), size=8000, seed=seed))
    total, hasty = Counter[int](), Counter[int]()
    for problem, shown in zip(problems, _hasty(problems, seed), strict=True):
        terms = [int(term) for term in re.findall(r"[a-z](\d)", problem.prompt)]
        steps = [int(term) for term in re.findall(r"[a-z](\d)=", shown.trace)]
        assert (shown.prompt, shown.answer) == (problem.prompt, problem.answer)
        if len(steps) < len(terms):  # the first four terms only, added up rightly
            assert steps == terms[:4] and shown.trace.endswith(f"\\boxed{{{sum(terms[:4])}}}")
            hasty[len(terms)] += 1
        else:
            assert shown.trace == problem.trace
        total[len(terms)] += 1
    assert not any(hasty[n] for n in (2, 3, 4))
    for n, share in {5: 0.55, 6: 0.62, 7: 0.69, 8: 0.76}.items():
        assert abs(hasty[n] / total[n] - share) < 5 * (0.25 / total[n]) ** 0.5, (n, hasty[n], total[n])


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["default", "avx2"])
def test_the_quickstart_ends_above_85_percent(tmp_path, seed, kernels):
    """The README's command, with any seed and other rounding; learning goes on after the first ten steps."""
    avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-m", "bridge_mcore", "train", "examples/quickstart.yaml"]
    done = subprocess.run(
        [*command, f"run.directory={tmp_path / 'run'}", f"run.seed={random.Random(seed).randrange(1000)}"],
        cwd=ROOT, capture_output=True, text=True, timeout=3000, env=os.environ | (avx2 if kernels == "avx2" else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracies = dict(summary["accuracies"])
    assert accuracies[0] < 0.35 and accuracies[40] > 0.85, accuracies
    assert accuracies[10] < accuracies[20] - 0.1, accuracies
    assert f"accuracy {100 * accuracies[40]:.1f} %: " in done.stdout
