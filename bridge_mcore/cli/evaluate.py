"""`bridge-mcore eval`: accuracy of models on suites of benchmarks; `bridge-mcore scores`: what was measured before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bridge_mcore.cli.options import HOTTEST, MOST_COUNT, MOST_PROCESSES, MOST_ROWS, MOST_TOKENS, user_path, user_text
from bridge_mcore.cli.serving import Engine, ServerSettings, Urls, servers_of
from bridge_mcore.config.types import Device, DType, Template
from bridge_mcore.errors import ConfigError

if TYPE_CHECKING:
    from bridge_mcore.evaluation.suites import Suite

#: What tells a run, a checkpoint of one, and a directory of Megatron-LM's.
_OF_A_CHECKPOINT = ("config.yaml", ".metadata", "latest_checkpointed_iteration.txt")


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="HF checkpoints, runs (their newest checkpoint) or checkpoints of runs, each as DIR or LABEL=DIR. "
            "The others are compared with the first.",
        ),
    ],
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_FILE", help="Benchmarks: paper, or a YAML file.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_TASK",
            help="In place of a suite: a .jsonl, .json or .parquet file of problems with answers, or a generated task.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the suite's files are.", show_default=False, callback=user_path),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Benchmarks of the suite.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where records and tables go. The same command again goes on there.  [default: evaluations/SUITE]",
            show_default=False,
            callback=user_path,
        ),
    ] = None,
    template: Annotated[Template, typer.Option(help="How a problem becomes a prompt.")] = "chat",
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the template puts first.", show_default=False, callback=user_text),
    ] = None,
    instruction: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Sentence that follows each question, as data.instruction; '' for none.",
            callback=user_text,
        ),
    ] = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TOKENS,
            metavar="N",
            help="Longest answer, in tokens.  [default: the suite's; of --data 1024, or half the model's context]",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_COUNT, metavar="K", help="Answers per problem: avg@K, pass@k, maj@K.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=HOTTEST, metavar="T", help="0 takes the likeliest token.", show_default=False),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            metavar="P",
            help="Sample from the smallest set of tokens with probability P.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**30, metavar="N", help="Seed of sampling.")] = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_ROWS, metavar="N", help="Only the first N problems of each benchmark.", show_default=False
        ),
    ] = None,
    engine: Engine = "embedded",
    url: Urls = None,
    server: ServerSettings = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "cpu",
    dtype: Annotated[
        DType | None, typer.Option(help="Of the weights.  [default: float32 on cpu, else bfloat16]", show_default=False)
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="PEFT adapter to merge into the models.", show_default=False, callback=user_path
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Processes that judge answers.")
    ] = 2,
    show_failures: Annotated[
        int,
        typer.Option(
            "--show-failures", min=0, max=MOST_ROWS, metavar="N", help="Print N wrong answers of each benchmark."
        ),
    ] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what --output holds.")] = False,
) -> None:
    """Measure models on benchmarks with known answers.

    Answers are judged as in training: the last \\boxed{} against the right answer. What was answered stays: a command
    that was stopped goes on, and more --samples or a larger --limit only add to it.

    \b
    Examples:
      bridge-mcore eval Qwen2.5-3B --suite paper --data-dir benchmarks --engine sglang
      bridge-mcore eval base=Qwen2.5-3B bridge=runs/bridge --suite paper --samples 16 --temperature 0.6
      bridge-mcore eval runs/quickstart/export --data running_sums --template plain --max-new-tokens 40
      bridge-mcore scores evaluations/paper --show-failures 3
    """
    from bridge_mcore.config.checks import inference_problems
    from bridge_mcore.config.json_file import one_line
    from bridge_mcore.config.load import raise_problems
    from bridge_mcore.config.machine import processes_problem
    from bridge_mcore.config.model_files import adapter_problems
    from bridge_mcore.config.outputs import directory_problem
    from bridge_mcore.evaluation.subjects import read_subjects

    subjects = read_subjects(models)
    chosen, name = _suite(suite, data, only)
    problems: list[str] = []
    if data_dir is not None and not data_dir.is_dir():
        problems.append(f"--data-dir {data_dir} is no directory")
    if adapter is not None:
        problems += adapter_problems(adapter, "--adapter")
    for subject in subjects:
        if (subject.path / "config.json").is_file():
            problems += inference_problems(subject.path, f"MODEL {subject.path}", template, max_new_tokens or 1)
        elif not any((subject.path / file).is_file() for file in _OF_A_CHECKPOINT):
            problems.append(
                f"MODEL {subject.path} is no model: it has neither a config.json (HF checkpoint), nor a config.yaml "
                "(run), nor a .metadata (checkpoint of a run)"
            )
    output = output or Path("evaluations") / name
    if (problem := directory_problem(output)) is not None:
        problems.append(f"--output {one_line(output, 200)}: {problem}")
    if (problem := processes_problem("--workers", workers)) is not None:
        problems.append(problem)
    if url and len(subjects) > 1:
        problems.append(f"--url: the same servers would answer for all {len(subjects)} models; evaluate one at a time")
    raise_problems(problems, "this evaluation cannot run")
    servers = servers_of(engine, url or [], server or [])

    from bridge_mcore.evaluation.options import EvaluationOptions, Serving
    from bridge_mcore.evaluation.suites import Answers, suite_problems

    answers = Answers(max_new_tokens=max_new_tokens, samples=samples, temperature=temperature, top_p=top_p)
    raise_problems(list(suite_problems(chosen, answers, data_dir)), "this evaluation cannot run")
    if suite is None and max_new_tokens is None:
        answers.max_new_tokens = _half_context(subjects[0].path)
    options = EvaluationOptions(
        subjects, chosen, name, output, answers, data_dir, template, system_prompt, instruction,
        Serving(engine, device, dtype, servers), adapter, limit, seed, workers, restart, show_failures,
    )  # fmt: skip

    from bridge_mcore.evaluation.command import run_evaluation

    run_evaluation(options)


def scores(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="What `bridge-mcore eval` wrote, or a run directory.", callback=user_path
        ),
    ],
    form: Annotated[
        Literal["text", "markdown", "json"], typer.Option("--format", help="How the tables are printed.")
    ] = "text",
    show_failures: Annotated[
        int,
        typer.Option(
            "--show-failures", min=0, max=MOST_ROWS, metavar="N", help="Print N wrong answers of each benchmark."
        ),
    ] = 0,
    workers: Annotated[
        int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Processes that compare answers.")
    ] = 2,
) -> None:
    """Show evaluations that were made before, and compare them with the first.

    Of a run directory it shows the newest evaluation of each set.

    \b
    Examples:
      bridge-mcore scores runs/bridge runs/cold_start --show-failures 3
      bridge-mcore scores evaluations/paper/base evaluations/paper/bridge --format markdown
    """
    for directory in directories:
        if not directory.is_dir():
            raise ConfigError(f"{directory} is no directory; give one that `bridge-mcore eval` wrote, or a run's")

    from bridge_mcore.config.machine import require_processes
    from bridge_mcore.evaluation.command import run_scores

    require_processes("--workers", workers)
    run_scores(directories, form, show_failures, workers)


def _suite(suite: str | None, data: str | None, only: str | None) -> tuple[Suite, str]:
    """(the benchmarks that are meant, what to call them)."""
    from bridge_mcore.config.data_checks import file_or_task
    from bridge_mcore.config.load import raise_problems
    from bridge_mcore.config.schema import DataSource
    from bridge_mcore.data.problems import source_name
    from bridge_mcore.evaluation.suites import Benchmark, Suite, load_suite

    if (suite is None) == (data is None):
        raise ConfigError("say what to measure: --suite NAME_OR_FILE (such as paper), or --data FILE_OR_TASK")
    if suite is not None:
        wanted = [part.strip() for part in (only or "").split(",") if part.strip()]
        if only is not None and not wanted:
            raise ConfigError(f"--only '{only}' names no benchmark; leave it out for all of them")
        return load_suite(suite, wanted), Path(suite).stem
    if only is not None:
        raise ConfigError("--only chooses benchmarks of a --suite")
    assert data is not None
    path, task, problems = file_or_task(data, "--data")
    raise_problems(problems, "this evaluation cannot run")
    source = DataSource(path=path) if path is not None else DataSource(task=task, size=256, split="test")  # type: ignore[arg-type]
    name = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in source_name(source)).lstrip(".") or "data"
    return Suite(benchmarks=[Benchmark(name=name, source=source)]), name


def _half_context(model: Path) -> int:
    """Default length of answers to --data."""
    from bridge_mcore.config.model_files import default_new_tokens

    return default_new_tokens(model, 1024)
