"""One small declarative file per HF architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import one_line, read_json_object, shown
from bridge_mcore.config.nearest import nearest
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families import gemma3, llama, mistral, olmo2, qwen2, qwen3, qwen3_moe
from bridge_mcore.model.families.base import Family
from bridge_mcore.model.families.shape import ModelShape

FAMILIES: dict[str, Family] = {
    file.FAMILY.architecture: file.FAMILY for file in (qwen2, llama, qwen3, qwen3_moe, mistral, gemma3, olmo2)
}


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of an HF checkpoint directory. Raises CheckpointError if it is missing or cannot be read."""
    return read_json_object(
        Path(directory) / "config.json", missing=f"{directory} is no HF checkpoint: it has no config.json"
    )


def find_family(directory: Path) -> tuple[Family, ModelShape]:
    """The family of an HF checkpoint and the shape of its model; CheckpointError says what is not supported."""
    config = read_config(directory)
    names = config.get("architectures") or []
    if not isinstance(names, list) or len(names) != 1 or str(names[0]) not in FAMILIES:
        first = names[0] if isinstance(names, list) and names else config.get("model_type", "unknown")
        name = one_line(first, 80)
        raise CheckpointError(
            f"{directory}: architecture '{name}' has no family file{nearest(name, FAMILIES)}; "
            f"supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[names[0]]
    if config.get("model_type") != family.model_type:
        raise CheckpointError(
            f"{Path(directory) / 'config.json'}: model_type is {shown(config.get('model_type'))}, but "
            f"{family.architecture} is {family.model_type}; fetch the file again"
        )
    return family, family.read(config, str(Path(directory) / "config.json"))
