"""Checkpoints from one form to another, in memory that does not grow with the model: HF, Megatron, adapters, runs.

Every conversion is a source of tensors by slice (an HF directory, a Megatron checkpoint, either with an adapter merged)
and a list of files to write from it. See docs/checkpoints.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from bridge_mcore import __version__
from bridge_mcore.checkpoint.finite import require_finite
from bridge_mcore.checkpoint.hf import check_tensors, expected_tensors
from bridge_mcore.checkpoint.hf_out import TEMPLATES, hf_outputs, write_companions, write_index
from bridge_mcore.checkpoint.megatron import MegatronModel, TensorStore
from bridge_mcore.checkpoint.megatron_out import finish_megatron, megatron_outputs, pieces
from bridge_mcore.checkpoint.peft import open_adapter, read_adapter_config
from bridge_mcore.checkpoint.run_adapter import find_run, run_adapter
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory, TensorSource
from bridge_mcore.checkpoint.sharded import METADATA
from bridge_mcore.checkpoint.staging import Output, Show, quiet, write_directory
from bridge_mcore.checkpoint.with_adapter import WithAdapter
from bridge_mcore.config.json_file import read_json_object
from bridge_mcore.config.model_files import has_tokenizer
from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.stops import generation_stops, load_tokenizer
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.model.families import Family, find_family
from bridge_mcore.model.families.shape import ModelShape
from bridge_mcore.model.lora import LoRAShape, projection_sizes

#: In a Megatron checkpoint that was written here: the model's config.json and tokenizer, and what wrote it.
HF_FILES, RECORD = "hf", "conversion.json"
_MOST_PADDING = 1 << 17
#: What a directory must hold to be replaced by force: a file that says what it is, and the weights.
_KINDS = {"config.json": "*.safetensors", "adapter_config.json": "adapter_model.safetensors", METADATA: "*.distcp"}


@dataclass(frozen=True)
class Options:
    """What all conversions know. `check(directory)` runs on the finished directory before it gets its name."""

    workers: int = 2
    force: bool = False
    shard_bytes: int = 5 * 10**9
    show: Show = quiet
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Model:
    """A checkpoint that can be read by slice: its tensors under HF names, and where its config.json is."""

    source: TensorSource
    family: Family
    shape: ModelShape
    config: Path
    files: list[Path]
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what a user should know of the source
    lora: LoRAShape | None = None  # of the adapter that is merged into it

    def names(self) -> list[str]:
        """HF names of all tensors, layer by layer, as an HF checkpoint holds them."""
        return list(expected_tensors(self.family, self.shape))


def open_hf(directory: Path) -> Model:
    """An HF checkpoint. Raises CheckpointError for what is not supported, damaged or does not fit its config.json."""
    directory = Path(directory)
    family, shape = find_family(directory)
    source = SafetensorsDirectory(directory)
    left_out = check_tensors(source, family, shape)
    remarks = check_companions(directory, shape)
    files = [directory / "config.json", *source.files()]
    return Model(source, family, shape, directory, files, left_out, remarks)


def check_companions(directory: Path, shape: ModelShape) -> list[str]:
    """Look at what travels with a model's config.json. Returns what a user should know.

    Raises CheckpointError for a tokenizer or generation_config.json that is broken or another model's.
    """
    generation_stops(directory)
    if has_tokenizer(directory):
        load_tokenizer(directory, shape.vocab_size)
        return []
    return [f"warning: {directory} has no tokenizer: what is written of it can neither be trained nor answer"]


def open_megatron(directory: Path, config: Path | None = None) -> Model:
    """A Megatron distributed checkpoint, or one of a run of this project.

    Args:
        directory: of the checkpoint, or one with `latest_checkpointed_iteration.txt`, as Megatron-LM writes it.
        config: directory with the model's config.json; None: what the conversion or the run left.
    """
    directory = latest_iteration(Path(directory))
    store = TensorStore(directory)
    if config is None and (directory / HF_FILES / "config.json").is_file():
        config = directory / HF_FILES
    run = find_run(directory)
    if config is None and run is not None:
        config = run.model
    if config is None:
        raise CheckpointError(
            f"{directory} does not say which model it is; give a directory with its config.json and tokenizer: --config"
        )
    family, shape = find_family(config)
    model = MegatronModel(store, family, shape)
    files = [directory / METADATA, *store.files()]
    remarks = [*model.remarks(), *check_companions(Path(config), shape)]
    return Model(model, family, shape, Path(config), files, remarks=remarks)


def latest_iteration(directory: Path) -> Path:
    """The iteration that Megatron-LM's tracker file names, if there is one."""
    tracker = directory / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return directory
    text = tracker.read_text(errors="replace")[:40].strip()
    if text != "release" and not text.isdecimal():
        raise CheckpointError(f"{tracker} says {text!r}, which is no iteration")
    return directory / ("release" if text == "release" else f"iter_{int(text):07d}")


