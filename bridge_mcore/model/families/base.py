"""What a model family file declares, and the checks and conversions that follow from it.

A family is data: which HF fields it reads, which values of other fields it can express, and how each Megatron-Core
parameter is made of HF tensors. The same table serves import, export and (later) weight sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bridge_mcore.errors import CheckpointError


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base and, for Llama 3, its frequency scaling. None means unscaled."""

    theta: float
    llama3: dict[str, float] | None = None

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Inverse frequencies, fp32 [head_dim / 2], as transformers computes them."""
        inv_freq = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
        if self.llama3 is None:
            return inv_freq
        factor, low, high = (self.llama3[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
        context = self.llama3["original_max_position_embeddings"]
        wavelength = 2 * torch.pi / inv_freq
        # Long waves are slowed by `factor`, short ones kept, those between are interpolated.
        scaled = torch.where(wavelength > context / low, inv_freq / factor, inv_freq)
        smooth = (context / wavelength - low) / (high - low)
        between = ~(wavelength < context / high) & ~(wavelength > context / low)
        return torch.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled)


@dataclass(frozen=True)
class ModelShape:
    """Everything about a decoder that Megatron needs; HF config in, TransformerConfig out."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    tied: bool
    max_positions: int
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0  # of every layer, which then has no dense MLP; 0: a dense model
    experts_per_token: int = 0
    expert_intermediate_size: int = 0

    @property
    def mlp_width(self) -> int:
        """Width of the MLPs that the model has: one a layer, or its experts."""
        return self.expert_intermediate_size or self.intermediate_size


