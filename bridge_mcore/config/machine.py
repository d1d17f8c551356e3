"""What this machine can hold of a run: descriptors, threads, processes and memory, told before any is taken."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from bridge_mcore.config.model_files import Sizes
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import ConfigError
from bridge_mcore.platform.ranks import host_memory, joined

#: More than helps anywhere, and far less than makes a machine stand still.
_THREADS_PER_CORE, _PROCESSES_PER_CORE = 8, 64
#: Open files of one process of any command that computes (a small run fails with 80 and works with 100), and more of
#: each worker (its pipes) and of each request to a server.
_DESCRIPTORS, _DESCRIPTORS_OF_WORKER = 160, 4


def require_descriptors() -> None:
    """Raises ConfigError if this process may open too few files for what torch and its process groups open at once."""
    if (problem := descriptors_problem(_DESCRIPTORS)) is not None:
        raise ConfigError(problem)


def descriptors_problem(needed: int) -> str | None:
    """What is wrong if this process needs so many open files."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"this process may have {allowed} open files (RLIMIT_NOFILE), and needs {needed}: raise the limit, "
        f"for example with ulimit -n {max(4096, needed)}"
    )


def processes_problem(key: str, count: int, most_per_core: int = _PROCESSES_PER_CORE) -> str | None:
    """What is wrong with so many processes, or threads, on this machine."""
    cores = os.cpu_count() or 1
    if count <= most_per_core * cores:
        return None
    return f"{key} = {count} is more than {most_per_core} for each of this machine's {cores} cores; lower it"


def require_processes(key: str, count: int) -> None:
    """Raises ConfigError for more processes than this machine takes."""
    if (problem := processes_problem(key, count)) is not None:
        raise ConfigError(problem)


def layout_problems(world: int) -> Iterator[str]:
    """A layout of more processes than this machine takes, where none are started yet."""
    if not joined() and (problem := processes_problem("the product of the parallel sizes", world)) is not None:
        yield problem


def machine_problems(config: Config, sizes: Sizes, world: int) -> Iterator[str]:
    """What of a configuration this machine cannot hold, whatever it does."""
    counts = [("run.threads", config.run.threads, _THREADS_PER_CORE)]
    counts += [("reward.workers", config.reward.workers, _PROCESSES_PER_CORE)]
    for key, count, most in counts:
        if (problem := processes_problem(key, count, most)) is not None:
            yield problem
    yield from layout_problems(world)
    needed = _DESCRIPTORS + _DESCRIPTORS_OF_WORKER * config.reward.workers
    if config.rollout.engine != "embedded":
        needed += config.servers.in_flight
    if (problem := descriptors_problem(needed)) is not None:
        yield problem
    parameters = sizes.parameters() if config.model.generated is not None else None
    if parameters is not None and (gib := 4 * parameters.total / 2**30) > host_memory():
        yield (
            f"model.generated has {parameters.total:.3g} parameters, {gib:.3g} GiB of weights, and this machine "
            f"{host_memory():.0f} GiB of memory: lower hidden_size, intermediate_size, heads, head_dim or layers"
        )
