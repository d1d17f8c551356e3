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
#: Open files of one process of any command that computes: it has about 90 before it has done anything.
_DESCRIPTORS = 160


def require_descriptors() -> None:
    """Raises ConfigError if this process may open too few files for what torch and its process groups open at once."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < _DESCRIPTORS:
        raise ConfigError(
            f"this process may have {allowed} open files (RLIMIT_NOFILE), and needs {_DESCRIPTORS}: raise the limit, "
            "for example with ulimit -n 4096"
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
    parameters = sizes.parameters() if config.model.generated is not None else None
    if parameters is not None and (needed := 4 * parameters.total / 2**30) > host_memory():
        yield (
            f"model.generated has {parameters.total:.3g} parameters, {needed:.3g} GiB of weights, and this machine "
            f"{host_memory():.0f} GiB of memory: lower hidden_size, intermediate_size, heads, head_dim or layers"
        )
