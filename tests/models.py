"""Tiny HF models with nothing trivial in them, for comparisons with transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def tiny_hf(kind: str, seed: int = 0, vocab: int = 120, layers: int = 2) -> transformers.PreTrainedModel:
    """A random float32 model; kind is one of KINDS or MOE. Windows are shorter than the tests' sequences."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": vocab, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": kind != "qwen2_untied", "rms_norm_eps": 1e-6, "initializer_range": 0.1,
        "pad_token_id": None,  # transformers gives its embedding no gradient
    }  # fmt: skip
    if kind.startswith("qwen2"):
        config = transformers.Qwen2Config(**common, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
        model = transformers.Qwen2ForCausalLM(config)
    elif kind.startswith("qwen3"):
        common |= {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
        if kind == "qwen3_moe":
            common |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
            model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**common))
        else:
            model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common))
    elif kind.startswith("mistral"):
        window = 7 if kind == "mistral_window" else None
        model = transformers.MistralForCausalLM(
            transformers.MistralConfig(**common, head_dim=24, sliding_window=window)
        )
    elif kind == "gemma3":
        # Neither √hidden_size nor the scale of the scores is what it would be by default or a power of two.
        common |= {"hidden_size": 72, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 6}
        rope = {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
        config = transformers.Gemma3TextConfig(**common, layer_types=sliding_types(layers), rope_parameters=rope)
        model = transformers.Gemma3ForCausalLM(config)
    elif kind == "olmo2":
        # By default its end token lies beyond this vocabulary.
        model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**common, eos_token_id=None))
    else:
        rope = LLAMA3 if kind == "llama_scaled" else {"rope_type": "default", "rope_theta": 1e4}
        config = transformers.LlamaConfig(**common, rope_parameters=rope)
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    return model.float().eval()


def sliding_types(layers: int) -> list[str]:
    """Layers with a window and layers without, both kinds from two layers on; not the same two by two."""
    return ["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(layers)]


KINDS = ("qwen2", "qwen2_untied", "llama", "llama_scaled", "qwen3", "mistral", "mistral_window", "gemma3", "olmo2")
MOE = "qwen3_moe"


def random_tokens(model: transformers.PreTrainedModel, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Token ids [b, s]; with experts, such that rounding cannot send a token to others than `model` does."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(0, model.config.vocab_size, shape, generator=generator)
        if not isinstance(model, transformers.Qwen3MoeForCausalLM):
            return tokens
        chosen = model.config.num_experts_per_tok
        with torch.no_grad():
            layers = [logits.sort(descending=True).values for logits in model(tokens, output_router_logits=True)[-1]]
        if min(float((ranked[:, chosen - 1] - ranked[:, chosen]).min()) for ranked in layers) > 1e-4:
            return tokens


def save_tiny(kind: str, directory: Path, **options: int) -> transformers.PreTrainedModel:
    """Write a tiny model to `directory` and return it."""
    model = tiny_hf(kind, **options)
    model.save_pretrained(directory)
    return model
