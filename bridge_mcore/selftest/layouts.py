"""The layouts that a number of processes allows: each dimension by itself, then products. Pure functions, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bridge_mcore.config.parallel import model_size, parallel_problems, world_problems
from bridge_mcore.config.schema import Parallel
from bridge_mcore.selftest.models import MODELS, TestModel
from bridge_mcore.selftest.options import SelftestOptions

_LARGEST = 8  # of one dimension, but data parallelism
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "send_recv", "all_to_all")
#: Where θ̂ waits in the rows of the slots.
OFFLOADS = ("none", "pinned_cpu")


@dataclass(frozen=True)
class TestLayout:
    """A layout of all processes, of one of the models."""

    model: TestModel
    parallel: Parallel

    @property
    def name(self) -> str:
        """``tp2-sp-dp2-distopt``; layouts of the model with experts begin with ``moe-``."""
        p = self.parallel
        sizes = (("pp", p.pipeline), ("vpp", p.virtual_pipeline), ("cp", p.context), ("ep", p.expert), ("dp", p.data))
        parts = ["moe"] * (self.model.name == "moe") + [f"tp{p.tensor}"] * (p.tensor > 1) + ["sp"] * p.sequence
        parts += [f"{name}{size}" for name, size in sizes if (size or 1) > 1]
        if p.overlap_grad_reduce:
            parts.append("overlap")
        elif p.distributed_optimizer and (p.data or 1) * p.context > 1:
            parts.append("distopt")
        return "-".join(parts) or "one"


def fit(model: TestModel, world: int, **sizes: Any) -> TestLayout | None:
    """The layout of these sizes, with the processes that are left as replicas; None if they do not fit."""
    parallel = Parallel(**sizes)
    if world % model_size(parallel):
        return None
    parallel = parallel.model_copy(update={"data": world // model_size(parallel)})
    if [*parallel_problems(parallel, model.sizes), *world_problems(parallel, world)]:
        return None
    return TestLayout(model, parallel)


def _widest(model: TestModel, world: int, dimension: str, **more: Any) -> TestLayout | None:
    """The layout with the most ranks along one dimension."""
    sizes = range(min(world, _LARGEST), 1, -1)
    return next((found for n in sizes if (found := fit(model, world, **{dimension: n}, **more))), None)


def dense_layouts(model: TestModel, world: int) -> list[TestLayout]:
    """Layouts of a model without experts, for exactly `world` processes."""
    found = [
        _widest(model, world, "tensor"),
        _widest(model, world, "tensor", sequence=True),
        _widest(model, world, "pipeline"),
        _widest(model, world, "pipeline", virtual_pipeline=2),
        _widest(model, world, "context"),
    ]
    if world > 1:
        found += [
            fit(model, world, distributed_optimizer=False),
            fit(model, world),
            fit(model, world, overlap_grad_reduce=True, overlap_param_gather=True),
        ]
    if world >= 4:
        two: dict[str, Any] = {"tensor": 2, "sequence": True}
        found += [
            fit(model, world, tensor=2, pipeline=2),
            fit(model, world, **two),
            fit(model, world, **two, pipeline=2, virtual_pipeline=2),
            fit(model, world, **two, context=2),
            fit(model, world, context=2, pipeline=2),
            fit(model, world, context=2),
            fit(model, world, pipeline=2, virtual_pipeline=2),
        ]
    if world >= 8:
        found += [fit(model, world, tensor=2, sequence=True, pipeline=2, context=2)]
    return _distinct(found)


def expert_layouts(world: int) -> list[TestLayout]:
    """Layouts of the model with experts."""
    model = MODELS["moe"]
    found = [_widest(model, world, "expert"), fit(model, world, tensor=2, sequence=True, expert=2)]
    if world >= 4:
        found += [fit(model, world, pipeline=2, expert=2)]
    return _distinct([layout for layout in found if layout is not None and layout.parallel.expert > 1])


def _distinct(found: list[TestLayout | None]) -> list[TestLayout]:
    return list({layout.name: layout for layout in found if layout is not None}.values())


def all_layouts(options: SelftestOptions, world: int) -> list[TestLayout]:
    """Every layout that is compared with one process."""
    return [*dense_layouts(MODELS[options.model_shape], world), *expert_layouts(world)]


def generation_layouts(options: SelftestOptions, world: int) -> list[TestLayout]:
    """Layouts in which ranks answer together: replicas do so only for experts, context-parallel ranks never."""
    return [
        layout
        for layout in all_layouts(options, world)
        if layout.parallel.context == 1 and (layout.parallel.data == 1 or layout.parallel.expert > 1)
    ]


def sharded_layout(model: TestModel, world: int) -> TestLayout:
    """Data parallelism with sharded optimizer state; of one process, that process."""
    found = fit(model, world)
    assert found is not None
    return found


def checkpoint_pairs(world: int) -> list[tuple[TestLayout, TestLayout]]:
    """(saved in, loaded in), of the small models: each of a few layouts is once the one and once the other.

    One process saves and loads in its own layout.
    """
    model = MODELS["tiny"]
    layouts = [
        sharded_layout(model, world),
        _widest(model, world, "tensor", sequence=True),
        _widest(model, world, "pipeline"),
    ]
    ring = _distinct(layouts)
    pairs = [(a, ring[(i + 1) % len(ring)]) for i, a in enumerate(ring)]
    experts = expert_layouts(world)[:2]
    return [*pairs, (experts[0], experts[1])] if len(experts) == 2 else pairs


def pair_name(pair: tuple[TestLayout, TestLayout]) -> str:
    """``tp2-sp>pp2``"""
    return f"{pair[0].name}>{pair[1].name}"


def row_names(options: SelftestOptions, world: int) -> Iterator[str]:
    """What `--only` may name besides sections. (Of generation and layouts the names are the same.)"""
    yield from COLLECTIVES if world > 1 else ()
    yield from (layout.name for layout in all_layouts(options, world))
    yield from (pair_name(pair) for pair in checkpoint_pairs(world))
