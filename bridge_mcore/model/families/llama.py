"""Llama 3.x (and what shares its computation, such as SmolLM2), with Llama 3's RoPE scaling."""

from bridge_mcore.model.families.base import LLAMA_LIKE, Family

FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    parameters=LLAMA_LIKE,
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
    },
)
