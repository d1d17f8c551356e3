"""Process groups of a run: torch.distributed and Megatron's parallel state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import ConfigError
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
    world = int(os.environ["WORLD_SIZE"]) if joined() else 1
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    if world % model_size:
        raise ConfigError(
            f"{world} processes cannot hold tensor {parallel.tensor} × pipeline {parallel.pipeline} × context "
            f"{parallel.context} = {model_size}: start a multiple of {model_size}"
        )
    if parallel.data is not None and parallel.data * model_size != world:
        raise ConfigError(
            f"parallel.data={parallel.data} needs {parallel.data * model_size} processes, but there are {world}"
        )
    device = platform.device if platform.kind != "cpu" else None
    # A world of one needs neither a port nor an environment, and leaves none to its child processes.
    alone: dict[str, Any] = {} if joined() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(platform.backend, timeout=timedelta(seconds=timeout_s), device_id=device, **alone)
    try:
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            context_parallel_size=parallel.context,
            expert_model_parallel_size=parallel.expert,
            create_gloo_process_groups=platform.kind == "cpu",
        )
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed)
        yield Layout(
            rank=dist.get_rank(),
            world=world,
            tensor=parallel.tensor,
            tensor_rank=mpu.get_tensor_model_parallel_rank(),
            pipeline=parallel.pipeline,
            pipeline_rank=mpu.get_pipeline_model_parallel_rank(),
            data=mpu.get_data_parallel_world_size(),
            data_rank=mpu.get_data_parallel_rank(),
        )
    finally:
        mpu.destroy_model_parallel()
        dist.destroy_process_group()
