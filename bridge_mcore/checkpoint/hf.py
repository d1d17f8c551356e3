"""HF checkpoints in and out of a Megatron model, by the family's table of parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.checkpoint.finite import is_finite, not_finite, require_finite
from bridge_mcore.checkpoint.hf_out import write_companions
from bridge_mcore.checkpoint.rows import parameter_shard
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory, TensorSource, same
from bridge_mcore.checkpoint.safetensors_file import SafetensorsStream, blocks
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.base import Family, ModelShape, Plain
from bridge_mcore.model.lora import projection_sizes

_SHARD_BYTES = 4 * 2**30
_EXPERTS = "local_experts"  # in Megatron's names, before an expert's number on its rank
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_COMPARED_BYTES = 32 << 20


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
                heads = {"q_norm": shape.heads, "k_norm": shape.kv_heads}[part] if shape.qk_norm == "full" else 1
                out[name] = (heads * shape.head_dim,)
            elif name.endswith("mlp.gate.weight"):  # the router
                out[name] = (shape.experts, h)
            else:  # a norm of the residual stream
                out[name] = (h,)
    return out


def check_tensors(source: TensorSource, family: Family, shape: ModelShape) -> list[str]:
    """Whether an HF checkpoint holds just what a model of this shape needs, as floating-point numbers.

    Returns the tensors that are left out because they say nothing new (a tied head's copy, rotary frequencies). Raises
    CheckpointError with all that is missing, unexpected, misshapen or quantised.
    """
    expected = expected_tensors(family, shape)
    found = source.names()
    extra = found - set(expected)
    spare = {name for name in extra if name.endswith("rotary_emb.inv_freq")}
    if shape.tied and {_HEAD, _EMBEDDING} <= found and source.shape(_HEAD) == expected[_EMBEDDING]:
        # Some tied checkpoints carry the copy.
        parts = blocks(shape.vocab_size, shape.hidden_size * 4, _COMPARED_BYTES)
        if source.shape(_EMBEDDING) == expected[_EMBEDDING] and not same(source, _HEAD, source, _EMBEDDING, parts):
            raise CheckpointError(
                f"{source.directory}: config.json ties lm_head to the embedding, but the file holds two different "
                "tensors; set tie_word_embeddings to false in config.json, or remove lm_head.weight"
            )
        spare.add(_HEAD)
    held = [n for n in expected if n in found]
    raise_misfits(
        f"{source.directory} does not fit its config.json",
        missing=sorted(set(expected) - found),
        unexpected=sorted(extra - spare),
        misshapen=[f"{n}: {source.shape(n)} instead of {expected[n]}" for n in held if source.shape(n) != expected[n]],
        **{
            "of a dtype that is not trained": [
                f"{n}: {source.dtype(n)}" for n in held if source.dtype(n) not in _FLOATS
            ]
        },
    )
    return sorted(spare)


def check_checkpoint(directory: Path, family: Family, shape: ModelShape) -> None:
    """Raise CheckpointError for files that do not fit config.json. By their headers: before a model is built."""
    check_tensors(SafetensorsDirectory(directory), family, shape)


def raise_misfits(what: str, **problems: Sequence[str]) -> None:
    """Raise CheckpointError with everything that does not fit, by kind; nothing if there is none."""
    lines = []
    for label, names in problems.items():
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            lines.append(f"{label}: {', '.join(names[:8])}{more}")
    if lines:
        raise CheckpointError(f"{what}; " + "; ".join(lines))


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

    Everything is checked before the first tensor is yielded: names, shapes, and that every parameter gets a value; that
    values are finite, as each is yielded. Raises CheckpointError.
    """
    source = SafetensorsDirectory(directory)
    check_tensors(source, family, shape)
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
        shard = parameter_shard(source, mappings[name], shape, partition_dim_of(parameter), rank, size)
        if not is_finite(shard):
            raise not_finite(source, mappings[name].hf)
        yield name, shard


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
    its shards, one tensor at a time, rank 0 the index. The directory appears under its name only when it is complete.
    """
    writer = mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank(with_context_parallel=True) == 0
    stage, stages = mpu.get_pipeline_model_parallel_rank(), mpu.get_pipeline_model_parallel_world_size()
    with atomic_directory(target) as directory:
        shard: SafetensorsStream | None = None
        weight_map: dict[str, str] = {}
        total = count = 0
        failure: Exception | None = None
        for name, tensor in tensors:
            if not writer or failure is not None:
                continue
            tensor = tensor if dtype is None else tensor.to(dtype)
            try:
                require_finite(name, tensor, target)
                if shard is None or shard.size + tensor.nbytes > _SHARD_BYTES or shard.full(name, tensor):
                    if shard is not None:
                        shard.close()
                    file = f"model-{stage + 1:03d}-of-{stages:03d}-{count:05d}.safetensors"
                    shard, count = SafetensorsStream(directory / file), count + 1
                shard.append(name, tensor)
            except Exception as error:  # raised below: until then peers gather tensors with this rank
                failure = error
                continue
            weight_map[name] = file
            total += tensor.nbytes
        try:
            if shard is not None and failure is None:
                shard.close()
        except OSError as error:
            failure = error
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
            write_companions(source, directory, dtype)
            if finish is not None:
                finish(directory)
