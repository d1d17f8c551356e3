"""`bridge-mcore generate`: what a checkpoint answers to one prompt."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from bridge_mcore.cli.options import HOTTEST, MOST_COUNT, MOST_TOKENS, announce, user_path
from bridge_mcore.cli.serving import Engine, ServerSettings, Urls, servers_of
from bridge_mcore.config.types import Device, Template
from bridge_mcore.errors import ConfigError


def generate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Directory of a Hugging Face checkpoint.", callback=user_path)
    ],
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The problem. Without it, all of standard input is.", show_default=False),
    ] = None,
    template: Annotated[Template, typer.Option(help="How the problem becomes a prompt.")] = "chat",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            metavar="N",
            help="Longest answer, in tokens.  [default: 256, or half the model's context]",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=HOTTEST, metavar="T", help="0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=1e-6, max=1, metavar="P", help="Sample from the smallest set of tokens with probability P."),
    ] = 1.0,
    samples: Annotated[int, typer.Option(min=1, max=MOST_COUNT, metavar="K", help="Answers to give.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**40, metavar="N", help="Seed of sampling.")] = 0,
    engine: Engine = "embedded",
    url: Urls = None,
    server: ServerSettings = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "cpu",
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="PEFT LoRA adapter to put on the model.", show_default=False, callback=user_path
        ),
    ] = None,
) -> None:
    """Let a model answer a prompt.

    \b
    Examples:
      bridge-mcore generate runs/quickstart/export --template plain --prompt "Q:a3b2c1A:"
      bridge-mcore generate runs/quickstart/export --template plain --prompt "Q:a3b2c1A:" --engine sglang
      echo "What is 12 times 7?" | bridge-mcore generate Qwen2.5-0.5B-Instruct --temperature 0.8 --samples 4
    """
    from bridge_mcore.config.checks import inference_problems
    from bridge_mcore.config.load import raise_problems
    from bridge_mcore.config.model_files import adapter_problems, default_new_tokens
    from bridge_mcore.rollout.options import GenerateOptions

    if max_new_tokens is None:
        max_new_tokens = default_new_tokens(model, 256)
    problems = inference_problems(model, "MODEL", template, max_new_tokens)
    if samples > 1 and temperature == 0:
        problems.append(f"--samples {samples} needs --temperature above 0: without, all answers are equal")
    if adapter is not None:
        problems += adapter_problems(adapter, "--adapter")
    raise_problems(problems, "this cannot be generated")
    options = GenerateOptions(
        model, _text(prompt), template, max_new_tokens, temperature, top_p, samples, seed, device, adapter, engine,
        servers_of(engine, url or [], server or []),
    )  # fmt: skip

    announce(f"loading {model}")
    from bridge_mcore.rollout.command import run_generate

    if adapter is None or engine == "embedded":
        run_generate(options)
        return
    # Servers get the merged model.
    from bridge_mcore.evaluation.options import Subject
    from bridge_mcore.evaluation.subjects import hf_directory

    with TemporaryDirectory(prefix="bridge-mcore-") as scratch, ExitStack() as stack:
        with redirect_stdout(sys.stderr):
            merged = stack.enter_context(
                hf_directory(Subject(model.name, model), adapter, None, Path(scratch) / "model")
            )
        run_generate(replace(options, model=merged, adapter=None))


def _text(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            typer.echo("Type the prompt, then Ctrl-D on a line of its own:", err=True)
        try:
            prompt = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError as error:
            raise ConfigError("standard input is not UTF-8 text; convert it, or give --prompt TEXT") from error
    if not prompt.strip():
        raise ConfigError("the prompt is empty; give --prompt TEXT, or text on standard input")
    return prompt
