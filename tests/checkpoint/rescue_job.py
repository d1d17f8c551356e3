"""One of two ranks that fail in the step after a checkpoint, while it is being written.

python -m tests.checkpoint.rescue_job MODEL DIRECTORY all|one

`all`: both raise, and the checkpoint must be there; `one`: rank 1 raises while rank 0 waits for it in a collective.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch.distributed as dist

from bridge_mcore.checkpoint import run_state
from bridge_mcore.checkpoint.manifest import list_checkpoints, read_manifest, verify_files
from bridge_mcore.checkpoint.run_state import CheckpointWriter
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.errors import TrainingError
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.training.policy import build_policy


def main(model: Path, directory: Path, who: str) -> None:
    parallel = Parallel(tensor=2)
    platform = setup_device("cpu")
    write = run_state.write_pieces

    def slow(*arguments):
        time.sleep(2)
        return write(*arguments)

    run_state.write_pieces = slow
    with process_groups(platform, parallel, seed=0) as layout:
        policy = build_policy(Config(parallel=parallel), platform, model, adapter=True, auxiliary=True, reference=False)
        layout_of_run = {"tensor": 2, "method": "bridge", "optimizer": "adamw"}
        try:
            with CheckpointWriter(directory, 2, asynchronous=True) as writer:
                writer.save(policy, 1, {}, layout_of_run)
                if who == "one" and layout.rank == 0:
                    dist.barrier()
                raise TrainingError("a reward has died")
        except TrainingError as error:
            assert str(error) == "a reward has died", error
        (path,) = list_checkpoints(directory)
        verify_files(path, read_manifest(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
