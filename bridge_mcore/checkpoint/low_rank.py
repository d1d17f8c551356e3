"""An adapter from the difference of two models: the closest LoRA weights of a rank, by singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridge_mcore.checkpoint.convert import Model
from bridge_mcore.checkpoint.finite import is_finite, not_finite
from bridge_mcore.checkpoint.peft import PREFIX
from bridge_mcore.checkpoint.staging import Show, quiet
from bridge_mcore.checkpoint.verify import checksum
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.lora import HF_PATHS, LoRAShape, expand_targets, projection_sizes

#: Beyond this part of the difference that a rank leaves out, the adapter is another model than the tuned one.
LOSSY = 0.01


@dataclass(frozen=True)
class Extracted:
    """The adapter's tensors under PEFT's names, and what of each projection's difference it leaves out (0 … 1)."""

    lora: LoRAShape
    tensors: dict[str, Tensor]
    left_out: dict[str, float]
    unexplained: list[str]  # tensors that differ, and that no adapter can change


def extract(base: Model, tuned: Model, rank: int, show: Show = quiet) -> Extracted:
    """Truncated singular value decomposition of tuned - base for every linear layer (Eckart and Young, 1936).

    Each product B A is the matrix of rank `rank` that is nearest to the difference; the singular values are shared
    evenly between A and B. The difference is computed in fp32; one matrix is in memory at a time.
    Raises CheckpointError if the two are not of one family and shape, or the same model.
    """
    if (base.family, base.shape) != (tuned.family, tuned.shape):
        raise CheckpointError(
            f"{tuned.source.directory} has another architecture or shape than {base.source.directory}"
        )
    lora = LoRAShape(rank, float(rank), expand_targets(tuple(HF_PATHS), base.shape))
    sizes = projection_sizes(base.shape)
    paths = {HF_PATHS[p]: p for p in lora.projections}
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, float] = {}
    unexplained = []
    names = base.names()
    changed: set[str] = set()
    for i in show(range(len(names)), len(names), "comparing the models"):
        name = names[i]
        path = name.split(".", 3)[-1].removesuffix(".weight")
        if path not in paths or not name.endswith(".weight"):
            if checksum(base.source, name, torch.float32) != checksum(tuned.source, name, torch.float32):
                unexplained.append(name)
            continue
        rows = (0, base.source.shape(name)[0])
        delta = tuned.source.block(name, rows).float() - base.source.block(name, rows).float()
        if not is_finite(delta):
            raise not_finite(base.source if not is_finite(base.source.block(name, rows)) else tuned.source, [name])
        r = min(rank, *sizes[paths[path]])
        stem = PREFIX + name.removesuffix(".weight")
        a, b, rest = _nearest(delta, r)
        # One rank for all projections: what a small matrix cannot have is zero.
        tensors[f"{stem}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, rank - r))
        tensors[f"{stem}.lora_B.weight"] = torch.nn.functional.pad(b, (0, rank - r))
        left_out[name] = rest
        if delta.any():
            changed.add(paths[path])
    if not changed:
        raise CheckpointError(f"{tuned.source.directory} has the same linear layers as {base.source.directory}")
    kept = LoRAShape(rank, float(rank), tuple(p for p in lora.projections if p in changed))
    wanted = tuple(f".{p}.lora_" for p in kept.projections)
    return Extracted(kept, {n: t for n, t in tensors.items() if any(w in n for w in wanted)}, left_out, unexplained)


def _nearest(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """(A [r, in], B [out, r], part of the squared difference that B A leaves out)."""
    if not delta.any():
        return torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank), 0.0
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    rest = float(s[rank:].square().sum() / s.square().sum())
    return (root[:, None] * v[:rank]).contiguous(), (u[:, :rank] * root).contiguous(), rest
