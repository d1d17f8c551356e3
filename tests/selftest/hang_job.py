"""Rank program: rows of a self-test in which a rank hangs, or fails while the others wait for it.

python -m tests.selftest.hang_job SCRATCH hang | raise | all      # started once per rank
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bridge_mcore.errors import BridgeError
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world
from bridge_mcore.selftest import rows
from bridge_mcore.selftest.options import SelftestOptions
from bridge_mcore.selftest.results import Row


def body(kind: str, row: Row) -> None:
    if kind == "all":
        raise BridgeError("every rank sees this")
    if dist.get_rank() == 1:
        if kind == "raise":
            raise BridgeError("no memory left")
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def main() -> None:
    scratch, kind = Path(sys.argv[1]), sys.argv[2]
    options = SelftestOptions(limit=4.0, scratch=scratch)
    rows._GRACE_S = 2.0
    with joined_world(setup_device("cpu")), tempfile.TemporaryDirectory(dir=scratch) as own:
        runner = rows.RowRunner(options, dist.get_rank(), dist.get_world_size(), Path(own))
        runner.run(Row("layouts", "good", 2), lambda row: dist.all_reduce(torch.ones(1)))
        runner.run(Row("layouts", "bad", 2), lambda row: body(kind, row))
        runner.run(Row("layouts", "next", 2), lambda row: dist.all_reduce(torch.ones(1)))


if __name__ == "__main__":
    main()
