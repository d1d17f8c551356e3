"""`parallel: auto`: the least model parallelism whose weights, gradients and slots fit in the memory of each process.

Communication costs more the farther a dimension reaches, so tensor parallelism stays within a node, stages of a
pipeline may lie on different nodes, and all ranks that are left are data parallel. The estimate counts what lasts from
step to step; what it leaves free (activations, logits, key-value caches, buckets) is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from bridge_mcore.config.model_files import Parameters, Sizes
from bridge_mcore.config.parallel import divisors, tensor_sizes
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import ConfigError


@dataclass(frozen=True)
class Bytes:
    """Bytes per parameter. The first two lie on every rank that holds it; the others are sharded over its replicas."""

    weight: int
    gradient: int
    theta: int  # fp32 masters and two moments; in fp32 the weights are their own masters
    auxiliary: int  # θ̂: values and two moments
    reference: int  # weights only


BYTES = {"bfloat16": Bytes(2, 4, 12, 12, 2), "float32": Bytes(4, 4, 8, 12, 4)}
#: Share of the memory that the above may take.
USABLE = 0.7
#: Taken where the memory of a GPU cannot be read.
UNKNOWN_GPU_GIB = 80
#: Tokens of a sequence that one context-parallel rank takes.
CONTEXT_TOKENS = 32768
LARGEST_TENSOR = 8
#: How far a search for a number of GPUs that would do goes, and the node it assumes.
_MOST_PROCESSES, _USUAL_NODE = 16384, 8
#: Keys that are chosen here.
SIZES = ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "data")
CHOSEN = (*SIZES, "sequence", "distributed_optimizer")


def refuse_sizes(asked: Parallel) -> None:
    """Raise ConfigError where a key is given that auto would choose."""
    given = [name for name in CHOSEN if getattr(asked, name) != Parallel.model_fields[name].default]
    if given:
        keys = " and ".join(f"parallel.{name}" for name in given)
        raise ConfigError(
            f"parallel.auto = true chooses {keys} itself: remove {'it' if len(given) == 1 else 'them'}, "
            "or set parallel.auto=false and give the whole layout"
        )


def choose_parallel(
    sizes: Sizes,
    world: int,
    memory_gib: float = UNKNOWN_GPU_GIB,
    per_node: int = 8,
    max_length: int | None = None,
    device: str = "cuda",
    uses_auxiliary: bool = True,
    uses_reference: bool = True,
    dtype: str = "bfloat16",
) -> tuple[Parallel, str]:
    """The layout for `world` processes, and a line that says what was chosen and why.

    Args:
        sizes: of the model.
        world: number of processes, one per GPU.
        memory_gib: of one GPU (on CPU: a process's part of the machine's).
        per_node: processes on one machine.
        max_length: longest sequence, tokens, where it is given.
        device: cpu or cuda; only words depend on it.
        uses_auxiliary: θ̂ is kept in that memory.
        uses_reference: the reference policy is kept in that memory.
        dtype: of the live weights.
    Raises:
        ConfigError: if nothing fits, with a number of GPUs that would; or if config.json lacks a size.
    """
    parameters = sizes.parameters()
    if parameters is None:
        raise ConfigError(
            f"parallel.auto = true needs the sizes of the model, which {sizes.origin} does not give in full: set "
            "parallel.auto=false, and parallel.tensor and parallel.pipeline yourself"
        )

    def first(
        count: int, node: int, dtype: str = dtype, auxiliary: bool = uses_auxiliary, reference: bool = uses_reference
    ) -> tuple[Parallel, float] | None:
        costs = BYTES[dtype]
        state = costs.theta + auxiliary * costs.auxiliary + reference * costs.reference
        for layout in _layouts(sizes, count, node, max_length):
            gib = _gib(layout, parameters, costs.weight + costs.gradient, state)
            if gib <= USABLE * memory_gib:
                return layout, gib
        return None

    unit, units = ("process", "processes") if device == "cpu" else ("GPU", "GPUs")
    many = f"{world} {unit if world == 1 else units}"
    billions = f"{parameters.total / 1e9:.3g} billion parameters"
    here = min(per_node, world)
    found = first(world, here)
    if found is None:
        node = max(per_node, _USUAL_NODE)
        counts = (2**n for n in range(_MOST_PROCESSES.bit_length()) if 2**n > world)
        # more processes of a CPU machine share the same memory
        enough = None if device == "cpu" else next((n for n in counts if first(n, min(node, n))), None)
        nodes = f", in nodes of {node}" if enough is not None and enough > node else ""
        mends = ["use a machine with more memory" if enough is None else f"{enough} would do{nodes}"]
        if dtype == "float32" and first(world, here, dtype="bfloat16"):
            mends.append("set model.dtype=bfloat16")
        if uses_auxiliary and device != "cpu" and first(world, here, auxiliary=False):
            mends.append("set slots.theta_hat.offload=pinned_cpu")
        if uses_reference and first(world, here, reference=False):
            mends.append("set objective.kl_coefficient=0")
        raise ConfigError(
            f"parallel.auto = true: no layout on {many} of {memory_gib:.0f} GiB holds {billions}, gradients and "
            f"optimizer state in {USABLE:.0%} of it: {', or '.join(mends)}"
        )
    layout, gib = found
    named = [f"{name} {size}" for name in SIZES if (size := getattr(layout, name)) > 1] or ["no split"]
    return layout, (
        f"parallel = auto: {' × '.join(named)}{', sequence parallel,' if layout.sequence else ''} on {many}: the least "
        f"model parallelism with which {billions}, gradients and optimizer state fit, {gib:.1f} of {memory_gib:.0f} "
        f"GiB a {unit} (at most {USABLE:.0%}; activations need the rest)"
    )


def _layouts(sizes: Sizes, world: int, per_node: int, max_length: int | None) -> Iterator[Parallel]:
    """Layouts that fit the model's sizes, from the least model parallelism to the most; tensor before pipeline."""
    together = gcd(per_node, LARGEST_TENSOR, *(size for _, size in tensor_sizes(sizes)))
    splits = [
        (tensor, pipeline)
        for tensor in divisors(together)
        for pipeline in divisors(sizes.layers or 1)
        if world % (tensor * pipeline) == 0
    ]
    for tensor, pipeline in sorted(splits, key=lambda split: (split[0] * split[1], split[1])):
        rest = world // (tensor * pipeline)
        context = 1
        while context * CONTEXT_TOKENS < (max_length or 0) and rest % (2 * context) == 0:
            context *= 2
        # experts as far apart as a node, and beyond it only where that does not fit
        spreads = divisors(gcd(sizes.experts or 1, world // pipeline))
        near = max(n for n in spreads if n <= per_node)
        for expert in [near, *(n for n in spreads if n > near)]:
            yield Parallel(
                tensor=tensor,
                pipeline=pipeline,
                context=context,
                expert=expert,
                data=rest // context,
                sequence=tensor > 1,
                distributed_optimizer=True,
            )


def needed_gib(layout: Parallel, sizes: Sizes, dtype: str) -> float:
    """GiB that weights, gradients, θ, θ̂ and the reference policy take in the fullest process of a layout."""
    parameters = sizes.parameters()
    assert parameters is not None
    if not layout.distributed_optimizer:  # then every replica keeps everything
        layout = layout.model_copy(update={"data": 1, "context": 1})
    costs = BYTES[dtype]
    return _gib(layout, parameters, costs.weight + costs.gradient, costs.theta + costs.auxiliary + costs.reference)


def _gib(layout: Parallel, parameters: Parameters, whole: int, state: int) -> float:
    """GiB of the fullest process: `whole` bytes for each parameter it holds, and its shard of `state`."""
    stages = layout.pipeline
    # the first stage holds the embedding, the last one the output matrix (of a tied model a copy of the embedding)
    ends = parameters.embedding * (1 if stages > 1 or parameters.tied else 2)
    dense = (parameters.dense / stages + ends) / layout.tensor
    expert = parameters.expert / stages / layout.expert
    replicas = layout.context * (layout.data or 1)
    expert_replicas = layout.tensor * replicas / layout.expert
    return (dense * (whole + state / replicas) + expert * (whole + state / expert_replicas)) / 2**30
