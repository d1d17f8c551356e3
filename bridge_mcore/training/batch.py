"""Micro-batches: sequences laid one after another in one row, whose tokens carry the loss weights (DESIGN idea 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
import torch
from torch import Tensor

from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.model.packed import gathered_order, zigzag


@dataclass
class MicroBatch:
    """One row of packed sequences [1, T_local]. Position i of a sequence predicts token i+1; only response tokens have
    weight.

    `weights[c]` is 1 / (global number of component c's response tokens) at c's positions and 0 elsewhere, so that
    component means do not depend on how samples are divided.

    `segments` are the lengths, padding included, in the full row [T]. Without context parallelism T_local = T;
    otherwise the tensors hold this rank's chunks of every sequence (see `model.packed.zigzag`). Segments past the
    samples are padding.
    """

    samples: list[Sample]
    segments: Tensor  # int32 [n] on the CPU, n ≥ len(samples)
    tokens: Tensor  # int64 [1, T_local]
    labels: Tensor  # int64 [1, T_local]
    positions: Tensor  # int64 [1, T_local], from 0 in each sequence
    weights: dict[str, Tensor]  # fp32 [1, T_local]
    advantages: Tensor  # fp32 [1, T_local]
    behaviour: Tensor  # fp32 [1, T_local]
    reference: Tensor  # fp32 [1, T_local]
    inverse_temperature: Tensor  # fp32 [1, T_local]
    correction: Tensor  # fp32 [1, T_local], factor of the surrogate: importance sampling between engine and trainer

    @property
    def mask(self) -> Tensor:
        """True where some component has weight [1, T_local]."""
        return torch.stack(list(self.weights.values())).any(0)

    def rows(self, values: Tensor) -> list[Tensor]:
        """Of values of the full row [T], what belongs to each sample's response tokens [response_length]."""
        if len(values) != int(self.segments.sum()):
            raise ValueError(f"values of {len(values)} positions, but the full row has {int(self.segments.sum())}")
        starts = (self.segments.cumsum(0) - self.segments).tolist()
        return [
            values[start + s.prompt_length - 1 : start + len(s.tokens) - 1]
            for start, s in zip(starts, self.samples, strict=False)
        ]


def count_tokens(samples: Sequence[Sample]) -> dict[str, int]:
    """Response tokens of each component."""
    counts = {SFT: 0, RL: 0}
    for s in samples:
        counts[s.component] += s.response_length
    return counts


def segment_multiple(multiple: int, context_size: int) -> int:
    """What each sequence's length is rounded up to: context parallelism cuts it into 2 · context_size chunks."""
    return lcm(multiple, 2 * context_size) if context_size > 1 else multiple


def collate(
    samples: Sequence[Sample],
    counts: Mapping[str, int],
    device: torch.device,
    *,
    multiple: int = 1,
    tail: int = 1,
    context_size: int = 1,
    context_rank: int = 0,
) -> MicroBatch:
    """Lay samples one after another and spread their values over the tokens.

    Without samples the micro-batch is blank, one shortest sequence without weight: a rank that has nothing left still
    takes part in what the others do.

    Args:
        counts: global response tokens per component, over all micro-batches and data-parallel ranks.
        multiple: every sequence is padded to a multiple of it, see `segment_multiple`.
        tail: T_local is padded to a multiple of it, by a segment of its own (sequence parallelism divides T_local by
            the tensor-parallel size).
        context_size, context_rank: which chunks of each sequence this rank holds.
    Raises:
        TrainingError: if a component has samples but no tokens.
    """
    multiple = segment_multiple(multiple, context_size)
    segments = [-(-max(len(s.tokens) - 1, 1) // multiple) * multiple for s in samples] or [multiple]
    # Every rank holds an even number of a cut sequence's positions, so an even remainder exists.
    missing = -sum(segments) // context_size % lcm(tail, 2 if context_size > 1 else 1)
    if missing:
        segments.append(missing * context_size)
    lengths = np.array(segments)
    starts = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    integers = np.zeros((3, total), dtype=np.int64)  # one array each for one transfer to the device
    floats = np.zeros((7, total), dtype=np.float32)
    tokens, labels, positions = integers
    sft, rl, advantages, behaviour, reference, inverse, correction = floats
    weights = {SFT: sft, RL: rl}
    positions[:] = np.arange(total) - np.repeat(starts, lengths)
    inverse[:] = correction[:] = 1.0
    for start, sample in zip(starts.tolist(), samples, strict=False):
        if counts[sample.component] <= 0:
            raise TrainingError(f"component '{sample.component}' has no response tokens: its mean is undefined")
        ids = np.asarray(sample.tokens)
        n = len(ids) - 1  # the last token predicts nothing
        tokens[start : start + n], labels[start : start + n] = ids[:-1], ids[1:]
        span = slice(start + sample.prompt_length - 1, start + n)
        weights[sample.component][span] = 1.0 / counts[sample.component]
        inverse[span] = 1.0 / sample.temperature
        advantages[span] = sample.advantage
        if sample.behaviour is not None:
            behaviour[span] = sample.behaviour
        if sample.correction is not None:
            correction[span] = sample.correction
        if sample.reference is not None:
            reference[span] = sample.reference.numpy()
    if context_size > 1:
        mine = zigzag(segments, context_size, context_rank)
        integers, floats = integers[:, mine], floats[:, mine]
    whole = torch.from_numpy(integers).to(device, non_blocking=True)[:, None].unbind()
    real = torch.from_numpy(floats).to(device, non_blocking=True)[:, None].unbind()
    return MicroBatch(
        samples=list(samples),
        segments=torch.tensor(segments, dtype=torch.int32),
        tokens=whole[0],
        labels=whole[1],
        positions=whole[2],
        weights={SFT: real[0], RL: real[1]},
        advantages=real[2],
        behaviour=real[3],
        reference=real[4],
        inverse_temperature=real[5],
        correction=real[6],
    )


def unsplit(parts: Sequence[Tensor], segments: Tensor) -> Tensor:
    """Values of the full row [T] from those of the context ranks [T_local], given in rank order."""
    if len(parts) == 1:
        return parts[0]
    order = torch.from_numpy(gathered_order(segments.tolist(), len(parts)))
    values = torch.cat(list(parts))
    return values[order.to(values.device)]
