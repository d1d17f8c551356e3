"""PEFT LoRA adapters in and out, in the names and shapes that the `peft` library reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from torch import Tensor

from bridge_mcore.checkpoint.finite import require_finite
from bridge_mcore.checkpoint.hf import gather, local_parameters, partition_dim_of, raise_misfits
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.checkpoint.safetensors_file import SafetensorsWriter
from bridge_mcore.config.json_file import one_line, read_json_object, shown
from bridge_mcore.config.schema import LORA_HOSTS, LORA_PROJECTIONS
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.model.families.base import ModelShape, Plain
from bridge_mcore.model.lora import HF_PATHS, HOST_PATHS, LoRAShape, expand_targets, projection_sizes

PREFIX = "base_model.model."
_HOST_OF = {p: host for host, projections in LORA_HOSTS.items() for p in projections}

#: adapter_config.json fields that are read below, and those that say nothing about what a loaded adapter computes.
#: What is in neither must be empty: it may make the adapter more than plain LoRA.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights"}
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "lora_dropout",
    "peft_version", "runtime_config",
    "eva_config",  # where A started; ranks that EVA moved between layers are in rank_pattern, which is refused
    "megatron_core", "qalora_group_size",  # written always; used only with megatron_config and with use_qalora
}  # fmt: skip
#: The initialisations (peft 0.21, LoraLayer.update_layer) that leave the base model as it is. PiSSA, OLoRA, CorDA,
#: LoftQ and LoRA-GA take what A and B start with out of its weights: w would belong to another base.
_INITIAL = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
_OTHER_MODULES = ("lm_head", "model.embed_tokens", "model.norm")
#: Limits of what a file may ask for. A pattern is still someone else's: a short one can take exponential time on our
#: short names, which ends with Ctrl-C and never with a wrong adapter.
_MAX_PATTERN, _MAX_RANK = 2000, 1 << 16
_MAX_LAYERS = 10_000
_NAME = re.compile(re.escape(PREFIX) + r"model\.layers\.(\d{1,4})\.(.+)\.lora_([AB])\.weight")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def read_adapter_config(directory: Path, shape: ModelShape) -> LoRAShape:
    """The LoRA of a PEFT adapter directory. Raises CheckpointError naming what is not plain LoRA of this model."""
    lora = _plain_lora(directory, shape.layers)
    try:
        return replace(lora, projections=expand_targets(lora.projections, shape))
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def adapter_fields(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """(adapter_config.json, its fields that say more than plain LoRA has). Raises CheckpointError."""
    path = Path(directory) / "adapter_config.json"
    config = read_json_object(path, missing=f"{directory} is no PEFT adapter: it has no adapter_config.json")
    return config, [key for key, value in config.items() if key not in _READ | _NEUTRAL and not _is_empty(value)]


def _plain_lora(directory: Path, layers: int) -> LoRAShape:
    """What adapter_config.json says of a model with so many layers; its projections are those that it names."""
    path = Path(directory) / "adapter_config.json"
    config, wrong = adapter_fields(directory)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {shown(config.get('peft_type'))}, only LORA is supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    wrong += [k for k, v in (("bias", ("none", None)), ("use_rslora", (None, True, False))) if config.get(k) not in v]
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        wrong.append("r")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= sys.float_info.max:
        wrong.append("lora_alpha")
    said = [f"{shown(key)[1:-1]}={shown(config.get(key))}" for key in wrong]
    if config.get("init_lora_weights") not in _INITIAL:
        said.append(
            f"init_lora_weights={shown(config['init_lora_weights'])} (it changed the base model; save the adapter with "
            "peft's path_initial_model_for_weight_conversion)"
        )
    targets, faults = _chosen(config.get("target_modules"), layers)
    said += faults
    if said:
        more = f" and {len(said) - 8} more" if len(said) > 8 else ""
        raise CheckpointError(f"{path}: {', '.join(said[:8])}{more} cannot be expressed as w")
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    return LoRAShape(rank, float(alpha), tuple(targets), rank_stabilised=bool(config.get("use_rslora")))


def _is_empty(value: Any) -> bool:
    """Whether a field says nothing. 0 says something: layers_to_transform=0 is the first layer."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _chosen(targets: Any, layers: int) -> tuple[list[str], list[str]]:
    """(the projections that PEFT's target_modules chooses in every layer, what of it cannot be expressed).

    Matched as peft does: a string is a pattern of whole module paths; an entry of a list is a path or the end of one.
    """
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return list(LORA_PROJECTIONS), []
    paths = [{p: f"model.layers.{layer}.{end}" for p, end in HF_PATHS.items()} for layer in range(layers)]
    matches: Callable[[str], Any]
    if isinstance(targets, str):
        if len(targets) > _MAX_PATTERN:
            return [], [f"target_modules, a pattern of {len(targets)} characters (at most {_MAX_PATTERN} are read),"]
        try:
            matches = re.compile(targets).fullmatch
        except (re.error, RecursionError, OverflowError) as error:
            return [], [f"target_modules={shown(targets)} (no valid pattern: {one_line(error)})"]
        faults = [f"target module '{name}'" for name in _OTHER_MODULES if matches(name)]
    elif isinstance(targets, list) and all(isinstance(t, str) for t in targets):
        wanted = set(targets)
        known = {end for layer in paths for path in layer.values() for end in _ends(path)}

        def matches(path: str) -> bool:
            return not wanted.isdisjoint(_ends(path))

        faults = [f"target module {shown(t)}" for t in dict.fromkeys(targets) if t not in known]
    else:
        return [], [f"target_modules={shown(targets)} (a list of projections is needed)"]
    chosen = [[p for p in LORA_PROJECTIONS if matches(layer[p])] for layer in paths]
    odd = next((i for i, found in enumerate(chosen) if found != chosen[0]), None)
    if odd is not None:
        faults.append(f"target_modules={shown(targets)} (other projections in layer {odd} than in layer 0)")
    if not faults and not chosen[0]:
        faults.append(f"target_modules={shown(targets)} (it chooses no projection)")
    return chosen[0], faults


