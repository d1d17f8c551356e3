"""``bridge-mcore replay`` against the independent float64 reference in tests/reference.

A group's error is ||ours - reference|| / ||reference's update||. Float32 arithmetic alone gives about 1e-6 with SGD
and 1e-5 with AdamW at eps 1e-5 (a fresh AdamW step is nearly the gradient's sign, so a smaller eps lets rounding flip
entries). REPLAY_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference.algorithm2 import Result, Tensors, load_policy, norm, run_reference, split_parameters
from tests.reference.cases import ADAMW, SGD, make_case

ROOT = Path(__file__).resolve().parents[1]
SEED = int(os.environ.get("REPLAY_SEED") or random.SystemRandom().randrange(10**6))
TOLERANCE = {"sgd": 1e-4, "adamw": 5e-4}
DIRECTORIES = {"theta": "model", "theta_hat": "auxiliary", "w": "adapter"}


@dataclass(frozen=True)
class Case:
    """Arguments of make_case and the micro-batch sizes to replay it with (None: the default)."""

    family: str
    optimizer: dict[str, Any]
    micro_batch_sizes: tuple[int | None, ...]
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "qwen2-sgd-kl": Case("qwen2", SGD, (1, 4), {"kl_coefficient": 0.1}),
    "qwen2-adamw-no-auxiliary": Case("qwen2", ADAMW, (3,), {"auxiliary": False, "kl_coefficient": 0.1}),
    "untied-adamw-rslora-clip-pair": Case(
        "qwen2_untied", ADAMW, (None,), {"use_rslora": True, "clip_range": [0.2, 0.28], "kl_coefficient": 0.1}
    ),
    "llama-sgd-kl-qv": Case("llama", SGD, (2,), {"target_modules": ("q_proj", "v_proj"), "kl_coefficient": 0.1}),
    "llama-adamw-b-zero-decay-1d": Case(
        "llama", ADAMW | {"weight_decay_1d": True}, (5,), {"lora_b_zero": True, "kl_coefficient": 0.1}
    ),
    "qwen3-sgd-gradient-clip": Case("qwen3", SGD, (2,), {"gradient_clip": 0.5, "kl_coefficient": 0.1}),
    "qwen3-adamw": Case("qwen3", ADAMW, (64,)),
}


def replay(case: Path, out: Path, micro_batch_size: int | None) -> None:
    """Runs the command line."""
    command = [sys.executable, "-m", "bridge_mcore", "replay", str(case), str(out)]
    if micro_batch_size is not None:
        command += ["--micro-batch-size", str(micro_batch_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def read_tensors(directory: Path) -> Tensors:
    """All tensors of a checkpoint, checked to be float32; a tied lm_head that was written anyway is dropped."""
    tensors: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    assert tensors, f"no safetensors in {directory}"
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    config = directory / "config.json"
    if config.exists() and json.loads(config.read_text()).get("tie_word_embeddings") and "lm_head.weight" in tensors:
        assert torch.equal(tensors.pop("lm_head.weight"), tensors["model.embed_tokens.weight"])
    return tensors


def relative_error(ours: Tensors, reference: Result, group: str) -> float:
    """||ours - reference|| / ||update|| of a group."""
    expected: Tensors = getattr(reference, group)
    assert ours.keys() == expected.keys(), sorted(ours.keys() ^ expected.keys())
    assert all(ours[name].shape == expected[name].shape for name in expected)
    return norm({name: ours[name].double() - expected[name] for name in expected}) / norm(reference.update(group))


def check_metrics(out: Path, expected: dict[str, float], optimizer: str) -> None:
    """metrics.json within 1e-5, or 1e-6 of the objectives' unit where J_RL cancels to almost nothing."""
    metrics = json.loads((out / "metrics.json").read_text())
    assert expected.keys() <= metrics.keys(), sorted(expected.keys() - metrics.keys())
    for key, value in expected.items():
        relative = 1e-4 if key.startswith("update") and optimizer == "adamw" else 1e-5
        assert metrics[key] == pytest.approx(value, rel=relative, abs=1e-6), key


def check_configs(case: Path, out: Path) -> None:
    """The checkpoints describe the same models as the input does."""
    before, after = (json.loads((d / "adapter/adapter_config.json").read_text()) for d in (case, out))
    for key in ("peft_type", "r", "lora_alpha", "use_rslora"):
        assert after[key] == before[key], key
    assert set(after["target_modules"]) == set(before["target_modules"])
    for directory in ("model", "auxiliary"):
        config = json.loads((out / directory / "config.json").read_text())
        assert config["model_type"] == json.loads((case / "model/config.json").read_text())["model_type"]


