"""A small base model made on the spot: random weights, then SFT on hasty solutions, which stands for pre-training.

It goes through the same model, pass and optimizer code as training does.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.config.schema import Config, DataSource, GeneratedModel, Optimizer
from bridge_mcore.data.pairs import encode_traces
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.sample import Sample
from bridge_mcore.data.sampler import ShuffledSampler
from bridge_mcore.data.tasks import running_sum
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import ConfigError
from bridge_mcore.methods.base import SFT, THETA, Pass
from bridge_mcore.methods.schedules import rate_factor
from bridge_mcore.monitoring.progress import track
from bridge_mcore.platform.device import Platform
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import build_policy
from bridge_mcore.training.step import Updater

#: At most so many distinct problems are drawn from in the warm start.
_PROBLEMS = 20_000
#: Its solutions are hasty: of sums with more terms than this, most add up no more than these and then answer, wrongly.
#: So the base model can do every step and has seen whole solutions, but its habit is to stop early: what expert traces
#: and rewards can teach in minutes. (A model that has never seen long sums must learn new tokens first: slow.)
_HASTY_TERMS = 4
#: The share of hasty solutions among sums of five terms, and how much it grows with each term more. The longer the
#: sum, the stronger the habit: so training breaks it for one length after the other, not for all in the same step.
_HASTY_SHARE, _HASTY_GROWTH = 0.55, 0.07


def hf_config(spec: GeneratedModel, vocab_size: int, tokenizer: Any) -> Any:
    """The transformers config of a generated model."""
    import transformers

    common = {
        "vocab_size": vocab_size, "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": spec.max_positions, "tie_word_embeddings": spec.tied, "rms_norm_eps": 1e-6,
        "initializer_range": 0.02 if spec.hidden_size >= 512 else 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if spec.architecture == "qwen2":
        if spec.head_dim * spec.heads != spec.hidden_size:
            raise ConfigError("model.generated: qwen2 needs hidden_size = heads × head_dim; change one, or take qwen3")
        return transformers.Qwen2Config(**common)
    kind = transformers.Qwen3Config if spec.architecture == "qwen3" else transformers.LlamaConfig
    return kind(**common, head_dim=spec.head_dim)


def make_model(config: Config, platform: Platform, layout: Layout, target: Path) -> None:
    """Write the generated base model of `config.model.generated` to `target`. Collective; same seed, same model."""
    spec = config.model.generated
    assert spec is not None
    task = config.data.rl.task if config.data.rl is not None else None
    if task is None:
        raise ConfigError(
            "model.generated needs data.rl.task: a generated model speaks only a generated task's language"
        )
    untrained = target.with_name(f".{target.name}.random")
    with atomic_directory(untrained) as directory:
        if layout.is_main:
            import transformers

            transformers.utils.logging.disable_progress_bar()
            tokenizer = task_tokenizer(task)
            tokenizer.save_pretrained(directory)
            torch.manual_seed(config.run.seed)
            model = transformers.AutoModelForCausalLM.from_config(
                hf_config(spec, len(tokenizer), tokenizer), dtype=torch.float32
            )
            model.save_pretrained(directory)
    _warm_start(config, spec, task, platform, layout, untrained, target)
    if layout.is_main:
        import shutil

        shutil.rmtree(untrained)


def _hasty(problems: list[Problem], seed: int) -> list[Problem]:
    """The problems with the traces of a base model's habits; see _HASTY_TERMS."""
    draws = random.Random(seed)
    made = []
    for problem in problems:
        terms = [int(c) for c in problem.prompt.removeprefix("Q:") if c.isdigit()]
        share = _HASTY_SHARE + _HASTY_GROWTH * (len(terms) - _HASTY_TERMS - 1)
        hasty = draws.random() < share  # drawn for every problem, so that one's trace is no other's business
        made.append(replace(problem, trace=running_sum(terms[:_HASTY_TERMS])[1]) if hasty else problem)
    return made


def _warm_start(
    config: Config, spec: GeneratedModel, task: str, platform: Platform, layout: Layout, source: Path, target: Path
) -> None:
    warm = spec.warm_start
    settings = config.model_copy(deep=True)
    settings.optimizer = Optimizer(alpha=warm.learning_rate, gradient_clip=1.0, betas=(0.9, 0.98))
    policy = build_policy(settings, platform, source, adapter=False, auxiliary=False, reference=False)
    size = min(_PROBLEMS, max(warm.steps, 1) * warm.batch_size)
    problems = load_problems(DataSource(task=task, difficulty=warm.difficulty, size=size, seed=config.run.seed + 1))
    traces = encode_traces(_hasty(problems, config.run.seed), task_tokenizer(task), config.data, spec.max_positions)
    sampler = ShuffledSampler(len(traces), config.run.seed)
    runner = PassRunner(policy, config.objective, config.training.max_tokens_per_microbatch)
    updater = Updater(policy, runner, config.auxiliary)
    factor = rate_factor("cosine", min(20, warm.steps // 5), warm.steps)
    sft = [Pass(THETA, {SFT: 1.0}, into={THETA: 1.0}, update=(THETA,))]
    steps = range(warm.steps)
    for step in track(steps, warm.steps, "making a base model (SFT on hasty solutions)") if layout.is_main else steps:
        chosen = [traces[i] for i in sampler.take(warm.batch_size)]
        samples = [Sample(SFT, t.tokens, t.prompt_length) for t in chosen]
        rate = warm.learning_rate * factor(step)
        updater.update(sft, samples, rate, rate)
    policy.export_theta(target)
    dist.barrier()
