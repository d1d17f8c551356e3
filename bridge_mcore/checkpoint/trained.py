"""Everything that training changes, by names that do not depend on the layout.

Tensors: `theta/NAME` and `w/NAME` are masters, `optimizer/MOMENT/NAME` their moments, `slot/SLOT/NAME` a slot's values
and `slot_optimizer/SLOT/MOMENT/NAME` its moments. What is no tensor of the parameter's shape (which moments there are,
step counts, RNG streams) is JSON, `state.json`: a parameter that never stepped has no moments, and gets none back.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor

from bridge_mcore.checkpoint import hf
from bridge_mcore.checkpoint.pieces import Held, hold
from bridge_mcore.checkpoint.state_types import check_state
from bridge_mcore.config.json_file import one_line, parse_json, shown
from bridge_mcore.errors import CheckpointError
from bridge_mcore.slots.optimizer import ADAPTER, BASE, Master

if TYPE_CHECKING:
    from bridge_mcore.slots.slot import Slot
    from bridge_mcore.training.policy import Policy

_PREFIX = {BASE: "theta", ADAPTER: "w"}
OPTIMIZER = "optimizer"


def _slot_optimizer(slot: str) -> str:
    return f"slot_optimizer/{slot}"


class Trained:
    """The trained tensors of a policy on this rank, and what it holds of which parameter."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        policy.optimizer.settle()
        names = {id(p): name for name, p in hf.local_parameters(policy.chunks).items()}
        self.held: dict[str, list[tuple[Held, Master]]] = {
            group: [(hold(names[id(m.live)], m.live, m.start, policy.shape), m) for m in masters]
            for group, masters in policy.optimizer.pairs.items()
        }

    def _slots(self) -> Iterator[tuple[str, Slot, Iterator[tuple[Held, Tensor, dict]]]]:
        for name, slot in self.policy.slots.items():
            held = (h for h, _ in self.held[BASE])
            yield name, slot, zip(held, slot.values, slot.states, strict=True)

    def values(self) -> Iterator[tuple[str, Held, Tensor]]:
        """(prefix, parameter, live tensor) of the masters and the slots' values."""
        for group, held in self.held.items():
            for h, m in held:
                yield _PREFIX[group], h, m.value
        for name, _, entries in self._slots():
            for h, value, _ in entries:
                yield f"slot/{name}", h, value

    def states(self) -> Iterator[tuple[str, Held, Tensor, dict, Callable[[Tensor], Tensor]]]:
        """(owner, parameter, its value, its optimizer state, how to make memory for a moment like a tensor)."""
        for held in self.held.values():
            for h, m in held:
                yield OPTIMIZER, h, m.value, self.policy.optimizer.state(m), torch.empty_like
        for name, slot, entries in self._slots():
            make = self.policy.platform.host_memory if getattr(slot, "offload", False) else torch.empty_like
            for h, value, state in entries:
                yield _slot_optimizer(name), h, value, state, make

    def pieces(self, stored_only: bool) -> list[ShardedTensor]:
        """Views of all trained tensors with their places. `stored_only`: without copies that other ranks store."""
        out: list[ShardedTensor] = []
        for prefix, h, value in self.values():
            if h.stored or not stored_only:
                out += h.pieces(prefix, value)
        for owner, h, value, state, _ in self.states():
            if h.stored or not stored_only:
                for key, moment in state.items():
                    if _is_moment(moment, value):
                        out += h.pieces(f"{owner}/{key}", moment)
        return out

    # --- what is no tensor of a parameter's shape

    def state(self) -> dict[str, Any]:
        """This rank's part of `state.json`."""
        records: dict[str, dict[str, Any]] = {}
        for owner, h, value, state, _ in self.states():
            moments = sorted(k for k, v in state.items() if _is_moment(v, value))
            scalars = {k: _scalar(v) for k, v in state.items() if k not in moments and v is not None}
            records.setdefault(owner, {})[h.name] = {"moments": moments, "scalars": scalars}
        slots = {
            name: {"moments": slot.moments, "step": max(slot.group_steps.values(), default=None)}
            for name, slot in self.policy.slots.items()
        }
        steps = {
            group: max((int(g["step"]) for g in self.policy.optimizer.groups((group,)) if "step" in g), default=None)
            for group in (BASE, ADAPTER)
        }
        return {"records": records, "slots": slots, "group_steps": steps, "rng": self._rng()}

    def _rng(self) -> dict[str, Any]:
        """This rank's random number streams: torch's, the device's and those of Megatron's tracker."""
        out: dict[str, Any] = {"torch": _encode(torch.get_rng_state())}
        if self.policy.platform.kind != "cpu":
            out["device"] = _encode(torch.cuda.get_rng_state())
        states = get_cuda_rng_tracker().get_states()
        out["tracker"] = {k: _encode(v) for k, v in states.items() if torch.is_tensor(v)}
        return out

    def restore_rng(self, saved: dict[str, Any]) -> None:
        """Go on with the random numbers of this rank's `_rng`. Raises CheckpointError for states of another kind."""
        try:
            torch.set_rng_state(_decode(saved["torch"]))
            if self.policy.platform.kind != "cpu" and "device" in saved:
                torch.cuda.set_rng_state(_decode(saved["device"]))
        except RuntimeError as error:
            raise CheckpointError(f"a random number state cannot be restored: {one_line(error)}") from error
        states = dict(get_cuda_rng_tracker().get_states())
        tracked = {k: _decode(v) for k, v in saved["tracker"].items()}
        strange = [k for k, v in tracked.items() if k in states and v.numel() != states[k].numel()]
        if strange:
            raise CheckpointError(f"a random number state cannot be restored: {shown(strange[0])} has another length")
        if tracked:
            get_cuda_rng_tracker().set_states({**states, **tracked})

    def prepare(self, saved: dict[str, Any], dtype_of: Callable[[str], torch.dtype | None]) -> list[str]:
        """Make room for the recorded state: moments without values yet, step counts, zeros where nothing is stored.

        Args:
            saved: `state.json`.
            dtype_of: dtype of a stored tensor, by its full name; None if there is none.
        Returns what does not fit, as lines; nothing may be loaded then.
        """
        problems = []
        for name in sorted(set(saved["slots"]) ^ set(self.policy.slots)):
            where = "the checkpoint" if name in saved["slots"] else "this run"
            problems.append(f"only {where} has a slot '{name}'")
        for name, slot in self.policy.slots.items():
            if name in saved["slots"] and saved["slots"][name]["moments"] != slot.moments:
                has, lacks = ("this run", "the checkpoint") if slot.moments else ("the checkpoint", "this run")
                problems.append(f"{has} has optimizer moments for the slot '{name}', {lacks} has none")
        if problems:
            return problems
        fused = {
            id(p)
            for group in self.policy.optimizer.groups((BASE, ADAPTER))
            for p in group["params"]
            if group.get("fused") or group.get("capturable")
        }
        on_device = {id(h): id(m.value) in fused for held in self.held.values() for h, m in held}
        records = saved["records"]
        for owner, h, value, state, make in self.states():
            record = records.get(owner, {}).get(h.name)
            if record is None:
                problems.append(f"{owner} of '{h.name}' is missing")
                continue
            state.clear()
            for key in record["moments"]:
                dtype = dtype_of(f"{owner}/{key}/{h.bands[0].name}") if h.bands else value.dtype
                if dtype is None:
                    problems.append(f"'{owner}/{key}/{h.name}' is missing")
                else:
                    state[key] = make(torch.empty((), dtype=dtype, device=value.device).expand(value.shape))
            for key, scalar in record["scalars"].items():
                # torch keeps step counters on the host, unless a fused kernel reads them
                state[key] = _value(scalar, value.device if on_device[id(h)] else torch.device("cpu"))
        return problems

    def restore_steps(self, saved: dict[str, Any]) -> None:
        """Step counts that apex and TE keep per parameter group."""
        for group, step in saved["group_steps"].items():
            for g in self.policy.optimizer.groups((group,)):
                if step is not None:
                    g["step"] = step
        base = len(list(self.policy.optimizer.groups((BASE,))))
        for name, slot in self.policy.slots.items():
            step = saved["slots"][name]["step"]
            slot.group_steps = {} if step is None else dict.fromkeys(range(base), step)

    def clear_padding(self) -> None:
        """Zero what is not stored: the rows that pad a vocabulary to a multiple of the tensor ranks."""
        moments = ((h, v) for _, h, value, state, _ in self.states() for v in state.values() if _is_moment(v, value))
        for h, tensor in (*((h, v) for _, h, v in self.values()), *moments):
            if sum(piece.data.numel() for piece in h.pieces("", tensor)) < tensor.numel():
                tensor.detach().zero_()


