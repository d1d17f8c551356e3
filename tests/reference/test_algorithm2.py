"""The reference itself: finite differences, the objectives computed a second way, invariants, torch's optimizers."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from . import algorithm2 as ref
from .cases import ADAMW, FAMILIES, SGD, make_case, to_json

SEED = random.SystemRandom().randrange(10**6)
GROUPS = ("theta", "theta_hat", "w")


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed so that a failure can be repeated."""
    print(f"seed {SEED}")
    return SEED


def distance(a: ref.Tensors, b: ref.Tensors) -> float:
    """The L2 distance of two groups."""
    assert a.keys() == b.keys()
    return ref.norm({name: a[name] - b[name] for name in a})


def assign(copies: list[ref.Tensors], values: ref.Tensors) -> None:
    """Sets the parameters of every copy."""
    with torch.no_grad():
        for parameters in copies:
            for name, parameter in parameters.items():
                parameter.copy_(values[name])


class Float32Finder(TorchDispatchMode):
    """Records the operations that yield float32."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_finite_differences(family: str, seed: int, tmp_path: Path) -> None:
    """The three gradients are those of J_joint, J_RL(theta_hat, w) and J_gain, along random directions."""
    case = make_case(tmp_path, family, seed, kl_coefficient=0.1)
    result = ref.run_reference(case)
    settings, batch = ref.load_settings(case), ref.load_batch(case)
    policy = ref.load_policy(case / "model", case / "adapter")
    hat = ref.load_policy(case / "auxiliary", case / "adapter")
    reference = ref.reference_logprobs(policy, batch)
    lam = settings["lam"]
    with Float32Finder() as finder, torch.no_grad():
        ref.response_logprobs(policy, batch[0])
    assert not finder.found, finder.found

    def j_hat() -> float:
        return ref.rl_objective(hat, batch, reference, settings).item()

    def j_joint() -> float:
        j_rl = ref.rl_objective(policy, batch, reference, settings)
        return ((1 - lam) * ref.sft_objective(policy, batch) + lam * j_rl).item()

    (theta, w), (theta_hat, w_hat) = ref.split_parameters(policy), ref.split_parameters(hat)
    objectives: dict[str, tuple[Callable[[], float], list[ref.Tensors]]] = {
        "theta": (j_joint, [ref.per_expert(theta)]),
        "theta_hat": (j_hat, [ref.per_expert(theta_hat)]),
        "w": (lambda: j_joint() - lam * j_hat(), [w, w_hat]),  # w is one variable, held in two models
    }
    generator = torch.Generator().manual_seed(seed)
    step = 1e-4  # no ratio of the case is so near to where the surrogate bends that a step takes it across
    for group, (objective, copies) in objectives.items():
        gradient = result.gradients[group]
        direction = {n: torch.randn(g.shape, generator=generator, dtype=g.dtype) for n, g in gradient.items()}
        length = ref.norm(direction)
        exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient) / length
        values = []
        for multiple in (-2, -1, 1, 2, 0):  # 0 last: it puts the parameters back
            shifted = {n: t + multiple * step / length * direction[n] for n, t in result.before[group].items()}
            assign(copies, shifted)
            with torch.no_grad():
                values.append(objective())
        numeric = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * step)
        typical = ref.norm(gradient) * math.sqrt(1 / sum(g.numel() for g in gradient.values()))
        assert abs(numeric - exact) <= 1e-6 * typical, (group, numeric, exact, typical)


def merged_logprobs(case: Path, base: str, batch: list[ref.Sample], adapter: bool) -> list[list[float]]:
    """Response log-probabilities with LoRA added to the weights by hand, without peft."""
    model = AutoModelForCausalLM.from_pretrained(case / base, dtype=torch.float64, attn_implementation="eager").eval()
    config = json.loads((case / "adapter/adapter_config.json").read_text())
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    tensors = load_file(case / "adapter/adapter_model.safetensors")
    with torch.no_grad(), ref.NoDowncast():
        for name in [n for n in tensors if n.endswith("lora_A.weight") and adapter]:
            down, up = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += config["lora_alpha"] / rank * (up @ down)
        rows = []
        for s in batch:
            probabilities = model(torch.tensor([s.tokens])).logits[0].softmax(-1)
            rows.append([probabilities[i - 1, s.tokens[i]].log().item() for i in range(s.prompt_length, len(s.tokens))])
    return rows


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_objectives_token_by_token(family: str, seed: int, tmp_path: Path) -> None:
    """The objectives agree with plain loops over tokens, LoRA merged by hand."""
    rslora = family == "llama"
    case = make_case(tmp_path, family, seed, use_rslora=rslora, clip_range=[0.2, 0.3], kl_coefficient=0.1)
    metrics = ref.run_reference(case).metrics
    batch = ref.load_batch(case)
    policy = merged_logprobs(case, "model", batch, adapter=True)
    hat = merged_logprobs(case, "auxiliary", batch, adapter=True)
    plain = merged_logprobs(case, "model", batch, adapter=False)
    sft = [lp for s, row in zip(batch, policy, strict=True) if s.kind == "sft" for lp in row]
    assert metrics["j_sft"] == pytest.approx(sum(sft) / len(sft), rel=1e-10)
    for key, rows in (("j_rl", policy), ("j_rl_auxiliary", hat)):
        terms, outside = [], set()
        for s, row, ref_row in zip(batch, rows, plain, strict=True):
            for lp, reference, behaviour in zip(row, ref_row, s.behaviour_logprobs, strict=False):
                ratio, a = math.exp(lp - behaviour), s.advantage
                bound = 1.3 if a >= 0 else 0.8  # min(r A, clip(r) A), said in another way
                value = min(ratio, bound) * a if a >= 0 else max(ratio, bound) * a
                if (a > 0 and ratio > bound) or (a < 0 and ratio < bound):
                    outside.add(a > 0)
                terms.append(value - 0.1 * (math.expm1(reference - lp) - (reference - lp)))
        assert outside == {True, False}, "some ratios must be clipped on either side"
        assert metrics[key] == pytest.approx(sum(terms) / len(terms), rel=1e-9, abs=1e-12)


def test_invariants(seed: int, tmp_path: Path) -> None:
    """What Algorithm 2 says at lambda = 0, at lambda = 1 and at theta_hat = theta."""
    case = make_case(tmp_path / "same", "qwen3", seed, auxiliary=False, kl_coefficient=0.1)
    result = ref.run_reference(case, {"lam": 1.0})
    assert ref.norm(result.gradients["theta"]) > 0.1
    assert distance(result.gradients["theta"], result.gradients["theta_hat"]) < 1e-12
    assert ref.norm(result.gradients["w"]) < 1e-12 < 1e-3 < ref.norm(result.gradients["w_auxiliary"])

    sft_only = ref.run_reference(case, {"lam": 0.0})
    part = ref.run_reference(case, {"lam": 0.7})
    scaled = {name: 0.3 * g for name, g in sft_only.gradients["w"].items()}
    assert distance(part.gradients["w"], scaled) < 1e-12, "theta_hat = theta: w is left with its SFT part"

    batch = ref.load_batch(case)
    louder = [dataclasses.replace(s, advantage=3.0 * s.advantage + 1.0) for s in batch]
    (case / "batch.jsonl").write_text("".join(to_json(s) + "\n" for s in louder))
    changed = ref.run_reference(case, {"lam": 0.0})
    for group in ("theta", "w"):
        assert distance(changed.gradients[group], sft_only.gradients[group]) < 1e-12, "lambda = 0 is SFT"
    assert distance(changed.gradients["theta_hat"], sft_only.gradients["theta_hat"]) > 0.1


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, ADAMW | {"weight_decay_1d": True}], ids=["sgd", "adamw", "decay_1d"])
def test_optimizers_are_those_of_torch(optimizer: dict[str, Any], seed: int, tmp_path: Path) -> None:
    """One step equals torch.optim's on the same, clipped gradients."""
    case = make_case(tmp_path, "qwen2", seed, optimizer=optimizer, gradient_clip=0.5)
    result = ref.run_reference(case)
    settings = ref.load_settings(case)
    options = {key: value for key, value in optimizer.items() if key in ("betas", "eps")}
    for group in GROUPS:
        parameters = {n: torch.nn.Parameter(t.clone()) for n, t in result.before[group].items()}
        for name, parameter in parameters.items():
            parameter.grad = -result.gradients[group][name]
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        decay, decay_1d = optimizer.get("weight_decay", 0.0), optimizer.get("weight_decay_1d", False)
        matrices = [p for p in parameters.values() if p.dim() >= 2]
        vectors = [p for p in parameters.values() if p.dim() < 2]
        param_groups = [{"params": matrices}]
        if optimizer["name"] == "adamw":
            param_groups[0]["weight_decay"] = decay
            if vectors:
                param_groups.append({"params": vectors, "weight_decay": decay if decay_1d else 0.0})
        elif vectors:
            param_groups.append({"params": vectors})
        kind = torch.optim.SGD if optimizer["name"] == "sgd" else torch.optim.AdamW
        kind(param_groups, lr=settings["beta" if group == "w" else "alpha"], **options).step()
        after = {name: p.detach() for name, p in parameters.items()}
        assert distance(after, getattr(result, group)) < 1e-5 * ref.norm(result.update(group))
        assert result.metrics[f"grad_norm_{group}"] > 0.5, "the case must be one that is clipped"


def test_tied_embedding_is_one_parameter(seed: int, tmp_path: Path) -> None:
    """Tied: no lm_head of its own; untied: both move."""
    tied = ref.run_reference(make_case(tmp_path / "tied", "qwen2", seed))
    untied = ref.run_reference(make_case(tmp_path / "untied", "qwen2_untied", seed))
    assert "lm_head.weight" not in tied.theta and "model.embed_tokens.weight" in tied.theta
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= untied.theta.keys()
    saved = load_file(tmp_path / "tied/model/model.safetensors")
    assert tied.theta.keys() == saved.keys() - {"lm_head.weight"}
    assert tied.w.keys() == load_file(tmp_path / "tied/adapter/adapter_model.safetensors").keys()
