"""Qwen3-MoE: Qwen3 with experts instead of the MLP of every layer; a token's weights of its experts sum to one."""

from bridge_mcore.model.families.base import DECODER, HF_LAYER, LAYER, PRE_NORMS, QK_NORM, Family
from bridge_mcore.model.families.mapping import GateUp, Plain

_EXPERT, _HF_EXPERT = LAYER + "mlp.experts.local_experts.{expert}.", HF_LAYER + "mlp.experts.{expert}."

FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    parameters=(
        *DECODER,
        *PRE_NORMS,
        *QK_NORM,
        Plain(LAYER + "mlp.router.weight", (HF_LAYER + "mlp.gate.weight",)),
        GateUp(_EXPERT + "linear_fc1.weight", tuple(_HF_EXPERT + f"{x}_proj.weight" for x in ("gate", "up"))),
        Plain(_EXPERT + "linear_fc2.weight", (_HF_EXPERT + "down_proj.weight",)),
    ),
    features={"qk_norm": "head"},
    expert_fields=("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "norm_topk_prob": True,
        "num_experts_per_tok": lambda count: count > 1,  # one alone would have the weight 1, and its router no gradient
        "decoder_sparse_step": 1,
        "mlp_only_layers": lambda layers: not layers,
        # The load-balancing loss is no part of the objectives: its coefficient is not used, here or in transformers.
        "router_aux_loss_coef": lambda _: True,
        "output_router_logits": False,
    },
    neutral=("sliding_window", "max_window_layers"),  # used only with use_sliding_window
)
