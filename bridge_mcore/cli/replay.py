"""`bridge-mcore replay`: one update from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge_mcore.cli.options import MOST_COUNT, MOST_PROCESSES, user_path
from bridge_mcore.config.types import Device, DType


def replay(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="The case: model/, adapter/, batch.jsonl, settings.yaml (and auxiliary/).",
            callback=user_path,
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Gets the updated model/, auxiliary/, adapter/, and metrics.json.", callback=user_path
        ),
    ],
    dtype: Annotated[DType, typer.Option(help="Type of the live weights; results are always float32.")] = "float32",
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_COUNT,
            metavar="N",
            help="Sequences of one micro-batch; the result does not depend on it.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where it runs.")] = "cpu",
    tp: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Tensor-parallel processes.")] = 1,
    pp: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Pipeline-parallel processes.")] = 1,
    vpp: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_PROCESSES,
            metavar="N",
            help="Chunks of layers on each pipeline process; needs --pp above 1.",
        ),
    ] = 1,
    dp: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Data-parallel replicas.")] = 1,
    sp: Annotated[bool, typer.Option("--sp/--no-sp", help="Sequence parallelism; needs --tp above 1.")] = False,
    cp: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Context-parallel processes.")] = 1,
    ep: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_PROCESSES,
            metavar="N",
            help="Expert-parallel processes, among those of --tp, --cp and --dp.",
        ),
    ] = 1,
    dist_opt: Annotated[
        bool, typer.Option("--dist-opt/--no-dist-opt", help="Shard optimizer state over --dp and --cp.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Perform exactly one BRIDGE update from a saved case.

    To reproduce a bad step, or to check the update against an implementation of your own. Runs save cases with
    debug.save_case_every=N, and one when a loss is NaN; they lie in RUN_DIR/cases. Optimizer state is fresh; all
    gradients are taken at the case's values.

    \b
    settings.yaml of a case, for example:
      lam: 0.5            # weight of J_RL; 1 - lam is the weight of J_SFT
      alpha: 1e-3         # learning rate of the base weights and of their auxiliary copy
      beta: 1e-3          # learning rate of the adapter
      optimizer: {name: adamw, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.0}   # or {name: sgd}
      clip_range: 0.2
      kl_coefficient: 0.001
      gradient_clip: null

    \b
    batch.jsonl of a case, a line a sample:
      {"kind": "sft", "tokens": [5, 9, 2], "prompt_length": 1}
      {"kind": "rl", "tokens": [5, 8, 2], "prompt_length": 1, "advantage": 0.7, "behaviour_logprobs": [-0.3, -1.2]}

    \b
    Example:
      bridge-mcore train quickstart training.steps=10 debug.save_case_every=10
      bridge-mcore replay runs/quickstart/cases/step_00000010 /tmp/update --micro-batch-size 4
    """
    from bridge_mcore.config.replay import ReplayOptions, check_replay
    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.platform.ranks import joined_world

    parallel = Parallel(
        tensor=tp,
        pipeline=pp,
        virtual_pipeline=vpp,
        context=cp,
        expert=ep,
        data=dp,
        sequence=sp,
        distributed_optimizer=dist_opt,
    )
    options = ReplayOptions(source, target, dtype, device, micro_batch_size, parallel, overwrite)
    check_replay(options, joined_world())

    from bridge_mcore.launch.local import run_replay

    run_replay(options)
