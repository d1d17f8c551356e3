"""The self-test on one rank: references in a process of its own, then every row in the joined world."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bridge_mcore.config.schema import Parallel
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.platform.ranks import joined
from bridge_mcore.platform.ranks import joined_world as launched_world
from bridge_mcore.selftest import checks
from bridge_mcore.selftest.case import make_batch, write_case
from bridge_mcore.selftest.checks import Bench
from bridge_mcore.selftest.collectives import check_collective, check_environment
from bridge_mcore.selftest.layouts import (
    COLLECTIVES,
    OFFLOADS,
    TestLayout,
    all_layouts,
    checkpoint_pairs,
    generation_layouts,
    pair_name,
    sharded_layout,
)
from bridge_mcore.selftest.models import MODELS, TestModel
from bridge_mcore.selftest.options import SelftestOptions
from bridge_mcore.selftest.results import SKIPPED, Row
from bridge_mcore.selftest.rows import RowRunner

_ALONE = 3.0  # a reference may take so many times a row's limit: no other rank helps


def selftest(options: SelftestOptions) -> bool:
    """Run all that is asked for, on this rank. True if no row failed; rank 0 has shown the rows."""
    platform = setup_device(options.device)
    rank = int(os.environ["RANK"]) if joined() else 0
    with tempfile.TemporaryDirectory(prefix="bridge-selftest-", dir=options.scratch or options.directory) as own:
        run = _Run(options, platform, rank, launched_world() or 1, Path(own))
        return run.everything()


class _Run:
    """What is tested, on this rank, and the order."""

    def __init__(self, options: SelftestOptions, platform: Platform, rank: int, world: int, own: Path) -> None:
        self.options, self.platform, self.rank, self.world, self.own = options, platform, rank, world, own
        self.rows = RowRunner(options, rank, world, own)
        self.bench = Bench(platform, {}, 0.0)
        layouts = all_layouts(options, world)
        self.layouts = [x for x in layouts if options.wants("layouts", x.name)]
        self.generated = [x for x in generation_layouts(options, world) if options.wants("generation", x.name)]
        self.pairs = [x for x in checkpoint_pairs(world) if options.wants("checkpoint", pair_name(x))]
        self.slots = [sharded_layout(MODELS[options.model_shape], world)] if options.wants("slots", "slots") else []
        needed = [*self.layouts, *self.generated, *self.slots, *(x for pair in self.pairs for x in pair)]
        if world == 1 and options.wants("layouts", "one"):
            needed.append(sharded_layout(MODELS[options.model_shape], 1))
        self.models = list({layout.model.name: layout.model for layout in needed}.values())

    def everything(self) -> bool:
        """See `selftest`."""
        batches: dict[str, str] = {}
        if self.rank == 0:
            with self.rows.limited("the reference in one process", _ALONE):
                self._alone(batches)
        with ExitStack() as stack:
            # the others wait here until rank 0 has its reference
            with self.rows.limited("joining the world", _ALONE + 0.5):
                stack.enter_context(joined_world(self.platform, timeout_s=max(600.0, 5 * self.options.limit)))
            self._together(batches)
            with self.rows.limited("leaving the world"):
                stack.close()
        return self.rows.results.ok

    def _alone(self, batches: dict[str, str]) -> None:
        """Rank 0: cases, references and answers of one process, as far as it can hold them."""
        bench = self.bench
        bench.memory_gib = self.platform.total_gib()
        first = self.options.dtypes[0]
        with joined_world(self.platform, alone=True):
            for model in self.models:
                write_case(self.own / model.name, model)
                bench.cases[model.name] = self.own / model.name
                one = TestLayout(model, Parallel(data=1))
                if not bench.fits(one, first):
                    with layout_groups(one.parallel, seed=0):
                        directory = bench.cases[model.name]
                        batches[model.name] = make_batch(
                            directory, model, self.world, self.platform, first, one.parallel
                        )
                    (directory / "batch.jsonl").write_text(batches[model.name])
                if any(x.model == model for x in self.layouts) or self.world == 1:
                    self._references(one, batches)
                if any(x.model == model for x in self.generated):
                    bench.answers[model.name] = [r.tokens for r in checks.answer(bench, one)]
        self.platform.reset_peak()

    def _references(self, one: TestLayout, batches: dict[str, str]) -> None:
        for dtype in self.options.dtypes:
            row = Row("layouts", one.name if one.model.name != "moe" else "moe-one", 1, dtype)
            start = time.perf_counter()
            if too_small := self.bench.fits(one, dtype):
                row.status, row.detail = SKIPPED, f"the {one.model.name} model in one process: {too_small}"
            else:
                checks.make_reference(self.bench, one, row)
            row.took = time.perf_counter() - start
            self.platform.reset_peak()
            self.rows.results.add(row)

    def _together(self, batches: dict[str, str]) -> None:
        options, bench, world = self.options, self.bench, self.world
        if options.wants("environment", "environment"):
            self._row("environment", "environment", "", partial(check_environment, self.platform))
        for name in COLLECTIVES if world > 1 else ():
            if options.wants("collectives", name):
                self._row("collectives", name, "", partial(check_collective, self.platform))
        if self.models:
            self._row("setup", "cases", "", partial(self._share, batches), shown=False)
        for layout in self.layouts:
            for dtype in options.dtypes:
                self._row("layouts", layout.name, dtype, partial(checks.check_layout, bench, layout))
        for layout in self.slots:
            for dtype in options.dtypes:
                for offload in OFFLOADS:
                    self._row("slots", offload, dtype, partial(checks.check_slots, bench, layout))
        for layout in self.generated:
            self._row("generation", layout.name, "float32", partial(checks.check_generation, bench, layout))
        for pair in self.pairs:
            self._row("checkpoint", pair_name(pair), options.dtypes[-1], partial(checks.check_checkpoint, bench, pair))
        if self.rank == 0:
            self.rows.results.finish(options.json)
        if world > 1:
            dist.barrier()  # a rank that ends with exit code 1 would have the others killed

    def _row(self, section: str, name: str, dtype: str, body: Callable[[Row], None], shown: bool = True) -> None:
        self.rows.run(Row(section, name, self.world, dtype), body, shown)
        self.platform.reset_peak()

    def _share(self, batches: dict[str, str], row: Row) -> None:
        """Cases on every machine, answers of one process on every rank, memory, and whether files are shared."""
        bench, platform = self.bench, self.platform
        local = int(os.environ.get("LOCAL_RANK", "0"))
        payload: list[Any] = [batches, bench.answers, str(self.own), uuid.uuid4().hex]
        dist.broadcast_object_list(payload, src=0, device=platform.device)
        batches, bench.answers, shared, token = payload
        if local == 0 and self.rank != 0:
            for model in self.models:
                write_case(self.own / model.name, model)
                if model.name in batches:
                    (self.own / model.name / "batch.jsonl").write_text(batches[model.name])
        if self.rank == 0:
            (self.own / "token").write_text(token)
        owns: list[str] = [""] * self.world
        dist.all_gather_object(owns, str(self.own))
        bench.cases = {model.name: Path(owns[self.rank - local]) / model.name for model in self.models}
        seen = Path(shared, "token")
        facts = torch.tensor(
            [platform.total_gib(), float(seen.is_file() and seen.read_text() == token)], device=platform.device
        )
        if platform.kind == "cpu":
            facts[0] /= int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        dist.all_reduce(facts, op=dist.ReduceOp.MIN)
        bench.memory_gib = float(facts[0])
        bench.shared = Path(shared) / "checkpoints" if facts[1] else None
        for model in self.models:
            if model.name not in batches:
                self._batch_together(model, local)
        dist.barrier()

    def _batch_together(self, model: TestModel, local: int) -> None:
        """The batch of a model that one process cannot hold, by the first layout that can."""
        dtype = self.options.dtypes[0]
        layouts = [x for x in (*self.layouts, *self.slots) if x.model == model and not self.bench.fits(x, dtype)]
        if not layouts:
            return  # every row of this model will be skipped, for its memory
        with layout_groups(layouts[0].parallel, seed=0):
            directory = self.bench.cases[model.name]
            text = make_batch(directory, model, self.world, self.platform, dtype, layouts[0].parallel)
        if local == 0:
            (directory / "batch.jsonl").write_text(text)


def run_ranks(options: SelftestOptions) -> None:
    """`selftest` as a command: exit code 1 if a row failed."""
    if not selftest(options):
        raise SystemExit(1)
