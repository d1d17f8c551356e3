"""`parallel: auto` made concrete for the processes and the memory that there are."""

from __future__ import annotations

import os

from bridge_mcore.config.auto import UNKNOWN_GPU_GIB, choose_parallel, refuse_sizes
from bridge_mcore.config.data_checks import uses_rl
from bridge_mcore.config.model_files import model_problems, model_sizes
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.platform.ranks import gpu_memories, host_memory, joined_world, local_ranks


def resolve(config: Config) -> Config:
    """`config` with a concrete layout in place of ``parallel: auto``; rank 0 says what was chosen and why.

    Under torchrun the layout is for its world, else for the GPUs of this machine (one process on CPU). All nodes are
    taken to be alike, so that every rank chooses the same. Raises ConfigError if no layout fits.
    """
    asked = config.parallel
    if not asked.auto:
        return config
    refuse_sizes(asked)
    sizes = model_sizes(config.model)
    path = config.model.path
    if (path is None and config.model.generated is None) or (path is not None and [*model_problems(path, "")]):
        return config.model_copy(update={"parallel": Parallel()})  # check_config says what is wrong with the model
    memories = gpu_memories() if config.device == "cuda" else []
    world = joined_world() or max(1, len(memories))
    per_node = local_ranks(world)
    memory = min(memories, default=UNKNOWN_GPU_GIB) if config.device == "cuda" else host_memory() / per_node
    chosen, line = choose_parallel(
        sizes,
        world,
        memory,
        per_node,
        config.training.max_length,
        config.device,
        uses_auxiliary=config.method.name == "bridge" and config.slots.theta_hat.offload == "none",
        uses_reference=uses_rl(config)
        and config.objective.kl_coefficient > 0
        and config.slots.reference.offload == "none",
        dtype=config.model.dtype,
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"· {line}", flush=True)
    kept = {name: getattr(asked, name) for name in ("overlap_grad_reduce", "overlap_param_gather")}
    return config.model_copy(update={"parallel": chosen.model_copy(update=kept)})
