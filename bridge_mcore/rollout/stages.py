"""One decoding step over all chunks of the model: pipeline stages pass hidden states on, experts stay in step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from bridge_mcore.model.gpt import PolicyModel


class Stages:
    """The whole depth of the model as one function, on every rank of a pipeline at the same time."""

    def __init__(self, chunks: Sequence[PolicyModel]) -> None:
        self.chunks = list(chunks)
        self.count = mpu.get_pipeline_model_parallel_world_size()
        self.stage = mpu.get_pipeline_model_parallel_rank()
        self.group = mpu.get_pipeline_model_parallel_group()
        self.ranks = dist.get_process_group_ranks(self.group)
        #: the last stage has the logits
        self.is_last = self.stage == self.count - 1
        experts = self.chunks[0].config.num_moe_experts is not None and mpu.get_expert_model_parallel_world_size() > 1
        # Experts live on several replicas, which must all take part in every forward pass of any of them.
        self._peers = mpu.get_tensor_and_data_parallel_group(with_context_parallel=True) if experts else None

    def __call__(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor | None:
        """tokens and positions [b, s], mask as PolicyModel takes it. Last position's fp32 logits [b, vocab] on the
        last stage, None on others."""
        hidden = None
        for chunk in self.chunks:
            if not chunk.pre_process:
                config = chunk.config
                shape = (tokens.shape[1], tokens.shape[0], config.hidden_size)
                received = torch.empty(shape, dtype=config.params_dtype, device=tokens.device)
                dist.recv(received, src=self.ranks[self.stage - 1], group=self.group)
                chunk.set_input_tensor(received)
            hidden = chunk(tokens, position_ids=positions, attention_mask=mask)
            if not chunk.post_process:
                dist.send(hidden.contiguous(), dst=self.ranks[(self.stage + 1) % self.count], group=self.group)
                hidden = None
        return hidden

    def share(self, *tensors: Tensor) -> None:
        """Give every stage what the last one sampled, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=self.ranks[-1], group=self.group)

    def any(self, value: bool) -> bool:
        """Whether `value` holds on any rank whose experts are shared with this one; on this rank, without any."""
        return bool(self.most(int(value)))

    def most(self, value: int) -> int:
        """The largest `value` among those ranks."""
        if self._peers is None:
            return value
        tensor = torch.tensor([value], device=next(self.chunks[0].parameters()).device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._peers)
        return int(tensor.item())
