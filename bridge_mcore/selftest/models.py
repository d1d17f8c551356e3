"""The models that the self-test makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bridge_mcore.config.model_files import Sizes


@dataclass(frozen=True)
class TestModel:
    """A model with random weights, and the batch that it learns from.

    Attributes:
        architecture: of transformers.
        fields: of its HF config.
        std: of the weights.
        stored: dtype on disk.
        tokens_scale: factor on the lengths of the batch's sequences.
        max_tokens: of a micro-batch, per rank; several are needed for the batch.
        rate: α; β is twice that.
        eps: AdamW's ε.
    """

    name: str
    architecture: str
    fields: dict[str, Any] = field(hash=False)
    std: float = 0.1
    stored: str = "float32"
    tokens_scale: int = 1
    max_tokens: int = 120
    rate: float = 1e-3
    eps: float = 1e-5

    @property
    def sizes(self) -> Sizes:
        """What a layout must divide."""
        f = self.fields
        return Sizes(
            origin=f"the {self.name} model",
            layers=f["num_hidden_layers"],
            heads=f["num_attention_heads"],
            kv_heads=f["num_key_value_heads"],
            intermediate_size=f["intermediate_size"],
            context=f["max_position_embeddings"],
            vocabulary=f["vocab_size"],
            hidden_size=f["hidden_size"],
            head_dim=f.get("head_dim"),
            tied=f["tie_word_embeddings"],
            experts=f.get("num_experts"),
            expert_size=f.get("moe_intermediate_size"),
            dense_layers=0 if "num_experts" in f else None,
        )


def _fields(hidden: int, mlp: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "tie_word_embeddings": tied,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip


def _large(name: str, *sizes: Any) -> TestModel:
    return TestModel(name, "Qwen2ForCausalLM", _fields(*sizes), 0.02, "bfloat16", 16, 4096, 2e-5, 1e-6)


#: The vocabulary of the tiny ones is odd, so that nothing is aligned by luck.
_EXPERTS = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MODELS = {
    "tiny": TestModel("tiny", "Qwen2ForCausalLM", _fields(64, 96, 4, 8, 4, 113, True)),
    "moe": TestModel(
        "moe",
        "Qwen3MoeForCausalLM",
        _fields(64, 96, 2, 8, 4, 113, False) | _EXPERTS | {"norm_topk_prob": True},
    ),
    "1.5b": _large("1.5b", 1536, 8960, 28, 12, 2, 151936, True),
    "3b": _large("3b", 2048, 11008, 36, 16, 2, 151936, True),
    "7b": _large("7b", 3584, 18944, 28, 28, 4, 152064, False),
}
