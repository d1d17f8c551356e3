"""PEFT adapters out of a run's checkpoint, or out of the difference of two models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bridge_mcore.checkpoint.convert import (
    Options,
    check_apart,
    is_checkpoint,
    latest_iteration,
    open_hf,
    open_megatron,
    to_hf,
)
from bridge_mcore.checkpoint.finite import require_finite
from bridge_mcore.checkpoint.low_rank import LOSSY, extract
from bridge_mcore.checkpoint.peft import write_adapter
from bridge_mcore.checkpoint.run_adapter import newest_checkpoint, run_adapter
from bridge_mcore.checkpoint.staging import Output, write_directory
from bridge_mcore.model.lora import LoRAShape


def from_run(
    source: Path,
    target: Path,
    config: Path | None,
    alpha: float | None,
    options: Options,
    with_base: Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the LoRA weights of a run's checkpoint (its newest, if `source` is the run) as a PEFT adapter, fp32.

    Args:
        with_base: where to write the θ that they belong to, as an HF checkpoint in `dtype` (None: as stored); the
            adapter then names it. Without it the adapter names no base: the run's starting model is another one.
    """
    source = latest_iteration(newest_checkpoint(source, options.say))
    model = open_megatron(source, config)
    sources = [source, model.config]
    check_apart(target, sources)
    lora, tensors = run_adapter(source, model.shape, alpha)
    if with_base is None:
        _write(target, tensors, lora, None, options)
        options.say(
            f"· the adapter belongs to the θ of {source}, and names no base model; to get θ: "
            f"bridge-mcore convert mcore-to-hf {source} BASE, or --with-base BASE here"
        )
        return
    base = with_base.resolve()
    check_apart(base, [*sources, target])
    _write(target, tensors, lora, str(base), options, lambda: to_hf(model, base, dtype, options))
    options.say(f"· the adapter belongs to the θ in {base}, and names it")


def from_models(base: Path, tuned: Path, target: Path, rank: int, options: Options) -> None:
    """Write the nearest adapter of rank `rank` to tuned - base, and say how near it is."""
    check_apart(target, [base, tuned])
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


def _write(
    target: Path,
    tensors: dict[str, Tensor],
    lora: LoRAShape,
    base: str | None,
    options: Options,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Write an adapter that names `base`. `first` runs once the target is known to be free, and before it exists."""
    for name, tensor in tensors.items():
        require_finite(name, tensor, "the adapter")

    def write(directory: Path, _: object) -> None:
        first()
        write_adapter(directory, tensors, lora, base)

    outputs: list[Output] = []  # small: written at the end
    write_directory(
        target, {"kind": "adapter"}, outputs, write, workers=1, replace=is_checkpoint if options.force else None
    )
