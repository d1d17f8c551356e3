"""Updated tensors of a layout against those of one process: θ, θ̂ and w, each whole, brought to rank 0 one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from bridge_mcore.checkpoint import hf
from bridge_mcore.methods.base import THETA, THETA_HAT
from bridge_mcore.selftest.results import Row
from bridge_mcore.slots.optimizer import BASE
from bridge_mcore.training.policy import Policy, WholeMasters

GROUPS = ("theta", "theta_hat", "w")
_PIECE = 2**24  # elements that are compared in float64 at once
#: What is compared of an update's metrics.
_METRICS = ("j_sft", "j_rl", "j_rl_auxiliary", "kl", "grad_norm_theta", "grad_norm_theta_hat", "grad_norm_w")

#: (group, name, full fp32 tensor on CPU)
Named = tuple[str, str, Tensor]


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do.

    Attributes:
        group: ‖ours - reference‖ / ‖update‖ of all of θ, θ̂ or w.
        tensor: the same of any single tensor.
        metrics: relative difference of objectives and gradient norms.
    """

    group: float
    tensor: float
    metrics: float


#: fp32 differs by the order of its sums alone: up to 1e-5 was seen. In bf16 each layout rounds other sums to 8 bits,
#: and AdamW's first steps make a whole step of a small gradient's wrong sign: up to 0.16 was seen of a group, 0.67 of a
#: tensor, 0.04 of a metric. With experts tokens then go to others: up to 0.41 of a group. A group that has not moved
#: has 1. So in bf16 only gross errors show, and fp32 is the test.
TOLERANCES = {
    "float32": Tolerance(1e-4, 1e-3, 1e-4),
    "bfloat16": Tolerance(0.5, 0.95, 0.1),
    "bfloat16 with experts": Tolerance(0.8, 2.0, 0.1),
}


