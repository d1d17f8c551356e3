"""What a model family file declares, and the checks and conversions that follow from it.

A family is data: which HF fields it reads, which values of other fields it can express, and how each Megatron-Core
parameter is made of HF tensors. The same table serves import, export, conversion and weight sync.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge_mcore.config.json_file import one_line, shown
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.mapping import QKV, GateUp, Plain, Vocabulary
from bridge_mcore.model.families.positions import read_ropes, read_windows
from bridge_mcore.model.families.shape import ModelShape

#: HF fields of every config that say nothing about the computation.
_NEUTRAL = {
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "name_or_path", "is_llama_config",
    "rope_interleaved", "unk_token_id", "_attn_implementation_autoset",
}  # fmt: skip
#: HF fields that are read of every config.
_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    "rope_parameters", "rope_scaling", "rope_theta",
}  # fmt: skip
#: HF fields of classifiers, of which transformers makes a list as long as they say.
_LABELS = ("num_labels", "id2label", "label2id")
#: The largest base of rotary embeddings that is believed: published ones are up to 1e7.
_MOST_THETA = 1e15
#: HF fields that count something, and the most that is believed: lists as long are made before a tensor is looked at.
_SIZES = {
    "vocab_size": 1 << 28, "hidden_size": 1 << 24, "intermediate_size": 1 << 24, "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16, "head_dim": 1 << 16,
    "num_local_experts": 1 << 16, "max_position_embeddings": 1 << 40,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One HF architecture: what its config says, and the tensors that it has.

    parameters: {layer} and {expert} in their names count over the whole model.
    features: fields of ModelShape that make this family what it is: a value, or a function of the HF fields.
    reads: the HF fields that those functions look at.
    sliding: which layers have the window `sliding_window`: none, all, or those that `layer_types` names.
    expert_fields: the HF fields of the number of experts, of experts per token and of the width of one expert, for a
        family in which every layer has experts.
    fixed: HF fields of which only one value can be expressed, or those that a predicate accepts.
    neutral: further HF fields that say nothing about the computation.
    """

    name: str
    architecture: str
    model_type: str
    parameters: tuple[Plain, ...]
    features: dict[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    sliding: Literal["none", "all", "layer_types"] = "none"
    expert_fields: tuple[str, str, str] | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    neutral: tuple[str, ...] = ()

    def known_fields(self) -> set[str]:
        """The HF fields that this family reads, fixes, or knows to say nothing about the computation."""
        from transformers import CONFIG_MAPPING, PretrainedConfig

        windows = {"none": (), "all": ("sliding_window",), "layer_types": ("sliding_window", "layer_types")}
        # transformers may write a field under another name than published configs do.
        aliases = CONFIG_MAPPING[self.model_type].attribute_map
        experts = {aliases.get(name, name) for name in self.expert_fields or ()}
        # A field that transformers' own class does not know arrives as an extra attribute: it is not neutral.
        common = set(PretrainedConfig().to_dict()) - {"tie_word_embeddings", "quantization_config"}
        named = {*self.fixed, *self.reads, *self.neutral, *windows[self.sliding]}
        return common | _NEUTRAL | _READ | experts | named

    def read(self, config: dict[str, Any], origin: str) -> ModelShape:
        """Turn an HF config into a ModelShape; every field is read, known to be neutral, or refused by name.

        Args:
            config: the content of config.json.
            origin: what to call it in errors.
        Raises:
            CheckpointError: naming each field that cannot be expressed exactly, or is no sensible value.
        """
        from transformers import AutoConfig

        limits = {**dict.fromkeys(self.expert_fields or (), 1 << 16), **_SIZES}
        sizes = {k: (config[k], most) for k, most in limits.items() if config.get(k) is not None}
        wrong = [f"{k}={shown(v)}" for k, (v, most) in sizes.items() if type(v) is not int or not 1 <= v <= most]
        if wrong:
            raise CheckpointError(
                f"{origin}: {', '.join(wrong)} cannot be: such a size is a whole number, positive and not huge"
            )
        config = {key: value for key, value in config.items() if key not in _LABELS}
        try:
            full = AutoConfig.for_model(**{**config, "model_type": self.model_type})
            values = full.to_dict()
            defaults = type(full)().to_dict()
        except Exception as error:  # transformers validates with many exception types; all mean a bad config
            raise CheckpointError(f"{origin}: transformers refuses this config: {one_line(error)}") from error
        try:
            shape = self._shape(full, values, defaults, origin)
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            # transformers has let a value of another type through
            raise CheckpointError(f"{origin}: a field has no sensible value: {one_line(error)!r}") from error
        _check_numbers(shape, origin)
        return shape

    def _shape(self, full: Any, values: dict[str, Any], defaults: dict[str, Any], origin: str) -> ModelShape:
        """`read` of transformers' object, what it holds, and what it would hold by default."""
        heads = values["num_attention_heads"]
        head_dim = values.get("head_dim") or values["hidden_size"] // heads
        known = self.known_fields()
        refused = []
        for key, value in values.items():
            if key in self.fixed:
                wanted = self.fixed[key]
                if not (wanted(value) if callable(wanted) else value == wanted):
                    refused.append(f"{key}={shown(value)}")
            elif key not in known and (key not in defaults or value != defaults[key]):
                refused.append(f"{one_line(key, 80)}={shown(value)}")
        rope, local_rope, refused_ropes = read_ropes(values, self.sliding == "layer_types")
        windows, refused_windows = read_windows(values, self.sliding)
        refused += refused_ropes + refused_windows
        if not isinstance(values["tie_word_embeddings"], bool):
            refused.append(f"tie_word_embeddings={shown(values['tie_word_embeddings'])}")
        if refused:
            raise CheckpointError(
                f"{origin}: {self.architecture} with {one_line(', '.join(sorted(refused)), 600)} cannot be expressed "
                "exactly; training it would silently be another model"
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
            windows=windows,
            local_rope=local_rope if windows else None,
            experts=experts,
            experts_per_token=per_token,
            expert_intermediate_size=width,
            **{name: value(values) if callable(value) else value for name, value in self.features.items()},
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


def _check_numbers(shape: ModelShape, origin: str) -> None:
    """Refuse what no model can have although its type is right."""
    numbers = {"rms_norm_eps": shape.norm_eps, "embedding_scale": shape.embedding_scale}
    if shape.softmax_scale is not None:
        numbers["softmax_scale"] = shape.softmax_scale
    for name, rope in (("rope", shape.rope), ("local rope", shape.local_rope)):
        if rope is not None:
            numbers |= {f"{name} theta": rope.theta, f"{name} factor": rope.factor}
            numbers |= {f"{name} {key}": value for key, value in (rope.llama3 or {}).items()}
    limits = {"rms_norm_eps": 1.0, "rope theta": _MOST_THETA, "local rope theta": _MOST_THETA}
    wrong = [
        f"{k}={shown(v)}"
        for k, v in numbers.items()
        if type(v) not in (int, float) or not 0 < v < limits.get(k, math.inf)
    ]
    if shape.head_dim % 2:
        wrong.append(f"head_dim={shape.head_dim} (rotary embeddings need an even one)")
    if shape.heads % shape.kv_heads:
        wrong.append(f"num_attention_heads={shape.heads} with num_key_value_heads={shape.kv_heads}")
    if wrong:
        raise CheckpointError(f"{origin}: {', '.join(wrong)} cannot be")


def all_equal(value: Any) -> Callable[[Any], bool]:
    """A predicate for list fields such as `layer_types`: absent, or every entry equal to `value`."""
    return lambda entries: entries is None or all(entry == value for entry in entries)


LAYER, HF_LAYER = "decoder.layers.{layer}.", "model.layers.{layer}."

#: The tensors that Llama and its descendants share, whatever their norms and MLPs are.
DECODER: tuple[Plain, ...] = (
    Vocabulary("embedding.word_embeddings.weight", ("model.embed_tokens.weight",)),
    QKV(
        LAYER + "self_attention.linear_qkv.weight",
        tuple(HF_LAYER + f"self_attn.{x}_proj.weight" for x in "qkv"),
    ),
    Plain(LAYER + "self_attention.linear_proj.weight", (HF_LAYER + "self_attn.o_proj.weight",)),
    Plain("decoder.final_layernorm.weight", ("model.norm.weight",)),
    Vocabulary("output_layer.weight", ("lm_head.weight",)),
)
MLP = (
    GateUp(LAYER + "mlp.linear_fc1.weight", (HF_LAYER + "mlp.gate_proj.weight", HF_LAYER + "mlp.up_proj.weight")),
    Plain(LAYER + "mlp.linear_fc2.weight", (HF_LAYER + "mlp.down_proj.weight",)),
)


def _norm(mcore: str, hf: str) -> Plain:
    return Plain(f"{LAYER}{mcore}.weight", (f"{HF_LAYER}{hf}.weight",))


#: The norms of a layer, by ModelShape.norms. HF calls Llama's norm before the MLP post_attention_layernorm; where a
#: norm really follows attention, it has that name.
PRE_NORMS = (_norm("input_layernorm", "input_layernorm"), _norm("pre_mlp_layernorm", "post_attention_layernorm"))
POST_NORMS = (
    _norm("self_attn_bda.norm", "post_attention_layernorm"),
    _norm("mlp_bda.norm", "post_feedforward_layernorm"),
)
SANDWICH_NORMS = (
    _norm("input_layernorm", "input_layernorm"),
    _norm("pre_mlp_layernorm", "pre_feedforward_layernorm"),
    *POST_NORMS,
)
LLAMA_LIKE = (*DECODER, *PRE_NORMS, *MLP)
QKV_BIAS = QKV(LAYER + "self_attention.linear_qkv.bias", tuple(HF_LAYER + f"self_attn.{x}_proj.bias" for x in "qkv"))
QK_NORM = tuple(_norm(f"self_attention.{x}_layernorm", f"self_attn.{x}_norm") for x in "qk")
