"""`bridge-mcore convert`: checkpoints in and out, and what one holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

    from bridge_mcore.checkpoint.convert import Model, Options

app = typer.Typer(
    help="Convert checkpoints between Hugging Face, Megatron and PEFT, exactly and in bounded memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DtypeName = Literal["keep", "float32", "bfloat16", "float16"]
Source = Annotated[Path, typer.Argument(metavar="SRC", help="What to read.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Directory to write; it appears when it is complete.")]
Dtype = Annotated[DtypeName, typer.Option(help="Data type to write; 'keep' leaves every tensor's as it is.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare every tensor's checksum, and the logits, before naming DST.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a checkpoint that lies at DST.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Files written at a time.  [default: cores, at most 4]", show_default=False),
]
ShardGB = Annotated[
    float, typer.Option("--shard-gb", min=0.001, metavar="GB", help="Largest safetensors file, 10^9 bytes.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="DIR",
        help="Directory with the model's config.json and tokenizer, where SRC does not say.",
        show_default=False,
    ),
]


@app.command("hf-to-mcore")
def hf_to_mcore(
    source: Source,
    target: Target,
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size that the files are laid out for.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, help="Pipeline-parallel size.")] = 1,
    vpp: Annotated[int, typer.Option("--vpp", min=1, help="Virtual pipeline stages of each process.")] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, help="Expert-parallel size.")] = 1,
    dtype: Dtype = "keep",
    pad_vocab_to: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pad the vocabulary to a multiple of N and of TP.")
    ] = 1,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="PEFT adapter to merge on the way.", show_default=False)
    ] = None,
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

    model = convert.open_hf(source.expanduser())
    if adapter is not None:
        model = convert.with_adapter(model, adapter.expanduser())
    parallel = Parallel(tensor=tp, pipeline=pp, virtual_pipeline=vpp, expert=ep)
    check = _check(verify, model, convert.open_megatron, lambda found: (model, found))
    convert.to_megatron(model, target.expanduser(), parallel, kind, pad_vocab_to, _options(force, workers), check)
    _done(target, "convert mcore-to-hf")


@app.command("mcore-to-hf")
def mcore_to_hf(
    source: Source,
    target: Target,
    config: Config = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a run's checkpoint: θ with its LoRA weights merged, not θ alone.")
    ] = False,
    dtype: Dtype = "keep",
    shard_gb: ShardGB = 5.0,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """From a Megatron distributed checkpoint, or one of a run, to a Hugging Face checkpoint."""
    kind = _prepare(dtype)
    from bridge_mcore.checkpoint import convert

    model = convert.open_megatron(source.expanduser(), config and config.expanduser())
    if merged:
        model = convert.with_own_adapter(model)
    check = _check(verify, model, convert.open_hf, lambda found: (found, model))
    convert.to_hf(model, target.expanduser(), kind, _options(force, workers, shard_gb), check)
    _done(target, "generate")


@app.command("merge-adapter")
def merge_adapter(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Hugging Face checkpoint.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="PEFT LoRA adapter of it.")],
    target: Target,
    dtype: Dtype = "keep",
    shard_gb: ShardGB = 5.0,
    verify: Verify = False,
    force: Force = False,
    workers: Workers = None,
) -> None:
    """Merge a PEFT adapter into its base model: a Hugging Face checkpoint without adapter."""
    kind = _prepare(dtype)
    from bridge_mcore.checkpoint import convert

    model = convert.with_adapter(convert.open_hf(base.expanduser()), adapter.expanduser())
    check = _check(verify, model, convert.open_hf, lambda found: (found, model))
    convert.to_hf(model, target.expanduser(), kind, _options(force, workers, shard_gb), check)
    _done(target, "generate")


@app.command("extract-adapter")
def extract_adapter(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A run, its checkpoint, or a tuned Hugging Face model.")
    ],
    target: Target,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of a tuned model: the one it came from; the adapter is their difference.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="R", help="Rank of that adapter.")] = 16,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="A", help="LoRA's alpha, if SRC is a checkpoint outside its run.", show_default=False),
    ] = None,
    config: Config = None,
    force: Force = False,
) -> None:
    """Get a PEFT adapter: the LoRA weights of a run's checkpoint, or the nearest to the difference of two models.

    An adapter of a run belongs to that run's θ, not to the model that it started from; `mcore-to-hf` writes θ.
    """
    _prepare("keep")
    from bridge_mcore.checkpoint.extract import from_models, from_run

    options = _options(force, None)
    if base is None:
        from_run(source.expanduser(), target.expanduser(), config and config.expanduser(), alpha, options)
    else:
        from_models(base.expanduser(), source.expanduser(), target.expanduser(), rank, options)
    typer.echo(f"→ {target}")


@app.command("inspect")
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of any kind, an adapter or a run.")],
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

    report = look(path.expanduser(), config and config.expanduser())
    if verify:
        from bridge_mcore.checkpoint.verify import verify_checksums

        report.facts["checksums"] = verify_checksums(path.expanduser(), config and config.expanduser(), _show())
    if as_json:
        typer.echo(json.dumps(report.__dict__, indent=1))
    else:
        typer.echo(f"{report.path}: {report.kind}")
        for name, value in report.facts.items():
            shown = f"{value:,}" if isinstance(value, int) and name == "parameters" else value
            typer.echo(f"  {name:<15} {shown}")
        for number, command in enumerate(report.commands):
            typer.echo(f"  {'converts with' if number == 0 else '':<15} {command}")
    if report.problem is not None:
        from bridge_mcore.errors import CheckpointError

        raise CheckpointError(report.problem)


def _prepare(dtype: DtypeName) -> torch.dtype | None:
    """Make Megatron importable on a CPU; the torch dtype of that name."""
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


def _check(
    wanted: bool, model: Model, open_it: Callable[[Path], Model], sides: Callable[[Model], tuple[Model, Model]]
) -> Callable[[Path], None]:
    """What looks at a finished directory before it gets its name. `sides`: (HF side, Megatron side) of the logits."""

    def check(directory: Path) -> None:
        if not wanted:
            return
        from bridge_mcore.checkpoint.verify import compare_logits, compare_tensors, write_checksums
        from bridge_mcore.monitoring.progress import say

        found = open_it(directory)
        sums = compare_tensors(model, found, _show())
        write_checksums(directory, sums)
        say(f"· {len(sums)} tensors have the checksums they should have")
        hf, megatron = sides(found)
        result = compare_logits(hf, megatron, 0, _show())
        say(
            f"· logits of transformers and Megatron on {result.tokens} random tokens differ by at most "
            f"{result.difference:.2g} (the largest is {result.largest:.3g})"
        )

    return check


def _done(target: Path, command: str) -> None:
    typer.echo(f"→ {target}   (next: bridge-mcore {command} {target} …)")
