"""One small declarative file per HF architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge_mcore.config.nearest import nearest
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families import gemma3, llama, mistral, olmo2, qwen2, qwen3, qwen3_moe
from bridge_mcore.model.families.base import Family
from bridge_mcore.model.families.shape import ModelShape

FAMILIES: dict[str, Family] = {
    file.FAMILY.architecture: file.FAMILY for file in (qwen2, llama, qwen3, qwen3_moe, mistral, gemma3, olmo2)
}


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of an HF checkpoint directory. Raises CheckpointError if it is missing or not JSON."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} is no HF checkpoint: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} should hold one JSON object")
    return config


def find_family(directory: Path) -> tuple[Family, ModelShape]:
    """The family of an HF checkpoint and the shape of its model; CheckpointError says what is not supported."""
    config = read_config(directory)
    names = config.get("architectures") or []
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        name = names[0] if names else config.get("model_type", "unknown")
        raise CheckpointError(
            f"{directory}: architecture '{name}' has no family file{nearest(str(name), FAMILIES)}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[names[0]]
    return family, family.read(config, str(Path(directory) / "config.json"))
