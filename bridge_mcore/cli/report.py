"""`bridge-mcore report`: what a run, or each of several, has reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge_mcore.cli.options import user_path
from bridge_mcore.errors import ConfigError

if TYPE_CHECKING:
    from bridge_mcore.evaluation.results import Comparison


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...", help="Directory that `train` wrote; several are compared.", callback=user_path
        ),
    ],
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the figure goes (.png, .pdf or .svg). Default: figure.png in the run directory, or "
            "comparison.png beside the directories of several runs.",
            show_default=False,
            callback=user_path,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the table, as Markdown.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print only the numbers, as JSON: an object for one run, a list for several.")
    ] = False,
) -> None:
    """Show what a run has reached, and draw its figure.

    Prints a table (accuracy before and after, reward, response length, gain, time), where the time went and the main
    curves, and draws reward, response length and accuracy over steps. A run that is still going, or that was stopped,
    is reported as far as it got. The accuracy of several runs is compared with the first's, problem by problem, where
    their last evaluations have problems in common.

    \b
    Examples:
      bridge-mcore report runs/quickstart
      bridge-mcore report runs/bridge runs/sft --markdown
    """
    if markdown and as_json:
        raise ConfigError("--markdown and --json are two forms of the same output; choose one")
    # Late, so that `bridge-mcore --help` stays quick.
    import json
    from dataclasses import asdict

    from bridge_mcore.config.outputs import file_problem
    from bridge_mcore.monitoring.labels import run_labels
    from bridge_mcore.monitoring.progress import say
    from bridge_mcore.monitoring.report import draw_runs, markdown_table, read_runs, run_text, runs_table
    from bridge_mcore.monitoring.runs import facts

    path = figure or default_figure(run_dirs)
    runs = read_runs(run_dirs)
    if (problem := file_problem(path)) is not None:
        raise ConfigError(f"{path}: no figure can be written there, {problem}; --figure PATH names one")
    compared: list[Comparison] = []
    differences: list[str] = []
    if len(runs) > 1:
        from bridge_mcore.evaluation.paired_runs import compare_runs, difference_text

        compared = compare_runs(runs)
        differences = ["", *map(difference_text, compared)]
    draw_runs(runs, path)
    if as_json:
        numbers: list[dict[str, Any]] = [facts(run) | {"figure": str(path)} for run in runs]
        for fact, comparison in zip(numbers[1:], compared, strict=True):
            fact["difference"] = asdict(comparison)
        say(json.dumps(numbers if len(runs) > 1 else numbers[0], indent=2, ensure_ascii=False))
    elif markdown:
        say(markdown_table(runs, differences))
        typer.echo(f"figure: {path}", err=True)  # standard output holds the table alone, ready to be pasted
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(runs_table(runs, differences))
        if len(runs) == 1:
            console.print()
            console.print(run_text(runs[0]))
        for label, run in zip(run_labels(runs), runs, strict=True):
            for remark in run.remarks:
                say(f"warning: {label + ': ' if len(runs) > 1 else ''}{remark}")
        console.print(f"figure: {path}", markup=False, soft_wrap=True)


def default_figure(run_dirs: list[Path]) -> Path:
    """figure.png in the run's own directory; for several runs, comparison.png in the directory that holds them all."""
    if len(run_dirs) == 1:
        return run_dirs[0] / "figure.png"
    parents = {run_dir.resolve().parent for run_dir in run_dirs}
    shared = Path(os.path.commonpath(parents))
    if shared.is_relative_to(Path.cwd()):
        shared = shared.relative_to(Path.cwd())
    return shared / "comparison.png"
