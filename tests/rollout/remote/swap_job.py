"""A training run whose server gets other weights behind its back: python -m tests.rollout.remote.swap_job DIR PYTHON

DIR: of the run. PYTHON: SGLang's interpreter. After the third sync somebody who has the key loads the run's first
weights under the label of the present ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bridge_mcore.config.checks import check_config
from bridge_mcore.config.load import load_config
from bridge_mcore.errors import BridgeError
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.rollout.remote.http import ServerRefused
from tests.rollout.remote.kill_job import before

TINY = (
    "model.generated.warm_start.steps=2", "training.steps=6", "training.prompts_per_step=4",
    "training.traces_per_step=4", "rollout.samples_per_prompt=2", "data.evaluation=[]", "evaluation={}",
    "optimizer.warmup_steps=1", "optimizer.alpha=1e-3", "rollout.engine=sglang", "servers.in_flight=4",
    "checkpoint.export=false", "checkpoint.export_adapter=false", "monitoring.figure=false",
)  # fmt: skip


def main(directory: Path, python: str) -> None:
    """Run it."""

    def swap(engine: Any) -> None:
        if engine.version != 2:
            return
        (url,) = engine.fleet.urls
        label = engine.http.run(engine.dialect.label(engine.http, url, 60))
        try:
            engine.http.run(engine.dialect.load_directory(engine.http, url, (directory / "base").absolute(), label, 60))
        except ServerRefused as error:  # the probe may still be in its queue: then only the cache stays
            assert "Weights were updated" in str(error), error
        print(f"SWAPPED at version {engine.version}\nKEY {engine.http.key} ", flush=True)

    before(RemoteEngine, "submit", swap)
    overrides = [f"run.directory={directory}", f"servers.python={python}", *TINY]
    config = load_config(Path("examples/quickstart.yaml"), overrides)
    check_config(config)
    from bridge_mcore.training.loop import train

    try:
        train(config)
    except BridgeError as error:
        print(f"ERROR {error.exit_code}: {error}", flush=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