def with_adapter(model: Model, adapter: Path) -> Model:
    """The model with a PEFT adapter merged into it."""
    lora = read_adapter_config(adapter, model.shape)
    tensors = open_adapter(adapter, lora, model.shape)
    for name in sorted(tensors.names()):
        require_finite(name, tensors.tensor(name), adapter)
    source = WithAdapter(model.source, tensors.tensor, tensors.names(), lora)
    files = [*model.files, adapter / "adapter_config.json", *tensors.files()]
    return replace(model, source=source, files=files, lora=lora)


def with_own_adapter(model: Model) -> Model:
    """A run's checkpoint with the LoRA weights that it holds merged into θ."""
    lora, tensors = run_adapter(model.source.directory, model.shape)
    return replace(model, source=WithAdapter(model.source, tensors.__getitem__, tensors, lora), lora=lora)


def to_hf(
    model: Model,
    target: Path,
    dtype: torch.dtype | None,
    options: Options,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write the model as an HF checkpoint; `dtype` None keeps each tensor's."""
    outputs = hf_outputs(model.source, model.names(), dtype, options.shard_bytes, options.workers)

    def finish(directory: Path, results: dict[str, Any]) -> None:
        write_index(directory, results, sum(_tensor_bytes(model, name, dtype) for name in model.names()))
        stored = {model.source.dtype(name) for name in model.names()}
        # Masters of a run are fp32 whatever its config.json says; one dtype for all is what config.json can say.
        write_companions(model.config, directory, dtype or (stored.pop() if _is_recast(model, stored) else None))
        check(directory)

    job = _job("hf", model, dtype, shard_bytes=options.shard_bytes)
    _write(model, target, job, outputs, finish, options)


def _is_recast(model: Model, stored: set[torch.dtype]) -> bool:
    config = read_json_object(model.config / "config.json")
    said = config.get("dtype", config.get("torch_dtype"))
    return len(stored) == 1 and said is not None and f"torch.{said}" not in {str(d) for d in stored}


def _tensor_bytes(model: Model, name: str, dtype: torch.dtype | None) -> int:
    return prod(model.source.shape(name)) * (dtype or model.source.dtype(name)).itemsize


def to_megatron(
    model: Model,
    target: Path,
    parallel: Parallel,
    dtype: torch.dtype | None,
    pad_to: int,
    options: Options,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write the model as a Megatron distributed checkpoint; its files are those of the layout's ranks.

    Raises ConfigError for a layout that does not divide the model.
    """
    _check_layout(parallel, model.shape, options.say)
    if not 1 <= pad_to <= _MOST_PADDING:
        raise ConfigError(f"--pad-vocab-to {pad_to}: must be between 1 and {_MOST_PADDING}")
    held = pieces(model.source, model.family, model.shape, parallel, dtype, pad_to)
    sizes = {name: getattr(parallel, name) for name in ("tensor", "pipeline", "virtual_pipeline", "expert")}

    def finish(directory: Path, results: dict[str, Any]) -> None:
        finish_megatron(directory, model.shape, held, results)
        (directory / HF_FILES).mkdir()
        write_companions(model.config, directory / HF_FILES, dtype)
        record = {"version": __version__, "family": model.family.name, "layout": sizes, "source": str(model.config)}
        (directory / RECORD).write_text(json.dumps(record, indent=1))
        check(directory)

    job = _job("megatron", model, dtype, layout=sizes, pad_to=pad_to)
    _write(model, target, job, megatron_outputs(model.source, model.shape, held), finish, options)


def _check_layout(parallel: Parallel, shape: ModelShape, say: Callable[[str], None]) -> None:
    """Refuse what cannot be split; layers may be spread unevenly, for the layout only says which file holds what."""
    problems = []
    sizes = projection_sizes(shape)
    split = {"attention's width": sizes["o_proj"][0], "rows of q, k and v": sizes["q_proj"][1] + 2 * sizes["k_proj"][1]}
    if not shape.experts:
        split["intermediate size"] = shape.intermediate_size
    tp = parallel.tensor
    problems += [f"--tp {tp} does not divide the {what}, {size}" for what, size in split.items() if size % tp]
    if not problems and (shape.heads % tp or shape.kv_heads % tp):
        say(
            f"· no model with {shape.heads} heads, {shape.kv_heads} for keys and values, runs at --tp {tp}: the files "
            "are split so all the same, and can be loaded in other layouts"
        )
    if parallel.pipeline * parallel.virtual_pipeline > shape.layers:
        problems.append(
            f"--pp {parallel.pipeline} × --vpp {parallel.virtual_pipeline} is more than {shape.layers} layers"
        )
    if parallel.expert > 1 and (not shape.experts or shape.experts % parallel.expert):
        problems.append(f"--ep {parallel.expert} does not divide the {shape.experts} experts")
    if problems:
        raise ConfigError("this layout cannot be written: " + "; ".join(problems))


def _job(kind: str, model: Model, dtype: torch.dtype | None, **more: Any) -> dict[str, Any]:
    """What an unfinished conversion must agree on to be continued: sources to the byte and second, and options."""
    config = model.config / "config.json"
    files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in {*model.files, config}]
    return {
        "version": __version__,
        "kind": kind,
        "files": sorted(files),
        "shape": repr(model.shape),
        "adapter": repr(model.lora),
        "dtype": str(dtype),
        "source": type(model.source).__name__,
        **more,
    }


def _write(
    model: Model,
    target: Path,
    job: dict[str, Any],
    outputs: list[Output],
    finish: Callable[[Path, dict[str, Any]], None],
    options: Options,
) -> None:
    check_apart(target, {p.parent for p in model.files} | {model.config})
    for name in model.left_out:
        options.say(f"· {name} is left out: it says nothing that the rest does not")
    for remark in model.remarks:
        options.say(f"· {remark}")
    write_directory(
        target,
        job,
        outputs,
        finish,
        workers=options.workers,
        replace=is_checkpoint if options.force else None,
        show=options.show,
        say=options.say,
    )


def check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raise CheckpointError if what is written would lie in what is read, or around it."""
    target = Path(target).resolve()
    for path in {p.resolve() for p in sources}:
        if target == path or target in path.parents or path in target.parents:
            raise CheckpointError(f"{target} and {path}, which is read, lie in one another; choose another place")


def is_checkpoint(directory: Path) -> bool:
    """Whether this is a checkpoint of some kind, and nothing beside it: nothing else is ever replaced."""
    kind = next((k for k in _KINDS if (directory / k).is_file() and any(directory.glob(_KINDS[k]))), None)
    return kind is not None and all(p.name in (HF_FILES, TEMPLATES) for p in directory.iterdir() if p.is_dir())


def default_workers() -> int:
    """Threads that write files: more than a few only compete for the disk."""
    return min(4, os.cpu_count() or 1)