def merge_states(parts: Iterable[dict[str, Any]], extra: dict[str, Any]) -> bytes:
    """`state.json` of all ranks' parts. Raises CheckpointError where two ranks say different things of a parameter."""
    records: dict[str, dict[str, Any]] = {}
    slots: dict[str, dict[str, Any]] = {}
    steps: dict[str, int | None] = {BASE: None, ADAPTER: None}
    rng = []
    for part in parts:
        rng.append(part["rng"])
        for owner, entries in part["records"].items():
            known = records.setdefault(owner, {})
            for name, record in entries.items():
                if known.setdefault(name, record) != record:
                    raise CheckpointError(f"two ranks disagree about the {owner} state of {name}")
        for name, slot in part["slots"].items():
            known_slot = slots.setdefault(name, slot)
            known_slot["step"] = _larger(known_slot["step"], slot["step"])
        for group, step in part["group_steps"].items():
            steps[group] = _larger(steps[group], step)
    # Parameters of one owner mostly share one record: a few groups of names instead of thousands of records.
    grouped: dict[str, list[tuple[dict, list[str]]]] = {}
    for owner, entries in records.items():
        by_record: dict[str, list[str]] = {}
        for name, record in entries.items():
            by_record.setdefault(json.dumps(record, sort_keys=True), []).append(name)
        grouped[owner] = [(json.loads(record), names) for record, names in by_record.items()]
    state = {"extra": extra, "records": grouped, "slots": slots, "group_steps": steps, "rng": rng}
    return json.dumps(state).encode()


def parse_state(content: bytes) -> dict[str, Any]:
    """`state.json`, with its records by owner and parameter again. Raises ValueError for anything else."""
    state = parse_json(content)
    check_state(state)
    state["records"] = {
        owner: {name: record for record, names in groups for name in names}
        for owner, groups in state["records"].items()
    }
    return state


def _larger(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _is_moment(value: Any, like: Tensor) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and value.shape == like.shape


def _scalar(value: Any) -> Any:
    """A step count as JSON: a number, or [number, dtype] of a one-element tensor."""
    return [value.item(), str(value.dtype).removeprefix("torch.")] if torch.is_tensor(value) else value


def _value(scalar: Any, device: torch.device) -> Any:
    if not isinstance(scalar, list):
        return scalar
    return torch.tensor(scalar[0], dtype=getattr(torch, scalar[1]), device=device)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
