"""`bridge-mcore convert`: checkpoints in and out, and what one holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge_mcore.cli.options import MOST_PROCESSES, MOST_TOKENS, announce, user_path
from bridge_mcore.config.json_file import one_line
from bridge_mcore.config.outputs import directory_problem
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.monitoring.progress import say

if TYPE_CHECKING:
    import torch

    from bridge_mcore.checkpoint.convert import Model, Options


def _target(path: Path) -> Path:
    """Where a checkpoint goes. ConfigError, before anything is read, if nothing can be written there."""
    path = user_path(path)
    if (problem := directory_problem(path)) is not None:
        raise ConfigError(f"DST = {one_line(path, 200)}: {problem}")
    return path


def _source(path: Path) -> Path:
    """What is read. CheckpointError, before torch is imported, if it is not there."""
    path = user_path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    return path


app = typer.Typer(
    help="Convert checkpoints between Hugging Face, Megatron and PEFT, exactly and in bounded memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DtypeName = Literal["keep", "float32", "bfloat16", "float16"]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="What to read.", callback=_source)]
Target = Annotated[
    Path, typer.Argument(metavar="DST", help="Directory to write; it appears when it is complete.", callback=_target)
]
Dtype = Annotated[DtypeName, typer.Option(help="Data type to write; 'keep' leaves every tensor's as it is.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare every tensor's checksum, and the logits, before naming DST.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a checkpoint that lies at DST.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, metavar="N", help="Files written at a time.  [default: cores, at most 4]", show_default=False
    ),
]
ShardGB = Annotated[
    float, typer.Option("--shard-gb", min=0.001, max=1e6, metavar="GB", help="Largest safetensors file, 10^9 bytes.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="DIR",
        help="Directory with the model's config.json and tokenizer, where SRC does not say.",
        show_default=False,
        callback=user_path,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="DIR", help="PEFT adapter to merge.", show_default=False, callback=user_path),
]


@app.command("hf-to-mcore")
def hf_to_mcore(
    source: Source,
    target: Target,
    tp: Annotated[
        int,
        typer.Option(
            "--tp",
            min=1,
            max=MOST_PROCESSES,
            metavar="N",
            help="Tensor-parallel size that the files are laid out for.",
        ),
    ] = 1,
    pp: Annotated[
        int, typer.Option("--pp", min=1, max=MOST_PROCESSES, metavar="N", help="Pipeline-parallel size.")
    ] = 1,
    vpp: Annotated[
        int,
        typer.Option("--vpp", min=1, max=MOST_PROCESSES, metavar="N", help="Virtual pipeline stages of each process."),
    ] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, max=MOST_PROCESSES, metavar="N", help="Expert-parallel size.")] = 1,
    dtype: Dtype = "keep",
    pad_vocab_to: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, metavar="N", help="Pad the vocabulary to a multiple of N and of TP.")
    ] = 1,
    adapter: Adapter = None,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """From a Hugging Face checkpoint to a Megatron distributed checkpoint (torch_dist).

    It can be loaded in any layout, and back; --tp, --pp, --vpp, --ep say which one loads it fastest. Training does not
    need it: `bridge-mcore train` reads Hugging Face checkpoints itself.
    """
    from bridge_mcore.config.schema import Parallel

    kind = _prepare(dtype)
    from bridge_mcore.checkpoint import convert

    model = convert.open_hf(source)
    if adapter is not None:
        model = convert.with_adapter(model, adapter)
    parallel = Parallel(tensor=tp, pipeline=pp, virtual_pipeline=vpp, expert=ep)
    check = _check(verify, model, convert.open_megatron, "target")
    convert.to_megatron(model, target, parallel, kind, pad_vocab_to, _options(force, workers), check)
    _done(target, "convert mcore-to-hf")


@app.command("mcore-to-hf")
def mcore_to_hf(
    source: Source,
    target: Target,
    config: Config = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a run's checkpoint: θ with its LoRA weights merged, not θ alone.")
    ] = False,
    adapter: Adapter = None,
    dtype: Dtype = "keep",
    shard_gb: ShardGB = 5.0,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """From a Megatron distributed checkpoint, a run or one of its checkpoints to a Hugging Face checkpoint."""
    if merged and adapter is not None:
        raise ConfigError("--merged and --adapter are two adapters; choose one")
    kind = _prepare(dtype)
    from bridge_mcore.checkpoint import convert
    from bridge_mcore.checkpoint.run_adapter import newest_checkpoint
    from bridge_mcore.monitoring.progress import say

    model = convert.open_megatron(newest_checkpoint(source, say), config)
    if merged:
        model = convert.with_own_adapter(model)
    _write_hf(model, adapter, target, kind, verify, _options(force, workers, shard_gb))


@app.command("hf-to-hf")
def hf_to_hf(
    source: Source,
    target: Target,
    adapter: Adapter = None,
    dtype: Dtype = "keep",
    shard_gb: ShardGB = 5.0,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """Write a Hugging Face checkpoint anew: in another data type, in other shards, with an adapter merged."""
    kind = _prepare(dtype)
    from bridge_mcore.checkpoint import convert

    _write_hf(convert.open_hf(source), adapter, target, kind, verify, _options(force, workers, shard_gb))


@app.command("merge-adapter")
def merge_adapter(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Hugging Face checkpoint.", callback=_source)],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="PEFT LoRA adapter of it.", callback=_source)],
    target: Target,
    dtype: Dtype = "keep",
    shard_gb: ShardGB = 5.0,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """Merge a PEFT adapter into its base model: the same as `hf-to-hf BASE DST --adapter ADAPTER`."""
    hf_to_hf(base, target, adapter, dtype, shard_gb, verify, force, workers)


@app.command("extract-adapter")
def extract_adapter(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A run, its checkpoint, or a tuned Hugging Face model.", callback=_source),
    ],
    target: Target,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of a tuned model: the one it came from; the adapter is their difference.",
            show_default=False,
            callback=user_path,
        ),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="R", help="Rank of that adapter.")] = 16,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1e9,
            metavar="A",
            help="LoRA's alpha, if SRC is a checkpoint outside its run.",
            show_default=False,
        ),
    ] = None,
    with_base: Annotated[
        Path | None,
        typer.Option(
            "--with-base",
            metavar="DIR",
            help="Of a run: write its θ there too, as a Hugging Face checkpoint; the adapter names it.",
            show_default=False,
            callback=user_path,
        ),
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Data type of that θ; the adapter is fp32.")] = "keep",
    config: Config = None,
    force: Force = False,
) -> None:
    """Get a PEFT adapter: the LoRA weights of a run's checkpoint, or the nearest to the difference of two models.

    An adapter of a run belongs to that run's θ, not to the model that it started from: --with-base writes θ beside it,
    `mcore-to-hf` alone.
    """
    if base is not None and with_base is not None:
        raise ConfigError("--base is for a tuned model, --with-base for a run; choose one")
    kind = _prepare(dtype)
    from bridge_mcore.checkpoint.extract import from_models, from_run

    options = _options(force, None)
    if base is None:
        from_run(source, target, config, alpha, options, with_base, kind)
    else:
        from_models(base, source, target, rank, options)
    say(f"→ {target}")


@app.command("inspect")
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint of any kind, an adapter or a run.", callback=_source)
    ],
    config: Config = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every tensor and compare it with the checksums that a conversion left."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is: family, layout, parameters, data type, and what it can be converted to."""
    _prepare("keep")
    from bridge_mcore.checkpoint.inspect import inspect as look

    report = look(path, config)
    if verify:
        from bridge_mcore.checkpoint.staging import quiet
        from bridge_mcore.checkpoint.verify import verify_checksums

        # Progress is printed where JSON goes.
        report.facts["checksums"] = verify_checksums(Path(report.path), config, quiet if as_json else _show())
    if as_json:
        say(json.dumps(report.__dict__, indent=1))
    else:
        say(f"{report.path}: {report.kind}")
        for name, value in report.facts.items():
            shown = f"{value:,}" if isinstance(value, int) and name == "parameters" else value
            say(f"  {name:<15} {shown}")
        for number, command in enumerate(report.commands):
            say(f"  {'converts with' if number == 0 else '':<15} {command}")
    if report.problem is not None:
        raise CheckpointError(report.problem)


