"""What the files of a model directory say, judged without loading a tensor: enough to refuse what cannot be trained.

The model room reads config.json again, in full, and refuses what it cannot express; here only sizes that other keys
must agree with are taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import read_json
from bridge_mcore.config.schema import GeneratedModel, Model
from bridge_mcore.errors import CheckpointError

_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
#: What transformers takes for sizes that a config.json leaves out, where it is not: as many key-value heads as heads,
#: hidden_size / heads as the head's dimension, and an output matrix of its own.
_OMITTED: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 8},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
}
_MOST_LAYERS = 10_000
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model that a layout must divide or a length must fit into; None where config.json does not say."""

    origin: str
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    intermediate_size: int | None = None
    context: int | None = None
    vocabulary: int | None = None
    hidden_size: int | None = None
    head_dim: int | None = None
    tied: bool = False
    experts: int | None = None  # of one mixture-of-experts layer; None where the MLP is dense
    expert_size: int | None = None  # intermediate size of one expert
    dense_layers: int | None = None  # layers without experts

    def parameters(self) -> Parameters | None:
        """Parameters by how a layout splits them, biases and norms left out; None if config.json does not say."""
        layers, heads, kv_heads, hidden = self.layers, self.heads, self.kv_heads, self.hidden_size
        if layers is None or heads is None or kv_heads is None or hidden is None:
            return None
        attention = 2 * hidden * (self.head_dim or hidden // heads) * (heads + kv_heads)
        dense_layers = self.dense_layers
        if dense_layers is None:
            dense_layers = 0 if self.experts else layers
        moe_layers = layers - dense_layers
        mlp = 3 * hidden * (self.intermediate_size or 0)
        router = hidden * (self.experts or 0)
        return Parameters(
            embedding=hidden * (self.vocabulary or 0),
            tied=self.tied,
            dense=layers * attention + dense_layers * mlp + moe_layers * router,
            expert=moe_layers * (self.experts or 0) * 3 * hidden * (self.expert_size or 0),
        )


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: of one embedding matrix, of all layers outside the experts, and of all experts."""

    embedding: int
    tied: bool
    dense: int
    expert: int

    @property
    def total(self) -> int:
        return self.embedding * (1 if self.tied else 2) + self.dense + self.expert


def model_sizes(model: Model) -> Sizes:
    """The sizes of what a configuration calls its model; empty ones if there is none."""
    if model.generated is not None:
        return generated_sizes(model.generated)
    return Sizes("the model") if model.path is None else directory_sizes(model.path)


def generated_sizes(spec: GeneratedModel) -> Sizes:
    return Sizes(
        origin="model.generated",
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        intermediate_size=spec.intermediate_size,
        context=spec.max_positions,
        hidden_size=spec.hidden_size,
        head_dim=spec.head_dim,
        tied=spec.tied,
        dense_layers=spec.layers,
    )


def directory_sizes(directory: Path) -> Sizes:
    """The sizes in config.json; empty ones if it cannot be read (:func:`model_problems` reports that)."""
    config = _read_json(directory / "config.json")
    if not isinstance(config, dict):
        config = {}
    config = {**_OMITTED.get(str(config.get("model_type")), {}), **config}

    def size(name: str) -> int | None:
        value = config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    heads, layers = size("num_attention_heads"), size("num_hidden_layers")
    experts = size("num_experts") or size("num_local_experts") or size("n_routed_experts")
    return Sizes(
        origin=str(directory / "config.json"),
        layers=layers,
        heads=heads,
        kv_heads=size("num_key_value_heads") or heads,
        intermediate_size=size("intermediate_size"),
        context=size("max_position_embeddings"),
        vocabulary=size("vocab_size"),
        hidden_size=size("hidden_size"),
        head_dim=size("head_dim"),
        tied=config.get("tie_word_embeddings") is True,
        experts=experts,
        expert_size=(size("moe_intermediate_size") or size("intermediate_size")) if experts else None,
        dense_layers=_dense_layers(config, min(layers or 0, _MOST_LAYERS)) if experts else layers,
    )


def _dense_layers(config: dict[str, Any], layers: int) -> int:
    """Layers of a mixture-of-experts model that have a plain MLP (`mlp_only_layers`, `decoder_sparse_step`)."""
    only, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step") or 1
    if not isinstance(only, list) or not isinstance(step, int):
        return 0
    only = {number for number in only if isinstance(number, int)}
    return sum(i in only or (i + 1) % step != 0 for i in range(layers))


def default_new_tokens(directory: Path, most: int) -> int:
    """`most`, or half the context of a small model, so that the prompt has room too."""
    return min(most, (directory_sizes(directory).context or 2 * most) // 2)


def model_problems(directory: Path, key: str, tokenizer: bool = True) -> Iterator[str]:
    """What keeps `directory` from being an HF checkpoint that can be read; `key` is what the user called it."""
    if not directory.is_dir():
        what = "is a file; give the directory that holds it" if directory.exists() else "does not exist"
        hint = "" if directory.exists() else _hub_hint(directory)
        yield f"{key} = {directory} {what}{hint}"
        return
    config = _read_json(directory / "config.json")
    if isinstance(config, str):
        yield f"{key} = {directory}: {config}"
    elif not isinstance(config, dict) or not config.get("model_type"):
        adapter = (directory / "adapter_config.json").is_file()
        hint = "; it is an adapter: give its base model here and the adapter as adapter.path" if adapter else ""
        yield f"{key} = {directory}: config.json does not say a model_type, so this is no HF checkpoint{hint}"
    yield from weight_problems(directory, key, "model")
    if tokenizer and not has_tokenizer(directory):
        names = " or ".join(" with ".join(names) for names in _TOKENIZERS)
        yield f"{key} = {directory} has no tokenizer ({names}); copy the files of the model's tokenizer there"


def adapter_problems(directory: Path, key: str, rank: int | None = None, alpha: float | None = None) -> Iterator[str]:
    """As :func:`model_problems`, for a PEFT LoRA adapter; `rank` and `alpha` are what the configuration says."""
    if not directory.is_dir():
        yield f"{key} = {directory} is not a directory; give the one that holds adapter_config.json"
        return
    config = _read_json(directory / "adapter_config.json")
    if isinstance(config, dict):
        for name, field, wanted in (("adapter.rank", "r", rank), ("adapter.alpha", "lora_alpha", alpha)):
            if wanted is not None and config.get(field) not in (None, wanted):
                found = config[field]
                yield f"{name} = {wanted:g}, but the adapter in {directory} has {field} = {found}; set {name}={found}"
    else:
        yield f"{key} = {directory}: {config or 'adapter_config.json is not an object'}; is it a PEFT adapter?"
    yield from weight_problems(directory, key, "adapter_model")


def weight_problems(directory: Path, key: str, stem: str) -> Iterator[str]:
    """Missing safetensors files: the only one, or some that the index names."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        content = _read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict):
            yield f"{key} = {directory}: {index.name} is damaged; fetch it again"
            return
        names = set(map(str, weight_map.values()))
        if not all(map(lies_inside, names)):
            yield f"{key} = {directory}: {index.name} points outside its directory; fetch it again"
            return
        missing = sorted(name for name in names if not (directory / name).is_file())
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            listed = ", ".join(missing[:3]) + more
            yield f"{key} = {directory} lacks {listed}, which {index.name} names; fetch the rest of the checkpoint"
    elif not (directory / f"{stem}.safetensors").is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        if pickles:
            yield (
                f"{key} = {directory} holds {pickles[0]} but no {stem}.safetensors; pickles are never loaded: convert "
                "it to safetensors (save_pretrained of transformers), where you trust the file"
            )
        else:
            yield f"{key} = {directory} has no weights: neither {stem}.safetensors nor {index.name}"


def lies_inside(name: str) -> bool:
    """Whether this is the name of a file in a directory, and leads nowhere else."""
    try:
        fits = 0 < len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False
    return fits and Path(name).name == name and name != ".." and "\\" not in name and "\0" not in name


def has_chat_template(directory: Path) -> bool:
    """Whether the tokenizer in a model directory brings a chat template; True if that cannot be told."""
    if any((directory / name).exists() for name in _CHAT_TEMPLATES):
        return True
    config = _read_json(directory / "tokenizer_config.json")
    return not isinstance(config, dict) or bool(config.get("chat_template"))


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds the files of a tokenizer, whatever they say."""
    return any(all((directory / name).is_file() for name in names) for names in _TOKENIZERS)


def _hub_hint(directory: Path) -> str:
    """`Qwen/Qwen2.5-0.5B` is a hub id, which the trainer does not fetch by itself."""
    if directory.is_absolute() or len(directory.parts) != 2 or directory.parts[0] in ("models", "checkpoints", "runs"):
        return ""
    return f"; if it is a Hugging Face id, fetch it first: hf download {directory} --local-dir {directory}"


def _read_json(path: Path) -> Any:
    """The content, or a text that says why there is none."""
    try:
        return read_json(path, missing=f"there is no {path.name}")
    except CheckpointError as error:
        return str(error)
