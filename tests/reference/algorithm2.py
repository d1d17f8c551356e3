"""One BRIDGE update (the paper's Algorithm 2) in float64, by plain autograd over transformers and peft.

This is what the trainer's ``replay`` is checked against. It shares no code with the trainer: the models are
``AutoModelForCausalLM`` (eager attention, one sequence at a time, no padding), LoRA is peft's, the auxiliary
model is a second model with a second copy of the adapter, and both optimizers are written out below.

    python -m tests.reference.algorithm2 CASE_DIR      # prints the metrics as JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

Tensors = dict[str, torch.Tensor]
HF_PREFIX = "base_model.model."


class NoDowncast(TorchFunctionMode):
    """Turns every request for float32 into one for float64.

    The models of transformers compute norms, softmax and rotary angles in float32 whatever their weights are;
    under this mode a float64 model is float64 throughout.
    """

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Sample:
    """One line of batch.jsonl."""

    kind: str
    tokens: tuple[int, ...]
    prompt_length: int
    advantage: float = 0.0
    behaviour_logprobs: tuple[float, ...] = ()


@dataclass
class Result:
    """The update: tensors after it, before it, the gradients it was made of (before clipping), and the metrics."""

    theta: Tensors
    theta_hat: Tensors
    w: Tensors
    before: dict[str, Tensors]  # "theta", "theta_hat", "w"
    gradients: dict[str, Tensors]  # the same, and "w_auxiliary": the gradient of J_RL(theta_hat, w) by w
    metrics: dict[str, float]

    def update(self, group: str) -> Tensors:
        """What the step added to a group."""
        after: Tensors = getattr(self, group)
        return {name: after[name] - self.before[group][name] for name in after}


def load_batch(case: Path) -> list[Sample]:
    """Reads IN/batch.jsonl."""
    samples = []
    for line in (case / "batch.jsonl").read_text().splitlines():
        if not line.strip():
            continue
        item = json.loads(line)
        sample = Sample(
            kind=item["kind"],
            tokens=tuple(item["tokens"]),
            prompt_length=item["prompt_length"],
            advantage=float(item.get("advantage", 0.0)),
            behaviour_logprobs=tuple(item.get("behaviour_logprobs", ())),
        )
        if sample.kind not in ("sft", "rl") or not 1 <= sample.prompt_length < len(sample.tokens):
            raise ValueError(f"bad sample: {line}")
        if sample.kind == "rl" and len(sample.behaviour_logprobs) != len(sample.tokens) - sample.prompt_length:
            raise ValueError(f"behaviour_logprobs of the wrong length: {line}")
        samples.append(sample)
    return samples


def load_settings(case: Path) -> dict[str, Any]:
    """Reads IN/settings.yaml and refuses what is not implemented here."""
    settings = {"clip_range": 0.2, "kl_coefficient": 0.0, "gradient_clip": None}
    settings |= yaml.safe_load((case / "settings.yaml").read_text())
    fixed = {"kl_estimator": "k3", "reference": "model", "loss_aggregation": "token_mean"}
    for key, only in fixed.items():
        if settings.get(key, only) != only:
            raise ValueError(f"{key}: {settings[key]!r} is not implemented, only {only!r}")
    return settings


def load_policy(base: Path, adapter: Path, dtype: torch.dtype = torch.float64) -> PeftModel:
    """The augmented model [base, adapter], every parameter trainable."""
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",  # the others have no float64
        local_files_only=True,
        use_safetensors=True,
    )
    policy = PeftModel.from_pretrained(model, str(adapter), is_trainable=True, autocast_adapter_dtype=False)
    policy.to(dtype)
    policy.requires_grad_(True)
    return policy.eval()


def split_parameters(policy: PeftModel) -> tuple[Tensors, Tensors]:
    """(base parameters by HF name, LoRA parameters by the name peft saves them under); tied ones once."""
    base: Tensors = {}
    lora: Tensors = {}
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            lora[name.replace(".default.", ".")] = parameter
        else:
            base[name.removeprefix(HF_PREFIX).replace(".base_layer.", ".")] = parameter
    return base, lora


def per_expert(tensors: Tensors) -> Tensors:
    """Views under the names of checkpoint files, where transformers holds a layer's experts in one tensor."""
    views: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".experts.")
        for expert, matrix in enumerate(tensor if stem else ()):
            parts = {kind: matrix}
            if kind == "gate_up_proj":
                gate, up = matrix.chunk(2)
                parts = {"gate_proj": gate, "up_proj": up}
            views |= {f"{stem}.experts.{expert}.{part}.weight": view for part, view in parts.items()}
        if not stem:
            views[name] = tensor
    return views


