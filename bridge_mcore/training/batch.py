"""Samples, and their division into padded micro-batches whose tokens carry the loss weights (DESIGN idea 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError


@dataclass
class MicroBatch:
    """Right-padded sequences [b, s]. Position i of a row predicts token i+1; only response tokens have weight.

    `weights[c]` is 1 / (global number of component c's response tokens) at c's positions and 0 elsewhere, so that
    component means do not depend on how samples are divided.
    """

    samples: list[Sample]
    tokens: Tensor  # int64 [b, s]
    labels: Tensor  # int64 [b, s]
    weights: dict[str, Tensor]  # fp32 [b, s]
    advantages: Tensor  # fp32 [b, s]
    behaviour: Tensor  # fp32 [b, s]
    reference: Tensor  # fp32 [b, s]
    inverse_temperature: Tensor  # fp32 [b, s]

    @property
    def mask(self) -> Tensor:
        """True where some component has weight [b, s]."""
        return torch.stack(list(self.weights.values())).any(0)


def count_tokens(samples: Sequence[Sample]) -> dict[str, int]:
    """Response tokens of each component."""
    counts = {SFT: 0, RL: 0}
    for s in samples:
        counts[s.component] += s.response_length
    return counts


def divide(samples: Sequence[Sample], max_tokens: int, max_rows: int | None = None) -> list[list[Sample]]:
    """Group samples of similar length so that rows × longest ≤ max_tokens (and rows ≤ max_rows).

    The order within the result is by length, longest first; a sample longer than max_tokens stands alone.
    """
    groups: list[list[Sample]] = []
    width = 0
    for sample in sorted(samples, key=lambda s: -len(s.tokens)):
        full = not groups or width * (len(groups[-1]) + 1) > max_tokens
        if full or (max_rows is not None and len(groups[-1]) >= max_rows):
            groups.append([])
            width = len(sample.tokens)
        groups[-1].append(sample)
    return groups


def collate(samples: list[Sample], counts: Mapping[str, int], device: torch.device, multiple: int = 1) -> MicroBatch:
    """Pad samples to one length (a multiple of `multiple`) and lay out the per-token values.

    Args:
        counts: global response tokens per component, over all micro-batches and data-parallel ranks.
    Raises:
        TrainingError: if a component has samples but no tokens.
    """
    longest = max(len(s.tokens) for s in samples) - 1  # the last token predicts nothing
    width = -(-max(longest, 1) // multiple) * multiple
    shape = (len(samples), width)
    tokens, labels = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    weights = {c: torch.zeros(shape) for c in (SFT, RL)}
    advantages, behaviour, reference = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    inverse = torch.ones(shape)
    for row, sample in enumerate(samples):
        n = len(sample.tokens)
        ids = torch.tensor(sample.tokens)
        tokens[row, : n - 1], labels[row, : n - 1] = ids[:-1], ids[1:]
        span = slice(sample.prompt_length - 1, n - 1)
        if counts[sample.component] <= 0:
            raise TrainingError(f"component '{sample.component}' has no response tokens: its mean is undefined")
        weights[sample.component][row, span] = 1.0 / counts[sample.component]
        inverse[row, span] = 1.0 / sample.temperature
        advantages[row, span] = sample.advantage
        if sample.behaviour is not None:
            behaviour[row, span] = torch.as_tensor(sample.behaviour, dtype=torch.float32)
        if sample.reference is not None:
            reference[row, span] = sample.reference
    move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
    return MicroBatch(
        samples=samples,
        tokens=move(tokens),
        labels=move(labels),
        weights={c: move(w) for c, w in weights.items()},
        advantages=move(advantages),
        behaviour=move(behaviour),
        reference=move(reference),
        inverse_temperature=move(inverse),
    )
