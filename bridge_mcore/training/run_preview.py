"""`bridge-mcore data preview CONFIG`: a run's own data, as its training will be given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_mcore.config.data_checks import data_problems, evaluates, template_problems, uses_rl, uses_sft
from bridge_mcore.config.load import raise_problems
from bridge_mcore.config.model_files import directory_sizes
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.schema import Config
from bridge_mcore.data.preview import Preview, View, tokenizer_of, view_of
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.stops import generation_stops
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.golds import check_golds
from bridge_mcore.training.data_record import DataRecord
from bridge_mcore.training.run_data import (
    check_contradictions,
    evaluated_tokens,
    read_held_out,
    read_prompts,
    read_traces,
)


def parts_of(config: Config) -> list[str]:
    """What of its data a run reads, as keys: prompts of RL, traces of SFT, evaluation sets."""
    parts = (["data.rl"] if uses_rl(config) else []) + (["data.sft"] if uses_sft(config) else [])
    return parts + [f"data.evaluation.{i}" for i in range(len(config.data.evaluation) if evaluates(config) else 0)]


def preview_run(config: Config, part: str | None, number: int, wanted: str | None, model: Path | None) -> Preview:
    """The first sequences of each part of a run's data (or of one), and what was done to all of them.

    Args:
        part: of `parts_of`; `data.evaluation` stands for all evaluation sets.
        wanted: show the problems of this id instead; its first digits do.
        model: directory of the tokenizer, in place of the run's model.

    Raises BridgeError where training would.
    """
    raise_problems([*data_problems(config), *template_problems(config)], "this run's data cannot be read")
    parts = parts_of(config)
    chosen = [p for p in parts if part is None or p == part or p.startswith(f"{part}.")]
    if not chosen:
        said = f"{part} is nothing that this run reads{nearest(part or '', parts)}"
        raise ConfigError(f"{said}; it reads {', '.join(parts) or 'no data'} (method.name = {config.method.name})")
    tokenizer, context = _tokenizer(config, model)
    record = DataRecord(config)
    data = config.data
    template = PromptTemplate(tokenizer, data.template, data.system_prompt, data.instruction)
    views: list[View] = []
    judged: list[Problem] = []
    within = min(config.training.max_length or context, context)
    for key in chosen:
        sequences = _sequences(config, key, tokenizer, within if key in ("data.rl", "data.sft") else context, record)
        judged += [problem for problem, _, _ in sequences if key != "data.sft"]
        if wanted is not None:
            sequences = [found for found in sequences if found[0].id.startswith(wanted)]
        for problem, tokens, start in sequences[:number]:
            cut = start < len(tokens) and tokens[-1] != template.end_token
            views.append(view_of(problem, tokens, start, tokenizer, cut, key))
    if not views:
        raise DataError(f"there is no problem with an id that begins with {wanted} in {', '.join(chosen)}")
    check_contradictions(config, record)
    directory = model or config.model.path
    stops = {*template.stop_tokens, *config.rollout.stop_token_ids}
    stops |= set(generation_stops(directory)) if directory is not None else set()
    named = [(token, str(tokenizer.decode([token], skip_special_tokens=False))) for token in sorted(stops)]
    return Preview(views, data.template, named, template.stop_texts, (*record.lines(), *check_golds(judged)))


def _sequences(
    config: Config, key: str, tokenizer: Any, context: int, record: DataRecord
) -> list[tuple[Problem, list[int], int]]:
    """(problem, tokens, those of the prompt) of a part, by what training itself calls."""
    if key == "data.sft":
        traces = read_traces(config, tokenizer, context, record)
        return [(t.problem, t.tokens, t.prompt_length) for t in traces if t.problem is not None]
    if key == "data.rl":
        prompts = read_prompts(config, tokenizer, context, record)
    else:
        prompts = read_held_out(config, int(key.rpartition(".")[2]), tokenizer, context, record)
    return [(p.problem, p.tokens, len(p.tokens)) for p in prompts]


def _tokenizer(config: Config, model: Path | None) -> tuple[Any, int]:
    """(tokenizer, context in tokens) of a run's model; of one that is yet to be generated, those that it will have."""
    directory = model or config.model.path
    if directory is not None:
        most = max([config.rollout.max_new_tokens, *evaluated_tokens(config)])
        return tokenizer_of(directory), directory_sizes(directory).context or 10**9 + most
    if config.model.generated is None or config.data.rl is None or config.data.rl.task is None:
        raise ConfigError("the configuration names no model: set model.path, or give --model")
    return task_tokenizer(config.data.rl.task), config.model.generated.max_positions
