"""Proof that a conversion lost nothing: every tensor's checksum, and the logits of both models, in bounded memory.

For the logits both models run with the weights of one module at a time: transformers with what the HF side holds,
Megatron with what the Megatron side holds. Of the embedding only the rows of the tokens are read, and the output layer
is applied block by block.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bridge_mcore.checkpoint.convert import Model, open_hf, open_megatron
from bridge_mcore.checkpoint.hf_out import BLOCK, cast
from bridge_mcore.checkpoint.rows import parameter_rows
from bridge_mcore.checkpoint.safetensors_dir import MAX_INDEX, TensorSource
from bridge_mcore.checkpoint.safetensors_file import blocks, bytes_of
from bridge_mcore.checkpoint.staging import Show, quiet
from bridge_mcore.config.json_file import one_line, read_json_object
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import CheckpointError

CHECKSUMS = "checksums.json"
_TOKENS = 24
#: Largest difference of two logits, as a part of the largest logit: fp32 sums in another order, over many layers.
TOLERANCE = 1e-3


def checksum(source: TensorSource, name: str, dtype: torch.dtype) -> int:
    """CRC-32 of a tensor's bytes in `dtype`."""
    shape, value = source.shape(name), 0
    width = prod(shape[1:]) * max(dtype.itemsize, source.dtype(name).itemsize)
    for rows in blocks(shape[0], width, BLOCK):
        value = zlib.crc32(bytes_of(cast(source.block(name, rows), dtype)), value)
    return value


def compare_tensors(want: Model, got: Model, show: Show = quiet) -> dict[str, int]:
    """The checksums of `got`'s tensors, which are those of `want`'s, cast. CheckpointError names those that differ."""
    names = want.names()
    found: dict[str, int] = {}
    wrong = []
    for i in show(range(len(names)), len(names), "comparing tensors"):
        name = names[i]
        dtype = got.source.dtype(name)
        found[name] = checksum(got.source, name, dtype)
        if checksum(want.source, name, dtype) != found[name]:
            wrong.append(name)
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise CheckpointError(f"these tensors are not what they should be: {', '.join(wrong[:8])}{more}")
    return found


def write_checksums(directory: Path, found: dict[str, int]) -> None:
    """Leave the tensors' checksums in a checkpoint, under their HF names."""
    text = {"algorithm": "crc32", "tensors": {name: f"{value:08x}" for name, value in found.items()}}
    (directory / CHECKSUMS).write_text(json.dumps(text, indent=1))


def read_checksums(directory: Path) -> dict[str, int] | None:
    """What `write_checksums` left; None if there is nothing."""
    path = directory / CHECKSUMS
    if not path.exists():
        return None
    tensors = read_json_object(path, MAX_INDEX).get("tensors")
    try:
        if not isinstance(tensors, dict):
            raise ValueError("it names no tensors")
        return {name: int(value, 16) for name, value in tensors.items()}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error


@dataclass(frozen=True)
class LogitsResult:
    """How far the logits of the two models are apart, over all tokens of the vocabulary."""

    tokens: int
    difference: float
    largest: float


class _As:
    """A source of tensors in the dtypes that they have in another one."""

    def __init__(self, source: TensorSource, like: TensorSource) -> None:
        self.source, self.like, self.directory = source, like, source.directory

    def names(self) -> set[str]:
        return self.source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.like.dtype(name)

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """See `TensorSource`."""
        return cast(self.source.block(name, rows, columns), self.dtype(name), name)


def as_written(model: Model, written: Model) -> Model:
    """The model with its tensors cast to what they were written in: what a conversion should be compared with."""
    return replace(model, source=_As(model.source, written.source))


def compare_logits(hf: Model, megatron: Model, seed: int, show: Show = quiet) -> LogitsResult:
    """Run transformers on one checkpoint and Megatron on the other, fp32 on the CPU, on random tokens.

    Of a conversion that casts, give the source `as_written`. Raises CheckpointError if the logits differ by more
    than `TOLERANCE` of the largest one, or are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    size = hf.shape.vocab_size
    tokens = torch.randperm(size, generator=generator)[: min(_TOKENS, size)].sort().values
    order = torch.randperm(len(tokens), generator=generator)
    with torch.no_grad():
        one = _transformers_hidden(hf, tokens, order)
        other = _megatron_hidden(megatron, tokens, order)
        head = "model.embed_tokens.weight" if hf.shape.tied else "lm_head.weight"
        difference = largest = 0.0
        rows = list(blocks(size, hf.shape.hidden_size * 4, BLOCK))
        for i in show(range(len(rows)), len(rows), "comparing logits"):
            a = one @ hf.source.block(head, rows[i]).float().T
            b = other @ megatron.source.block(head, rows[i]).float().T
            difference = max(difference, float((a - b).abs().max()))
            largest = max(largest, float(a.abs().max()))
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise CheckpointError("the logits are not finite: a weight is NaN or infinite, or beyond fp32's range")
    if difference > TOLERANCE * largest:
        raise CheckpointError(
            f"the logits of transformers and of Megatron differ by {difference:.3g} (the largest is {largest:.3g}): "
            "this is not the same model"
        )
    return LogitsResult(len(tokens), difference, largest)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, parameters get no memory; buffers do, and are computed as ever."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = register  # type: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore


def _stream(model: nn.Module, read: Callable[[str], Tensor]) -> None:
    """Let every module have its own parameters, `read` by their names in fp32, just while it runs."""
    for path, module in model.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False)}
        if not own:
            continue

        def load(module: nn.Module, _: Any, path: str = path, own: dict = own) -> None:
            for name in own:
                value = read(f"{path}.{name}" if path else name).float()
                if value.shape != own[name].shape:
                    raise CheckpointError(f"{path}.{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}")
                module._parameters[name] = nn.Parameter(value, requires_grad=False)

        def drop(module: nn.Module, _: Any, __: Any, own: dict = own) -> None:
            module._parameters.update(own)

        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop)


def _rows(source: TensorSource, name: str, tokens: Tensor) -> Tensor:
    """The tokens' rows of the embedding."""
    return torch.cat([source.block(name, (int(t), int(t) + 1)) for t in tokens])


