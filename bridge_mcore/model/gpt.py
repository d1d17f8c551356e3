"""The policy: a Megatron-Core GPTModel that returns token log-probabilities, or next-token logits while decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from bridge_mcore.config.schema import Parallel
from bridge_mcore.model.attention import CoreAttention, KVCache
from bridge_mcore.model.families.shape import ModelShape
from bridge_mcore.model.hooks import run_pre_hooks
from bridge_mcore.model.layers import ACTIVATIONS, layer_spec
from bridge_mcore.model.logprobs import token_logprobs


class PolicyModel(GPTModel):
    """GPTModel with rotary positions per token, chunked log-probabilities and a decoding cache."""

    shape: ModelShape
    logprob_chunk: int
    vp_stage: int | None  # which of this process's chunks it is; None without a virtual pipeline

    def rotary(self, length: int, position_ids: Tensor | None, device: torch.device) -> Tensor:
        """Rotary angles [s, 1 or b, 1, head_dim]; position_ids [b, s], or None for 0 … length-1 in every row.

        Of two ropes the angles lie side by side: of layers without a window, then of those with one.
        """
        inv_freq = self.inv_freq.to(device)
        if position_ids is None:
            position_ids = torch.arange(length, device=device)[None]
        return position_ids.t().float()[..., None, None] * inv_freq

    def forward(
        self,
        tokens: Tensor,
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        inverse_temperature: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """One pass over tokens [b, s].

        With `labels` [b, s]: returns [2, b, s], log-probabilities of the labels and entropies, computed only where
        `mask` [b, s] is True (0 elsewhere), at temperature 1/`inverse_temperature` [b, s]. Without: returns fp32
        logits of the last position [b, vocab]. On a pipeline stage that is not the last: hidden states.

        attention_mask: lengths of packed sequences (see `model.packed`), a boolean mask, or None for plain causal.
        """
        hidden = self.embedding(tokens, position_ids) if self.pre_process else None
        if hidden is not None and self.shape.embedding_scale != 1.0:
            hidden = hidden * torch.tensor(self.shape.embedding_scale).to(hidden.dtype).item()
        angles = self.rotary(tokens.shape[1], position_ids, tokens.device)
        hidden = self.decoder(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=angles)
        if not self.post_process:
            return hidden
        weight = self.shared_embedding_or_output_weight() if self.shape.tied else self.output_layer.weight
        run_pre_hooks(self.output_layer)
        if self.config.sequence_parallel:
            # The backward of token_logprobs already sums over tensor ranks, so this gather must not sum again.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        if labels is None:
            logits = gather_from_tensor_model_parallel_region(F.linear(hidden[-1], weight))
            return logits[:, : self.shape.vocab_size].float()
        flat = hidden.transpose(0, 1).flatten(0, 1)
        selected = None if mask is None else mask.flatten().nonzero()[:, 0]
        targets = labels.flatten()
        inverse = None if inverse_temperature is None else inverse_temperature.flatten()
        if selected is not None:
            flat, targets = flat[selected], targets[selected]
            inverse = None if inverse is None else inverse[selected]
        logprobs, entropy = token_logprobs(
            flat,
            weight,
            targets,
            inverse,
            vocab_size=self.shape.vocab_size,
            group=mpu.get_tensor_model_parallel_group(),
            chunk=self.logprob_chunk,
        )
        out = torch.stack([logprobs, entropy])
        if selected is not None:
            out = out.new_zeros(2, labels.numel()).index_copy(1, selected, out)
        return out.view(2, *labels.shape)


@contextmanager
def decoding(chunks: Sequence[PolicyModel], cache: KVCache) -> Iterator[None]:
    """Inside, attention reads and writes `cache`, and sequences are whole on every rank."""
    cores = [m for chunk in chunks for m in chunk.modules() if isinstance(m, CoreAttention)]
    with sequence_parallel_off(chunks):
        for core in cores:
            core.cache = cache
        try:
            yield
        finally:
            for core in cores:
                core.cache = None


@contextmanager
def sequence_parallel_off(chunks: Sequence[PolicyModel]) -> Iterator[None]:
    """Inside, every tensor-parallel rank computes whole sequences: one decoded position cannot be split."""
    touched: list[tuple[Any, str]] = []
    names = ("sequence_parallel", "reduce_scatter_embeddings")
    for chunk in chunks:
        for owner in (chunk.config, *chunk.modules()):
            # norms mark their weight instead, which only concerns gradients
            touched += [(owner, name) for name in names if getattr(owner, name, False) is True]
    for owner, name in touched:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for owner, name in touched:
            setattr(owner, name, True)


def transformer_config(
    shape: ModelShape, parallel: Parallel, dtype: torch.dtype, cpu: bool, recompute: str = "none"
) -> TransformerConfig:
    """Megatron's configuration of a decoder of this shape and layout; fusions that need CUDA kernels are off."""
    experts: dict[str, Any] = {}
    if shape.experts:
        experts = {
            "num_moe_experts": shape.experts,
            "moe_router_topk": shape.experts_per_token,
            "moe_ffn_hidden_size": shape.expert_intermediate_size,
            # BRIDGE's objectives and nothing beside them: no load-balancing loss.
            "moe_router_load_balancing_type": "none",
            "moe_aux_loss_coeff": 0.0,
            # Softmax over the chosen experts, which is the softmax over all, made to sum to 1 (HF's norm_topk_prob).
            "moe_router_score_function": "softmax",
            "moe_router_pre_softmax": False,
            "moe_router_dtype": "fp32",
            # One expert after the other: Transformer Engine's grouped GEMM would be faster on CUDA.
            "moe_grouped_gemm": False,
        }
    recomputations: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.mlp_width,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=ACTIVATIONS[shape.activation],
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        # Megatron then sums the gradients of these norms over tensor ranks; those over all heads are split instead.
        qk_layernorm=shape.qk_norm == "head",
        layernorm_zero_centered_gamma=shape.norm_weight == "one_plus",
        softmax_scale=shape.softmax_scale,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=1,
        sequence_parallel=parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=cpu,
        perform_initialization=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        # Interleaved, all rows have one length (training.passes says why), so none is sent ahead of them.
        variable_seq_lengths=parallel.virtual_pipeline == 1,
        moe_token_dispatcher_type="alltoall",
        # Each component of the loss is already divided by its global token count (DESIGN idea 4), so Megatron must
        # neither average over micro-batches nor over data-parallel ranks.
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        # Between two interleaved stages batched messages of both directions can be taken for one another, silently.
        batch_p2p_comm=not cpu and parallel.virtual_pipeline == 1,
        **experts,
        **recomputations[recompute],
    )


