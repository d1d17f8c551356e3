"""Makes complete ``replay`` inputs (IN directories) with tiny random models.

python -m tests.reference.cases OUT_DIR --family qwen2 --seed 1
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from .algorithm2 import Sample, load_policy, response_logprobs

FAMILIES = ("qwen2", "qwen2_untied", "llama", "qwen3", "qwen3_moe", "gemma3", "olmo2")
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_TARGETS = (*ATTENTION_TARGETS, "gate_proj", "up_proj", "down_proj")
KINK_MARGIN = 1e-3  # no ratio is nearer than this to where the surrogate bends
ROUTING_MARGIN = 1e-3  # no token's last chosen expert is nearer than this (in logits) to one that was not chosen
SGD: dict[str, Any] = {"name": "sgd"}
ADAMW: dict[str, Any] = {
    "name": "adamw",
    "betas": [0.9, 0.95],
    "eps": 1e-5,
    "weight_decay": 0.1,
    "weight_decay_1d": False,
}


def default_settings(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Settings whose updates are large enough that float32 weights don't round them away."""
    sgd = optimizer["name"] == "sgd"
    return {
        "lam": 0.4,
        "alpha": 0.5 if sgd else 1e-3,
        "beta": 0.3 if sgd else 2e-3,
        "optimizer": optimizer,
        "clip_range": 0.2,
        "kl_coefficient": 0.0,
        "kl_estimator": "k3",
        "reference": "model",
        "loss_aggregation": "token_mean",
        "gradient_clip": None,
    }


def model_config(family: str, rng: random.Random, layers: int | None = None) -> PreTrainedConfig:
    """A tiny config of a family; the vocabulary size is odd, so that nothing is aligned by luck."""
    drawn = rng.choice([2, 4])
    common: dict[str, Any] = {
        "vocab_size": rng.choice([97, 101, 113, 127]),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers or drawn,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "max_position_embeddings": 2048,
    }
    plain_rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "qwen2":
        return Qwen2Config(**common, tie_word_embeddings=True, rope_parameters=plain_rope)
    if family == "qwen2_untied":
        plain_rope["rope_theta"] = 1000000.0
        return Qwen2Config(**common, tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=plain_rope)
    if family == "qwen3":
        return Qwen3Config(**common, head_dim=32, tie_word_embeddings=True, rope_parameters=plain_rope)
    if family == "qwen3_moe":
        common |= {"num_hidden_layers": layers or 2, "moe_intermediate_size": 48}
        common |= {"num_experts": 4, "num_experts_per_tok": 2}
        common |= {"norm_topk_prob": True, "tie_word_embeddings": False, "rope_parameters": plain_rope}
        return Qwen3MoeConfig(**common, head_dim=32)
    if family == "gemma3":
        # Of four layers, the two of each pipeline stage are of other kinds than those of the other stage.
        types = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
        common |= {"hidden_size": 72, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}
        rope = {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": plain_rope,
        }
        types = types[: common["num_hidden_layers"]]
        return Gemma3TextConfig(**common, layer_types=types, rope_parameters=rope)
    if family == "olmo2":
        return Olmo2Config(**common, rope_parameters=plain_rope)
    if family == "llama":
        common["max_position_embeddings"] = 131072
        rope = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        return LlamaConfig(**common, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=rope)
    raise ValueError(f"unknown family {family!r}, choose from {', '.join(FAMILIES)}")


def perturb(model: PreTrainedModel, scale: float) -> None:
    """Adds noise of ``scale`` times each tensor's usual size to it (norms and biases too)."""
    with torch.no_grad():
        for parameter in model.parameters():
            size = 1.0 if parameter.dim() == 1 else float(parameter.std())
            parameter.add_(torch.randn_like(parameter) * size * scale)


def save_adapter(model: PreTrainedModel, directory: Path, config: LoraConfig, b_zero: bool) -> None:
    """A random peft adapter for ``model``, saved by peft (this wraps the model: it is of no use afterwards)."""
    policy = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_A." in name:
                parameter.normal_(0.0, 0.1)
            elif ".lora_B." in name:
                parameter.normal_(0.0, 0.0 if b_zero else 0.03)
    policy.save_pretrained(str(directory))


def random_tokens(rng: random.Random, vocab: int, length: int) -> tuple[int, ...]:
    """Uniformly random token ids."""
    return tuple(rng.randrange(vocab) for _ in range(length))


