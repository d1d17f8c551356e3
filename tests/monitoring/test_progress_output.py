"""What a run prints: plain lines where nobody watches, a live view on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from bridge_mcore.monitoring import progress
from bridge_mcore.monitoring.progress import Progress, phase, plain_line, track
from bridge_mcore.monitoring.text import compact, duration, signed, sparkline, visible


class Clock:
    """time.monotonic, moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_the_plain_line() -> None:
    metrics = {"reward": 0.4119, "response_length": 18.31, "gain": 0.0021, "lam": 0.5, "tokens_per_second": 1912.0}
    assert plain_line(12, 60, metrics, 100.0) == (
        "step 12/60  reward 0.412  length 18.3  gain +0.0021  λ 0.50  1.9k tok/s  left 1m40s"
    )
    assert plain_line(3, 60, {"j_sft": -0.5, "reward": None, "accuracy": 0.75}, None) == (
        "step  3/60  J_SFT -0.500  accuracy 75.0%"
    )
    assert plain_line(60, 60, {"reward": float("nan")}, 0.0) == "step 60/60", "no NaN, and nothing is left to wait for"


def test_one_line_a_step_with_time_left_that_counts_evaluations(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with Progress(12, start_step=2) as shown:
        clock.now += 500  # the evaluation before training says nothing about the steps
        shown.step(2, {"accuracy": 0.25})
        clock.now += 4
        shown.step(3, {"reward": 0.5})
        clock.now += 16  # with an evaluation in it
        shown.step(4, {"reward": 0.5})
        shown.note("checkpoint written")
    assert capsys.readouterr().out.splitlines() == [
        "step  2/12  accuracy 25.0%",
        "step  3/12  reward 0.500  left 36s",
        "step  4/12  reward 0.500  left 1m20s",
        "checkpoint written",
    ]


def test_phase_and_track_off_a_terminal(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with phase("loading the model"):
        pass
    with phase("warm start"):
        clock.now += 75
    assert list(track(range(3), text="evaluating")) == [0, 1, 2]
    for _ in track(iter(range(4)), total=4, text="long"):
        clock.now += 20
    assert capsys.readouterr().out.splitlines() == [
        "· loading the model …",
        "· warm start …",
        "· warm start: 1m15s",
        "· evaluating …",
        "· long …",
        "· long: 2/4  left 40s",
        "· long: 4 in 1m20s",
    ]


def test_a_failing_phase_passes_the_error_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), phase("loading"):
        raise ValueError("broken")
    assert progress._live is None


def test_output_without_unicode() -> None:
    code = "from bridge_mcore.monitoring.progress import Progress; Progress(9).step(1, {'lam': 0.5, 'accuracy': 0.5})"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("step 1/9  lam 0.50  accuracy 50.0%")


def test_the_live_view_on_a_terminal() -> None:
    code = """
from bridge_mcore.monitoring.progress import Progress, phase, track
with phase('loading [1]'): pass
p = Progress(4, title='BRIDGE')
for step in range(1, 4):
    for _ in track(range(2), text='evaluating [2]'): pass
    p.step(step, {'reward': step / 10, 'response_length': 18.0, 'gain': 0.002, 'lam': 0.5, 'accuracy': 0.75})
p.note('checkpoint [3]'); print('a stray print')
p.close(); p.close()
"""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    assert process.wait() == 0, output.decode()
    raw = output.decode()
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l"), "the cursor is back"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
    for expected in ("loading [1]", "BRIDGE", "3/4", "0.300", "▁▅█", "75.0%", "+0.0020", "left", "checkpoint [3]"):
        assert expected in text, expected
    assert text.count("a stray print") == 1


def test_numbers_as_text() -> None:
    assert [duration(s) for s in (-1, 4.21, 38.4, 59.7, 100, 7500, 273600)] == [
        "0.0s",
        "4.2s",
        "38s",
        "1m00s",
        "1m40s",
        "2h05m",
        "3d04h",
    ]
    assert [compact(n) for n in (0.05, 8.44, 850, 999.96, 1912, 12_345, 4.5e6)] == [
        "0.05",
        "8.4",
        "850",
        "1.0k",
        "1.9k",
        "12.3k",
        "4.5M",
    ]
    assert [signed(n) for n in (0.0021, -0.3, 0.0, 1.2e-6)] == ["+0.0021", "-0.3000", "+0.0000", "+1.2e-06"]


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000), 24)) == 24


OBEYED = "\x1b[2J\x1b]0;title\x07\r\b\x9b31m\u202e\u2066end\x7f"


def test_what_a_terminal_would_obey_is_shown_instead(capsys: pytest.CaptureFixture[str]) -> None:
    """Questions, golds, reasons and tensors' names are anybody's: none may move the cursor or colour a line green."""
    shown = visible(f"tab\tend\n{OBEYED} é ≤ 你好")
    hidden = r"\u001b[2J\u001b]0;title\u0007\u000d\u0008\u009b31m\u202e\u2066end\u007f"
    assert shown == f"tab\tend\n{hidden} é ≤ 你好"
    line = json.dumps({"text": OBEYED + "é"}, ensure_ascii=False)
    assert json.loads(visible(line)) == {"text": OBEYED + "é"}
    progress.say(OBEYED)
    with Progress(2) as view:
        view.note(OBEYED)
    out = capsys.readouterr().out
    assert out == f"{visible(OBEYED)}\n" * 2 and "\x1b" not in out
