"""PEFT LoRA adapters in and out, in the names and shapes that the `peft` library reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from safetensors.torch import save_file
from torch import Tensor

from bridge_mcore.checkpoint.hf import gather, local_parameters, partition_dim_of, raise_misfits
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.config.schema import LORA_HOSTS, LORA_PROJECTIONS
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.model.families.base import ModelShape, Plain
from bridge_mcore.model.lora import HF_PATHS, HOST_PATHS, LoRAShape, expand_targets, projection_sizes

PREFIX = "base_model.model."
_HOST_OF = {p: host for host, projections in LORA_HOSTS.items() for p in projections}

#: adapter_config.json fields that must have these values (or be absent): what else they say is not plain LoRA.
_FIXED: dict[str, Any] = {
    "bias": "none", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
    "layers_to_transform": None, "fan_in_fan_out": False, "lora_bias": False, "use_qalora": False,
    "megatron_config": None, "trainable_token_indices": None, "layer_replication": None, "exclude_modules": None,
    "target_parameters": [], "alora_invocation_tokens": None,
}  # fmt: skip


def read_adapter_config(directory: Path, shape: ModelShape) -> LoRAShape:
    """The LoRA of a PEFT adapter directory. Raises CheckpointError naming what is not plain LoRA of this model."""
    path = Path(directory) / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} is no PEFT adapter: it has no adapter_config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {config.get('peft_type')!r}, only LORA is supported")
    wrong = [f"{k}={config[k]!r}" for k, v in _FIXED.items() if config.get(k, v) not in (v, None)]
    targets = config.get("target_modules")
    if targets == "all-linear":
        targets = list(LORA_PROJECTIONS)
    elif isinstance(targets, str):  # a pattern over module names, as peft matches it
        try:
            targets = [p for p, path in HF_PATHS.items() if re.fullmatch(targets, f"model.layers.0.{path}")]
        except re.error as error:
            raise CheckpointError(f"{path}: target_modules is no valid pattern: {error}") from error
    if not isinstance(targets, list):
        wrong.append(f"target_modules={targets!r} (a list of projections is needed)")
    else:
        wrong += [f"target module '{t}'" for t in targets if t not in LORA_PROJECTIONS]
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            wrong.append(f"{key}={config.get(key)!r}")
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(wrong)} cannot be expressed as w")
    try:
        projections = expand_targets(targets, shape)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return LoRAShape(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        projections=projections,
        rank_stabilised=bool(config.get("use_rslora", False)),
    )


def adapter_mappings(lora: LoRAShape, shape: ModelShape) -> Iterator[tuple[Plain, tuple[int, ...]]]:
    """(mapping of one adapter tensor, its full shape), in a stable order."""
    sizes = projection_sizes(shape)
    for layer in range(shape.layers):
        for p in lora.projections:
            n_in, n_out = sizes[p]
            for letter, full in (("A", (lora.rank, n_in)), ("B", (n_out, lora.rank))):
                name = f"{PREFIX}model.layers.{layer}.{HF_PATHS[p]}.lora_{letter}.weight"
                mcore = f"decoder.layers.{layer}.{HOST_PATHS[_HOST_OF[p]]}.lora.{letter}.{p}"
                yield Plain(mcore, (name,)), full


def open_adapter(directory: Path, lora: LoRAShape, shape: ModelShape) -> SafetensorsDirectory:
    """The tensors of a PEFT adapter. Missing, unexpected and misshapen ones are listed, all at once."""
    source = SafetensorsDirectory(directory, "adapter_model")
    expected = {m.hf[0]: full for m, full in adapter_mappings(lora, shape)}
    names = source.names()
    held = [n for n in expected if n in names]
    raise_misfits(
        f"{directory} does not fit the model",
        missing=sorted(set(expected) - names),
        unexpected=sorted(names - set(expected)),
        misshapen=[f"{n}: {source.shape(n)} instead of {expected[n]}" for n in held if source.shape(n) != expected[n]],
    )
    return source


def load_adapter(chunks: Sequence[Any], directory: Path, lora: LoRAShape, shape: ModelShape) -> None:
    """Copy a PEFT adapter into w; see `open_adapter` for what is refused."""
    source = open_adapter(directory, lora, shape)
    mine = local_parameters(chunks)
    rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for mapping, _ in adapter_mappings(lora, shape):
            if mapping.mcore in mine:
                parameter, full = mine[mapping.mcore], source.tensor(mapping.hf[0])
                dim = partition_dim_of(parameter)
                parameter.copy_(full if dim is None else mapping.shard(full, dim, size)[rank])


def adapter_tensors(
    chunks: Sequence[Any], values: Mapping[str, Tensor], lora: LoRAShape, shape: ModelShape
) -> dict[str, Tensor]:
    """PEFT name -> full tensor on CPU, of the layers of this pipeline stage. Collective over tensor ranks."""
    mine = local_parameters(chunks)
    return {
        mapping.hf[0]: gather(values[mapping.mcore].detach(), mine[mapping.mcore], mapping).cpu().contiguous().clone()
        for mapping, _ in adapter_mappings(lora, shape)
        if mapping.mcore in mine
    }


def merged_tensors(
    theta: Iterator[tuple[str, Tensor]], adapter: dict[str, Tensor], lora: LoRAShape
) -> Iterator[tuple[str, Tensor]]:
    """θ + scale · B A, in fp32, tensor by tensor; `theta` yields (HF name, tensor)."""
    for name, tensor in theta:
        stem = PREFIX + name.removesuffix(".weight")
        a, b = adapter.get(f"{stem}.lora_A.weight"), adapter.get(f"{stem}.lora_B.weight")
        if a is not None and b is not None and name.endswith(".weight"):
            tensor = (tensor.float() + lora.scale * (b.float() @ a.float())).to(tensor.dtype)
        yield name, tensor


def write_adapter(directory: Path, tensors: dict[str, Tensor], lora: LoRAShape, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors. `base`: path of the base model to name in the config."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": alpha, "use_rslora": lora.rank_stabilised, "target_modules": list(lora.projections),
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "fan_in_fan_out": False,
        "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))
