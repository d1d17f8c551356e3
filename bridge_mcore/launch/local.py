"""Run a job in this process, in the processes that its layout needs on this machine, or in torchrun's.

No scheduler of our own: on several nodes torchrun starts the ranks and each of them comes here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bridge_mcore.config.load import dump_config
from bridge_mcore.config.parallel import world_size
from bridge_mcore.config.replay import ReplayOptions
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.errors import BridgeError
from bridge_mcore.platform.ranks import RENDEZVOUS, joined
from bridge_mcore.selftest.options import SelftestOptions
from bridge_mcore.selftest.results import is_finished, read_lost, show_lost

_GRACE_S = 15.0  # once a rank is lost the others wait for it in vain: what they can still say takes seconds


def _die_with_parent() -> None:
    """Linux: the kernel kills this child if the launcher dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def launch(count: int, arguments: list[str], threads: int, keep: tuple[int, ...] = ()) -> None:
    """Start `count` ranks of ``python -m bridge_mcore.launch.worker ARGUMENTS`` and wait for them. keep: descriptors
    that they have too.

    SIGTERM and Ctrl-C are passed on, so that ranks can write a checkpoint; a second one ends them within seconds, also
    where they wait for each other in vain. When one rank fails the others are ended.
    Raises BridgeError with the first failing rank's exit code.
    """
    with tempfile.TemporaryDirectory(prefix="bridge-") as directory:  # for this user only
        variables = {RENDEZVOUS: str(Path(directory) / "rendezvous"), "OMP_NUM_THREADS": str(threads)}
        _launch(count, arguments, variables, keep)


def _launch(count: int, arguments: list[str], variables: dict[str, str], keep: tuple[int, ...]) -> None:
    """See `launch`. variables: of the ranks' environment."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(count), **variables}
    command = [sys.executable, "-m", "bridge_mcore.launch.worker", *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
            preexec_fn=_die_with_parent,
            pass_fds=keep,
            start_new_session=True,
        )
        for r in range(count)
    ]
    stop = _Stop()

    def forward(signum: int, _frame: object) -> None:
        stop.asked += 1
        if stop.asked == 2:
            stop.deadline = time.monotonic() + _GRACE_S
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signum)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = _wait(ranks, stop)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
    if failed is not None:
        index, code = failed
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code in (2, 3) or stop.asked:  # the rank has said why
            raise SystemExit(code if code > 0 else 128 - code)
        raise BridgeError(f"rank {index} of {count} {reason}; the other ranks were ended")


@dataclass
class _Stop:
    """What the user has asked for: the number of signals, and when (time.monotonic) ranks that still run are killed."""

    asked: int = 0
    deadline: float = float("inf")


def _wait(ranks: list[subprocess.Popen], stop: _Stop) -> tuple[int, int] | None:
    """(rank, exit code) of the first rank that failed, after all have ended; None if none did."""
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while any(rank.poll() is None for rank in ranks):
        for index, rank in enumerate(ranks):
            code = rank.poll()
            if failed is None and code not in (None, 0):
                failed, deadline = (index, code), time.monotonic() + _GRACE_S
                if stop.asked:  # it has ended as it was told, and the others are about to: no second signal
                    deadline += _GRACE_S
                    continue
                for other in ranks:
                    if other.poll() is None:
                        other.terminate()
        if time.monotonic() > min(deadline, stop.deadline):
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
        time.sleep(0.05)
    if failed is None:
        failed = next(((i, r.returncode) for i, r in enumerate(ranks) if r.returncode != 0), None)
    return failed


def _here(parallel: Parallel) -> bool:
    """Whether this process is all of the layout, or one rank of it that others have started."""
    return joined() or world_size(parallel) == 1


def run_training(config: Config) -> None:
    """`bridge-mcore train` with a checked config."""
    if _here(config.parallel):
        from bridge_mcore.training.loop import train

        train(config)
        return
    # It has secrets: in memory it is for the ranks only, and gone with them, however they end.
    with open(os.memfd_create("config"), "w") as file:
        file.write(dump_config(config, secrets=True))
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        launch(world_size(config.parallel), ["train", path], config.run.threads, keep=(file.fileno(),))


def run_replay(options: ReplayOptions) -> None:
    """`bridge-mcore replay` with checked options."""
    p = options.parallel
    if _here(p):
        from bridge_mcore.training.replay import replay

        replay(options)
        return
    launch(world_size(p), replay_arguments(options), threads=1)


def replay_arguments(options: ReplayOptions) -> list[str]:
    """The command line that gives a rank the same options."""
    p = options.parallel
    sizes = {"tp": p.tensor, "pp": p.pipeline, "vpp": p.virtual_pipeline, "cp": p.context, "ep": p.expert, "dp": p.data}
    arguments = ["replay", str(options.source), str(options.target), "--dtype", options.dtype]
    arguments += ["--device", options.device, "--overwrite"]
    if options.micro_batch_size is not None:
        arguments += ["--micro-batch-size", str(options.micro_batch_size)]
    for name, size in sizes.items():
        arguments += [f"--{name}", str(size or 1)]
    arguments += ["--sp" if p.sequence else "--no-sp"]
    arguments += ["--dist-opt" if p.distributed_optimizer else "--no-dist-opt"]
    return arguments


def run_selftest(options: SelftestOptions) -> None:
    """`bridge-mcore selftest` with checked options. Ends with exit code 1 if a row failed.

    A rank that hangs ends itself and leaves word; what it and the others said becomes a row here.
    """
    if joined() or options.processes == 1:
        from bridge_mcore.selftest.run import run_ranks

        run_ranks(options)
        return
    with tempfile.TemporaryDirectory(prefix="bridge-selftest-", dir=options.directory) as directory:
        scratch = Path(directory)
        try:
            launch(options.processes, selftest_arguments(options, scratch), threads=1)
        except BridgeError as error:
            if not is_finished(scratch):
                show_lost(read_lost(scratch, str(error), options.processes), options.json)
            raise SystemExit(1) from None


def selftest_arguments(options: SelftestOptions, scratch: Path) -> list[str]:
    """The command line that gives a rank the same options, and where to leave word."""
    arguments = ["selftest", "--model-shape", options.model_shape, "--limit", str(options.limit)]
    arguments += [f"--{'gpus' if options.device == 'cuda' else 'processes'}", str(options.processes)]
    arguments += ["--dtype", ",".join(options.dtypes), "--scratch", str(scratch)]
    arguments += ["--only", ",".join(options.only)] if options.only else []
    arguments += ["--json", str(options.json)] if options.json is not None else []
    return arguments
