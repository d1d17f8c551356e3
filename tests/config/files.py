"""Small files that look like what configurations name: model directories, data, cases. No tensor in them is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