def make_batch(directory: Path, vocab: int, clip: tuple[float, float], rng: random.Random) -> list[Sample]:
    """SFT and RL samples of very different lengths, interleaved; RL ratios lie on both sides of the clip range."""
    lengths = [(3, rng.randint(30, 50)), (17, 1), (1, rng.randint(5, 12)), (30, rng.randint(120, 160))]
    theta = load_policy(directory / "model", directory / "adapter")
    auxiliary = directory / "auxiliary"
    theta_hat = load_policy(auxiliary, directory / "adapter") if auxiliary.exists() else theta

    def draw(kind: str, prompt: int, response: int) -> Sample:
        sample = Sample(kind, random_tokens(rng, vocab, prompt + response), prompt)
        while is_routed_narrowly((theta, theta_hat), sample):
            sample = Sample(kind, random_tokens(rng, vocab, prompt + response), prompt)
        return sample

    batch = [draw("sft", p, r) for p, r in lengths]
    shapes = [(5, 30, 1.3), (5, 2, -0.7), (5, 17, 0.0), (21, 1, -1.6), (21, 44, -0.9), (2, 8, 0.8)]
    for prompt, response, advantage in shapes:
        response += rng.randrange(6) if response > 1 else 0
        sample = draw("rl", prompt, response)
        advantage *= rng.uniform(0.7, 1.4)
        with torch.no_grad():
            logprobs = response_logprobs(theta, sample).tolist()
            hat_logprobs = response_logprobs(theta_hat, sample).tolist()
        behaviour = []
        for lp, hat in zip(logprobs, hat_logprobs, strict=True):
            value = min(0.0, round(lp + rng.gauss(0.0, 0.3), 6))
            while any(near_kink(x - value, clip) for x in (lp, hat)):
                value = min(0.0, round(lp + rng.gauss(0.0, 0.3), 6))
            behaviour.append(value)
        batch.append(Sample("rl", sample.tokens, prompt, advantage, tuple(behaviour)))
    rng.shuffle(batch)
    return batch


def near_kink(log_ratio: float, clip: tuple[float, float]) -> bool:
    """Whether rounding could move a ratio across a clip boundary, where the gradient jumps."""
    ratio = math.exp(log_ratio)
    return min(abs(ratio - (1.0 - clip[0])), abs(ratio - (1.0 + clip[1]))) < KINK_MARGIN


def is_routed_narrowly(policies: Iterable[PeftModel], sample: Sample) -> bool:
    """Whether rounding could send a token to other experts, with the adapter or (for the KL term) without."""
    gaps: list[float] = []

    def look(router: torch.nn.Module, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        ranked = output[0].sort(descending=True).values
        gaps.append(float((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).min()))

    for policy in policies:
        routers = [m for m in policy.modules() if isinstance(m, Qwen3MoeTopKRouter)]
        hooks = [router.register_forward_hook(look) for router in routers]
        if hooks:
            with torch.no_grad():
                response_logprobs(policy, sample)
                with policy.disable_adapter():
                    response_logprobs(policy, sample)
        for hook in hooks:
            hook.remove()
    return min(gaps, default=1.0) < ROUTING_MARGIN


def to_json(sample: Sample) -> str:
    """A line of batch.jsonl."""
    item: dict[str, Any] = {"kind": sample.kind, "tokens": sample.tokens, "prompt_length": sample.prompt_length}
    if sample.kind == "rl":
        item |= {"advantage": sample.advantage, "behaviour_logprobs": sample.behaviour_logprobs}
    return json.dumps(item)


def make_case(
    directory: str | Path,
    family: str,
    seed: int,
    *,
    auxiliary: bool = True,
    lora_b_zero: bool = False,
    target_modules: tuple[str, ...] | None = None,
    rank: int | None = None,
    use_rslora: bool = False,
    optimizer: dict[str, Any] | None = None,
    layers: int | None = None,
    **settings: Any,
) -> Path:
    """Writes a complete IN directory; further keywords replace entries of settings.yaml.

    target_modules: of LoRA; None for all linears that the model has outside of experts.
    """
    if target_modules is None:
        target_modules = ATTENTION_TARGETS if family == "qwen3_moe" else ALL_TARGETS
    logging.getLogger("transformers").setLevel(logging.ERROR)
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    resolved = default_settings(optimizer or SGD) | settings
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = model_config(family, rng, layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        perturb(model, 0.2)
        model.save_pretrained(path / "model")
        lora = LoraConfig(
            r=rank or rng.choice([4, 5, 8]),
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=list(target_modules),
            use_rslora=use_rslora,
            task_type="CAUSAL_LM",
        )
        if auxiliary:
            perturb(model, 0.05)
            model.save_pretrained(path / "auxiliary")
        save_adapter(model, path / "adapter", lora, lora_b_zero)
    clip = resolved["clip_range"]
    low, high = clip if isinstance(clip, (list, tuple)) else (clip, clip)
    batch = make_batch(path, config.vocab_size, (low, high), rng)
    (path / "batch.jsonl").write_text("".join(to_json(s) + "\n" for s in batch))
    (path / "settings.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a random replay case.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="qwen2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--no-auxiliary", action="store_true", help="leave auxiliary/ out")
    parser.add_argument("--lora-b-zero", action="store_true", help="a fresh adapter: B = 0")
    parser.add_argument("--targets", nargs="+", help="LoRA target modules (default: all)")
    parser.add_argument("--rslora", action="store_true", help="scale LoRA by alpha / sqrt(r)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="entries of settings.yaml")
    args = parser.parse_args()
    path = make_case(
        args.out_dir,
        args.family,
        args.seed,
        auxiliary=not args.no_auxiliary,
        lora_b_zero=args.lora_b_zero,
        target_modules=tuple(args.targets) if args.targets else None,
        use_rslora=args.rslora,
        optimizer=SGD if args.optimizer == "sgd" else ADAMW,
        **{key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)},
    )
    print(path)


if __name__ == "__main__":
    main()
