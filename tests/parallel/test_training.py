"""Whole steps, generation included, in every layout against one process; resumes across layouts; lost ranks."""

from __future__ import annotations

import random
import time

import psutil
import pytest
from safetensors.torch import load_file

from tests.training.test_runs import config_for, metrics_of, run, start

#: Four layers, so that two stages may hold two chunks each.
FOUR_LAYERS = {"layers: 1": "layers: 4", "steps: 80": "steps: 40", "training: {steps: 8": "training: {steps: 5"}
QUIET = ("evaluation.every=0", "evaluation.before=false", "evaluation.after=false", "checkpoint.every=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five steps in one process."""
    tmp_path = tmp_path_factory.mktemp("whole")
    run(config_for(tmp_path / "run", tmp_path, **FOUR_LAYERS), *QUIET)
    return tmp_path / "run"


def agree(ours: list[dict], theirs: list[dict]) -> None:
    """The same answers are sampled and verified, and the rest agrees within the fp32 rounding of AdamW steps."""
    for mine, one in zip(ours, theirs, strict=True):
        for name in ("step", "reward", "response_length", "truncated", "groups_with_signal"):
            assert mine[name] == one[name], name
        for name in ("j_sft", "j_rl", "j_rl_auxiliary", "kl", "entropy", "grad_norm_theta", "grad_norm_w"):
            assert mine[name] == pytest.approx(one[name], rel=2e-3, abs=1e-6), (mine["step"], name)


@pytest.mark.parametrize("chosen", [(0, 1, 2), pytest.param((0, 1, 2, 3, 4), marks=pytest.mark.slow)], ids=len)
def test_every_layout_goes_on_where_another_stopped(whole, tmp_path, chosen):
    """Each step in another layout, resumed from the checkpoint of the last one: the metrics are those of one process.

    The embedded engine generates in all of them: over stages and their chunks, with sequence parallelism switched off
    while it decodes, with context-parallel ranks as replicas.
    """
    directory = tmp_path / "run"
    path = config_for(directory, tmp_path, **FOUR_LAYERS)
    overlap = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
    offload = ("slots.theta_hat.offload=pinned_cpu", "slots.reference.offload=pinned_cpu")
    layouts = (
        # One problem for two replicas: one of them has nothing to generate.
        ("parallel.data=2", *overlap, "evaluation.before=true", "data.evaluation.0.size=1"),
        ("parallel.pipeline=2", "parallel.virtual_pipeline=2", *offload),
        ("parallel.tensor=2", "parallel.sequence=true"),
        ("parallel.context=2", *offload),
        offload,
    )
    for steps, layout in enumerate((layouts[i] for i in chosen), 1):
        out = run(path, *QUIET, f"training.steps={steps}", "run.resume=auto", *layout)
        assert (steps == 1) != ("resuming from" in out)
    agree(metrics_of(directory), metrics_of(whole)[: len(chosen)])
    if len(chosen) == 5:
        ours, theirs = (load_file(d / "export" / "model.safetensors") for d in (directory, whole))
        assert ours.keys() == theirs.keys()
        assert all((ours[k] - theirs[k]).abs().max() < 1e-3 for k in theirs)  # five AdamW steps of up to 3e-3 each
    out = run(path, *QUIET, "run.resume=auto", "parallel.data=2", "optimizer.name=sgd", code=2)
    assert out.count("error:") == 1  # both ranks find it, one says it


@pytest.mark.parametrize(
    "sizes",
    [("parallel.data=2",), pytest.param(("parallel.tensor=2", "parallel.data=2"), marks=pytest.mark.slow)],
    ids=["dp2", "tp2-dp2"],
)
def test_one_rank_is_killed_and_the_resumed_run_is_exact(tmp_path, seed, sizes):
    """SIGKILL of a random rank at a random moment: it is named, the run ends within a minute, nothing is left over,
    and the resumed run ends with the metrics and weights of one that nobody disturbed."""
    layout, count = (*sizes, "training.steps=3"), 2 ** len(sizes)
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "run"
    run(config_for(undisturbed, tmp_path, **FOUR_LAYERS), *QUIET, *layout)
    rng = random.Random(seed)
    process = start(config_for(directory, tmp_path, **FOUR_LAYERS), *QUIET, *layout)
    launcher = psutil.Process(process.pid)
    deadline = time.time() + 200
    while time.time() < deadline and not (directory / "metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 2.0))
    ranks = sorted(
        (c for c in launcher.children() if "bridge_mcore.launch.worker" in c.cmdline()),
        key=lambda c: int(c.environ()["RANK"]),
    )
    if ranks:  # it may have ended by now
        assert len(ranks) == count
        victim = rng.randrange(count)
        ranks[victim].kill()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1, out
        assert f"rank {victim} of {count} was killed by SIGKILL" in out and "report it" not in out
        assert not any(r.is_running() and r.status() != psutil.STATUS_ZOMBIE for r in ranks)
    process.wait(60)
    run(directory.with_suffix(".yaml"), *QUIET, *layout, "run.resume=auto")
    assert metrics_of(directory) == metrics_of(undisturbed)
    ours, theirs = (load_file(d / "export" / "model.safetensors") for d in (directory, undisturbed))
    assert all((ours[k] == theirs[k]).all() for k in theirs)