def _ends(path: str) -> set[str]:
    """A module's path and what follows each of its dots."""
    parts = path.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def adapter_mappings(lora: LoRAShape, shape: ModelShape) -> Iterator[tuple[Plain, tuple[int, ...]]]:
    """(mapping of one adapter tensor, its full shape), in a stable order."""
    return _mappings(lora, shape.layers, projection_sizes(shape))


def _mappings(
    lora: LoRAShape, layers: int, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Plain, tuple[int, ...]]]:
    for layer in range(layers):
        for p in lora.projections:
            n_in, n_out = sizes[p]
            for letter, full in (("A", (lora.rank, n_in)), ("B", (n_out, lora.rank))):
                name = f"{PREFIX}model.layers.{layer}.{HF_PATHS[p]}.lora_{letter}.weight"
                mcore = f"decoder.layers.{layer}.{HOST_PATHS[_HOST_OF[p]]}.lora.{letter}.{p}"
                yield Plain(mcore, (name,)), full


def open_adapter(directory: Path, lora: LoRAShape, shape: ModelShape) -> SafetensorsDirectory:
    """The tensors of a PEFT adapter. Missing, unexpected, misshapen and quantised ones are listed, all at once."""
    source = SafetensorsDirectory(directory, "adapter_model")
    _check_fits(source, {m.hf[0]: full for m, full in adapter_mappings(lora, shape)}, "the model")
    return source


def look_at_adapter(directory: Path, shape: ModelShape | None) -> LoRAShape:
    """All that merging an adapter, or training from it, checks: fields, tensors, finite values.

    shape: of the base model; None if it is not there: the tensors must then fit one another in every layer.
    Raises CheckpointError.
    """
    source = SafetensorsDirectory(directory, "adapter_model")
    if shape is not None:
        lora = read_adapter_config(directory, shape)
        open_adapter(directory, lora, shape)
    else:
        found = [(int(m[1]), m[2], m[3], m[0]) for name in sorted(source.names()) if (m := _NAME.fullmatch(name))]
        layers = 1 + max((layer for layer, *_ in found), default=0)
        lora = _plain_lora(directory, min(layers, _MAX_LAYERS))
        ends = {end: p for p, end in HF_PATHS.items()}
        held = {(ends[end], letter): source.shape(name) for _, end, letter, name in found if end in ends}
        if set(lora.projections) == set(LORA_PROJECTIONS):  # all that the model has: of experts none are adapted
            lora = replace(lora, projections=tuple(p for p in LORA_PROJECTIONS if (p, "A") in held))
        sizes = {p: ((0, *held.get((p, "A"), ()))[-1], (*held.get((p, "B"), ()), 0)[0]) for p in lora.projections}
        _check_fits(source, {m.hf[0]: full for m, full in _mappings(lora, layers, sizes)}, "its adapter_config.json")
    for name in sorted(source.names()):
        require_finite(name, source.tensor(name), directory)
    return lora


def _check_fits(source: SafetensorsDirectory, expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    names = source.names()
    held = [n for n in expected if n in names]
    raise_misfits(
        f"{source.directory} does not fit {what}",
        missing=sorted(set(expected) - names),
        unexpected=sorted(names - set(expected)),
        misshapen=[f"{n}: {source.shape(n)} instead of {expected[n]}" for n in held if source.shape(n) != expected[n]],
        quantised=[f"{n}: {source.dtype(n)}" for n in held if source.dtype(n) not in _FLOATS],
    )


def load_adapter(chunks: Sequence[Any], directory: Path, lora: LoRAShape, shape: ModelShape) -> None:
    """Copy a PEFT adapter into w; see `open_adapter` for what is refused."""
    source = open_adapter(directory, lora, shape)
    mine = local_parameters(chunks)
    rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for mapping, _ in adapter_mappings(lora, shape):
            if mapping.mcore in mine:
                parameter, full = mine[mapping.mcore], source.tensor(mapping.hf[0])
                require_finite(mapping.hf[0], full, directory)
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


def write_adapter(directory: Path, tensors: dict[str, Tensor], lora: LoRAShape, base: str | None) -> None:
    """Write adapter_config.json and adapter_model.safetensors. `base`: path of the base model to name; None: none.

    Raises CheckpointError for a tensor that is not finite.
    """
    for name, tensor in tensors.items():
        require_finite(name, tensor, directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Not safetensors' own writer: its files can be read by nobody else.
    sizes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(directory / "adapter_model.safetensors", sizes) as writer:
        for name, tensor in tensors.items():
            writer.write(name, 0, tensor)
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": alpha, "use_rslora": lora.rank_stabilised, "target_modules": list(lora.projections),
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "fan_in_fan_out": False,
        "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))
