"""Whole runs with a real SGLang server: equal to the embedded engine's, schedules, resume, debug modes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.servers import ROOT, python_of, real_server

PROMPTS, SAMPLES = 4, 3
SETTINGS = (
    "model.generated=", f"training.prompts_per_step={PROMPTS}", "training.traces_per_step=4",
    f"rollout.samples_per_prompt={SAMPLES}", "data.evaluation=[]", "evaluation={}", "evaluation.before=false",
    "evaluation.after=false", "debug.save_rollouts=true", "checkpoint.every=0", "checkpoint.export_adapter=false",
    "monitoring.figure=false",
)  # fmt: skip


def start(module: str, directory: Path, *arguments: str) -> str:
    """Run a module to its end; what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_suffix(".out"), "a+") as out:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=400, env=environment)
        out.seek(0)
        text = out.read()
    assert done.returncode == 0, text[-4000:]
    return text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model, hardly trained."""
    directory = tmp_path_factory.mktemp("made") / "run"
    start(
        "bridge_mcore", directory, "train", "examples/quickstart.yaml", f"run.directory={directory}",
        "model.generated.warm_start.steps=180", "training.steps=1", *SETTINGS[1:],
    )  # fmt: skip
    return directory / "base"


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real SGLang server of it."""
    with real_server(model, tmp_path_factory.mktemp("server"), context=512) as running:
        yield running.url


def train(model: Path, directory: Path, server: str, *overrides: str) -> list[dict[str, float]]:
    """A run against the server; its metrics."""
    start(
        "bridge_mcore", directory, "train", "examples/quickstart.yaml", f"run.directory={directory}", *SETTINGS,
        f"model.path={model}", "rollout.engine=sglang", "servers.mode=external", f"servers.urls=[{server}]", *overrides,
    )  # fmt: skip
    return metrics_of(directory)


def metrics_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def rows_of(directory: Path, step: int) -> list[dict]:
    return [json.loads(r) for r in (directory / f"rollouts/step_{step:08d}.jsonl").read_text().splitlines()]


def test_ten_steps_equal_those_of_the_embedded_engine(model: Path, tmp_path: Path) -> None:
    """A managed server, and then the embedded engine made to sample the same tokens.

    SGD, because AdamW's first steps turn rounding into signs. Tolerance: 1e-4 of the largest update of any weight, as
    rounding grows from step to step.
    """
    common = (
        *SETTINGS, f"model.path={model}", "training.steps=10", "optimizer.name=sgd", "optimizer.alpha=0.2",
        "optimizer.beta=0.4", "optimizer.schedule=constant", "optimizer.warmup_steps=0",
    )  # fmt: skip
    served, forced = tmp_path / "served", tmp_path / "forced"
    start(
        "bridge_mcore", served, "train", "examples/quickstart.yaml", f"run.directory={served}", *common,
        "rollout.engine=sglang", f"servers.python={python_of('sglang')}", "servers.in_flight=12",
    )  # fmt: skip
    start(
        "tests.training.forced_job", forced, str(served / "rollouts"), "examples/quickstart.yaml",
        f"run.directory={forced}", *common,
    )  # fmt: skip
    a, b = metrics_of(served), metrics_of(forced)
    assert len(a) == len(b) == 10
    assert sum(m["groups_with_signal"] > 0 for m in a) >= 1, "no step had anything to learn from"
    for x, y in zip(a, b, strict=True):
        assert x["reward"] == y["reward"] and x["response_length"] == y["response_length"]
        assert x["logprob_gap_max"] <= 3e-5  # one rare token of 1,000, at logits of 10 and more
        for name in ("j_rl", "j_rl_auxiliary", "j_sft", "grad_norm_theta", "grad_norm_theta_hat", "grad_norm_w"):
            assert abs(x[name] - y[name]) <= 1e-4 * max(abs(y[name]), 1), (x["step"], name)
    start_weights = load_file(model / "model.safetensors")
    ours, theirs = (load_file(d / "export" / "model.safetensors") for d in (served, forced))
    update = max(np.abs(theirs[n] - start_weights[n]).max() for n in theirs)
    assert update > 1e-2
    assert max(np.abs(ours[n] - theirs[n]).max() for n in theirs) <= 1e-4 * update


