"""Gemma 3, text only: layers with a window have a rotary embedding of their own; norms on both sides, by 1 + weight."""

from bridge_mcore.model.families.base import DECODER, MLP, QK_NORM, SANDWICH_NORMS, Family

FAMILY = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    parameters=(*DECODER, *SANDWICH_NORMS, *MLP, *QK_NORM),
    features={
        "activation": "gelu_tanh",
        "norms": "sandwich",
        "norm_weight": "one_plus",
        "qk_norm": "head",
        "embedding_scale": lambda config: config["hidden_size"] ** 0.5,
        "softmax_scale": lambda config: config["query_pre_attn_scalar"] ** -0.5,
    },
    reads=("query_pre_attn_scalar",),
    sliding="layer_types",
    fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": lambda value: not value,
    },
    # The pattern is what layer_types was made of; the kind of cache concerns transformers alone.
    neutral=("sliding_window_pattern", "_sliding_window_pattern", "cache_implementation"),
)
