"""Ranks of Megatron's own GPTModel: load a distributed checkpoint in a layout, and save it in both ways of naming.

python -m tests.checkpoint.megatron_job DIRECTORY...

Each directory holds an HF checkpoint `hf` and a distributed one `m`; `stacked` and `spelt` are written beside them.

Nothing of the project's model or converter is used, only its patches that let Megatron run on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from bridge_mcore.config.schema import Parallel
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups


def main(directory: Path) -> None:
    source, checkpoint, out = directory / "hf", directory / "m", directory
    from megatron.core import dist_checkpointing
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    hf = json.loads((source / "config.json").read_text())
    experts = hf.get("num_experts") or hf.get("num_local_experts")
    # With experts Megatron wants sequence parallelism over TP, which its own norm refuses.
    parallel = Parallel(pipeline=2, expert=2) if experts else Parallel(tensor=2, pipeline=2)
    with layout_groups(parallel, seed=0):
        moe = {
            "num_moe_experts": experts, "moe_router_topk": 2, "moe_ffn_hidden_size": hf["moe_intermediate_size"],
            "moe_router_load_balancing_type": "none", "moe_token_dispatcher_type": "alltoall",
            "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1,
        } if experts else {}  # fmt: skip
        qk_norm = hf["model_type"].startswith("qwen3")
        config = TransformerConfig(
            num_layers=hf["num_hidden_layers"], hidden_size=hf["hidden_size"],
            num_attention_heads=hf["num_attention_heads"], num_query_groups=hf["num_key_value_heads"],
            kv_channels=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
            ffn_hidden_size=hf["intermediate_size"], normalization="RMSNorm", gated_linear_unit=True,
            activation_func=F.silu, add_bias_linear=False, add_qkv_bias=hf["model_type"] == "qwen2",
            qk_layernorm=qk_norm, use_cpu_initialization=True, bf16=True, params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16, tensor_model_parallel_size=parallel.tensor, pipeline_model_parallel_size=2,
            bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
            apply_rope_fusion=False, gradient_accumulation_fusion=False, persist_layer_norm=False, **moe,
        )  # fmt: skip
        spec = get_gpt_layer_local_spec(
            num_experts=experts, moe_grouped_gemm=False, normalization="RMSNorm", qk_layernorm=qk_norm
        )
        model = GPTModel(
            config, spec, vocab_size=hf["vocab_size"] + hf["vocab_size"] % 2, max_sequence_length=64,
            pre_process=mpu.is_pipeline_first_stage(), post_process=mpu.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=hf["tie_word_embeddings"], position_embedding_type="rope",
        )  # fmt: skip
        model.bfloat16()  # its own norms are fp32
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        loaded = dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint))
        model.load_state_dict(loaded)
        for name, metadata in (("stacked", None), ("spelt", {"singleton_local_shards": True})):
            if torch.distributed.get_rank() == 0:
                (out / name).mkdir()
            torch.distributed.barrier()
            dist_checkpointing.save(model.sharded_state_dict(metadata=metadata), str(out / name))
            torch.distributed.barrier()


if __name__ == "__main__":
    with joined_world(setup_device("cpu")):
        for argument in sys.argv[1:]:
            main(Path(argument))
