"""Cases of the self-test: random weights that every machine makes alike, an adapter, and a batch.

No weight is drawn where another machine would draw it differently: tensors are cut out of one block of numpy's normal
numbers, by their HF names, so that nothing is sent and no two ranks need a common file system.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from bridge_mcore.checkpoint import hf, peft
from bridge_mcore.config import schema
from bridge_mcore.config.schema import LORA_HOSTS, Parallel
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import ConfigError
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import ModelShape
from bridge_mcore.model.lora import HF_PATHS, LoRAShape, expand_targets, projection_sizes
from bridge_mcore.platform.device import Platform
from bridge_mcore.selftest.models import TestModel
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import build_policy

#: A prime, so that a tensor longer than the block does not repeat itself row by row.
_BLOCK = 4_194_301
_SHARD_BYTES = 2 * 2**30
_SPARE = 1.1  # of the disk space that a model takes
_RANK = 8
#: (prompt, response) tokens of traces and rollouts, very different; and the rollouts' advantages.
_TRACES = ((3, 40), (17, 1), (1, 9), (30, 140))
_ROLLOUTS = ((5, 33, 1.3), (5, 2, -0.7), (5, 17, 0.0), (21, 1, -1.6), (21, 46, -0.9), (2, 8, 0.8))
_BEHAVIOUR_NOISE = 0.1  # of log-probabilities; with ε = 0.2 some ratios are clipped


@cache
def _block() -> Tensor:
    return torch.from_numpy(np.random.default_rng(20250901).standard_normal(_BLOCK, dtype=np.float32))


def noise(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of this shape, fp32, always the same for a name."""
    count, start = int(np.prod(shape)), zlib.crc32(name.encode()) % _BLOCK
    block = _block()
    if start + count > _BLOCK:
        block = torch.cat([block[start:], block.repeat(count // _BLOCK + 1)])
        start = 0
    return block[start : start + count].reshape(*shape)


def write_case(directory: Path, model: TestModel) -> None:
    """Write model/, adapter/ and settings.yaml; the batch needs the model and comes later."""
    import transformers

    target = directory / "model"
    target.mkdir(parents=True)
    kind = getattr(transformers, model.architecture.replace("ForCausalLM", "Config"))
    config = kind(**model.fields, architectures=[model.architecture], bos_token_id=1, eos_token_id=2)
    config.save_pretrained(target)
    family, shape = find_family(target)
    expected = hf.expected_tensors(family, shape)
    dtype = getattr(torch, model.stored)
    size = sum(int(np.prod(s)) for s in expected.values()) * dtype.itemsize
    free = shutil.disk_usage(target).free
    if size * _SPARE > free:
        raise ConfigError(
            f"the {model.name} model takes {size / 2**30:.1f} GiB in {directory}, which has {free / 2**30:.1f} GiB "
            "free: give another --directory, or a smaller --model-shape"
        )
    _write_model(target, expected, model.std, dtype)
    _write_adapter(directory / "adapter", shape, model.std)
    (directory / "settings.yaml").write_text(yaml.safe_dump(_settings(model)))


def _write_model(target: Path, expected: dict[str, tuple[int, ...]], std: float, dtype: torch.dtype) -> None:
    weight_map: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        file = f"model-{len(set(weight_map.values())):05d}.safetensors"
        save_file(pending, target / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, file))
        pending.clear()

    for name, shape in expected.items():
        # Norms and biases are off 1 and 0, so that none of them could be left out unseen.
        value = noise(name, shape) * (std if len(shape) > 1 else 0.1) + float(name.endswith("norm.weight"))
        pending[name] = value.to(dtype).contiguous()
        total += pending[name].nbytes
        if sum(t.nbytes for t in pending.values()) > _SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_adapter(directory: Path, shape: ModelShape, std: float) -> None:
    lora = LoRAShape(_RANK, 16.0, expand_targets(list(LORA_HOSTS), shape))
    sizes = projection_sizes(shape)
    tensors = {}
    for layer in range(shape.layers):
        for p in lora.projections:
            n_in, n_out = sizes[p]
            for letter, full in (("A", (_RANK, n_in)), ("B", (n_out, _RANK))):
                name = f"base_model.model.model.layers.{layer}.{HF_PATHS[p]}.lora_{letter}.weight"
                tensors[name] = (noise(name, full) * (std if letter == "A" else 0.3 * std)).contiguous()
    peft.write_adapter(directory, tensors, lora, "../model")


def _settings(model: TestModel) -> dict[str, object]:
    return {
        "lam": 0.4, "alpha": model.rate, "beta": 2 * model.rate, "clip_range": 0.2,
        "kl_coefficient": 0.1, "reference": "model", "gradient_clip": None,
        "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": model.eps, "weight_decay": 0.1},
    }  # fmt: skip


def draw_samples(model: TestModel, world: int) -> list[Sample]:
    """Traces and rollouts of very different lengths, at least one of each kind for a rank; no behaviour yet."""
    rng = random.Random(7)
    vocabulary, scale = model.fields["vocab_size"], model.tokens_scale
    samples = []
    for _ in range(max(1, -(-world // len(_TRACES)))):
        for prompt, response in _TRACES:
            samples.append(Sample(SFT, _tokens(rng, vocabulary, (prompt + response) * scale), prompt * scale))
        for prompt, response, advantage in _ROLLOUTS:
            tokens = _tokens(rng, vocabulary, (prompt + response) * scale)
            samples.append(Sample(RL, tokens, prompt * scale, advantage * rng.uniform(0.7, 1.4)))
    rng.shuffle(samples)
    return samples


def _tokens(rng: random.Random, vocabulary: int, count: int) -> list[int]:
    return [rng.randrange(vocabulary) for _ in range(count)]


def batch_text(samples: Sequence[Sample]) -> str:
    """batch.jsonl. `reference` holds the policy's own log-probabilities; the behaviour policy is near them."""
    rng = random.Random(8)
    lines = []
    for s in samples:
        row: dict[str, object] = {"kind": s.component, "tokens": list(s.tokens), "prompt_length": s.prompt_length}
        if s.component == RL:
            assert s.reference is not None
            near = [min(0.0, lp + rng.gauss(0.0, _BEHAVIOUR_NOISE)) for lp in s.reference.tolist()]
            row |= {"advantage": s.advantage, "behaviour_logprobs": near}
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def make_batch(
    directory: Path, model: TestModel, world: int, platform: Platform, dtype: str, parallel: Parallel
) -> str:
    """batch.jsonl for a case of `world` processes, with the model's own log-probabilities. Collective."""
    config = schema.Config(parallel=parallel, model=schema.Model(dtype=dtype))  # type: ignore[arg-type]
    adapter = directory / "adapter"
    policy = build_policy(
        config, platform, directory / "model", adapter=True, auxiliary=False, reference=False, adapter_path=adapter
    )
    samples = draw_samples(model, world)
    PassRunner(policy, config.objective, model.max_tokens).fill_reference([s for s in samples if s.component == RL])
    return batch_text(samples)
