"""Qwen3 (dense): RMSNorm on each head's query and key, a head dimension of its own, no biases."""

from bridge_mcore.model.families.base import LLAMA_LIKE, QK_NORM, Family, all_equal

FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    parameters=(*LLAMA_LIKE, *QK_NORM),
    features={"qk_norm": "head"},
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "layer_types": all_equal("full_attention"),
    },
    neutral=("sliding_window", "max_window_layers"),  # used only with use_sliding_window
)
