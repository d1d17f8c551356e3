"""metrics.jsonl, evaluation.jsonl and TensorBoard: what is written is read back, whatever happened in between."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge_mcore.errors import DataError, TrainingError
from bridge_mcore.monitoring.metrics import MetricsWriter, read_evaluations, read_metrics


def fill(directory: Path, steps: int, tensorboard: bool = False) -> None:
    with MetricsWriter(directory, tensorboard, resume_step=None) as writer:
        writer.write_evaluation(0, {"accuracy": 0.25, "sets": {"a": 0.25}, "problems": 8})
        for step in range(1, steps + 1):
            writer.write(step, {"reward": step / 10})
            if step % 2 == 0:
                writer.write_evaluation(step, {"accuracy": step / 10, "sets": {"a": step / 10}, "problems": 8})


def test_round_trip_keeps_every_digit_and_puts_the_step_first(tmp_path: Path) -> None:
    values = {"reward": 0.1 + 0.2, "kl": 1e-300, "groups_with_signal": 3, "note": "λ", "accuracy": None}
    with MetricsWriter(tmp_path / "run", False, None) as writer:
        writer.write(1, values)
        assert read_metrics(tmp_path / "run") == [{"step": 1} | values], "a line is on disk once it is written"
        writer.write_evaluation(1, {"accuracy": 0.5, "sets": {"gsm8k": 0.5}, "problems": 10})
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith('{"step": 1, "reward": 0.30000000000000004')
    assert read_evaluations(tmp_path / "run") == [{"step": 1, "accuracy": 0.5, "sets": {"gsm8k": 0.5}, "problems": 10}]


def test_what_json_cannot_hold_is_null_and_scalars_of_arrays_are_numbers(tmp_path: Path) -> None:
    import numpy as np

    with MetricsWriter(tmp_path, False, None) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5), "e": np.float64("nan")})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 0.5, "e": None}


def test_resume_removes_later_lines_of_both_files(tmp_path: Path) -> None:
    fill(tmp_path, steps=5)
    with MetricsWriter(tmp_path, False, resume_step=3) as writer:
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
        assert [line["step"] for line in read_evaluations(tmp_path)] == [0, 2]
        writer.write(4, {"reward": 9.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert read_metrics(tmp_path)[-1]["reward"] == 9.0
    assert sorted(os.listdir(tmp_path)) == ["evaluation.jsonl", "metrics.jsonl"], "no temporary file stays"


def test_resume_after_all_lines_leaves_the_bytes_alone(tmp_path: Path) -> None:
    fill(tmp_path, steps=3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(tmp_path, False, resume_step=3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("torn", [b'{"step": 4, "rew', b'{"step"', b"\x00\x00\x00", b"{"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    fill(tmp_path, steps=3)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    with MetricsWriter(tmp_path, False, resume_step=3) as writer:
        writer.write(4, {"reward": 0.4})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    fill(tmp_path, steps=3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with MetricsWriter(tmp_path, False, resume_step=3) as writer:
        writer.write(4, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path) -> None:
    fill(tmp_path, steps=3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:7], lines[2], ""]))
    for use in (lambda: read_metrics(tmp_path), lambda: MetricsWriter(tmp_path, False, resume_step=3)):
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not valid JSON"):
            use()
    path.write_text(lines[0] + '\n{"reward": 1}\n')
    with pytest.raises(DataError, match=r"line 2: not an object with an integer \"step\""):
        read_metrics(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_metrics, read_evaluations):
        with pytest.raises(DataError, match=r"no such file.*run directory"):
            read(tmp_path)


def test_a_new_run_puts_an_earlier_attempt_aside(tmp_path: Path) -> None:
    fill(tmp_path, steps=3)
    MetricsWriter(tmp_path, False, resume_step=None).close()
    assert read_metrics(tmp_path) == []
    assert len((tmp_path / "metrics.jsonl.previous").read_text().splitlines()) == 3


def test_of_two_evaluations_of_a_step_the_last_counts(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, False, None) as writer:
        writer.write_evaluation(2, {"accuracy": 0.1})
        writer.write_evaluation(2, {"accuracy": 0.2})
    assert read_evaluations(tmp_path) == [{"step": 2, "accuracy": 0.2}]


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    fill(tmp_path, steps=3)
    path = tmp_path / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = MetricsWriter(tmp_path, False, resume_step=3)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))  # room for five bytes of the line
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot write metrics"):
            writer.write(4, {"reward": 0.4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.close()
    assert path.read_bytes().endswith(b"}\n")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write metrics there"):
        MetricsWriter(tmp_path / "file" / "run", False, None)


def test_a_killed_writer_loses_at_most_the_line_it_wrote(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; from bridge_mcore.monitoring.metrics import MetricsWriter\n"
        "w = MetricsWriter(Path(sys.argv[1]), False, None)\n"
        "for step in itertools.count(1): w.write(step, {'x' * 50: step})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    path = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 5000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 50


def test_tensorboard_has_the_scalars_and_resume_purges_later_ones(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(tmp_path, steps=5, tensorboard=True)
    time.sleep(1.1)  # event files are named by the second, and read in that order
    with MetricsWriter(tmp_path, True, resume_step=3) as writer:
        writer.write(4, {"reward": 40.0, "seconds_rollout": 2.0, "gain": math.nan, "note": "text"})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("train/reward")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 40.0),
    ]
    assert [e.step for e in events.Scalars("evaluation/accuracy")] == [0, 2]
    assert "seconds/rollout" in events.Tags()["scalars"] and "objective/gain" not in events.Tags()["scalars"]
