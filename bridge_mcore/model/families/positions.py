"""What HF configs say about positions: rotary embeddings and the attention windows of the layers."""

from __future__ import annotations

from typing import Any

from bridge_mcore.model.families.shape import Rope

_LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
FULL, SLIDING = "full_attention", "sliding_attention"


def read_rope(parameters: dict[str, Any], theta: float | None, name: str) -> tuple[Rope | None, list[str]]:
    """The rotary embedding that an HF dict of parameters means, and what of it cannot be expressed, called `name`.

    theta: the base if the dict does not hold it; None for 10,000.
    """
    parameters = dict(parameters)
    base = _number(parameters.pop("rope_theta", None) or theta or 10000.0)
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    parameters.pop("type", None)
    if parameters.get("partial_rotary_factor") == 1.0:
        del parameters["partial_rotary_factor"]
    known = {"default": (), "linear": ("factor",), "llama3": _LLAMA3_FIELDS}
    if kind not in known:
        return None, [f"{name}.rope_type={kind!r}"]
    wrong = sorted(set(parameters) ^ set(known[kind]))
    if wrong:
        return None, [f"{name}.{key}" for key in wrong]
    if kind == "llama3":
        return Rope(base, {key: _number(parameters[key]) for key in _LLAMA3_FIELDS}), []
    return Rope(base, factor=_number(parameters.get("factor", 1.0))), []


def _number(value: Any) -> float:
    """A number of a config. Raises TypeError for what only can be made one, as True and "10000" can."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def read_ropes(values: dict[str, Any], per_type: bool) -> tuple[Rope | None, Rope | None, list[str]]:
    """(of all layers, or of those without a window; of those with one; what cannot be expressed).

    per_type: HF has parameters for each type of layers.
    """
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not per_type:
        rope, refused = read_rope(parameters, values.get("rope_theta"), "rope_parameters")
        return rope, None, refused
    refused = [f"rope_parameters.{key}" for key in sorted(set(parameters) - {FULL, SLIDING})]
    ropes = []
    for kind in (FULL, SLIDING):
        rope, wrong = read_rope(parameters.get(kind) or {}, None, f"rope_parameters.{kind}")
        ropes.append(rope)
        refused += wrong
    return ropes[0], ropes[1], refused


def read_windows(values: dict[str, Any], sliding: str) -> tuple[tuple[int | None, ...], list[str]]:
    """(the window of each layer, () if none has one; what cannot be expressed). For `sliding`, see Family."""
    if sliding == "none":
        return (), []
    layers, window = values["num_hidden_layers"], values["sliding_window"]
    types = values["layer_types"] if sliding == "layer_types" else [FULL if window is None else SLIDING] * layers
    if len(types) != layers or set(types) - {FULL, SLIDING}:
        return (), [f"layer_types={types!r}"]
    if SLIDING not in types:
        return (), []
    if not isinstance(window, int) or window < 1:
        return (), [f"sliding_window={window!r}"]
    return tuple(window if kind == SLIDING else None for kind in types), []
