"""HF checkpoints written from any source of tensors, block by block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.checkpoint.finite import is_finite, not_finite
from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.checkpoint.safetensors_file import SafetensorsWriter, blocks, header_of
from bridge_mcore.checkpoint.staging import Output, Tick
from bridge_mcore.config.json_file import read_json_object
from bridge_mcore.errors import CheckpointError

#: Bytes that a worker holds of a tensor at a time.
BLOCK = 16 << 20
#: What travels with the weights of an HF checkpoint. Never code: a model that needs its own is another model.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "tekken.json", "LICENSE", "LICENSE.txt",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"


def plan_shards(
    source: TensorSource, names: Iterable[str], dtype: torch.dtype | None, limit: int
) -> list[dict[str, Any]]:
    """Split tensors, in their order, into files of at most `limit` bytes: name -> (dtype, shape) of each file."""
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name in names:
        kind = dtype or source.dtype(name)
        nbytes = prod(source.shape(name)) * kind.itemsize
        if shards[-1] and size + nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = (kind, source.shape(name))
        size += nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """File names of `count` shards, as transformers writes them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def hf_outputs(
    source: TensorSource, names: Iterable[str], dtype: torch.dtype | None, limit: int, workers: int = 1
) -> list[Output]:
    """The safetensors files of an HF checkpoint; `dtype` None keeps each tensor's.

    workers: threads of all files together. Where there are fewer files than that, several write one.
    """
    shards = plan_shards(source, names, dtype, limit)
    threads = max(1, workers // len(shards))

    def output(file: str, shard: dict[str, Any]) -> Output:
        def write(path: Path, tick: Tick) -> list[str]:
            with SafetensorsWriter(path, shard) as writer, ThreadPoolExecutor(threads) as pool:

                def copy(name: str) -> None:
                    kind, shape = shard[name]
                    copy_blocks(source, writer, name, kind, shape, tick)

                try:
                    for _ in pool.map(copy, shard):
                        pass
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            return list(shard)

        header, stored = header_of(shard)
        return Output(file, len(header) + sum(p.nbytes for p in stored.values()), write)

    return [output(file, shard) for file, shard in zip(shard_names(len(shards)), shards, strict=True)]


def copy_blocks(
    source: TensorSource, writer: SafetensorsWriter, name: str, dtype: torch.dtype, shape: tuple[int, ...], tick: Tick
) -> None:
    """Copy one tensor, a block of rows at a time."""
    width = prod(shape[1:]) * max(dtype.itemsize, source.dtype(name).itemsize)
    for low, high in blocks(shape[0], width, BLOCK):
        part = source.block(name, (low, high))
        if not is_finite(part):
            raise not_finite(source, [name])
        part = cast(part, dtype, name)
        writer.write(name, low, part)
        tick(part.nbytes)


def cast(tensor: Tensor, dtype: torch.dtype, name: str = "a tensor") -> Tensor:
    """The tensor in `dtype`, itself if it is in it. Raises CheckpointError for numbers beyond `dtype`."""
    if tensor.dtype == dtype:
        return tensor
    out = tensor.to(dtype)
    if not is_finite(out) and is_finite(tensor):
        kind, other = str(dtype).removeprefix("torch."), "bfloat16" if dtype == torch.float16 else "float32"
        largest = torch.finfo(dtype).max
        raise CheckpointError(f"{name} holds numbers beyond {kind}'s largest, {largest:.5g}; choose --dtype {other}")
    return out


def write_index(directory: Path, files: dict[str, list[str]], total: int) -> None:
    """The index of a sharded checkpoint: file -> its tensors. A single file needs none."""
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_companions(source: Path, directory: Path, dtype: torch.dtype | None) -> None:
    """config.json (with `dtype`, if the weights were cast), tokenizer, generation config and chat template."""
    config = read_json_object(source / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        (directory / "config.json").write_text(json.dumps(config, indent=2))
    else:
        shutil.copyfile(source / "config.json", directory / "config.json")
    for companion in COMPANIONS:
        if (source / companion).is_file():
            shutil.copyfile(source / companion, directory / companion)
    if (source / TEMPLATES).is_dir():
        (directory / TEMPLATES).mkdir()
        for template in (source / TEMPLATES).glob("*.jinja"):
            shutil.copyfile(template, directory / TEMPLATES / template.name)
