"""Process groups of a run: torch.distributed and Megatron's parallel state."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from bridge_mcore.config.parallel import world_problems
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.platform.device import Platform
from bridge_mcore.platform.ranks import joined


@dataclass(frozen=True)
class Layout:
    """This process's place in the run. Sizes and ranks along each parallel dimension."""

    rank: int
    world: int
    tensor: int
    tensor_rank: int
    pipeline: int
    pipeline_rank: int
    data: int
    data_rank: int
    context: int = 1
    context_rank: int = 0

    @property
    def shares(self) -> int:
        """Parts into which generation is divided: decoding ignores context parallelism, so its ranks are replicas."""
        return self.data * self.context

    @property
    def share(self) -> int:
        """Which of them this rank (with its tensor and pipeline peers) does."""
        return self.data_rank * self.context + self.context_rank

    @property
    def is_main(self) -> bool:
        """Rank 0 prints, and writes what is written once."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline - 1


@contextmanager
def process_groups(platform: Platform, parallel: Parallel, seed: int, timeout_s: float = 600.0) -> Iterator[Layout]:
    """Join the world that torchrun's (or the local launcher's) environment describes, and make Megatron's groups.

    Without such an environment the process is a world of one. Raises ConfigError when the world size does not fit.
    """
    with joined_world(platform, timeout_s), layout_groups(parallel, seed) as layout:
        yield layout


@contextmanager
def joined_world(platform: Platform, timeout_s: float = 600.0, alone: bool = False) -> Iterator[None]:
    """torch.distributed of all ranks that were started; `alone`: of this process only, whatever was started."""
    device = platform.device if platform.kind != "cpu" else None
    # A world of one needs neither a port nor an environment, and leaves none to its child processes.
    single = alone or not joined()
    how: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if single else {}
    dist.init_process_group(platform.backend, timeout=timedelta(seconds=timeout_s), device_id=device, **how)
    try:
        yield
    except BridgeError as error:
        error.said = not single and _is_said(str(error))
        raise
    finally:
        dist.destroy_process_group()


_arrivals = itertools.count()


def all_arrive(seconds: float) -> bool:
    """Whether all ranks call this within `seconds` of one another: after a failure some may be gone, or wait elsewhere.

    Every rank calls it, if it calls it, equally often.
    """
    if not dist.is_initialized():
        return False
    world, number = dist.get_world_size(), next(_arrivals)
    if world == 1:
        return True
    from torch.distributed import distributed_c10d

    try:
        store = distributed_c10d._get_default_store()
        store.set(f"arrived/{number}/{dist.get_rank()}", "1")
        store.wait([f"arrived/{number}/{rank}" for rank in range(world)], timedelta(seconds=seconds))
    except RuntimeError:  # not all of them, or whoever kept the store has gone
        return False
    return True


def _is_said(message: str) -> bool:
    """Whether another rank has failed with this message already: what all of them find is to be read once."""
    from torch.distributed import distributed_c10d

    try:
        key = "said/" + hashlib.sha256(message.encode()).hexdigest()
        return distributed_c10d._get_default_store().add(key, 1) > 1
    except Exception:  # whoever kept the store has gone: rather twice than never
        return False


@contextmanager
def layout_groups(parallel: Parallel, seed: int) -> Iterator[Layout]:
    """Megatron's process groups of a layout within the joined world. Raises ConfigError if it does not fit."""
    world = dist.get_world_size()
    problems = list(world_problems(parallel, world))
    if problems:
        raise ConfigError("; ".join(problems))
    try:
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            context_parallel_size=parallel.context,
            expert_model_parallel_size=parallel.expert,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=dist.get_backend() == "gloo",
        )
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        yield Layout(
            rank=dist.get_rank(),
            world=world,
            tensor=parallel.tensor,
            tensor_rank=mpu.get_tensor_model_parallel_rank(),
            pipeline=parallel.pipeline,
            pipeline_rank=mpu.get_pipeline_model_parallel_rank(),
            data=mpu.get_data_parallel_world_size(),
            data_rank=mpu.get_data_parallel_rank(),
            context=parallel.context,
            context_rank=mpu.get_context_parallel_rank(),
        )
        dist.barrier()  # nobody closes a connection that another rank still reads from
    finally:
        mpu.destroy_model_parallel()
        _destroy_subgroups()


def _destroy_subgroups() -> None:
    """End every process group but the world's. Megatron only forgets its own, and each keeps threads and sockets."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