def _mark_split_parameters(model: GPTModel) -> None:
    """Say of each parameter how tensor parallelism splits it; Megatron does so only where it also initialises.

    Experts are whole on their rank. Without expert parallelism each tensor rank has all of them and sees its part of
    the sequence, so that their gradients must be summed over tensor ranks, as those of norms are. (With it they have
    groups of their own, which reach over the tensor ranks.)
    """
    for module in model.modules():
        if getattr(module, "is_expert", False):
            module.weight.sequence_parallel = model.config.sequence_parallel and module.weight.allreduce
            continue
        dims = {}
        if isinstance(module, ColumnParallelLinear):
            dims = {"weight": 0, "bias": 0}
        elif isinstance(module, VocabParallelEmbedding):
            dims = {"weight": 0}
        elif isinstance(module, RowParallelLinear):
            dims = {"weight": 1}
        for name, dim in dims.items():
            parameter = getattr(module, name, None)
            if parameter is not None and not getattr(parameter, "tensor_model_parallel", False):
                parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dim, 1


def build_chunks(
    shape: ModelShape,
    parallel: Parallel,
    dtype: torch.dtype,
    device: torch.device,
    *,
    logprob_chunk: int = 1024,
    recompute: str = "none",
    transformer_engine: bool = False,
) -> list[PolicyModel]:
    """This rank's part of a decoder, one model per virtual pipeline stage, with uninitialised weights.

    Load them with `checkpoint.hf.load_theta`. transformer_engine: build of its layers, see `model.layers`.
    """
    config = transformer_config(shape, parallel, dtype, device.type == "cpu", recompute)
    stages = range(parallel.virtual_pipeline) if parallel.virtual_pipeline > 1 else [None]
    return [_build_chunk(shape, parallel, config, device, stage, logprob_chunk, transformer_engine) for stage in stages]


def _build_chunk(
    shape: ModelShape,
    parallel: Parallel,
    config: TransformerConfig,
    device: torch.device,
    stage: int | None,
    logprob_chunk: int,
    transformer_engine: bool,
) -> PolicyModel:
    layer, norm = layer_spec(shape, transformer_engine)
    layers = get_num_layers_to_build(config, vp_stage=stage)
    model = PolicyModel(
        config,
        TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=norm),
        vocab_size=shape.vocab_size + (-shape.vocab_size % parallel.tensor),
        max_sequence_length=shape.max_positions,
        pre_process=mpu.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage),
        post_process=mpu.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage),
        position_embedding_type="none",  # rotary angles come from PolicyModel.rotary
        share_embeddings_and_output_weights=shape.tied,
        vp_stage=stage,
    )
    _mark_split_parameters(model)
    model.shape = shape
    model.vp_stage = stage
    model.logprob_chunk = logprob_chunk
    ropes = (shape.rope,) if shape.local_rope is None else (shape.rope, shape.local_rope)
    # Each rope's frequencies twice: the two halves of a head turn by the same angles.
    model.inv_freq = torch.cat([rope.inverse_frequencies(shape.head_dim).repeat(2) for rope in ropes]).to(device)
    return model if device.type == "cpu" else model.to(device)  # Megatron made it on the CPU already
