"""HF checkpoints in and out of a Megatron model, by the family's table of parameters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from safetensors.torch import save_file
from torch import Tensor, nn

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.base import Family, ModelShape, Plain
from bridge_mcore.model.lora import projection_sizes

_SHARD_BYTES = 4 * 2**30
_EXPERTS = "local_experts"  # in Megatron's names, before an expert's number on its rank
#: What travels with the weights of an HF checkpoint.
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def expected_tensors(family: Family, shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """HF tensor name -> shape that a checkpoint of this family and shape holds."""
    sizes = projection_sizes(shape)
    h = shape.hidden_size
    out: dict[str, tuple[int, ...]] = {}
    for mapping in family.mappings(shape):
        for name in mapping.hf:
            part = name.rsplit(".", 2)[-2]
            if part in sizes:
                n_in, n_out = sizes[part]
                out[name] = (n_out,) if name.endswith(".bias") else (n_out, n_in)
            elif part in ("embed_tokens", "lm_head"):
                out[name] = (shape.vocab_size, h)
            elif part in ("q_norm", "k_norm"):
                out[name] = (shape.head_dim,)
            elif name.endswith("mlp.gate.weight"):  # the router
                out[name] = (shape.experts, h)
            else:
                out[name] = (h,)
    return out


def _check_names(source: SafetensorsDirectory, family: Family, shape: ModelShape) -> None:
    expected = expected_tensors(family, shape)
    found = source.names()
    extra = found - set(expected)
    if shape.tied:
        extra -= {"lm_head.weight"}  # some tied checkpoints carry the copy
        if "lm_head.weight" in found and "model.embed_tokens.weight" in found:
            head, embedding = source.tensor("lm_head.weight"), source.tensor("model.embed_tokens.weight")
            if not torch.equal(head, embedding):
                raise CheckpointError(
                    f"{source.directory}: config.json ties lm_head to the embedding, but the file holds two different "
                    "tensors; set tie_word_embeddings to false in config.json, or remove lm_head.weight"
                )
    extra = {name for name in extra if not name.endswith("rotary_emb.inv_freq")}
    missing = set(expected) - found
    wrong = [
        f"{n}: {source.shape(n)} instead of {s}" for n, s in expected.items() if n in found and source.shape(n) != s
    ]
    problems = []
    for label, names in (("missing", sorted(missing)), ("unexpected", sorted(extra)), ("misshapen", wrong)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            problems.append(f"{label}: {', '.join(names[:8])}{more}")
    if problems:
        raise CheckpointError(f"{source.directory} does not fit its config.json; " + "; ".join(problems))


def local_parameters(chunks: Iterable[Any]) -> dict[str, nn.Parameter]:
    """This rank's parameters under their global names (layers and experts counted over the whole model)."""
    out = {}
    for chunk in chunks:
        offset = get_transformer_layer_offset(chunk.config, vp_stage=chunk.vp_stage)
        for name, parameter in chunk.named_parameters():
            parts = name.split(".")
            if name.startswith("decoder.layers."):
                parts[2] = str(int(parts[2]) + offset)
            if _EXPERTS in parts:
                index = parts.index(_EXPERTS) + 1
                count = chunk.config.num_moe_experts // mpu.get_expert_model_parallel_world_size()
                parts[index] = str(int(parts[index]) + mpu.get_expert_model_parallel_rank() * count)
            out[".".join(parts)] = parameter
    return out


def _counterpart(name: str, shape: ModelShape) -> tuple[str, int | None]:
    """Where an expert's parameter lives: (this rank's own that is in the same place, expert-parallel rank).

    Of other parameters: (name, None).
    """
    before, mark, after = name.partition(f".{_EXPERTS}.")
    if not mark:
        return name, None
    expert, rest = after.split(".", 1)
    count = shape.experts // mpu.get_expert_model_parallel_world_size()
    own = int(expert) % count + mpu.get_expert_model_parallel_rank() * count
    return f"{before}{mark}{own}.{rest}", int(expert) // count


def base_parameters(chunks: Iterable[Any]) -> dict[str, nn.Parameter]:
    """θ: every parameter that is no adapter, under its global name."""
    return {n: p for n, p in local_parameters(chunks).items() if not getattr(p, "is_adapter", False)}


def read_theta(
    chunks: Sequence[Any], directory: Path, family: Family, shape: ModelShape
) -> Iterator[tuple[str, Tensor]]:
    """Yield (global Megatron name, this rank's shard) of an HF checkpoint, one parameter at a time.

    Everything is checked before the first tensor is yielded: names, shapes, and that every parameter gets a value.
    """
    source = SafetensorsDirectory(directory)
    _check_names(source, family, shape)
    mine = base_parameters(chunks)
    mappings = {m.mcore: m for m in family.mappings(shape)}
    tied_copy = shape.tied and "output_layer.weight" in mine  # the last pipeline stage holds a copy of the embedding
    if tied_copy:
        embedding = mappings["embedding.word_embeddings.weight"]
        mappings["output_layer.weight"] = type(embedding)("output_layer.weight", embedding.hf)
    unmapped = sorted(set(mine) - set(mappings))
    if unmapped:
        raise CheckpointError(f"family '{family.name}' does not say where {', '.join(unmapped)} come from")
    rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    for name, parameter in mine.items():
        mapping = mappings[name]
        full = mapping.merge([source.tensor(n) for n in mapping.hf], shape)
        dim = partition_dim_of(parameter)
        yield name, full if dim is None else mapping.shard(full, dim, size)[rank]


