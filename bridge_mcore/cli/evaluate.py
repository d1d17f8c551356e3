"""`bridge-mcore eval`: accuracy of a checkpoint on a set of problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge_mcore.config.types import Device, Template


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a Hugging Face checkpoint.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE_OR_TASK",
            help="Problems with answers: a .jsonl, .json or .parquet file, or a generated task such as running_sums.",
        ),
    ],
    template: Annotated[Template, typer.Option(help="How a problem becomes a prompt.")] = "chat",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest answer, in tokens.  [default: 1024, or half the model's context]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only the first N problems.", show_default=False)
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, metavar="K", help="Answers per problem; with more than one, avg@K and pass@K.")
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0, metavar="T", help="0 takes the likeliest token.")] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write every answer with its verdict here.", show_default=False),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, max=2**40, metavar="N", help="Seed of sampling.")] = 0,
) -> None:
    """Measure a model's accuracy on problems with known answers.

    Answers are judged as in training: the last \\boxed{} against the right answer.

    \b
    Examples:
      bridge-mcore eval runs/quickstart/export --data running_sums --template plain --max-new-tokens 32
      bridge-mcore eval Qwen2.5-0.5B --data gsm8k_test.jsonl --samples 8 --temperature 1 --output answers.jsonl
    """
    from bridge_mcore.config.checks import inference_problems
    from bridge_mcore.config.data_checks import file_or_task
    from bridge_mcore.config.load import raise_problems
    from bridge_mcore.config.model_files import default_new_tokens
    from bridge_mcore.evaluation.options import EvaluationOptions

    model = model.expanduser()
    path, task, problems = file_or_task(data, "--data")
    if max_new_tokens is None:
        max_new_tokens = default_new_tokens(model, 1024)
    problems += inference_problems(model, "MODEL", template, max_new_tokens)
    if samples > 1 and temperature == 0:
        problems.append(f"--samples {samples} needs --temperature above 0: without, all answers to a problem are equal")
    if output is not None:
        output = output.expanduser()
        if output.is_dir() or not output.absolute().parent.is_dir():
            problems.append(f"--output {output}: give a file in a directory that exists")
    raise_problems(problems, "this evaluation cannot run")
    options = EvaluationOptions(
        model, path, task, template, max_new_tokens, limit, samples, temperature, output, device, seed
    )

    from bridge_mcore.evaluation.command import run_evaluation

    run_evaluation(options)
