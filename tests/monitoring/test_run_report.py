"""The figure and the report, of finished, unfinished and empty runs."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from math import comb
from pathlib import Path

import pytest
import typer
from matplotlib.container import ErrorbarContainer
from rich.console import Console
from typer.testing import CliRunner

from bridge_mcore.cli.report import report
from bridge_mcore.errors import BridgeError, ConfigError, DataError
from bridge_mcore.evaluation.records import Record, write_records
from bridge_mcore.monitoring import figure as figures
from bridge_mcore.monitoring.curves import ends, smooth, wilson
from bridge_mcore.monitoring.labels import model_labels, run_labels
from bridge_mcore.monitoring.report import draw_figure, summary_rows, summary_table
from bridge_mcore.monitoring.runs import facts, load_run
from tests.monitoring.synthetic import write_run

app = typer.Typer()
app.command()(report)


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def text(run_dirs: Path | list[Path]) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(summary_table(run_dirs))
    return console.file.getvalue()


def pixels(path: Path):
    from matplotlib.image import imread

    return imread(path)[:, :, :3]


def share_of(image, colour: str) -> float:
    """Share of the pixels that have this colour, nearly."""
    import numpy as np

    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(image - wanted).max(axis=2) < 0.02).mean())


def test_the_figure_holds_the_three_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = draw_figure(run, run / "figure.png")
    image = pixels(path)
    assert image.shape[1] >= 2000 and 1.5 < image.shape[1] / image.shape[0] < 4, "wide, and sharp on a slide"
    third = image.shape[1] // 3
    for i, colour in enumerate(figures._COLOURS[:3]):
        assert share_of(image[:, i * third : (i + 1) * third], colour) > 0.001
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_figures(tmp_path: Path, suffix: str) -> None:
    path = draw_figure(write_run(tmp_path / "run", steps=5, total=5), tmp_path / f"figure{suffix}")
    assert path.stat().st_size > 5000


def case(tmp_path: Path, name: str) -> list[Path]:
    long = {"path": "/models/A-very-long-model-name-of-70B-parameters-Instruct-with-a-suffix-and-another-suffix"}
    return {
        "quickstart": lambda: [write_run(tmp_path / "run")],
        "many evaluations": lambda: [write_run(tmp_path / "run", every=2)],
        "best is next to last": lambda: [write_run(tmp_path / "run", every=1, end=0.4)],
        "perfect": lambda: [write_run(tmp_path / "run", end=0.995, problems=64)],
        "hard": lambda: [write_run(tmp_path / "run", start=0.02, end=0.05, problems=1319, model=long)],
        "unfinished": lambda: [write_run(tmp_path / "run", steps=34, model=long)],
        "one step": lambda: [write_run(tmp_path / "run", steps=1)],
        "no step": lambda: [write_run(tmp_path / "run", steps=0)],
        "long": lambda: [write_run(tmp_path / "run", steps=1500, total=1500, every=100)],
        "three": lambda: [
            write_run(tmp_path / n, method=n, seed=i) for i, n in enumerate(("bridge", "rl_zero", "sft"))
        ],
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "quickstart",
        "many evaluations",
        "best is next to last",
        "perfect",
        "hard",
        "unfinished",
        "one step",
        "no step",
        "long",
        "three",
    ],
)
def test_no_text_of_a_figure_overlaps_or_leaves_it(tmp_path: Path, name: str) -> None:
    import matplotlib

    with matplotlib.rc_context(figures._STYLE):
        drawn = figures._draw([load_run(run) for run in case(tmp_path, name)])
        drawn.canvas.draw()
    shown = [t for t in drawn.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]
    # Ticks outside the limits are kept by matplotlib, but not drawn.
    for axis in drawn.axes:
        for side, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            hidden = [t.label1 for t in side.get_major_ticks() if not limits[0] <= t.get_loc() <= limits[1]]
            shown = [t for t in shown if t not in hidden]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    for i, (words, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= drawn.bbox.width and box.y1 <= drawn.bbox.height, words
        for others, other in boxes[i + 1 :]:
            assert not box.overlaps(other), (words, others)


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=2, total=2)
    with pytest.raises(ConfigError, match=r"ends in \.png, \.pdf or \.svg"):
        draw_figure(run, tmp_path / "figure.gif")
    with pytest.raises(BridgeError, match="cannot write the figure"):
        draw_figure(run, run / "config.yaml" / "figure.png")


def test_the_table_of_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "export").mkdir()
    summary = json.loads((run / "summary.json").read_text())
    shown = text(run)
    for key in ("accuracy_before", "accuracy_after"):
        assert f"{100 * summary[key]:.1f}%" in shown
    for expected in ("BRIDGE, λ 0.5", "60 of 60", "points", "1.9k", "4m50s", str(run / "export"), "small Qwen2"):
        assert expected in shown, expected
    assert "unfinished" not in shown and "checkpoints" not in shown and "verifier" not in shown


def test_an_unfinished_run_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=34)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "rew')
    printed = call(run)
    assert "34 of 60  (unfinished)" in printed and "at step 20" in printed and "Where the time went" in printed
    assert facts(load_run(run))["seconds"] == pytest.approx(34 * 4 + 6)
    assert (run / "figure.png").stat().st_size > 10_000


def test_a_run_that_goes_on_does_not_show_its_old_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=34)
    (run / "summary.json").write_text(json.dumps({"accuracy_before": 0.1, "accuracy_after": 0.99, "seconds": 1}))
    fact = facts(load_run(run))
    assert not fact["finished"] and fact["accuracy_after"] < 0.9 and fact["seconds"] > 100


def test_a_run_before_its_first_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=0)
    assert "0 of 60  (unfinished)" in call(run)


def test_a_run_with_metrics_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "accuracy": 0.5, "j_sft": null}\n')
    printed = call(tmp_path)
    assert "steps" in printed and "50.0% at step 2" in printed


def test_the_printed_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    printed = call(run)
    for expected in ("rollouts", "47%", "evaluation", "accuracy", "█", f"figure: {run / 'figure.png'}"):
        assert expected in printed, expected
    assert call(run, "--figure", tmp_path / "other.svg") and (tmp_path / "other.svg").exists()


def test_json_and_markdown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    numbers = json.loads(call(run, "--json"))
    assert numbers["steps"] == 60 and numbers["finished"] and numbers["figure"] == str(run / "figure.png")
    assert numbers["accuracy_change"] == pytest.approx(numbers["accuracy_after"] - numbers["accuracy_before"])
    assert numbers["seconds_per_phase"]["rollouts"] == pytest.approx(120)
    assert numbers["seconds_per_phase"]["other"] == pytest.approx(60 * 0.2)
    lines = call(run, "--markdown").strip().splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert {line.count("|") for line in lines} == {3}
    with pytest.raises(ConfigError, match="choose one"):
        call(run, "--markdown", "--json")


def test_several_runs_share_a_table_and_a_figure(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, method=name, seed=i) for i, name in enumerate(("bridge", "rl_zero", "sft"))]
    shown = text(runs)
    for expected in ("bridge (BRIDGE)", "rl_zero (RL-zero)", "sft (SFT)", "directory"):
        assert expected in shown, expected
    assert "comparison.png" in call(*runs)
    image = pixels(tmp_path / "comparison.png")
    for colour in figures._COLOURS[:3]:
        assert share_of(image, colour) > 0.001
    assert [fact["run"] for fact in json.loads(call(*runs, "--json"))] == [str(run) for run in runs]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", steps=3, total=3) for parent in ("a", "b")]
    labels = run_labels([load_run(run) for run in runs])
    assert len(set(labels)) == 2


def test_models_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = ["/runs/a/export", "/runs/b/export", "/models/x/Qwen", "/models/y/Qwen", "/models/y/Qwen", "Llama"]
    runs = [load_run(write_run(tmp_path / str(i), 1, 1, model={"path": path})) for i, path in enumerate(paths)]
    assert model_labels(runs) == ["a/export", "b/export", "x/Qwen", "y/Qwen", "y/Qwen", "Llama"]
    assert model_labels(runs[4:]) == ["Qwen", "Llama"]


def test_only_bridge_has_a_lambda_and_cold_start_has_two_stages(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, method=name) for name in ("bridge", "rl_zero", "sft", "cold_start")]
    rows = dict(summary_rows([load_run(run) for run in runs]))
    assert rows["method"] == ["BRIDGE, λ 0.5", "RL-zero", "SFT", "cold start: SFT to step 30, then RL"]
    assert [cell.endswith("(RL, from step 31)") for cell in rows["reward"]] == [False, False, False, True]
    assert [facts(load_run(run))["lam_last"] for run in runs] == [0.5, None, None, None]
    assert "λ" not in figures.describe(load_run(runs[1])) and "then RL" in figures.describe(load_run(runs[3]))


def test_the_gain_is_explained_where_there_is_one(tmp_path: Path) -> None:
    assert "above 0 is good" in " ".join(text(write_run(tmp_path / "a")).split())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    assert "is good" not in text(tmp_path)


def test_what_kept_a_run_from_learning_is_said_again(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, steps=3, total=3) for name in ("a", "b")]
    summary = json.loads((runs[0] / "summary.json").read_text())
    (runs[0] / "summary.json").write_text(json.dumps(summary | {"remarks": ["all are wrong", 3]}))
    assert "\nwarning: all are wrong\n" in call(runs[0]) and "warning" not in call(runs[1])
    assert "\nwarning: a (BRIDGE): all are wrong\n" in call(*runs)
    assert [fact["remarks"] for fact in json.loads(call(*runs, "--json"))] == [["all are wrong"], []]


def answer(directory: Path, step: int, right: Sequence[bool], first: int = 0) -> None:
    """Records of an evaluation, of problems that are numbered from `first`."""
    records = [
        Record("sums", f"{i}", 0, "1 + 1?", "2", "", "2", "correct" if good else "incorrect", "", 5, True)
        for i, good in enumerate(right, start=first)
    ]
    write_records(directory / "evaluations" / f"step_{step:08d}.jsonl", records)


def test_runs_with_records_are_compared_problem_by_problem(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = ("bridge", "sft", "none", "other")
    runs = [write_run(tmp_path / name, steps=20, total=20) for name in names]
    right = [[chance.random() < share for _ in range(100)] for share in (0.6, 0.3)]
    answer(runs[0], 20, right[0])
    answer(runs[0], 0, [False] * 100)  # another evaluation of the run: not its last
    answer(runs[1], 20, right[1])
    answer(runs[3], 20, right[1], first=1000)  # other problems
    rows = dict(summary_rows([load_run(run) for run in runs], ["", "x", "", ""]))
    assert list(rows).index("difference to bridge") == list(rows).index("change") + 1
    printed = [fact.get("difference") for fact in json.loads(call(*runs, "--json"))]
    assert printed[0] is None and printed[2]["benchmarks"] == printed[3]["benchmarks"] == {}
    found = printed[1]["benchmarks"]["sums"]
    expected = (sum(right[1]) - sum(right[0])) / 100
    assert found["value"] == pytest.approx(expected) and found["low"] <= expected <= found["high"]
    # McNemar's exact test is the same test, on one answer a problem.
    gained, lost = (sum(b == x and a != x for a, b in zip(*right, strict=True)) for x in (True, False))
    exact = min(1.0, 2 * sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost))
    assert found["p"] == pytest.approx(exact, abs=0.02)
    row = next(line for line in call(*runs, "--markdown").splitlines() if line.startswith("| difference to bridge"))
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells[1] == "" and cells[2].startswith(f"{100 * expected:+.1f} points  [") and "p " in cells[2]
    assert len(row.split("|")) == 7 and not any(cells[3:])


def test_intervals_of_several_runs_are_drawn(tmp_path: Path) -> None:
    runs = [load_run(write_run(tmp_path / str(i), every=20, seed=i)) for i in range(2)]
    crowded = [load_run(write_run(tmp_path / f"c{i}", every=2, seed=i)) for i in range(2)]
    for shown, bars in ((runs, 4), (crowded, 1)):
        accuracy = figures._draw(shown).axes[2]
        drawn = [c for c in accuracy.containers if isinstance(c, ErrorbarContainer)]
        assert [len(c[2][0].get_segments()) for c in drawn] == [bars, bars]
        assert any("95% interval" in t.get_text() for t in accuracy.texts)


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such directory.*holds metrics\.jsonl"):
        call(tmp_path / "missing")
    with pytest.raises(DataError, match=r"has no metrics\.jsonl.*bridge-mcore train.*config\.yaml"):
        call(tmp_path)
    run = write_run(tmp_path / "runs" / "quickstart", steps=2, total=2)
    with pytest.raises(DataError, match=f"Did you mean {run}"):
        call(tmp_path / "runs")
    with pytest.raises(DataError, match="is a file"):
        call(run / "metrics.jsonl")


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "a: [1"), ("summary.json", "{"), ("summary.json", "[]")])
def test_corrupt_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "run", steps=2, total=2)
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name):
        call(run)


def test_a_hub_snapshot_is_called_by_its_name(tmp_path: Path) -> None:
    path = "/cache/hub/models--Qwen--Qwen2.5-1.5B/snapshots/0123abcd"
    run = write_run(tmp_path / "run", steps=1, total=1, model={"path": path})
    assert load_run(run).model == "Qwen/Qwen2.5-1.5B"


def test_the_interval_is_wilsons() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 and 0 of 20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_smoothing_keeps_a_line_and_halves_noise_without_lag() -> None:
    steps = list(range(1, 61))
    assert smooth(steps, [2.0 * s for s in steps]) == pytest.approx([2.0 * s for s in steps])
    chance = random.Random(0)
    smoothed = smooth(steps, [s + chance.gauss(0, 5) for s in steps])
    assert max(abs(a - s) for a, s in zip(smoothed, steps, strict=True)) < 6
    assert sum(a - s for a, s in zip(smoothed, steps, strict=True)) / 60 == pytest.approx(0, abs=1.5)
    assert smooth([1, 2], [0.0, 1.0]) == [0.0, 1.0] and smooth([], []) == []


def test_ends_share_no_point() -> None:
    assert ends([]) == (None, None)
    assert ends([3.0]) == (3.0, 3.0)
    assert ends([0.0, 0.0, 1.0, 1.0]) == (0.0, 1.0)
    assert ends([float(i) for i in range(100)]) == (4.5, 94.5)


def test_sets_of_their_own_period_are_all_in_the_table(tmp_path: Path) -> None:
    """Not every evaluation has every set, and one without an accuracy is no point of the curve."""
    run = write_run(tmp_path / "run", steps=3, total=9)
    lines = [
        {"step": 0, "accuracy": 0.25, "sets": {"main": 0.25, "rare": 0.125}, "problems": 8},
        {"step": 2, "accuracy": 0.5, "sets": {"main": 0.5}, "problems": 8},
        {"step": 3, "accuracy": None, "sets": {"rare": 0.75}, "problems": None},
    ]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "metrics.jsonl").write_text('{"step": 3, "reward": 0.5}\n')
    found = facts(load_run(run))
    assert found["sets_before"] == {"main": 0.25, "rare": 0.125} and found["sets_after"] == {"main": 0.5, "rare": 0.75}
    assert (found["accuracy_after"], found["accuracy_after_step"]) == (0.5, 2)
    assert "12.5% → 75.0%" in text(run) and "25.0% → 50.0%" in text(run)
    assert draw_figure(run, run / "figure.png").is_file()