def _transformers_hidden(model: Model, tokens: Tensor, order: Tensor) -> Tensor:
    """Last hidden states [s, h] by transformers, of the tokens in this order."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model.config, local_files_only=True, trust_remote_code=False)
    config.vocab_size, config.pad_token_id = len(tokens), None  # only these tokens' rows exist
    with _parameters_on_meta():
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    base = built.base_model

    def read(name: str) -> Tensor:
        if name == "model.embed_tokens.weight":
            return _rows(model.source, name, tokens)
        if name in model.source.names():
            return model.source.block(name, (0, model.source.shape(name)[0]))
        return _fused_experts(model, name)

    _stream(built, read)
    return base(input_ids=order[None], use_cache=False).last_hidden_state[0]


def _fused_experts(model: Model, name: str) -> Tensor:
    """transformers holds all experts of a layer in one tensor; a checkpoint has each for itself."""
    stem, _, projection = name.rpartition(".")
    names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(projection)
    if names is None or not stem.endswith(".experts"):
        raise CheckpointError(f"transformers wants {name}, which the checkpoint does not hold")

    def whole(expert: int, part: str) -> Tensor:
        tensor = f"{stem}.{expert}.{part}.weight"
        return model.source.block(tensor, (0, model.source.shape(tensor)[0])).float()

    return torch.stack([torch.cat([whole(e, part) for part in names]) for e in range(model.shape.experts)])


def _megatron_hidden(model: Model, tokens: Tensor, order: Tensor) -> Tensor:
    """Last hidden states [s, h] by Megatron, of the tokens in this order."""
    from bridge_mcore.model.gpt import build_chunks

    small = replace(model.shape, vocab_size=len(tokens))
    mappings = {m.mcore: m for m in model.family.mappings(model.shape)}

    def read(name: str) -> Tensor:
        mapping = mappings[name]
        if name == "embedding.word_embeddings.weight":
            return _rows(model.source, mapping.hf[0], tokens)
        total = sum(model.source.shape(hf)[0] for hf in mapping.hf)
        return parameter_rows(model.source, mapping, model.shape, (0, total))

    with _one_process():
        with _parameters_on_meta():
            [built] = build_chunks(small, Parallel(), torch.float32, torch.device("cpu"))
        built.eval()
        _stream(built, read)
        built.post_process = False  # the output layer is the caller's
        return built(order[None])[:, 0]


@contextmanager
def _one_process() -> Iterator[None]:
    """Megatron's groups of a world of one; those that are there are used."""
    from bridge_mcore.platform.device import setup_device
    from bridge_mcore.platform.distributed import joined_world, layout_groups

    with ExitStack() as stack:
        if not dist.is_initialized():
            stack.enter_context(joined_world(setup_device("cpu"), alone=True))
            stack.enter_context(layout_groups(Parallel(), seed=0))
        yield


def verify_checksums(directory: Path, config: Path | None, show: Show = quiet) -> str:
    """Compare a checkpoint's tensors with the checksums that its conversion left; what came of it, in words."""
    wanted = read_checksums(directory)
    if wanted is None:
        raise CheckpointError(f"{directory} has no {CHECKSUMS}: it was not converted with --verify")
    model = open_hf(directory) if (directory / "config.json").is_file() else open_megatron(directory, config)
    names = model.names()
    wrong = [
        names[i] for i in show(range(len(names)), len(names), "reading tensors") if _differs(model, names[i], wanted)
    ]
    if wrong:
        raise CheckpointError(f"{directory} is damaged: {', '.join(wrong[:8])} do not have their checksums")
    return f"all {len(names)} are right"


def _differs(model: Model, name: str, wanted: dict[str, int]) -> bool:
    return checksum(model.source, name, model.source.dtype(name)) != wanted.get(name)
