"""Whether a self-test can run as it is asked for, told without torch."""

from __future__ import annotations

from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.machine import require_processes
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.outputs import directory_problem, file_problem
from bridge_mcore.errors import ConfigError
from bridge_mcore.platform.ranks import gpu_memories, joined_world, local_ranks
from bridge_mcore.selftest.layouts import row_names
from bridge_mcore.selftest.options import SECTIONS, SelftestOptions


def check_selftest(options: SelftestOptions) -> None:
    """Raises ConfigError, before anything heavy is imported."""
    for dtype in options.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"--dtype {dtype}: choose float32, bfloat16, or both with a comma between them")
    world = joined_world()
    here = options.processes if world is None else local_ranks(world)
    if world is not None and options.device == "cuda" and options.processes != here:
        raise ConfigError(
            f"--gpus {options.processes}, but torchrun started {here} processes on this machine: "
            f"say --gpus {here}, or torchrun --nproc-per-node {options.processes}"
        )
    if options.device == "cuda":
        found = len(gpu_memories())
        if 0 < found < here:
            raise ConfigError(f"--gpus {here}: this machine shows {found}; say --gpus {found}")
    if world is None:
        require_processes("--processes" if options.device == "cpu" else "--gpus", options.processes)
    known = [*SECTIONS, *row_names(options, world or options.processes)]
    for word in options.only:
        if word not in known:
            raise ConfigError(
                f"--only {word}: no part or row of this self-test{nearest(word, known)}; choose from {', '.join(known)}"
            )
    for flag, path in (("--json", options.json and options.json.parent), ("--directory", options.directory)):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{flag}: {one_line(path, 200)} is not a directory")
        if path is not None and flag == "--directory" and (problem := directory_problem(path)) is not None:
            raise ConfigError(f"{flag} {one_line(path, 200)}: {problem}")
    if options.json is not None and (problem := file_problem(options.json)) is not None:
        raise ConfigError(f"--json {one_line(options.json, 200)}: {problem}")
