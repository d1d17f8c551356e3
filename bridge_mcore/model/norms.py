"""Root mean square norms (Zhang and Sennrich, 2019), as transformers computes them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Norm over the last dimension, statistics in fp32; `weighting` is ModelShape.norm_weight.

    Unlike Megatron's WrappedTorchNorm it may be used under sequence parallelism: it marks its weight so that Megatron
    all-reduces its gradient over tensor ranks.
    """

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        eps: float = 1e-5,
        weighting: Literal["rounded", "wide", "one_plus"] = "rounded",
        **_: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weighting = weighting
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark

    def mean_square(self, wide: Tensor) -> Tensor:
        """Of each vector of [..., hidden_size]: [..., 1]."""
        return wide.pow(2).mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] in any float dtype; the same shape and dtype back."""
        wide = x.float()
        wide = wide * torch.rsqrt(self.mean_square(wide) + self.eps)
        if self.weighting == "rounded":
            return self.weight * wide.to(x.dtype)
        weight = self.weight.float()
        return ((1.0 + weight if self.weighting == "one_plus" else weight) * wide).to(x.dtype)


class AllHeadsNorm(RMSNorm):
    """Norm of a token's queries (or keys) over all heads together, split over tensor ranks as the heads are."""

    def __init__(self, config: Any, hidden_size: int, *, heads: int, **options: Any) -> None:
        """hidden_size: of one head, which is what Megatron builds such norms with; heads: of all ranks."""
        super().__init__(config, hidden_size * heads // config.tensor_model_parallel_size, **options)
        self.width = hidden_size * heads
        # Each rank sees every token of its own heads: nothing is to be summed over ranks.
        self.weight.sequence_parallel = False  # type: ignore[attr-defined]
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def mean_square(self, wide: Tensor) -> Tensor:
        """Of each token, over the heads of all ranks: [..., heads of this rank · d] to [..., 1]."""
        squares = reduce_from_tensor_model_parallel_region(wide.pow(2).sum(-1, keepdim=True))
        # Every rank's output depends on the sum: its gradient is the sum over ranks, too.
        return copy_to_tensor_model_parallel_region(squares) / self.width

    def forward(self, x: Tensor) -> Tensor:
        """x [s, b, heads of this rank, d]; the same shape and dtype back."""
        return super().forward(x.flatten(-2)).view(x.shape)