@pytest.mark.parametrize("name", CASES)
def test_replay_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    """All three checkpoints and the metrics, for every micro-batch size of the case."""
    spec = CASES[name]
    seed = SEED + list(CASES).index(name)
    print(f"make_case seed {seed} (REPLAY_SEED={SEED})")
    case = make_case(tmp_path / "in", spec.family, seed, optimizer=spec.optimizer, **spec.options)
    reference = run_reference(case)
    for size in spec.micro_batch_sizes:
        out = tmp_path / f"out_{size}"
        replay(case, out, size)
        errors = {g: relative_error(read_tensors(out / d), reference, g) for g, d in DIRECTORIES.items()}
        print(f"micro-batch size {size}: {errors}")
        assert max(errors.values()) <= TOLERANCE[spec.optimizer["name"]], errors
        check_metrics(out, reference.metrics, spec.optimizer["name"])
        check_configs(case, out)
        theta, w = split_parameters(load_policy(out / "model", out / "adapter"))
        assert relative_error(theta, reference, "theta") <= TOLERANCE[spec.optimizer["name"]]
        assert relative_error(w, reference, "w") <= TOLERANCE[spec.optimizer["name"]]


MUTATIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lambda": ({"lam": 0.42}, ("theta", "w")),
    "alpha": ({"alpha": 0.51}, ("theta", "theta_hat")),
    "beta": ({"beta": 0.31}, ("w",)),
    "clip-high": ({"clip_range": [0.2, 0.6]}, ("theta", "theta_hat", "w")),
    "clip-low": ({"clip_range": [0.5, 0.2]}, ("theta", "theta_hat", "w")),
    "no-clip": ({"clip_range": 1e6}, ("theta", "theta_hat", "w")),
    "kl-off": ({"kl_coefficient": 0.0}, ("theta", "theta_hat", "w")),
    "kl": ({"kl_coefficient": 0.105}, ("theta", "theta_hat", "w")),
    "gradient-clip": ({"gradient_clip": 0.5}, ("theta", "theta_hat", "w")),
    "adamw": ({"optimizer": ADAMW}, ("theta", "theta_hat", "w")),
    "weight-decay": ({"optimizer": SGD | {"weight_decay": 0.01}}, ("theta", "theta_hat", "w")),
}


def test_mistakes_would_be_seen(tmp_path: Path) -> None:
    """Every setting, the auxiliary model, the adapter's scaling and each token matter far above the tolerance."""
    print(f"make_case seed {SEED}")
    case = make_case(tmp_path / "in", "llama", SEED, kl_coefficient=0.1)
    reference = run_reference(case)
    floor = 5 * TOLERANCE["sgd"]

    def assert_seen(mutant: Result, groups: tuple[str, ...], what: str) -> None:
        for group in groups:
            assert relative_error(getattr(mutant, group), reference, group) > floor, (what, group)

    for what, (overrides, groups) in MUTATIONS.items():
        assert_seen(run_reference(case, overrides), groups, what)

    gain_off = {n: g + 0.4 * reference.gradients["w_auxiliary"][n] for n, g in reference.gradients["w"].items()}
    without = {n: reference.before["w"][n] + 0.3 * g for n, g in gain_off.items()}
    assert relative_error(without, reference, "w") > floor, "J_RL(theta_hat, w) left out of w's gradient"

    shutil.copytree(case, tmp_path / "theta_for_hat", ignore=shutil.ignore_patterns("auxiliary"))
    assert_seen(run_reference(tmp_path / "theta_for_hat"), ("w",), "theta used for theta_hat")

    for what, change, directory in (
        ("rope scaling", '"rope_type": "llama3"->"rope_type": "default"', "model/config.json"),
        ("LoRA scaling", '"use_rslora": false->"use_rslora": true', "adapter/adapter_config.json"),
    ):
        mutant = tmp_path / what
        shutil.copytree(case, mutant)
        old, new = change.split("->")
        text = (mutant / directory).read_text()
        assert old in text
        (mutant / directory).write_text(text.replace(old, new))
        assert_seen(run_reference(mutant), ("theta", "w"), what)

    dropped = tmp_path / "dropped"
    shutil.copytree(case, dropped)
    lines = (case / "batch.jsonl").read_text().splitlines(keepends=True)
    shortest = min((n for n in range(len(lines)) if '"rl"' in lines[n]), key=lambda n: len(lines[n]))
    (dropped / "batch.jsonl").write_text("".join(lines[:shortest] + lines[shortest + 1 :]))
    assert_seen(run_reference(dropped), ("theta", "theta_hat", "w"), "the shortest RL sample left out")
