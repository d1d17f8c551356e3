"""The rows that need a model: updates in a layout, slots, greedy answers, checkpoints.

Each is called by every rank inside the joined world (the references: by one process in a world of its own) and fills
its row. Rank 0 has the references and judges; another rank that finds something raises BridgeError.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from bridge_mcore.checkpoint import hf
from bridge_mcore.checkpoint.run_state import load_state, save_state
from bridge_mcore.checkpoint.safetensors_dir import SafetensorsDirectory
from bridge_mcore.config.auto import needed_gib
from bridge_mcore.config.replay import ReplayOptions, read_settings
from bridge_mcore.errors import BridgeError
from bridge_mcore.methods.base import THETA_HAT
from bridge_mcore.platform.device import Platform
from bridge_mcore.platform.distributed import layout_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.inference import load_chunks
from bridge_mcore.selftest.compare import (
    Comparison,
    Reference,
    deliver,
    distance,
    judge,
    metric_difference,
    tolerance_of,
    updated,
    with_moments,
)
from bridge_mcore.selftest.layouts import TestLayout
from bridge_mcore.selftest.models import TestModel
from bridge_mcore.selftest.results import SKIPPED, Row
from bridge_mcore.training.policy import REFERENCE, Policy
from bridge_mcore.training.replay import Case, open_case, replay_config

ITERATIONS = 3
#: Share of the memory that weights, gradients and slots may take; activations need some.
_USABLE = 0.85
_PROMPTS = (1, 4, 4, 9, 23, 40)
_NEW_TOKENS = 16


@dataclass
class Bench:
    """What the rows work with on this rank.

    Attributes:
        cases: directory of each model's case, on this machine.
        references: (model, dtype) -> what one process computed; on rank 0 only.
        answers: greedy answers of one process by model, on every rank.
        shared: a directory that all ranks see, for checkpoints; None if there is none.
        memory_gib: of the process with the least.
        firsts: of models without a reference, (name, metrics) of the first layout.
    """

    platform: Platform
    cases: dict[str, Path]
    memory_gib: float
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    shared: Path | None = None
    firsts: dict[tuple[str, str], tuple[str, list[dict[str, float]]]] = field(default_factory=dict)

    def fits(self, layout: TestLayout, dtype: str) -> str:
        """Why the layout's memory is too small, or ""."""
        needed = needed_gib(layout.parallel, layout.model.sizes, dtype)
        if needed <= _USABLE * self.memory_gib:
            return ""
        return f"weights, gradients and slots need {needed:.3g} GiB a process, of {self.memory_gib:.3g}"

    def open(self, layout: TestLayout, dtype: str, offload: str = "none") -> Case:
        """The layout's model, filled from its case, within the layout's process groups."""
        source = self.cases[layout.model.name]
        device = "cpu" if self.platform.kind == "cpu" else "cuda"
        options = ReplayOptions(source, source / "out", dtype, device, parallel=layout.parallel)
        config = replay_config(read_settings(source / "settings.yaml"), options)
        config.training.max_tokens_per_microbatch = layout.model.max_tokens
        config.slots.theta_hat.offload = config.slots.reference.offload = offload  # type: ignore[assignment]
        return open_case(options, self.platform, config)


def compared_iterations(model: TestModel) -> int:
    """After several, rounding may send a token to another expert, and the update is another one."""
    return 1 if model.name == "moe" else ITERATIONS


def iterate(bench: Bench, case: Case, model: TestModel, row: Row, done: list[dict[str, float]]) -> Iterator[None]:
    """Updates; yields where tensors are compared, then ends with the row's times. `done` gets the metrics."""
    times: list[float] = []
    compared = compared_iterations(model)
    for k in range(max(compared, 2)):
        bench.platform.synchronize()
        start = time.perf_counter()
        metrics = case.update()
        bench.platform.synchronize()
        times.append(time.perf_counter() - start)
        if k < compared:
            done.append(metrics)
        if k == compared - 1:
            yield
    row.seconds = min(times[1:])  # the first one makes buffers and moments
    row.tokens_per_s = sum(len(s.tokens) for s in case.samples) / row.seconds
    memory = torch.tensor(bench.platform.memory_gib(), device=bench.platform.device)
    dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    row.memory_gib = float(memory)


