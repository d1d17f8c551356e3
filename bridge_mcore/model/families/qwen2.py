"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from bridge_mcore.model.families.base import LLAMA_LIKE, QKV_BIAS, Family, all_equal

FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    parameters=(*LLAMA_LIKE, QKV_BIAS),
    features={"qkv_bias": True},
    fixed={
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "layer_types": all_equal("full_attention"),
    },
    neutral=("sliding_window", "max_window_layers"),  # used only with use_sliding_window
)
