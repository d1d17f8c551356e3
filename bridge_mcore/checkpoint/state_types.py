"""What `state.json` of a run's checkpoint may hold: everything in it is looked at before anything of it is used."""

from __future__ import annotations

import base64
from typing import Any

import torch

from bridge_mcore.config.json_file import shown
from bridge_mcore.slots.optimizer import ADAPTER, BASE


def check_state(state: Any) -> None:
    """Raise ValueError naming the place in `state.json`, as `merge_states` writes it, that is of another type."""
    _need(isinstance(state, dict), "all of it", state)
    for key, kind in (("extra", dict), ("records", dict), ("slots", dict), ("group_steps", dict), ("rng", list)):
        _need(isinstance(state.get(key), kind), key, state.get(key))
    for owner, groups in state["records"].items():
        _need(isinstance(groups, list), f"records.{owner}", groups)
        for number, group in enumerate(groups):
            place = f"records.{owner}.{number}"
            _need(isinstance(group, list) and len(group) == 2 and _is_texts(group[1]), place, group)
            _check_record(group[0], place)
    for name, slot in state["slots"].items():
        fits = isinstance(slot, dict) and type(slot.get("moments")) is bool and _is_step(slot.get("step", ""))
        _need(fits, f"slots.{name}", slot)
    for name, step in state["group_steps"].items():
        _need(name in (BASE, ADAPTER) and _is_step(step), f"group_steps.{name}", step)
    for rank, streams in enumerate(state["rng"]):
        _check_streams(streams, f"rng.{rank}")


def _check_record(record: Any, place: str) -> None:
    """What is recorded of some parameters' optimizer state: the names of moments, and scalars."""
    _need(isinstance(record, dict) and _is_texts(record.get("moments")), place, record)
    _need(isinstance(record.get("scalars"), dict), f"{place}.scalars", record.get("scalars"))
    for key, scalar in record["scalars"].items():
        if isinstance(scalar, list):
            fits = len(scalar) == 2 and _is_number(scalar[0]) and _is_dtype(scalar[1])
        else:
            fits = _is_number(scalar)
        _need(fits, f"{place}.scalars.{key}", scalar)


def _check_streams(streams: Any, place: str) -> None:
    _need(isinstance(streams, dict) and isinstance(streams.get("tracker"), dict), place, streams)
    texts = [streams.get("torch"), *([streams["device"]] if "device" in streams else []), *streams["tracker"].values()]
    for text in texts:
        try:
            base64.b64decode(text, validate=True)
        except (TypeError, ValueError):
            raise ValueError(f"{place} holds {shown(text)}, which is no random number state") from None


def _need(fits: bool, place: str, found: Any) -> None:
    if not fits:
        raise ValueError(f"{shown(place)[1:-1]} is {shown(found)}, which no run writes there")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_step(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | float) or (type(value) is int and abs(value) < 2**63)


def _is_dtype(name: Any) -> bool:
    return isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)
