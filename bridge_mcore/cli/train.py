"""`bridge-mcore train`: a run, from its configuration to an exported checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge_mcore.cli.options import user_path


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file (every key has a default but model and data), or a built-in example: quickstart.",
            callback=user_path,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to the configuration; `bridge-mcore keys` lists the keys.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a model with BRIDGE, RL, SFT or cold start.

    The configuration is checked in full first. Everything the run writes (metrics, checkpoints, the figure, the
    exported Hugging Face checkpoint, and the configuration as it was resolved) goes to run.directory. Relative paths
    are relative to the present directory. Ctrl-C writes a checkpoint; run.resume=auto goes on from the newest one.

    \b
    Examples:
      bridge-mcore train quickstart
      bridge-mcore train quickstart training.steps=20 run.directory=runs/short
      bridge-mcore train runs/short/config.yaml run.resume=auto
    """
    from bridge_mcore.config.built_in import config_path
    from bridge_mcore.config.checks import check_config
    from bridge_mcore.config.load import load_config
    from bridge_mcore.launch.layout import resolve
    from bridge_mcore.platform.ranks import joined_world

    checked = resolve(load_config(config_path(config), overrides or []))
    check_config(checked, joined_world())

    from bridge_mcore.launch.local import run_training

    run_training(checked)
