"""`bridge-mcore data`: build training sets, look at what a model is given, count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge_mcore.cli.options import MOST_COUNT, MOST_TOKENS, user_path, user_text
from bridge_mcore.config.types import Template
from bridge_mcore.monitoring.progress import say

app = typer.Typer(
    help="Build training sets from their published sources, and see exactly what a model is given.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

As_json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("prepare")
def prepare(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a built-in recipe; without one, they are listed.")
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, changed.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace prepared data that lies at `output`.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List a recipe's keys and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card instead of the tables.")] = False,
) -> None:
    """Build RL prompts and SFT traces: read, filtered, decontaminated, paired, verified, described.

    Writes train_rl.jsonl, train_sft.jsonl, card.json (what it was made of, with hashes), report.md, lengths.png, and
    what was left out with reasons (dropped.jsonl, contamination.jsonl).

    \b
    Examples:
      bridge-mcore data prepare paper
      bridge-mcore data prepare paper files=DATA traces.path=DATA/deepmath output=data/paper
      bridge-mcore data prepare mine.yaml limit.length=4096 tokenizer=MODEL template=qwen-boxed
    """
    from bridge_mcore.data.prepare.recipe import Recipe, built_in, built_in_path, from_hub, load_recipe

    if keys:
        from bridge_mcore.config.keys import key_help

        say(key_help(model=Recipe))
        return
    if not recipe:
        for name in built_in():
            with built_in_path(name).open(encoding="utf-8") as file:
                say(f"{name:10} {file.readline().lstrip('# ').strip()}")
        return
    loaded = load_recipe(recipe, overrides or [])
    for line in from_hub(loaded) if not as_json else ():
        say(line)

    from bridge_mcore.data.notes import Notes, lines
    from bridge_mcore.data.prepare.output import REPORT, write_prepared
    from bridge_mcore.data.prepare.report import coverage_table, statistics_table
    from bridge_mcore.monitoring.progress import track

    def quiet(items, total, text):  # progress is printed where JSON goes
        return items

    card = write_prepared(loaded, force, quiet if as_json else track)
    if as_json:
        say(json.dumps(card, indent=1, ensure_ascii=False))
        return
    counts, matches = card["counts"], card["decontamination"]["matches"]
    say(f"\n{coverage_table(card)}\n\n{statistics_table(card)}\n")
    for name, found in counts["prompts"].items():
        left = ", ".join(f"{stage} {n:,}" for stage, n in found.items() if stage != "kept")
        say(f"{name}: kept {found.get('kept', 0):,} prompts" + (f"; left out: {left}" if left else ""))
    for source in card["sources"]:
        for line in lines(source["name"], Notes({"rows": source["rows"], **source.get("done", {})}), {}):
            say(line)
    if counts["traces"]:
        say("traces: " + ", ".join(f"{what} {n:,}" for what, n in sorted(counts["traces"].items())))
    if card["decontamination"]["evaluation"]:
        say(f"evaluation problems met: {len(matches):,} ({card['decontamination']['policy']})")
    say(f"→ {loaded.output}   ({counts['rl_rows']:,} prompts, {counts['sft_rows']:,} traces; {REPORT})")


@app.command("preview")
def preview(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A run's configuration or an example's name, a data file or prepared directory, a task, a recipe.",
        ),
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART] [KEY=VALUE]...",
            help="Of a configuration: data.rl, data.sft, data.evaluation or data.evaluation.N alone; keys to change.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Directory of a model, or of a tokenizer alone.  [default: of a configuration, its model]",
            callback=user_path,
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        Template | None,
        typer.Option(help="How a problem becomes a prompt, as data.template.  [default: chat]", show_default=False),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="As data.system_prompt.", show_default=False, callback=user_text)
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="As data.instruction.", show_default=False, callback=user_text)
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, metavar="N", help="As training.max_length.", show_default=False),
    ] = None,
    overlong: Annotated[
        Literal["error", "drop", "cut"] | None, typer.Option(help="As data.overlong.", show_default=False)
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A key of a data source, such as prompt_field=frage or reward=plugin:FILE.py:NAME (may be repeated).",
            show_default=False,
        ),
    ] = None,
    number: Annotated[int, typer.Option("-n", min=1, max=MOST_COUNT, metavar="N", help="Problems to show.")] = 1,
    problem: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Show this one; its first digits do.", show_default=False)
    ] = None,
    prompts_only: Annotated[bool, typer.Option("--rl", help="The prompt alone, as a rollout continues it.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="One line a token; + marks those trained on.")] = False,
    as_json: As_json = False,
) -> None:
    """Show exactly the tokens that a model sees, which of them are trained on, and what was done to the data.

    Of a configuration, the data are read and encoded as `train` would; of a file, as the options say.

    \b
    Examples:
      bridge-mcore data preview run.yaml
      bridge-mcore data preview run.yaml data.sft data.sft.trace_field=loesung --tokens
      bridge-mcore data preview data/paper --model Qwen2.5-Math-1.5B --template qwen-boxed --tokens
      bridge-mcore data preview mine.jsonl --model MODEL --source prompt_field=frage --source answer_field=ergebnis
    """
    from bridge_mcore.config.built_in import EXAMPLES, config_path, names_in
    from bridge_mcore.data import preview as show
    from bridge_mcore.errors import ConfigError

    given = {"data.template": template, "data.system_prompt": system_prompt, "data.instruction": instruction,
             "training.max_length": max_length, "data.overlong": overlong}  # fmt: skip
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    words = rest or []
    if data in names_in(EXAMPLES) and not Path(data).exists():
        data = str(config_path(Path(data)))
    if show.is_configuration(data):
        from bridge_mcore.config.load import load_config
        from bridge_mcore.training.run_preview import preview_run

        if source:
            raise ConfigError(
                f"--source is for files; of a configuration change a key itself, such as data.rl.{source[0]}"
            )
        parts = [word for word in words if "=" not in word]
        if len(parts) > 1 or (parts and prompts_only):
            raise ConfigError("name one part of the data, or none to see all")
        config = load_config(Path(data), [*(word for word in words if "=" in word), *overrides])
        part = "data.rl" if prompts_only else next(iter(parts), None)
        found = preview_run(config, part, number, problem, model)
    else:
        if words:
            raise ConfigError(f"'{words[0]}' goes with a run's configuration (a YAML file), and {data} is none")
        if model is None:
            raise ConfigError("give --model, the directory of a model or of a tokenizer alone")
        found = show.preview_file(data, model, overrides, source or [], (number, problem, prompts_only))
    if as_json:
        say(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    else:
        say(show.text_of(found, tokens))


@app.command("stats")
def stats(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl, .json or .parquet file of problems.", callback=user_path)
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Count this tokenizer's tokens.  [default: characters]",
            callback=user_path,
        ),
    ] = None,
    as_json: As_json = False,
) -> None:
    """Count a file's problems and traces, their sources and lengths, and check it against its card."""
    from bridge_mcore.data.prepare.statistics import file_statistics, statistics_text

    found = file_statistics(file, model)
    say(json.dumps(found, indent=1, ensure_ascii=False) if as_json else statistics_text(found))
