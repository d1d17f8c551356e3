"""The self-test: a real short run, what it says of wrong numbers, and what becomes of ranks that hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bridge_mcore.config.parallel import parallel_problems, world_problems, world_size
from bridge_mcore.errors import ConfigError
from bridge_mcore.launch.local import selftest_arguments
from bridge_mcore.platform.ranks import free_port
from bridge_mcore.selftest.compare import Comparison, Reference, judge, metric_difference
from bridge_mcore.selftest.layouts import all_layouts, checkpoint_pairs
from bridge_mcore.selftest.models import MODELS
from bridge_mcore.selftest.options import SHAPES, SelftestOptions
from bridge_mcore.selftest.results import Results, Row, ranks_text, read_lost
from bridge_mcore.selftest.validate import check_selftest

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "bridge_mcore", "selftest", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_a_short_run(tmp_path: Path) -> None:
    """One row of each kind in two processes. The same names would choose the same rows of the whole test."""
    names = "environment,all_reduce,tp2-sp,dp2-distopt,tp2-sp>pp2"
    done = command("--only", names, "--json", tmp_path / "out.json", "--directory", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["section"], row["name"]): row for row in found["rows"]}
    assert found["ok"] and set(rows) == {
        ("layouts", "one"), ("environment", "environment"), ("collectives", "all_reduce"), ("layouts", "tp2-sp"),
        ("layouts", "dp2-distopt"), ("generation", "tp2-sp"), ("checkpoint", "tp2-sp>pp2"),
    }  # fmt: skip
    assert all(row["status"] == "ok" for row in rows.values())
    layout = rows["layouts", "tp2-sp"]
    # another order of sums: near to one process, and not by comparing it with itself
    assert all(0 < layout[key] < 1e-4 for key in ("theta", "theta_hat", "w", "loss"))
    assert layout["processes"] == 2 and layout["seconds"] > 0 and layout["memory_gib"] > 0
    assert "│ tp2-sp " in done.stdout and "7 ok" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json"]  # nothing is left behind


# --- wrong numbers


def reference() -> Reference:
    torch.manual_seed(0)
    out = Reference(metrics=[{"j_sft": -2.0, "grad_norm_w": 3.0}])
    for group in ("theta", "theta_hat", "w"):
        for name in ("a", "b"):
            before = torch.randn(50, 40)
            out.add(group, name, before + 1e-3 * torch.randn(50, 40), before)
    return out


def compared(wanted: Reference, change: dict[tuple[str, str], float], **metrics: float) -> Row:
    comparison = Comparison(wanted)
    for group, tensors in wanted.tensors.items():
        for name, tensor in tensors.items():
            comparison.take(group, name, tensor + change.get((group, name), 0.0))
    row = Row("layouts", "tp2", 2, "float32")
    judge(row, comparison, [{**wanted.metrics[0], **metrics}])
    return row


class TestComparison:
    def test_equal(self) -> None:
        row = compared(reference(), {})
        assert row.status == "ok" and row.theta == row.theta_hat == row.w == row.loss == 0.0

    def test_an_altered_tensor(self) -> None:
        row = compared(reference(), {("theta_hat", "b"): 1e-5})
        assert row.status == "FAIL" and row.theta == 0.0 and row.theta_hat == pytest.approx(0.7e-2, rel=0.1)
        assert "updates differ by theta_hat 7" in row.detail
        assert "biggest difference is in theta_hat b: 1.0e-02" in row.detail

    def test_a_small_tensor_does_not_hide(self) -> None:
        wanted = reference()
        before = torch.zeros(4)
        wanted.add("w", "small", before + 1e-6, before)
        row = compared(wanted, {("w", "small"): 1e-8})
        assert row.status == "FAIL" and row.w < 1e-4 and "w small: 1.0e-02" in row.detail

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float) -> None:
        row = compared(reference(), {("w", "a"): value})
        assert row.status == "FAIL" and "in w a" in row.detail

    def test_a_metric(self) -> None:
        row = compared(reference(), {}, grad_norm_w=3.1)
        assert row.status == "FAIL" and "grad_norm_w of iteration 1: 3.1 instead of 3.0" in row.detail
        assert metric_difference([{"j_sft": float("nan")}], [{"j_sft": 1.0}])[1]

    def test_what_is_missing(self) -> None:
        comparison = Comparison(reference())
        comparison.take("theta", "a", torch.zeros(3))
        row = Row("layouts", "tp2", 2, "float32")
        judge(row, comparison, [])
        assert "theta a has the shape (3,)" in row.detail and "6 tensors have not come" in row.detail

    def test_a_failed_row_fails_the_test(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        results = Results()
        results.add(Row("layouts", "dp2", 2, "float32"))
        assert results.ok
        results.add(compared(reference(), {("theta", "a"): 1e-5}))
        results.finish(tmp_path / "out.json")
        assert not results.ok and not json.loads((tmp_path / "out.json").read_text())["ok"]
        assert "✗ tp2 float32" in (text := capsys.readouterr().out) and "1 ok, 1 FAIL" in text

    def test_a_failed_row_gives_exit_code_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from bridge_mcore.selftest import run

        monkeypatch.setattr(run, "selftest", lambda options: False)
        with pytest.raises(SystemExit, match="1"):
            run.run_ranks(SelftestOptions())


# --- ranks that hang


def hang(scratch: Path, kind: str) -> tuple[list[int], str]:
    """Exit codes of two ranks, and what they printed."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    line = [sys.executable, "-m", "tests.selftest.hang_job", str(scratch), kind]
    with open(scratch / "log", "w+") as log:
        ranks = [
            subprocess.Popen(line, cwd=ROOT, env=environment | {"RANK": str(r)}, stdout=log, stderr=log) for r in (0, 1)
        ]
        deadline = time.monotonic() + 120
        try:
            # as the launcher does: once a rank has ended badly, the others are ended
            while all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
                time.sleep(0.05)
            while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
                if any(rank.poll() for rank in ranks):
                    time.sleep(0.5)
                    break
                time.sleep(0.05)
        finally:
            for rank in ranks:
                rank.kill()
        codes = [rank.wait() for rank in ranks]
    return codes, (scratch / "log").read_text()


