"""`bridge-mcore selftest`: whether this machine computes what it should, before a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge_mcore.cli.options import MOST_PROCESSES, MOST_SECONDS, user_path
from bridge_mcore.errors import ConfigError


def selftest(
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_PROCESSES,
            metavar="N",
            help="Run one process on each of N GPUs of this machine, in bf16 and fp32. Default: CPU.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_PROCESSES, metavar="N", help="Processes on CPU; 4 add products of dimensions. [default: 2]"
        ),
    ] = None,
    model_shape: Annotated[
        Literal["tiny", "1.5b", "3b", "7b"],
        typer.Option(help="Random weights of this size (Qwen2.5's shapes), for times and memory of a real one."),
    ] = "tiny",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE[,TYPE]",
            help="float32 and/or bfloat16. [default: float32; on GPUs bfloat16,float32]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Only these: environment, collectives, layouts, slots, generation, checkpoint, or rows as the table "
            "calls them.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the results there too.", show_default=False, callback=user_path),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            min=1,
            max=MOST_SECONDS,
            metavar="SECONDS",
            help="A row that takes longer counts as hanging: its ranks say where they are, and end.",
        ),
    ] = 300.0,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where temporary files go; with several machines one that all of them see. Default: the system's.",
            show_default=False,
            callback=user_path,
        ),
    ] = None,
    scratch: Annotated[Path | None, typer.Option(hidden=True, callback=user_path)] = None,
) -> None:
    """Check that every layout computes the same update here, before any real run.

    Needs no download and no data. A small model with random weights takes a few BRIDGE steps in one process, and then
    in every layout that the processes allow; losses, gradient norms and every updated tensor are compared. Also
    checked: the backend's collectives, swapping θ̂ in and out, greedy answers, and checkpoints loaded in another layout.
    Exit code 1 if a row fails.

    \b
    Examples:
      bridge-mcore selftest                        # two processes on CPU, about a minute
      bridge-mcore selftest --gpus 8 --model-shape 1.5b
      torchrun --nnodes 2 --nproc-per-node 8 … -m bridge_mcore selftest --gpus 8 --directory /shared
    """
    from bridge_mcore.platform.ranks import joined_world
    from bridge_mcore.selftest.options import SelftestOptions
    from bridge_mcore.selftest.validate import check_selftest

    if gpus is not None and processes is not None:
        raise ConfigError("--gpus and --processes: give one; --gpus N starts N processes")
    default = "float32" if gpus is None else "bfloat16,float32"
    options = SelftestOptions(
        device="cpu" if gpus is None else "cuda",
        processes=gpus or processes or joined_world() or 2,
        model_shape=model_shape,
        dtypes=_words(dtype or default),
        only=_words(only or ""),
        json=json,
        limit=limit,
        directory=directory,
        scratch=scratch,
    )
    check_selftest(options)

    from bridge_mcore.launch.local import run_selftest

    run_selftest(options)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
