"""Checkpoints of a run: every slot, both groups' optimizer state, data position and RNG, exactly as they were.

A checkpoint is a directory `step_00000042` that appears only when it is complete: one safetensors file and one JSON
file per rank, and `checkpoint.json` with the sizes and checksums of all of them. Resuming needs the same layout.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridge_mcore.checkpoint import hf
from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.errors import CheckpointError
from bridge_mcore.slots.optimizer import ADAPTER, BASE

if TYPE_CHECKING:
    from bridge_mcore.training.policy import Policy

FORMAT = 1
_MANIFEST = "checkpoint.json"


def _names(policy: Policy, group: str) -> list[str]:
    """Global name of each master of a group, in the optimizer's order."""
    by_id = {id(p): name for name, p in hf.local_parameters(policy.module).items()}
    return [by_id[id(live)] for _, live in policy.optimizer.pairs[group]]


def _tensors(policy: Policy) -> dict[str, Tensor]:
    """Everything that training changes, by a name that says what it is; live tensors, not copies."""
    out: dict[str, Tensor] = {}
    for group in (BASE, ADAPTER):
        for name, (master, _) in zip(_names(policy, group), policy.optimizer.pairs[group], strict=True):
            out[f"theta/{name}"] = master
            for key, value in policy.optimizer.state(master).items():
                if torch.is_tensor(value):
                    out[f"optimizer/{key}/{name}"] = value
    for slot_name, slot in policy.slots.items():
        for name, value, state in zip(_names(policy, BASE), slot.values, slot.states, strict=True):
            out[f"slot/{slot_name}/{name}"] = value
            for key, moment in state.items():
                if torch.is_tensor(moment):
                    out[f"slot_optimizer/{slot_name}/{key}/{name}"] = moment
    return out


def _group_steps(policy: Policy) -> dict[str, Any]:
    """Step counts that apex and TE keep per parameter group."""
    groups = list(policy.optimizer.groups((BASE, ADAPTER)))
    return {
        "optimizer": [int(g["step"]) if "step" in g else None for g in groups],
        "slots": {name: {str(k): v for k, v in slot.group_steps.items()} for name, slot in policy.slots.items()},
    }


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def save_state(directory: Path, policy: Policy, step: int, extra: dict[str, Any], layout: dict[str, Any]) -> Path:
    """Write `directory`/step_N atomically. Collective.

    Args:
        extra: JSON-able state of everything that is no tensor (samplers, counters).
        layout: parallel sizes, method and optimizer, which a resume must repeat.
    Raises:
        TrainingError: if the disk is full; earlier checkpoints are untouched.
    """
    target = directory / f"step_{step:08d}"
    rank = dist.get_rank()
    with atomic_directory(target) as temporary:
        name = f"rank_{rank:05d}"
        tensors = {k: v.detach().cpu().contiguous() for k, v in _tensors(policy).items()}
        save_file(tensors, temporary / f"{name}.safetensors")
        rng = {"torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()}
        if policy.platform.kind != "cpu":
            rng["cuda"] = base64.b64encode(torch.cuda.get_rng_state().numpy().tobytes()).decode()
        meta = {"extra": extra, "rng": rng, "group_steps": _group_steps(policy), "tensors": sorted(tensors)}
        (temporary / f"{name}.json").write_text(json.dumps(meta))
        mine = {
            path.name: {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            for path in (temporary / f"{name}.safetensors", temporary / f"{name}.json")
        }
        files: list[dict[str, Any]] = [{}] * dist.get_world_size()
        dist.all_gather_object(files, mine)
        if rank == 0:
            manifest = {
                "format": FORMAT, "step": step, "layout": layout, "files": {k: v for f in files for k, v in f.items()}
            }  # fmt: skip
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    return target


def read_manifest(directory: Path) -> dict[str, Any]:
    """Manifest of a checkpoint whose files are all there in full length. CheckpointError says what is not."""
    path = directory / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} is no complete checkpoint: {_MANIFEST}: {error}") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}"
        )
    for name, entry in manifest["files"].items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{file} is missing or truncated")
    return manifest