def _prepare(dtype: DtypeName) -> torch.dtype | None:
    """Make Megatron importable on a CPU; the torch dtype of that name."""
    announce("loading torch and Megatron")
    import torch

    from bridge_mcore.platform.device import setup_device

    setup_device("cpu")
    return None if dtype == "keep" else getattr(torch, dtype)


def _show() -> Any:
    from bridge_mcore.monitoring.progress import track

    return track


def _options(force: bool, workers: int | None, shard_gb: float = 5.0) -> Options:
    from bridge_mcore.checkpoint.convert import Options, default_workers
    from bridge_mcore.monitoring.progress import say

    return Options(workers or default_workers(), force, int(shard_gb * 1e9), _show(), say)


def _write_hf(
    model: Model, adapter: Path | None, target: Path, dtype: torch.dtype | None, verify: bool, options: Options
) -> None:
    """Write a model, with an adapter merged if there is one, as a Hugging Face checkpoint."""
    from bridge_mcore.checkpoint import convert

    if adapter is not None:
        model = convert.with_adapter(model, adapter)
    check = _check(verify, model, convert.open_hf, "source")
    convert.to_hf(model, target, dtype, options, check)
    _done(target, "generate")


def _check(
    wanted: bool, model: Model, open_it: Callable[[Path], Model], megatron_side: Literal["source", "target"]
) -> Callable[[Path], None]:
    """What looks at a finished directory before it gets its name. `megatron_side`: which
    of the two Megatron runs for the logits; transformers runs the other."""

    def check(directory: Path) -> None:
        if not wanted:
            return
        from bridge_mcore.checkpoint.verify import as_written, compare_logits, compare_tensors, write_checksums
        from bridge_mcore.monitoring.progress import say

        found = open_it(directory)
        sums = compare_tensors(model, found, _show())
        write_checksums(directory, sums)
        say(f"· {len(sums)} tensors have the checksums they should have")
        source = as_written(model, found)
        hf, megatron = (found, source) if megatron_side == "source" else (source, found)
        result = compare_logits(hf, megatron, 0, _show())
        say(
            f"· logits of transformers and Megatron on {result.tokens} random tokens differ by at most "
            f"{result.difference:.2g} (the largest is {result.largest:.3g})"
        )

    return check


def _done(target: Path, command: str) -> None:
    say(f"→ {target}   (next: bridge-mcore {command} {target} …)")
