"""A dead reward stops a run, on all ranks alike and saved; a slow answer here and there is only said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_mcore.config.rewards import Reward
from bridge_mcore.errors import RunStopped
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards.verdict import Verdict
from bridge_mcore.training.undecided import WINDOW, UndecidedWatch
from tests.parallel.processes import run_ranks

ALONE = Layout(0, 1, 1, 0, 1, 0, 1, 0)
RIGHT, WRONG = Verdict("correct", "yes"), Verdict("incorrect", "no")
BROKEN = Verdict("error", "its worker process ended with exit code 1")
SLEPT = Verdict("timeout", "test 1 took longer than 29 s", own_doing=True)
SLOW = Verdict("timeout", "it took more than 5 s of CPU time")


def see(watch: UndecidedWatch, *verdicts: Verdict) -> str | None:
    undecided = sum(not verdict.decided for verdict in verdicts)
    return watch.see(["math"] * len(verdicts), range(len(verdicts)), verdicts, undecided, len(verdicts))


def test_a_step_without_any_verdict_stops_with_the_first_reason(capsys):
    watch = UndecidedWatch(0.5, ALONE)
    assert see(watch, RIGHT, WRONG) is None and see(watch) is None
    assert capsys.readouterr().out == ""
    why = r"none of the step's 2 answers could be judged, the first by math: timeout: it took .*stop_undecided=null"
    with pytest.raises(RunStopped, match=why) as stopped:
        see(watch, SLOW, BROKEN)
    assert stopped.value.exit_code == 3 and "\n" not in str(stopped.value)
    assert see(UndecidedWatch(None, ALONE), BROKEN, BROKEN) == "by math: error: " + BROKEN.reason


@pytest.mark.parametrize(("undecided", "stops"), [(2, False), (3, True)])
def test_most_of_some_steps_stop_a_run(undecided, stops):
    """Of 4 answers a step: 2 of 4 are not more than half."""
    watch = UndecidedWatch(0.5, ALONE)
    verdicts = [BROKEN] * undecided + [RIGHT] * (4 - undecided)
    for _ in range(WINDOW - 1):
        see(watch, *verdicts)
    if stops:
        with pytest.raises(RunStopped, match=f"15 of the 20 answers of the last {WINDOW} steps"):
            see(watch, *verdicts)
    else:
        see(watch, *verdicts)


def test_one_reward_of_several_that_is_dead_is_found():
    """It has a fifth of the answers; a step with a verdict of it, or none undecided, begins the count anew."""
    names = ["math"] * 4 + ["code"]

    def step(watch: UndecidedWatch, last: Verdict) -> None:
        watch.see(names, range(5), [RIGHT] * 4 + [last], int(not last.decided), 5)

    watch = UndecidedWatch(0.5, ALONE)
    for last in [BROKEN] * (WINDOW - 1) + [RIGHT] + [BROKEN] * (WINDOW - 1):
        step(watch, last)
    with pytest.raises(
        RunStopped, match=rf"the reward code has judged nothing in {WINDOW} steps; the first by code: err"
    ):
        step(watch, BROKEN)
    asleep = UndecidedWatch(0.5, ALONE)
    for _ in range(2 * WINDOW):
        step(asleep, SLEPT)


def test_one_bad_step_is_forgotten():
    watch = UndecidedWatch(0.5, ALONE)
    for _ in range(3):
        see(watch, BROKEN, BROKEN, BROKEN, RIGHT)
        for _ in range(WINDOW):
            see(watch, RIGHT, WRONG)


def test_programs_that_sleep_are_said_and_stop_nothing(capsys):
    watch = UndecidedWatch(0.0, ALONE)
    for _ in range(3 * WINDOW):
        assert see(watch, SLEPT, SLEPT) == "by math: timeout: " + SLEPT.reason
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"· 2 of 2 answers could not be judged, the first by math: timeout: {SLEPT.reason}"
    mixed = see(UndecidedWatch(None, ALONE), SLEPT, BROKEN)
    assert mixed is not None and mixed.startswith("by math: error"), "the reason that may stop a run goes first"


def test_a_reason_is_said_once_whatever_its_numbers(capsys):
    watch = UndecidedWatch(1.0, ALONE)
    for number in range(30):
        see(watch, Verdict("error", f"the gold answer '{number}' is no letter, {number}"), RIGHT)
    see(watch, SLOW, RIGHT)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "· 1 of 2 answers could not be judged, the first by math: error: the gold answer '0' is no letter, 0",
        f"· 1 of 2 answers could not be judged, the first by math: timeout: {SLOW.reason}",
    ]


def test_the_share_is_a_share():
    assert Reward().stop_undecided == 0.5 and Reward(stop_undecided=None).stop_undecided is None
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Reward(stop_undecided=1.5)


PLUGIN = """
import os
COUNT = {count!r}