def response_logprobs(policy: torch.nn.Module, sample: Sample) -> torch.Tensor:
    """log p(tokens[i] | tokens[:i]) for every response position i >= prompt_length."""
    ids = torch.tensor([sample.tokens])
    double = next(policy.parameters()).dtype == torch.float64
    with NoDowncast() if double else contextlib.nullcontext():
        logits = policy(input_ids=ids, use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits, dim=-1)
    predicting = logprobs[sample.prompt_length - 1 : -1]
    targets = ids[0, sample.prompt_length :]
    return predicting.gather(-1, targets[:, None])[:, 0]


def reference_logprobs(policy: PeftModel, batch: list[Sample]) -> list[torch.Tensor]:
    """The base model's own log-probabilities (adapter off) of the RL responses, in the order of the batch."""
    with torch.no_grad(), policy.disable_adapter():
        return [response_logprobs(policy, s) for s in batch if s.kind == "rl"]


def sft_objective(policy: torch.nn.Module, batch: list[Sample]) -> torch.Tensor:
    """J_SFT: mean log-probability over all SFT response tokens of the batch."""
    logprobs = [response_logprobs(policy, s) for s in batch if s.kind == "sft"]
    return torch.cat(logprobs).mean() if logprobs else torch.zeros(())


def rl_objective(
    policy: torch.nn.Module, batch: list[Sample], reference: list[torch.Tensor], settings: dict[str, Any]
) -> torch.Tensor:
    """J_RL: mean over all RL response tokens of the clipped surrogate minus kl_coefficient times k3."""
    clip = settings["clip_range"]
    low, high = clip if isinstance(clip, (list, tuple)) else (clip, clip)
    terms = []
    for sample, ref in zip((s for s in batch if s.kind == "rl"), reference, strict=True):
        logprobs = response_logprobs(policy, sample)
        behaviour = torch.tensor(sample.behaviour_logprobs, dtype=logprobs.dtype)
        ratio = (logprobs - behaviour).exp()
        clipped = ratio.clamp(1.0 - low, 1.0 + high)
        surrogate = torch.minimum(ratio * sample.advantage, clipped * sample.advantage)
        k3 = (ref - logprobs).exp() - (ref - logprobs) - 1.0
        terms.append(surrogate - settings["kl_coefficient"] * k3)
    return torch.cat(terms).mean() if terms else torch.zeros(())


def gradient(objective: torch.Tensor, parameters: Tensors) -> Tensors:
    """The gradient by name; zero where the objective does not depend on a parameter."""
    zeros = {name: torch.zeros_like(p) for name, p in parameters.items()}
    if not objective.requires_grad:
        return zeros
    found = torch.autograd.grad(objective, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: zeros[name] if g is None else g for name, g in zip(parameters, found, strict=True)}


def norm(tensors: Tensors) -> float:
    """The L2 norm of a group as one vector."""
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def clip_gradient(gradients: Tensors, limit: float | None) -> Tensors:
    """Scales a group down to the norm ``limit`` if it is longer."""
    total = norm(gradients)
    scale = 1.0 if limit is None or total <= limit else limit / total
    return {name: g * scale for name, g in gradients.items()}


@dataclass
class Ascent:
    """SGD or AdamW, uphill, on one group; keeps its moments between steps."""

    rate: float
    optimizer: dict[str, Any]
    steps: int = 0
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def step(self, values: Tensors, gradients: Tensors) -> Tensors:
        """The new values; the old ones stay as they are."""
        self.steps += 1
        decay = self.optimizer.get("weight_decay", 0.0)
        decay_1d = self.optimizer.get("weight_decay_1d", False)
        result: Tensors = {}
        for name, value in values.items():
            decays = decay if value.dim() >= 2 or decay_1d else 0.0
            step = self._direction(name, gradients[name])
            result[name] = (value + self.rate * step - self.rate * decays * value).detach()
        return result

    def _direction(self, name: str, g: torch.Tensor) -> torch.Tensor:
        if self.optimizer["name"] == "sgd":
            return g
        if self.optimizer["name"] != "adamw":
            raise ValueError(f"optimizer {self.optimizer['name']!r} is not implemented")
        beta1, beta2 = self.optimizer.get("betas", (0.9, 0.999))
        first, second = self.moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
        first, second = beta1 * first + (1.0 - beta1) * g, beta2 * second + (1.0 - beta2) * g * g
        self.moments[name] = (first, second)
        first, second = first / (1.0 - beta1**self.steps), second / (1.0 - beta2**self.steps)
        return first / (second.sqrt() + float(self.optimizer.get("eps", 1e-8)))