def test_one_step_off_resumes_with_the_batch_that_was_under_way(model: Path, server: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    schedule = ("rollout.schedule=one_step_off", "training.steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    metrics = train(model, directory, server, *schedule)
    assert [m["staleness"] for m in metrics] == [0, 1, 1, 1]
    assert all(m["rollouts_stale"] == 0 and m["sync_probe_gap"] <= 1e-5 for m in metrics if "sync_probe_gap" in m)
    third = rows_of(directory, 3)
    other = tmp_path / "again"
    resumed = train(model, other, server, *schedule, f"run.resume={directory / 'checkpoints' / 'step_00000002'}")
    assert [m["step"] for m in resumed] == [3, 4]
    assert rows_of(other, 3) == third, "the batch that was under way at the checkpoint is trained on, bit for bit"
    assert resumed[0]["j_rl"] == metrics[2]["j_rl"] and resumed[0]["grad_norm_w"] == metrics[2]["grad_norm_w"]


@pytest.mark.slow
def test_an_evaluation_beside_rollouts_is_of_its_steps_weights(model: Path, server: str, tmp_path: Path) -> None:
    """Answers that were given while the next batch was under way: those of the step's checkpoint, embedded."""
    rows = [(f"Q:a{i}b{j}c2A:", str(i + j + 2)) for i in range(1, 5) for j in range(1, 4)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in rows))
    run = tmp_path / "run"
    metrics = train(
        model, run, server, "rollout.schedule=one_step_off", "training.steps=4", "checkpoint.every=1",
        "evaluation.every=1", "checkpoint.keep=9", "optimizer.alpha=2e-3", "optimizer.warmup_steps=0",
        f"data.evaluation=[{{path: {file}, name: sums}}]",
    )  # fmt: skip
    assert [m["staleness"] for m in metrics] == [0, 1, 1, 1]
    assert all(m["rollouts_stale"] == 0 and "accuracy" in m for m in metrics[:3])
    answers = [evaluated(run / f"evaluations/step_{step:08d}.jsonl") for step in (1, 2, 3)]
    assert len({tuple(a.items()) for a in answers}) > 1, "the steps cannot be told apart"
    for step, found in enumerate(answers, 1):
        start(
            "bridge_mcore", tmp_path / f"eval{step}", "eval", f"it={run}/checkpoints/step_{step:08d}", "--data",
            str(file), "--template", "plain", "--max-new-tokens", "24", "--output", str(tmp_path / f"eval{step}"),
        )  # fmt: skip
        (records,) = (tmp_path / f"eval{step}/it/records").iterdir()
        assert evaluated(records) == found, step


def evaluated(path: Path) -> dict[str, tuple[str, str]]:
    """Problem -> (response, verdict) of an evaluation's records."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {r["prompt"]: (r["response"], r["verdict"]) for r in records}


def test_partial_rollouts_go_on_across_updates(model: Path, server: str, tmp_path: Path) -> None:
    metrics = train(
        model, tmp_path / "run", server, "rollout.schedule=partial", "training.steps=5", "rollout.over_sampling=1",
        "rollout.correction=truncated", "checkpoint.every=3",
    )  # fmt: skip
    assert len(metrics) == 5 and metrics[0]["staleness"] == 0
    assert any(m["staleness"] > 0 for m in metrics[1:])
    for m in metrics:
        rows = rows_of(tmp_path / "run", m["step"])
        groups = [tuple(r["tokens"][: r["prompt_length"]]) for r in rows]
        assert len(rows) == PROMPTS * SAMPLES and all(groups.count(g) == SAMPLES for g in groups)
        assert 0 <= m["correction_cut"] <= 1
    answers = [tuple(r["tokens"]) for m in metrics for r in rows_of(tmp_path / "run", m["step"])]
    prompts = {tuple(r["tokens"][: r["prompt_length"]]) for m in metrics for r in rows_of(tmp_path / "run", m["step"])}
    assert len(prompts) == 5 * PROMPTS and len(answers) == 5 * PROMPTS * SAMPLES, "a prompt was lost or came twice"
    resumed = train(
        model, tmp_path / "again", server, "rollout.schedule=partial", "training.steps=5", "rollout.over_sampling=1",
        f"run.resume={tmp_path / 'run' / 'checkpoints' / 'step_00000003'}",
    )  # fmt: skip
    assert [m["step"] for m in resumed] == [4, 5]
    seen = {tuple(r["tokens"][: r["prompt_length"]]) for step in (1, 2, 3) for r in rows_of(tmp_path / "run", step)}
    after = {tuple(r["tokens"][: r["prompt_length"]]) for step in (4, 5) for r in rows_of(tmp_path / "again", step)}
    assert not seen & after and len(after) == 2 * PROMPTS, "prompts under way at the checkpoint are asked again"


def test_debug_modes(model: Path, server: str, tmp_path: Path) -> None:
    """Rollouts only; training on them without a server; weights only, with proof."""
    only = tmp_path / "rollouts"
    rolled = train(model, only, server, "debug.only=rollouts", "training.steps=2")
    assert len(rolled) == 2 and "grad_norm_theta" not in rolled[0] and len(rows_of(only, 2)) == PROMPTS * SAMPLES
    assert not (only / "checkpoints").exists() or not any((only / "checkpoints").iterdir())
    trained = train(
        model, tmp_path / "training", "http://127.0.0.1:9", "debug.only=training", "training.steps=1",
        f"debug.rollouts={only / 'rollouts'}",
    )  # fmt: skip
    assert trained[0]["reward"] == rolled[0]["reward"] and trained[0]["grad_norm_theta"] > 0
    assert trained[0]["logprob_gap_max"] <= 1e-5
    sent = train(model, tmp_path / "sync", server, "debug.only=sync", "training.steps=3", "sync.method=distributed")
    assert len(sent) == 3 and all(m["sync_mib"] > 0 and m["sync_probe_gap"] <= 1e-5 for m in sent)
