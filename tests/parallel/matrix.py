"""Rank program: BRIDGE iterations of replay cases under one layout after another, within one world.

python -m tests.parallel.matrix PLAN.json OUT_DIR      # started once per rank

A plan is a list of {"name", "case", "parallel", …}; each entry's updated weights and metrics are left in OUT_DIR/name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bridge_mcore.config.replay import ReplayOptions, read_settings
from bridge_mcore.config.schema import Parallel
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.training.case import write_weights
from bridge_mcore.training.replay import replay_config, run_case


def main() -> None:
    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    platform = setup_device("cpu")
    with joined_world(platform):
        for entry in plan:
            source = Path(entry["case"])
            options = ReplayOptions(source, out, parallel=Parallel(**entry["parallel"]))
            config = replay_config(read_settings(source / "settings.yaml"), options)
            config.training.max_tokens_per_microbatch = entry.get("max_tokens", 8192)
            config.model.recompute = entry.get("recompute", "none")
            config.auxiliary.optimizer = entry.get("auxiliary_optimizer", "same")
            with layout_groups(options.parallel, seed=0) as layout:
                policy, metrics = run_case(options, platform, entry.get("iterations", 1), config)
                write_weights(policy, out / entry["name"])
                if layout.is_main:
                    (out / entry["name"] / "metrics.json").write_text(json.dumps(metrics))
                    print(entry["name"], flush=True)


if __name__ == "__main__":
    main()