@dataclass
class Reference:
    """What one process computed. `moved`: L2 norm of each tensor's update."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {g: {} for g in GROUPS})
    moved: dict[str, dict[str, float]] = field(default_factory=lambda: {g: {} for g in GROUPS})
    metrics: list[dict[str, float]] = field(default_factory=list)

    def add(self, group: str, name: str, tensor: Tensor, before: Tensor) -> None:
        """Take over an updated tensor, with its value before all updates."""
        self.tensors[group][name] = tensor
        self.moved[group][name] = distance(tensor, before)


def distance(a: Tensor, b: Tensor, device: torch.device | None = None) -> float:
    """L2 norm of a - b, summed in float64."""
    device = device or torch.device("cpu")
    total = 0.0
    for x, y in zip(a.flatten().split(_PIECE), b.flatten().split(_PIECE), strict=True):
        total += float((x.to(device).double() - y.to(device).double()).square().sum())
    return math.sqrt(total)


class Comparison:
    """Tensors of a layout as they come, against a reference."""

    def __init__(self, reference: Reference, device: torch.device | None = None) -> None:
        """device: where the differences are computed."""
        self.reference = reference
        self.device = device
        self.squares = dict.fromkeys(GROUPS, 0.0)
        self.missing = {(g, name) for g in GROUPS for name in reference.tensors[g]}
        self.problems: list[str] = []
        #: (error / its update, group, name) of the worst tensor
        self.worst: tuple[float, str, str] = (0.0, "", "")

    def take(self, group: str, name: str, tensor: Tensor) -> None:
        """Compare one tensor."""
        want = self.reference.tensors[group].get(name)
        if want is None or want.shape != tensor.shape:
            self.problems.append(f"{group} {name} has the shape {tuple(tensor.shape)}, which one process has not")
            return
        self.missing.discard((group, name))
        error = distance(tensor, want, self.device)
        self.squares[group] += error**2
        moved = self.reference.moved[group][name]
        # where a tensor should not have moved, or is NaN, nothing is worse
        ratio = 0.0 if error == 0 else error / moved if moved and math.isfinite(error) else math.inf
        if ratio > self.worst[0]:
            self.worst = (ratio, group, name)

    def error(self, group: str) -> float:
        """‖ours - reference‖ / ‖update‖ of a group."""
        moved = math.sqrt(sum(m**2 for m in self.reference.moved[group].values()))
        return math.sqrt(self.squares[group]) / moved if moved else math.inf

    def verdict(self, tolerance: Tolerance) -> str:
        """What is wrong, or "" if nothing is."""
        problems = list(self.problems)
        if self.missing:
            group, name = min(self.missing)
            problems.append(f"{len(self.missing)} tensors have not come, the first: {group} {name}")
        bad = [f"{g} {self.error(g):.1e}" for g in GROUPS if not self.error(g) <= tolerance.group]
        if bad:
            problems.append(f"updates differ by {', '.join(bad)} of their size (at most {tolerance.group:.0e})")
        ratio, group, name = self.worst
        if bad or not ratio <= tolerance.tensor:
            problems.append(
                f"the biggest difference is in {group} {name}: {ratio:.1e} (at most {tolerance.tensor:.0e})"
            )
        return "; ".join(problems)


def metric_difference(ours: list[dict[str, float]], reference: list[dict[str, float]]) -> tuple[float, str]:
    """The largest relative difference of a metric in any iteration, and which one it is."""
    worst, where = 0.0, ""
    for k, (got, want) in enumerate(zip(ours, reference, strict=False), 1):
        for name in _METRICS:
            if name in want:
                difference = abs(got.get(name, math.nan) - want[name]) / max(abs(want[name]), 1e-2)
                difference = difference if math.isfinite(difference) else math.inf
                if difference > worst:
                    worst, where = difference, f"{name} of iteration {k}: {got.get(name)} instead of {want[name]}"
    return worst, where


def tolerance_of(row: Row) -> Tolerance:
    """By dtype, and by whether tokens may change their experts."""
    return TOLERANCES.get(f"{row.dtype} with experts" if row.name.startswith("moe") else "", TOLERANCES[row.dtype])


def judge(row: Row, comparison: Comparison, metrics: list[dict[str, float]]) -> None:
    """Lay the errors into the row, and fail it if one is too large."""
    tolerance = tolerance_of(row)
    row.theta, row.theta_hat, row.w = (comparison.error(g) for g in ("theta", "theta_hat", "w"))
    row.loss, where = metric_difference(metrics, comparison.reference.metrics)
    if problem := comparison.verdict(tolerance):
        row.fail(problem)
    if not row.loss <= tolerance.metrics:
        row.fail(f"{where} (relative difference at most {tolerance.metrics:.0e})")


def updated(policy: Policy) -> Iterator[Named]:
    """θ, θ̂ and w of this pipeline stage, fp32, in HF names. Collective over the stage."""
    for group, slot in (("theta", THETA), ("theta_hat", THETA_HAT)):
        for name, tensor in hf.theta_tensors(policy.chunks, policy.masters(slot), policy.family, policy.shape):
            yield group, name, tensor
    for name, tensor in policy.adapter_tensors().items():
        yield "w", name, tensor


def with_moments(policy: Policy) -> Iterator[Named]:
    """`updated`, and the moments of θ and θ̂."""
    yield from updated(policy)
    masters = policy.optimizer.pairs[BASE]
    states = {"theta": [policy.optimizer.state(m) for m in masters], "theta_hat": policy.slots[THETA_HAT].states}
    named = hf.base_parameters(policy.chunks)
    for group, entries in states.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            values = WholeMasters(named, masters, [state[moment] for state in entries])
            for name, tensor in hf.theta_tensors(policy.chunks, values, policy.family, policy.shape):
                yield group, f"{moment} of {name}", tensor


def deliver(tensors: Iterator[Named], device: torch.device, take: Callable[[str, str, Tensor], None]) -> None:
    """Call `take` on rank 0 with every stage's tensors; one at a time is in flight. Collective."""
    writes = mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank(with_context_parallel=True) == 0
    stages: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(stages, mpu.get_pipeline_model_parallel_rank() if writes else None)
    main = dist.get_rank() == 0
    for group, name, tensor in tensors:
        if main:
            take(group, name, tensor)
        elif writes:
            dist.send_object_list([(group, name, tuple(tensor.shape))], dst=0, device=device)
            dist.send(tensor.to(device).contiguous(), dst=0)
    if writes and not main:
        dist.send_object_list([None], dst=0, device=device)
    if main:
        for source in (rank for rank, stage in enumerate(stages) if stage):
            header: list[tuple[str, str, tuple[int, ...]] | None] = [None]
            while True:
                dist.recv_object_list(header, src=source, device=device)
                if header[0] is None:
                    break
                group, name, shape = header[0]
                tensor = torch.empty(shape, device=device)
                dist.recv(tensor, src=source)
                take(group, name, tensor.cpu())