def run_reference(
    case_dir: str | Path,
    overrides: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    iterations: int = 1,
) -> Result:
    """Updates of a case, all on its one batch. ``overrides`` replace settings; float32 shows what rounding alone does.

    Metrics and gradients are those of the last iteration; ``before`` is the start of the first.
    """
    case = Path(case_dir)
    settings = load_settings(case) | (overrides or {})
    batch = load_batch(case)
    auxiliary = case / "auxiliary"
    policy = load_policy(case / "model", case / "adapter", dtype)
    hat_policy = load_policy(auxiliary if auxiliary.exists() else case / "model", case / "adapter", dtype)
    theta, w = split_parameters(policy)
    theta_hat, w_of_hat = split_parameters(hat_policy)
    parameters = {"theta": theta, "theta_hat": theta_hat, "w": w}
    before = {group: {n: p.detach().clone() for n, p in ps.items()} for group, ps in parameters.items()}
    lam = float(settings["lam"])
    optimizer = settings["optimizer"]
    optimizer = {"name": optimizer} if isinstance(optimizer, str) else optimizer
    rates = {"theta": settings["alpha"], "theta_hat": settings["alpha"], "w": settings["beta"]}
    ascents = {group: Ascent(float(rate), optimizer) for group, rate in rates.items()}
    reference = reference_logprobs(policy, batch)
    for _ in range(iterations):
        start = {group: {n: p.detach().clone() for n, p in ps.items()} for group, ps in parameters.items()}
        j_sft = sft_objective(policy, batch)
        j_rl = rl_objective(policy, batch, reference, settings)
        j_rl_hat = rl_objective(hat_policy, batch, reference, settings)
        joint = gradient((1.0 - lam) * j_sft + lam * j_rl, theta | w)
        gradients = {
            "theta": {name: joint[name] for name in theta},
            "theta_hat": gradient(j_rl_hat, theta_hat),
            "w_auxiliary": gradient(j_rl_hat, w_of_hat),
        }
        gradients["w"] = {name: joint[name] - lam * gradients["w_auxiliary"][name] for name in w}
        after = {
            group: ascents[group].step(start[group], clip_gradient(gradients[group], settings["gradient_clip"]))
            for group in parameters
        }
        with torch.no_grad():
            for group, ps in parameters.items():
                for name, p in ps.items():
                    p.copy_(after[group][name])
            for name, p in w_of_hat.items():  # the two models share w
                p.copy_(after["w"][name])
    before, gradients, after = (
        {g: per_expert(ts) for g, ts in groups.items()} for groups in (before, gradients, after)
    )
    start = {group: per_expert(ts) for group, ts in start.items()}
    result = Result(after["theta"], after["theta_hat"], after["w"], before, gradients, {})
    result.metrics = {"j_sft": j_sft.item(), "j_rl": j_rl.item(), "j_rl_auxiliary": j_rl_hat.item()}
    result.metrics |= {f"grad_norm_{group}": norm(gradients[group]) for group in rates}
    last = {group: {n: after[group][n] - start[group][n] for n in after[group]} for group in rates}
    result.metrics |= {f"update_l2_{group}": norm(last[group]) for group in rates}
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Metrics of one BRIDGE update of a replay case, in float64.")
    parser.add_argument("case_dir", type=Path)
    parser.add_argument("--float32", action="store_true", help="compute in float32 instead")
    args = parser.parse_args()
    result = run_reference(args.case_dir, dtype=torch.float32 if args.float32 else torch.float64)
    print(json.dumps(result.metrics, indent=2))


if __name__ == "__main__":
    main()
