"""OLMo 2: norms after attention and MLP instead of before, and one over all heads of a token's queries and keys."""

from bridge_mcore.model.families.base import DECODER, MLP, POST_NORMS, QK_NORM, Family

FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    parameters=(*DECODER, *POST_NORMS, *MLP, *QK_NORM),
    features={"norms": "post", "norm_weight": "wide", "qk_norm": "full"},
    fixed={"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0},
)
