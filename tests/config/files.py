"""Small files that look like what configurations name: model directories, data, cases. No tensor in them is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge_mcore.config.model_files import Sizes

MODEL_CONFIG = {
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "vocab_size": 100,
}
SETTINGS = "lam: 0.5\nalpha: 1e-3\nbeta: 2e-3\noptimizer: {name: sgd}\n"
SFT_ROW: dict[str, Any] = {"kind": "sft", "tokens": [5, 9, 2], "prompt_length": 1}
RL_ROW: dict[str, Any] = {
    "kind": "rl",
    "tokens": [5, 8, 2],
    "prompt_length": 1,
    "advantage": 0.7,
    "behaviour_logprobs": [-0.3, -1.2],
}


def make_model(directory: Path, chat_template: bool = True, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODEL_CONFIG | config))
    (directory / "model.safetensors").write_bytes(b"")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{x}}"} if chat_template else {}))
    return directory


def make_adapter(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 16} | config)
    )
    (directory / "adapter_model.safetensors").write_bytes(b"")
    return directory


def make_case(directory: Path, rows: list[Any] | None = None, settings: str = SETTINGS) -> Path:
    make_model(directory / "model")
    make_adapter(directory / "adapter")
    write_rows(directory / "batch.jsonl", [SFT_ROW, RL_ROW] if rows is None else rows)
    (directory / "settings.yaml").write_text(settings)
    return directory


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def model_shape(**sizes: Any) -> Sizes:
    """The sizes of a real model, as its config.json has them."""
    return Sizes("config.json", context=32768, **sizes)


#: Shapes of Qwen2.5 0.5B, 1.5B and 7B, Llama 3 70B and Qwen3 235B-A22B.
SHAPES = {
    "0.5B": model_shape(
        layers=24, heads=14, kv_heads=2, intermediate_size=4864, vocabulary=151936, hidden_size=896, tied=True
    ),
    "1.5B": model_shape(
        layers=28, heads=12, kv_heads=2, intermediate_size=8960, vocabulary=151936, hidden_size=1536, tied=True
    ),
    "7B": model_shape(layers=28, heads=28, kv_heads=4, intermediate_size=18944, vocabulary=152064, hidden_size=3584),
    "70B": model_shape(layers=80, heads=64, kv_heads=8, intermediate_size=28672, vocabulary=128256, hidden_size=8192),
    "235B": model_shape(
        layers=94, heads=64, kv_heads=4, intermediate_size=12288, vocabulary=151936, hidden_size=4096, head_dim=128,
        experts=128, expert_size=1536, dense_layers=0,
    ),
}  # fmt: skip