def make_reference(bench: Bench, layout: TestLayout, row: Row) -> None:
    """One process's updates, kept for the comparison."""
    bench.platform.reset_peak()
    reference = Reference()
    with layout_groups(layout.parallel, seed=0):
        case = bench.open(layout, row.dtype)
        for _ in iterate(bench, case, layout.model, row, reference.metrics):
            source = bench.cases[layout.model.name]
            before = {
                "theta": SafetensorsDirectory(source / "model"),
                "w": SafetensorsDirectory(source / "adapter", "adapter_model"),
            }
            before["theta_hat"] = before["theta"]
            for group, name, tensor in updated(case.policy):
                reference.add(group, name, tensor.clone(), before[group].tensor(name).float())
    row.detail = "the reference"
    bench.references[layout.model.name, row.dtype] = reference


def check_layout(bench: Bench, layout: TestLayout, row: Row) -> None:
    """The layout's updates against one process's."""
    if too_small := bench.fits(layout, row.dtype):
        row.status, row.detail = SKIPPED, too_small
        return
    bench.platform.reset_peak()
    reference = bench.references.get((layout.model.name, row.dtype))
    known = [reference is not None]
    dist.broadcast_object_list(known, src=0, device=bench.platform.device)
    with layout_groups(layout.parallel, seed=0):
        case = bench.open(layout, row.dtype)
        comparison = Comparison(reference or Reference(), bench.platform.device)
        metrics: list[dict[str, float]] = []
        for _ in iterate(bench, case, layout.model, row, metrics):
            if known[0]:
                deliver(updated(case.policy), bench.platform.device, comparison.take)
    if not known[0]:
        compare_losses(bench, layout, row, metrics)
    elif reference is not None:
        judge(row, comparison, metrics)


def compare_losses(bench: Bench, layout: TestLayout, row: Row, metrics: list[dict[str, float]]) -> None:
    """Of a model that no single process can hold: objectives and norms against those of the first layout."""
    first, wanted = bench.firsts.setdefault((layout.model.name, row.dtype), (layout.name, metrics))
    if first == layout.name:
        row.status, row.detail = (
            SKIPPED,
            "not compared: one process cannot hold it; later layouts are compared with this",
        )
        return
    row.loss, where = metric_difference(metrics, wanted)
    row.detail = f"only losses and norms are compared, with {first}"
    if row.loss > tolerance_of(row).metrics:
        row.fail(f"against {first}: {where}")


def check_slots(bench: Bench, layout: TestLayout, row: Row) -> None:
    """θ̂ and the reference visit the live model after an update; every bit of θ is back afterwards."""
    if too_small := bench.fits(layout, row.dtype):
        row.status, row.detail = SKIPPED, too_small
        return
    with layout_groups(layout.parallel, seed=0):
        policy = (case := bench.open(layout, row.dtype, row.name)).policy
        case.update()
        before = _trained(policy)
        for slot in (THETA_HAT, REFERENCE):
            with policy.live(slot):
                inside = _trained(policy)
                # every rank of the world holds a part of some parameter, and all parameters have moved
                if all(torch.equal(inside[k], v) for k, v in before.items() if k.startswith("live")):
                    raise BridgeError(f"{slot} was swapped in, but the live weights did not change")
            after = _trained(policy)
            wrong = [k for k, v in before.items() if k not in after or not torch.equal(after[k], v)]
            if wrong or len(after) != len(before):
                far = max(((distance(after[k], before[k]), k) for k in wrong if k in after), default=(0.0, "?"))
                raise BridgeError(f"after {slot} left, {len(wrong)} tensors differ, most {far[1]} (by {far[0]:.1e})")
        count, size = len(before), sum(s.nbytes() for s in policy.slots.values())
        row.detail = f"{layout.name}: {count} tensors bit-identical after θ̂ and the reference, {size / 2**20:.3g} MiB"


