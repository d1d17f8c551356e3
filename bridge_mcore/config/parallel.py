"""The rules of a layout: which sizes fit a model, a number of processes and a batch. Pure functions, no torch.

Ranks are tensor × context × data × pipeline. Expert parallelism takes no ranks of its own: within a pipeline stage the
experts are spread over the tensor, context and data ranks together, so that it must divide their product. The matrices
of one expert are not split (Megatron's `expert_tensor_parallel_size=1`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from bridge_mcore.config.data_checks import uses_rl
from bridge_mcore.config.model_files import Sizes
from bridge_mcore.config.schema import Config, Parallel

_MOST_LISTED = 64  # the largest size that a list of possible ones names


def model_size(parallel: Parallel) -> int:
    """Processes that hold one replica of the model and share each of its sequences."""
    return parallel.tensor * parallel.pipeline * parallel.context


def world_size(parallel: Parallel) -> int:
    """Processes that a layout needs (a data size that is not given counts as 1)."""
    return model_size(parallel) * (parallel.data or 1)


def data_size(parallel: Parallel, world: int) -> int:
    """Data-parallel replicas of a layout in a world that it fits."""
    return parallel.data or max(1, world // model_size(parallel))


def divisors(number: int, most: int | None = None) -> list[int]:
    """The divisors of `number` up to `most`."""
    return [n for n in range(1, min(number, most or number) + 1) if number % n == 0]


def _possible(number: int) -> str:
    return "possible: " + ", ".join(str(n) for n in divisors(number, _MOST_LISTED))


# --- a layout and a model --------------------------------------------------------------------------------------------


def tensor_sizes(sizes: Sizes) -> list[tuple[str, int]]:
    """What tensor parallelism splits, with its size, as far as it is known."""
    split = [("attention heads", sizes.heads), ("key-value heads", sizes.kv_heads)]
    if sizes.experts is None or sizes.dense_layers:  # an expert's own matrices are not split
        split.append(("intermediate size", sizes.intermediate_size))
    return [(what, size) for what, size in split if size is not None]


def parallel_problems(parallel: Parallel, sizes: Sizes) -> Iterator[str]:
    """Sizes of a model that the layout does not divide, and options of the layout that need one another."""
    split = tensor_sizes(sizes)
    for what, size in split:
        if size % parallel.tensor:
            yield (
                f"parallel.tensor = {parallel.tensor} does not divide the {what} of {sizes.origin} ({size}); "
                f"{_possible(gcd(*(size for _, size in split)))}"
            )
    yield from _pipeline(parallel, sizes)
    if parallel.sequence and parallel.tensor == 1:
        yield "parallel.sequence = true needs parallel.tensor > 1, whose processes share the sequence: set one of them"
    yield from _experts(parallel, sizes)
    if parallel.overlap_param_gather:
        for needed in ("distributed_optimizer", "overlap_grad_reduce"):
            if not getattr(parallel, needed):
                yield (
                    f"parallel.overlap_param_gather = true needs parallel.{needed}=true: set it, "
                    "or parallel.overlap_param_gather=false"
                )


def _pipeline(parallel: Parallel, sizes: Sizes) -> Iterator[str]:
    stages, chunks, layers = parallel.pipeline, parallel.virtual_pipeline, sizes.layers
    if chunks > 1 and stages == 1:
        yield (
            f"parallel.virtual_pipeline = {chunks} needs parallel.pipeline > 1, whose stages are interleaved: "
            "set parallel.pipeline, or parallel.virtual_pipeline=1"
        )
    elif layers is not None and layers % stages:
        yield (
            f"parallel.pipeline = {stages} does not divide the layers of {sizes.origin} ({layers}); {_possible(layers)}"
        )
    elif layers is not None and layers % (stages * chunks):
        yield (
            f"parallel.virtual_pipeline = {chunks} does not divide the layers of a stage ({layers} layers of "
            f"{sizes.origin} / parallel.pipeline = {stages} are {layers // stages}); {_possible(layers // stages)}"
        )


def _experts(parallel: Parallel, sizes: Sizes) -> Iterator[str]:
    if sizes.experts is not None and parallel.tensor > 1 and not parallel.sequence:
        # MoELayer.forward refuses it in training, whatever the expert parallel size
        yield (
            f"parallel.tensor = {parallel.tensor} with the experts of {sizes.origin} needs sequence parallelism "
            "(otherwise every tensor rank would send the same tokens to them): set parallel.sequence=true"
        )
    if parallel.expert == 1 or sizes.layers is None:  # without sizes there is no model to judge
        return
    if sizes.experts is None:
        yield f"parallel.expert = {parallel.expert}, but {sizes.origin} has no experts: set parallel.expert=1"
    elif sizes.experts % parallel.expert:
        yield (
            f"parallel.expert = {parallel.expert} does not divide the experts of {sizes.origin} ({sizes.experts}); "
            f"{_possible(sizes.experts)}"
        )


# --- a layout and a number of processes ------------------------------------------------------------------------------


def world_problems(parallel: Parallel, world: int) -> Iterator[str]:
    """Why `world` processes cannot be laid out so."""
    size, given, expert = model_size(parallel), parallel.data, parallel.expert
    if world % size:
        yield (
            f"{world} processes cannot hold parallel.tensor = {parallel.tensor} × parallel.pipeline = "
            f"{parallel.pipeline} × parallel.context = {parallel.context}: start a multiple of {size}, "
            "or lower one of them"
        )
        return
    if given is not None and given * size != world:
        yield (
            f"parallel.data = {given} needs {given * size} processes, but there are {world}: "
            f"set parallel.data={world // size}, or to null, or start {given * size}"
        )
        return
    span = world // parallel.pipeline
    if span % expert:
        data = expert // gcd(expert, parallel.tensor * parallel.context)
        yield (
            f"parallel.expert = {expert} does not divide the tensor × context × data = {span} processes of a pipeline "
            f"stage, over which the experts are spread; {_possible(span)}, or make parallel.data a multiple of {data}"
        )


# --- a layout and a batch --------------------------------------------------------------------------------------------


def share_problems(config: Config, sizes: Sizes, world: int) -> Iterator[str]:
    """Batches and sequences that are too small to be shared so."""
    parallel, training = config.parallel, config.training
    data = data_size(parallel, world)
    key, count = "prompts_per_step", training.prompts_per_step
    if not uses_rl(config) and training.traces_per_step is not None:
        key, count = "traces_per_step", training.traces_per_step
    if count < data:
        yield (
            f"training.{key} = {count} leaves some of the {data} data-parallel ranks without work: raise it to at "
            f"least {data}, or give ranks to parallel.tensor, pipeline or context instead"
        )
    longest = training.max_length or sizes.context
    if parallel.context > 1 and longest is not None and longest < 2 * parallel.context:
        name = "the model's context" if training.max_length is None else "training.max_length"
        yield (
            f"parallel.context = {parallel.context} cuts each sequence into {2 * parallel.context} pieces, "
            f"but {name} is {longest} tokens: lower parallel.context to at most {max(1, longest // 2)}"
        )
