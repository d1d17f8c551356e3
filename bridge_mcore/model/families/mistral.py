"""Mistral: Llama, with a window over the keys in every layer where the config gives one."""

from bridge_mcore.model.families.base import LLAMA_LIKE, Family

FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    parameters=LLAMA_LIKE,
    sliding="all",
    fixed={"hidden_act": "silu", "attention_dropout": 0.0},
)
