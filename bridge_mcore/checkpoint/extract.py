"""PEFT adapters out of a run's checkpoint, or out of the difference of two models."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bridge_mcore.checkpoint.convert import Options, is_checkpoint, latest_iteration, open_hf, open_megatron
from bridge_mcore.checkpoint.low_rank import LOSSY, extract
from bridge_mcore.checkpoint.manifest import list_checkpoints
from bridge_mcore.checkpoint.peft import write_adapter
from bridge_mcore.checkpoint.run_adapter import find_run, run_adapter
from bridge_mcore.checkpoint.staging import Output, write_directory
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.lora import LoRAShape


def from_run(source: Path, target: Path, config: Path | None, alpha: float | None, options: Options) -> None:
    """Write the LoRA weights of a run's checkpoint (its newest, if `source` is the run) as a PEFT adapter, fp32."""
    if (source / "checkpoints").is_dir():
        found = list_checkpoints(source / "checkpoints")
        if not found:
            raise CheckpointError(f"{source} has no checkpoint")
        source = found[0]
        options.say(f"· the newest checkpoint is {source.name}")
    source = latest_iteration(source)
    model = open_megatron(source, config)
    lora, tensors = run_adapter(source, model.shape, alpha)
    run = find_run(source)
    base = str(run.model) if run is not None else str(model.config)
    _write(target, tensors, lora, base, options)
    options.say(f"· this adapter belongs to the θ of {source}: bridge-mcore convert mcore-to-hf {source} BASE")


def from_models(base: Path, tuned: Path, target: Path, rank: int, options: Options) -> None:
    """Write the nearest adapter of rank `rank` to tuned - base, and say how near it is."""
    found = extract(open_hf(base), open_hf(tuned), rank, options.show)
    worst = max(found.left_out, key=lambda name: found.left_out[name])
    rest = found.left_out[worst]
    options.say(f"· rank {rank} leaves out at most {100 * rest:.2g} % of a difference's square (of {worst})")
    if rest > LOSSY:
        options.say(f"· warning: the adapter is not the whole difference; a --rank above {rank} comes nearer")
    if found.unexplained:
        more = f" and {len(found.unexplained) - 3} more" if len(found.unexplained) > 3 else ""
        options.say(
            f"· warning: {', '.join(found.unexplained[:3])}{more} differ too, which no such adapter can express"
        )
    _write(target, found.tensors, found.lora, str(base), options)


def _write(target: Path, tensors: dict[str, Tensor], lora: LoRAShape, base: str, options: Options) -> None:
    if any(not torch.isfinite(t).all() for t in tensors.values()):
        raise CheckpointError("the adapter holds values that are not finite")

    def write(directory: Path, _: object) -> None:
        write_adapter(directory, tensors, lora, base)

    outputs: list[Output] = []  # small: written at the end
    write_directory(
        target, {"kind": "adapter"}, outputs, write, workers=1, replace=is_checkpoint if options.force else None
    )