def judge(response, gold, prompt):
    with open(COUNT, "ab") as file:
        file.write(b".")
    if os.path.getsize(COUNT) > {lives}:
        os._exit(1)
    return len(response) % 2 == 0
"""
CONFIG = """
run: {{directory: {directory}, seed: 3}}
model: {{generated: {{layers: 2, hidden_size: 64, heads: 2, kv_heads: 2, intermediate_size: 128,
        warm_start: {{steps: 20, batch_size: 16, difficulty: [2, 3]}}}}}}
method: {{name: rl_zero}}
parallel: {{{layout}}}
training: {{steps: 4, prompts_per_step: 4}}
rollout: {{samples_per_prompt: 3, max_new_tokens: 8}}
reward: {{workers: 1}}
data: {{template: plain, rl: {{task: running_sums, size: 16, difficulty: [2, 3], reward: "plugin:{plugin}:judge"}}}}
evaluation: {{before: false, after: false}}
checkpoint: {{every: 0, export: false, export_adapter: false}}
monitoring: {{tensorboard: false, figure: false}}
"""


def train(directory: Path, lives: int, layout: str = "") -> tuple[int, str, list[dict]]:
    """Exit code, output and metrics of a run whose reward judges so many answers and then dies for good."""
    directory.mkdir()
    plugin = directory / "plugin.py"
    plugin.write_text(PLUGIN.format(count=str(directory / "count"), lives=lives))
    text = CONFIG.format(directory=directory / "run", plugin=plugin, layout=layout)
    (directory / "config.yaml").write_text(text)
    command = [sys.executable, "-m", "bridge_mcore", "train", str(directory / "config.yaml")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    return done.returncode, done.stdout, [json.loads(line) for line in lines]


def test_a_run_whose_reward_dies_ends_at_once(tmp_path):
    """Up to there it is the run whose reward lives, number for number."""
    code, out, metrics = train(tmp_path / "dies", lives=2 * 12)
    assert code == 3, out
    assert "· 12 of 12 answers could not be judged, the first by plugin:" in out
    assert "step 3" in out and "its worker process ended with exit code 1" in out and "Traceback" not in out
    code, out, whole = train(tmp_path / "lives", lives=10**6)
    assert code == 0 and len(whole) == 4 and "could not be judged" not in out
    clocks = ("seconds", "tokens_per_second", "memory")
    kept = [
        [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in rows] for rows in (metrics, whole[:2])
    ]
    assert kept[0] == kept[1] and all(row["verdicts"] == 12 for row in whole)


def test_a_few_undecided_stand_in_the_line_of_their_step(tmp_path):
    code, out, metrics = train(tmp_path / "late", lives=12 + 9)
    assert code == 3, out
    (line,) = [line for line in out.splitlines() if line.startswith("step 2/4")]
    assert "undecided 3 of 12" in line
    assert metrics[1]["verifier_errors"] == 3 and metrics[1]["undecided"].startswith("by plugin:")
    assert "undecided" not in metrics[0] and out.count("could not be judged") == 1  # the line


@pytest.mark.parametrize(
    "size", ["data", pytest.param("tensor", marks=pytest.mark.slow), pytest.param("pipeline", marks=pytest.mark.slow)]
)
def test_all_ranks_stop_alike(tmp_path, size):
    """With data parallelism each rank judges its share, in workers of its own."""
    code, out, metrics = train(tmp_path / "dies", 12, f"{size}: 2")
    assert code == 3, out
    assert len(metrics) == 1 and out.count("error: step 2") == 1
    assert "none of the step's 12 answers could be judged" in out and "Traceback" not in out


def test_the_first_reason_of_two_shares_is_found_on_both(tmp_path):
    run_ranks(2, "tests.training.undecided_job", timeout=120)