class TestHang:
    def test_a_rank_that_hangs(self, tmp_path: Path) -> None:
        codes, text = hang(tmp_path, "hang")
        assert 4 in codes, text
        rows = read_lost(tmp_path, "?", 2)
        assert [row.name for row in rows] == ["good", "bad"] and rows[-1].status == "FAIL"
        # (in a self-test the innermost function of the package is the one that says most; here it is the runner)
        assert "ranks 0-1 stuck: in " in rows[-1].detail and "called by run (rows.py:" in rows[-1].detail
        assert "rank 1 is stuck in bad:" in text and "time.sleep(600)" in text
        assert "rank 0 is stuck in bad:" in text and "in all_reduce" in text

    def test_a_rank_that_fails_alone(self, tmp_path: Path) -> None:
        codes, text = hang(tmp_path, "raise")
        assert codes[1] == 4, text
        lost = read_lost(tmp_path, "?", 2)[-1]
        assert lost.name == "bad" and "rank 1 failed: BridgeError: no memory left" in lost.detail

    def test_all_fail_and_the_next_row_runs(self, tmp_path: Path) -> None:
        codes, text = hang(tmp_path, "all")
        assert codes == [0, 0], text
        assert "✗ bad" in text and "BridgeError: every rank sees this" in text and "✓ next" in text

    def test_killed_without_a_word(self, tmp_path: Path) -> None:
        results = Results(tmp_path)
        results.begin("tp2 float32")
        row = read_lost(tmp_path, "rank 1 of 2 was killed by SIGKILL", 2)[-1]
        assert (row.name, row.detail) == ("tp2 float32", "rank 1 of 2 was killed by SIGKILL")


# --- layouts and options


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8, 16, 24, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_fit(world: int, shape: str) -> None:
    layouts = all_layouts(SelftestOptions(model_shape=shape), world)
    for layout in [*layouts, *(x for pair in checkpoint_pairs(world) for x in pair)]:
        assert world_size(layout.parallel) == world
        assert not [*parallel_problems(layout.parallel, layout.model.sizes), *world_problems(layout.parallel, world)]
    names = [layout.name for layout in layouts]
    assert len(set(names)) == len(names)
    if world == 2:
        assert names[:8] == [
            "tp2", "tp2-sp", "pp2", "pp2-vpp2", "cp2-distopt", "dp2", "dp2-distopt", "dp2-overlap"
        ]  # fmt: skip
    if world == 4:
        assert {"tp2-pp2", "tp2-sp-dp2-distopt", "moe-tp2-sp-ep2-dp2-distopt"} <= set(names)


def test_options_reach_the_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bridge_mcore.cli.main import main

    seen: list[SelftestOptions] = []
    monkeypatch.setattr("bridge_mcore.launch.local.run_selftest", seen.append)
    monkeypatch.setattr("bridge_mcore.selftest.validate.gpu_memories", lambda: [80] * 8)
    options = SelftestOptions(
        "cuda", 4, "3b", ("bfloat16",), ("tp2-pp2", "slots"), tmp_path / "o.json", 7.0, None, tmp_path
    )
    with pytest.raises(SystemExit, match="0"):
        main(selftest_arguments(options, tmp_path))
    assert seen == [options]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SelftestOptions(only=("tp2-so",)), "did you mean 'tp2-sp'?"),
        (SelftestOptions(dtypes=("float16",)), "--dtype float16: choose float32"),
        (SelftestOptions("cuda", 9), "this machine shows 8; say --gpus 8"),
        (SelftestOptions(json=Path("/gone/x.json")), "--json: /gone is not a directory"),
    ],
)
def test_bad_options(monkeypatch: pytest.MonkeyPatch, options: SelftestOptions, message: str) -> None:
    monkeypatch.setattr("bridge_mcore.selftest.validate.gpu_memories", lambda: [80] * 8)
    with pytest.raises(ConfigError) as error:
        check_selftest(options)
    assert message in str(error.value)


def test_shapes_are_qwen25() -> None:
    """Parameters as published: 1.54, 3.09 and 7.62 billion."""
    sizes = {shape: MODELS[shape].sizes.parameters() for shape in SHAPES}
    assert [round(sizes[s].total / 1e9, 2) for s in ("1.5b", "3b", "7b")] == [1.54, 3.09, 7.62]


def test_ranks_text() -> None:
    assert ranks_text([3, 0, 1, 2, 6]) == "0-3, 6"
