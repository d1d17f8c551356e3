"""Rank program: read an HF checkpoint with experts and write it again, in several layouts within one world.

python -m tests.checkpoint.experts_job SOURCE OUT_DIR LAYOUTS.json      # started once per rank
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bridge_mcore.config.schema import Adapter, Config, Parallel
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.training.policy import build_policy


def main() -> None:
    source, out, layouts = (Path(argument) for argument in sys.argv[1:])
    platform = setup_device("cpu")
    with joined_world(platform):
        for name, sizes in json.loads(layouts.read_text()).items():
            parallel = Parallel(**sizes)
            with layout_groups(parallel, seed=0):
                config = Config(parallel=parallel, adapter=Adapter(rank=4))
                policy = build_policy(config, platform, source, adapter=True, auxiliary=False, reference=False)
                policy.export_theta(out / name)


if __name__ == "__main__":
    main()
