"""Rank program: one rank's disk is full while an HF checkpoint is written; every rank must say so, and soon.

python -m tests.parallel.export_job MODEL_DIR OUT_DIR
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from bridge_mcore.checkpoint import hf
from bridge_mcore.checkpoint.safetensors_file import SafetensorsStream
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.errors import TrainingError
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.training.policy import build_policy


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    platform = setup_device("cpu")
    hf._SHARD_BYTES = 20_000  # type: ignore[misc]
    append, calls = SafetensorsStream.append, []

    def full(stream: SafetensorsStream, name: str, tensor: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(stream, name, tensor)

    SafetensorsStream.append = full  # type: ignore[method-assign]
    with joined_world(platform):
        for sizes in ({"tensor": 2}, {"pipeline": 2}, {"data": 2}):
            calls.clear()
            if dist.get_rank() == 1 and "pipeline" not in sizes:
                calls.extend([None] * 3)  # only rank 0 writes, and fails
            with layout_groups(Parallel(**sizes), seed=0):
                config = Config(parallel=Parallel(**sizes))
                policy = build_policy(config, platform, source, adapter=False, auxiliary=False, reference=False)
                try:
                    policy.export_theta(out / "model")
                except TrainingError as error:
                    assert "disk is full" in str(error), error
                else:
                    raise AssertionError("the export said that it was written")
                assert not (out / "model").exists()


if __name__ == "__main__":
    main()