def load_state(directory: Path, policy: Policy, layout: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Restore everything that `save_state` wrote. Returns (step, extra).

    Raises CheckpointError for a corrupt file, another layout, or any tensor that is missing or left over: optimizer
    moments are never dropped.
    """
    manifest = read_manifest(directory)
    if manifest["layout"] != layout:
        raise CheckpointError(
            f"{directory} was written with {manifest['layout']}, this run has {layout}; they must be equal to resume"
        )
    name = f"rank_{dist.get_rank():05d}"
    for file in (f"{name}.safetensors", f"{name}.json"):
        if _checksum(directory / file) != manifest["files"][file]["crc32"]:
            raise CheckpointError(f"{directory / file} is corrupt: its checksum is not the one recorded")
    try:
        stored = load_file(directory / f"{name}.safetensors")
    except SafetensorError as error:
        raise CheckpointError(f"{directory / name}.safetensors cannot be read: {error}") from error
    meta = json.loads((directory / f"{name}.json").read_text())
    problems = [f"'{key}' is missing" for key in meta["tensors"] if key not in stored]
    with torch.no_grad():
        for group in (BASE, ADAPTER):
            for key, (master, _) in zip(_names(policy, group), policy.optimizer.pairs[group], strict=True):
                _copy(stored, f"theta/{key}", master, problems)
                _fill_state(stored, "optimizer", key, policy.optimizer.state(master), master)
        for slot_name, slot in policy.slots.items():
            for key, value, state in zip(_names(policy, BASE), slot.values, slot.states, strict=True):
                _copy(stored, f"slot/{slot_name}/{key}", value, problems)
                _fill_state(stored, f"slot_optimizer/{slot_name}", key, state, value)
    problems += [f"'{key}' has no place" for key in stored]
    if problems:
        raise CheckpointError(f"{directory} does not fit this run: {'; '.join(problems[:6])} ({len(problems)} in all)")
    _restore_group_steps(policy, meta["group_steps"])
    policy.optimizer.publish()
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(meta["rng"]["torch"])), dtype=torch.uint8))
    if policy.platform.kind != "cpu" and "cuda" in meta["rng"]:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(meta["rng"]["cuda"])), dtype=torch.uint8))
    return manifest["step"], meta["extra"]


def _copy(stored: dict[str, Tensor], key: str, target: Tensor, problems: list[str]) -> None:
    tensor = stored.pop(key, None)
    if tensor is None or tensor.shape != target.shape:
        problems.append(f"'{key}' is {'missing' if tensor is None else f'of shape {tuple(tensor.shape)}'}")
    else:
        target.copy_(tensor)


def _fill_state(stored: dict[str, Tensor], prefix: str, name: str, state: dict[str, Any], like: Tensor) -> None:
    """Move the stored optimizer state of one parameter into `state` (empty if it never stepped)."""
    state.clear()
    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
        tensor = stored.pop(f"{prefix}/{key}/{name}", None)
        if tensor is not None:
            # torch keeps its 0-d step counter on the host
            state[key] = tensor if tensor.dim() == 0 else tensor.to(like.device)


def _restore_group_steps(policy: Policy, saved: dict[str, Any]) -> None:
    groups = list(policy.optimizer.groups((BASE, ADAPTER)))
    for group, step in zip(groups, saved["optimizer"], strict=True):
        if step is not None:
            group["step"] = step
    for name, steps in saved["slots"].items():
        policy.slots[name].group_steps = {int(k): v for k, v in steps.items()}


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoint directories of a run, newest first; unfinished ones have other names and are not among them."""
    return sorted((p for p in Path(directory).glob("step_*") if p.is_dir()), reverse=True)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints. Call it after a new one is complete."""
    complete = []
    for path in list_checkpoints(directory):
        try:
            read_manifest(path)
            complete.append(path)
        except CheckpointError:
            continue  # not ours to delete: someone may want to look at it
    for path in complete[keep:]:
        shutil.rmtree(path)