def _trained(policy: Policy) -> dict[str, Tensor]:
    """Host copies of θ on this rank: live weights, masters and moments."""
    policy.optimizer.settle()
    out: dict[str, Tensor] = {f"live {n}": p for n, p in hf.local_parameters(policy.chunks).items()}
    for group, masters in policy.optimizer.pairs.items():
        for i, m in enumerate(masters):
            out[f"{group} master {i}"] = m.value
            out |= {f"{group} {k} {i}": v for k, v in policy.optimizer.state(m).items() if torch.is_tensor(v)}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in out.items()}


@contextmanager
def _engine(bench: Bench, layout: TestLayout) -> Iterator[EmbeddedEngine]:
    """An engine with the case's model and adapter in fp32, in the layout."""
    source = bench.cases[layout.model.name]
    with layout_groups(layout.parallel, seed=0):
        chunks = load_chunks(
            source / "model", source / "adapter", layout.parallel, torch.float32, bench.platform.device
        )
        yield EmbeddedEngine(chunks)


def answer(bench: Bench, layout: TestLayout) -> list[Rollout]:
    """Greedy answers to a few prompts of different lengths, fp32."""
    vocabulary = layout.model.sizes.vocabulary or 2
    prompts = [tuple((37 * i + 11 * n * n + 5) % vocabulary for i in range(n)) for n in _PROMPTS]
    with _engine(bench, layout) as engine:
        requests = [Request(key, prompt) for key, prompt in enumerate(prompts)]
        return engine.generate(requests, SamplingParams(_NEW_TOKENS, temperature=0.0))


def check_generation(bench: Bench, layout: TestLayout, row: Row) -> None:
    """Greedy tokens, on every rank, against one process's."""
    start = time.perf_counter()
    rollouts = answer(bench, layout)
    took = time.perf_counter() - start
    for index, (got, want) in enumerate(zip(rollouts, bench.answers[layout.model.name], strict=True)):
        if got.tokens != want:
            at = next(i for i, (a, b) in enumerate(zip(got.tokens, want, strict=True)) if a != b)
            raise BridgeError(
                f"answer {index} differs from one process's at token {at}: {got.tokens[at]} instead of {want[at]} "
                f"(log-probability {got.logprobs[at]:.4f})"
            )
    tokens = sum(len(r.tokens) for r in rollouts)
    row.detail = f"{tokens} greedy tokens of {len(rollouts)} prompts equal one process's, {took:.1f} s with loading"


def check_checkpoint(bench: Bench, pair: tuple[TestLayout, TestLayout], row: Row) -> None:
    """Save after an update in one layout, load in another: each value and moment, bit for bit."""
    if bench.shared is None:
        row.status = SKIPPED
        row.detail = "not all ranks see the same files; give a --directory that all machines share"
        return
    saved, loaded = pair
    want: dict[tuple[str, str], Tensor] = {}
    target, identity = bench.shared / row.name.replace(">", "-to-"), {"method": "bridge", "optimizer": "adamw"}
    with layout_groups(saved.parallel, seed=0):
        case = bench.open(saved, row.dtype)
        case.update()
        path = save_state(target, case.policy, 1, {}, saved.parallel.model_dump() | identity)
        deliver(
            with_moments(case.policy),
            bench.platform.device,
            lambda group, name, tensor: want.update({(group, name): tensor.clone()}),
        )
        del case
    problems: list[str] = []
    count = 0

    def compare(group: str, name: str, tensor: Tensor) -> None:
        nonlocal count
        count += 1
        if (group, name) not in want or not torch.equal(tensor, want[group, name]):
            problems.append(f"{group} {name}")

    with layout_groups(loaded.parallel, seed=0):
        policy = bench.open(loaded, row.dtype).policy
        load_state(path, policy, loaded.parallel.model_dump() | identity)
        deliver(with_moments(policy), bench.platform.device, compare)
    if dist.get_rank() == 0 and (problems or count != len(want)):
        row.fail(f"{len(problems)} of {len(want)} tensors differ ({count} came), the first: {(problems or ['?'])[0]}")
    else:
        row.detail = f"{count} values and moments bit-identical"