@dataclass(frozen=True)
class Plain:
    """One HF tensor is one Megatron parameter."""

    mcore: str
    hf: tuple[str, ...]

    def merge(self, tensors: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
        return tensors[0]

    def split(self, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        return [tensor]

    def shard(self, full: torch.Tensor, dim: int, parts: int) -> list[torch.Tensor]:
        return list(full.chunk(parts, dim))

    def unshard(self, shards: list[torch.Tensor], dim: int) -> torch.Tensor:
        return torch.cat(shards, dim)


@dataclass(frozen=True)
class Vocabulary(Plain):
    """Embedding and output rows: padded with zeros in Megatron so that they divide over tensor ranks."""

    def split(self, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        return [tensor[: shape.vocab_size]]

    def shard(self, full: torch.Tensor, dim: int, parts: int) -> list[torch.Tensor]:
        missing = -full.shape[0] % parts
        if missing:
            full = torch.cat([full, full.new_zeros(missing, *full.shape[1:])])
        return list(full.chunk(parts, dim))


@dataclass(frozen=True)
class QKV(Plain):
    """q, k, v projections, interleaved per key-value group: [q…, k, v] for each group."""

    def merge(self, tensors: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
        grouped = [t.reshape(shape.kv_heads, -1, *t.shape[1:]) for t in tensors]
        return torch.cat(grouped, 1).reshape(-1, *tensors[0].shape[1:])

    def split(self, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        per_group = shape.heads // shape.kv_heads
        grouped = tensor.reshape(shape.kv_heads, (per_group + 2) * shape.head_dim, *tensor.shape[1:])
        sizes = [per_group * shape.head_dim, shape.head_dim, shape.head_dim]
        return [t.reshape(-1, *tensor.shape[1:]) for t in grouped.split(sizes, 1)]


@dataclass(frozen=True)
class GateUp(Plain):
    """gate and up projections, stacked; a tensor rank holds its part of each."""

    def merge(self, tensors: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
        return torch.cat(tensors)

    def split(self, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        return list(tensor.chunk(2))

    def shard(self, full: torch.Tensor, dim: int, parts: int) -> list[torch.Tensor]:
        gate, up = full.chunk(2)
        return [torch.cat(pair) for pair in zip(gate.chunk(parts), up.chunk(parts), strict=True)]

    def unshard(self, shards: list[torch.Tensor], dim: int) -> torch.Tensor:
        halves = [s.chunk(2) for s in shards]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])


#: HF fields of every config that say nothing about the computation.
_NEUTRAL = {
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "name_or_path", "is_llama_config",
    "rope_interleaved", "max_window_layers", "sliding_window", "unk_token_id", "_attn_implementation_autoset",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One HF architecture. `fixed` maps a field to the only value that is expressed (or a predicate of it).

    In `parameters`, {layer} and {expert} count over the whole model. `expert_fields`: the HF fields of the number of
    experts, of experts per token and of the width of one expert, for a family in which every layer has experts.
    """

    name: str
    architecture: str
    model_type: str
    parameters: tuple[Plain, ...]
    qkv_bias: bool = False
    qk_norm: bool = False
    expert_fields: tuple[str, str, str] | None = None
    fixed: dict[str, Any] = field(default_factory=dict)

    def read(self, config: dict[str, Any], origin: str) -> ModelShape:
        """Turn an HF config into a ModelShape; every field is read, known to be neutral, or refused by name.

        Args:
            config: the content of config.json.
            origin: what to call it in errors.
        Raises:
            CheckpointError: naming each field that cannot be expressed exactly.
        """
        from transformers import AutoConfig, PretrainedConfig

        try:
            full = AutoConfig.for_model(**{**config, "model_type": self.model_type})
            values = full.to_dict()
            defaults = type(full)().to_dict()
        except Exception as error:  # transformers validates with many exception types; all mean a bad config
            raise CheckpointError(f"{origin}: transformers refuses this config: {error}") from error
        heads = values["num_attention_heads"]
        head_dim = values.get("head_dim") or values["hidden_size"] // heads
        # A field that transformers' own class does not know arrives as an extra attribute: it is not neutral.
        neutral = _NEUTRAL | (set(PretrainedConfig().to_dict()) - {"tie_word_embeddings", "quantization_config"})
        # transformers may write a field under another name than published configs do.
        aliases = full.attribute_map
        neutral |= _READ | {aliases.get(name, name) for name in self.expert_fields or ()}
        refused = []
        for key, value in values.items():
            if key in self.fixed:
                wanted = self.fixed[key]
                if not (wanted(value) if callable(wanted) else value == wanted):
                    refused.append(f"{key}={value!r}")
            elif key not in neutral and (key not in defaults or value != defaults[key]):
                refused.append(f"{key}={value!r}")
        rope, rope_refused = _read_rope(values)
        refused += rope_refused
        if refused:
            raise CheckpointError(
                f"{origin}: {self.architecture} with {', '.join(sorted(refused))} cannot be expressed exactly; "
                "training it would silently be another model"
            )
        assert rope is not None
        experts, per_token, width = [getattr(full, name) for name in self.expert_fields or ()] or [0, 0, 0]
        return ModelShape(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            norm_eps=values["rms_norm_eps"],
            rope=rope,
            tied=bool(values["tie_word_embeddings"]),
            max_positions=values["max_position_embeddings"],
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            experts=experts,
            experts_per_token=per_token,
            expert_intermediate_size=width,
        )

    def mappings(self, shape: ModelShape) -> Iterator[Plain]:
        """Every parameter of a model of this shape, layers and experts spelt out, in a stable order."""
        for p in self.parameters:
            if p.mcore == "output_layer.weight" and shape.tied:
                continue
            layers = range(shape.layers if "{layer}" in p.mcore else 1)
            experts = range(shape.experts if "{expert}" in p.mcore else 1)
            for place in ({"layer": layer, "expert": expert} for layer in layers for expert in experts):
                yield type(p)(p.mcore.format(**place), tuple(name.format(**place) for name in p.hf))


_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    "rope_parameters", "rope_scaling", "rope_theta",
}  # fmt: skip

_LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _read_rope(values: dict[str, Any]) -> tuple[Rope | None, list[str]]:
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", None) or values.get("rope_theta") or 10000.0
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    parameters.pop("type", None)
    if kind == "default":
        unread = sorted(k for k in parameters if k != "partial_rotary_factor" or parameters[k] != 1.0)
        return Rope(float(theta)), [f"rope_parameters.{k}" for k in unread]
    if kind != "llama3":
        return None, [f"rope_parameters.rope_type={kind!r}"]
    missing = [k for k in _LLAMA3_FIELDS if k not in parameters]
    unread = [k for k in parameters if k not in _LLAMA3_FIELDS]
    if missing or unread:
        return None, [f"rope_parameters.{k}" for k in missing + unread]
    return Rope(float(theta), {k: float(parameters[k]) for k in _LLAMA3_FIELDS}), []


def all_equal(value: Any) -> Callable[[Any], bool]:
    """A predicate for list fields such as `layer_types`: absent, or every entry equal to `value`."""
    return lambda entries: entries is None or all(entry == value for entry in entries)


LAYER, HF_LAYER = "decoder.layers.{layer}.", "model.layers.{layer}."

#: The tensors that Llama and its descendants share, whatever their MLPs are.
DECODER: tuple[Plain, ...] = (
    Vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
    Plain(LAYER + "input_layernorm.weight", (HF_LAYER + "input_layernorm.weight",)),
    QKV(
        LAYER + "self_attention.linear_qkv.weight",
        tuple(HF_LAYER + f"self_attn.{x}_proj.weight" for x in "qkv"),
    ),
    Plain(LAYER + "self_attention.linear_proj.weight", (HF_LAYER + "self_attn.o_proj.weight",)),
    Plain(LAYER + "pre_mlp_layernorm.weight", (HF_LAYER + "post_attention_layernorm.weight",)),
    Plain("decoder.final_layernorm.weight", ("model.norm.weight",)),
    Vocabulary("output_layer.weight", ("lm_head.weight",)),
)
LLAMA_LIKE = (
    *DECODER,
    GateUp(LAYER + "mlp.linear_fc1.weight", (HF_LAYER + "mlp.gate_proj.weight", HF_LAYER + "mlp.up_proj.weight")),
    Plain(LAYER + "mlp.linear_fc2.weight", (HF_LAYER + "mlp.down_proj.weight",)),
)
QKV_BIAS = QKV(LAYER + "self_attention.linear_qkv.bias", tuple(HF_LAYER + f"self_attn.{x}_proj.bias" for x in "qkv"))
QK_NORM = tuple(
    Plain(LAYER + f"self_attention.{x}_layernorm.weight", (HF_LAYER + f"self_attn.{x}_norm.weight",)) for x in "qk"
)