def load_theta(chunks: Sequence[Any], directory: Path, family: Family, shape: ModelShape) -> None:
    """Copy an HF checkpoint into the live weights (cast to their dtype). Raises CheckpointError."""
    mine = base_parameters(chunks)
    with torch.no_grad():
        for name, tensor in read_theta(chunks, directory, family, shape):
            if tensor.shape != mine[name].shape:
                raise CheckpointError(f"{name}: {tuple(tensor.shape)} does not fit {tuple(mine[name].shape)}")
            mine[name].copy_(tensor)


def partition_dim_of(parameter: Any) -> int | None:
    """Dimension along which tensor parallelism splits this parameter; None if it is replicated."""
    split = getattr(parameter, "tensor_model_parallel", False) and mpu.get_tensor_model_parallel_world_size() > 1
    return parameter.partition_dim if split else None


def gather(tensor: Tensor, parameter: Tensor, mapping: Plain) -> Tensor:
    """The full tensor, on every tensor rank, from this rank's shard; `parameter` says how it is split."""
    dim = partition_dim_of(parameter)
    if dim is None:
        return tensor
    shards = [torch.empty_like(tensor) for _ in range(mpu.get_tensor_model_parallel_world_size())]
    dist.all_gather(shards, tensor.contiguous(), group=mpu.get_tensor_model_parallel_group())
    return mapping.unshard(shards, dim)


def theta_groups(
    chunks: Sequence[Any],
    values: Mapping[str, Tensor],
    family: Family,
    shape: ModelShape,
    dtype: torch.dtype = torch.float32,
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield, for each parameter that this pipeline stage owns, its (HF name, full tensor) pairs, where `values` are.

    Collective over the stage's tensor- and expert-parallel ranks. `values`: this rank's tensors by global name, in
    `dtype`. Experts of other ranks are sent from there, one parameter at a time. Pairs may be views of one another.
    """
    mine = base_parameters(chunks)
    rank, group = mpu.get_expert_model_parallel_rank(), mpu.get_expert_model_parallel_group()
    for mapping in family.mappings(shape):
        own, owner = _counterpart(mapping.mcore, shape)
        if own not in mine:  # another pipeline stage's
            continue
        if owner is None or owner == rank:
            full = gather(values[mapping.mcore].detach(), mine[own], mapping)
        else:
            full = torch.empty_like(mine[own], dtype=dtype)
        if owner is not None and group.size() > 1:
            full = full.to(mine[own].device).contiguous()
            dist.broadcast(full, group=group, group_src=owner)
        yield list(zip(mapping.hf, mapping.split(full, shape), strict=True))


def theta_tensors(
    chunks: Sequence[Any], values: Mapping[str, Tensor], family: Family, shape: ModelShape
) -> Iterator[tuple[str, Tensor]]:
    """Yield (HF name, full fp32 tensor on CPU) of the parameters that this pipeline stage owns; see `theta_groups`."""
    for pairs in theta_groups(chunks, values, family, shape):
        for name, part in pairs:
            yield name, part.cpu()


def write_hf(
    target: Path,
    source: Path,
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write an HF checkpoint: `tensors` in safetensors shards, config, tokenizer and chat template from `source`.

    Called by all ranks (the iterator may be collective); tensor rank 0 of data rank 0 of each pipeline stage writes
    its shards, rank 0 the index. The directory appears under its name only when it is complete.
    """
    writer = mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank(with_context_parallel=True) == 0
    stage, stages = mpu.get_pipeline_model_parallel_rank(), mpu.get_pipeline_model_parallel_world_size()
    with atomic_directory(target) as directory:
        pending: dict[str, Tensor] = {}
        size = count = 0
        weight_map: dict[str, str] = {}
        total = 0
        failure: Exception | None = None

        def flush() -> None:
            nonlocal size, count, failure
            if pending and writer and failure is None:
                name = f"model-{stage + 1:03d}-of-{stages:03d}-{count:05d}.safetensors"
                try:
                    save_file(pending, directory / name, metadata={"format": "pt"})
                except Exception as error:  # raised below: until then peers gather tensors with this rank
                    failure = error
                weight_map.update(dict.fromkeys(pending, name))
            pending.clear()
            size, count = 0, count + 1

        for name, tensor in tensors:
            if not writer or failure is not None:
                continue
            tensor = (tensor if dtype is None else tensor.to(dtype)).contiguous().clone()
            if size + tensor.nbytes > _SHARD_BYTES:
                flush()
            pending[name] = tensor
            size += tensor.nbytes
            total += tensor.nbytes
        flush()
        maps: list[tuple[dict[str, str], int]] = [({}, 0)] * dist.get_world_size()
        dist.all_gather_object(maps, (weight_map, total))
        if failure is not None:
            raise failure
        if dist.get_rank() == 0:
            merged = {k: v for m, _ in maps for k, v in m.items()}
            if len(set(merged.values())) == 1:
                (directory / next(iter(merged.values()))).rename(directory / "model.safetensors")
            else:
                index = {"metadata": {"total_size": sum(t for _, t in maps)}, "weight_map": merged}
                (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
            config = json.loads((source / "config.json").read_text())
            if dtype is not None:
                config.pop("torch_dtype", None)
                config["dtype"] = str(dtype).removeprefix("torch.")
            (directory / "config.json").write_text(json.dumps(config, indent=2))
            for companion in _COMPANIONS:
                if (source / companion).is_file():
                    shutil.copy(source / companion, directory / companion)
            if finish is not None:
                finish(directory)
