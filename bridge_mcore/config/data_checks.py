"""Checks of the data that a configuration names: what the method needs, whether it is there, whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bridge_mcore.config.model_files import has_chat_template
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.rewards import plugins_among
from bridge_mcore.config.schema import TASK_SIZES, TASKS, Config, DataSource, is_task
from bridge_mcore.config.types import typed_path

RL_METHODS = ("bridge", "rl_zero", "cold_start")
SFT_METHODS = ("bridge", "sft", "cold_start")
#: The generated task whose words a generated model's tokenizer knows.
_SPOKEN = "running_sums"
DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def uses_rl(config: Config) -> bool:
    return config.method.name in RL_METHODS


def uses_sft(config: Config) -> bool:
    return config.method.name in SFT_METHODS


def evaluates(config: Config) -> bool:
    wanted = config.evaluation.before or config.evaluation.after or config.evaluation.every > 0
    return bool(config.data.evaluation) and (wanted or any(held.every for held in config.data.evaluation))


def used_sources(config: Config) -> dict[str, DataSource]:
    """The data sources that the method reads, by key; SFT without a source of its own reads the RL one's traces."""
    data = config.data
    used = {}
    if data.rl is not None and (uses_rl(config) or (uses_sft(config) and data.sft is None)):
        used["data.rl"] = data.rl
        used |= {f"data.rl_more.{i}": source for i, source in enumerate(data.rl_more)}
    if data.sft is not None and uses_sft(config):
        used["data.sft"] = data.sft
        used |= {f"data.sft_more.{i}": source for i, source in enumerate(data.sft_more)}
    if evaluates(config):
        used |= {f"data.evaluation.{i}": source for i, source in enumerate(data.evaluation)}
    return used


def plugins_of(config: Config) -> frozenset[str]:
    """The reward plugins that a configuration names, in any of its sources or for all: the only ones a run loads."""
    data = config.data
    sources = (data.rl, *data.rl_more, data.sft, *data.sft_more, *data.evaluation)
    return plugins_among([config.reward.verifier, *(source.reward for source in sources if source is not None)])


def data_problems(config: Config) -> Iterator[str]:
    """Sources that the method needs and lacks, and what is wrong with those that it reads."""
    data, name = config.data, config.method.name
    for key in ("rl", "sft"):
        if getattr(data, f"{key}_more") and getattr(data, key) is None:
            yield f"data.{key}_more is set, but data.{key} is not: the first source belongs there"
    if uses_rl(config) and data.rl is None:
        yield f"method.name = {name} needs prompts with verifiable answers: set data.rl (path, dataset or task)"
    if uses_sft(config) and data.sft is None:
        source = data.rl
        if source is None:
            yield f"method.name = {name} needs expert traces: set data.sft (path, dataset or task)"
        elif source.format == "fields" and source.task is None and source.trace_field is None:
            yield (
                f"method.name = {name} needs expert traces, and data.rl has none (format fields without trace_field): "
                "set data.sft, or data.rl.trace_field"
            )
    if config.evaluation.every > 0 and not data.evaluation:
        every = config.evaluation.every
        yield f"evaluation.every = {every}, but data.evaluation is empty: add a source there, or set it to 0"
    for key, source in used_sources(config).items():
        yield from _source(key, source)
    for i, held in enumerate(data.evaluation if evaluates(config) else ()):
        if held.answers > 1 and held.temperature == 0:
            yield (
                f"data.evaluation.{i}.answers = {held.answers} needs data.evaluation.{i}.temperature above 0: without, "
                "all answers to a problem are equal"
            )
    sft = data.sft
    if uses_sft(config) and sft is not None and sft.format == "fields" and not sft.task and not sft.trace_field:
        yield "data.sft.format = fields without data.sft.trace_field: name the column that holds the traces"


def _source(key: str, source: DataSource) -> Iterator[str]:
    given = [name for name in ("path", "dataset", "task") if getattr(source, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are set" if given else "none is"
        yield f"{key} needs exactly one of path (a file), dataset (a Hugging Face id) and task (generated); {found}"
        return
    if source.path is not None:
        yield from file_problems(source.path, f"{key}.path")
    elif source.task is not None and source.split not in ("train", "test"):
        yield f"{key}.split = {source.split}: a generated task has the splits train and test"
    elif source.task is not None:
        yield from _difficulty(f"{key}.difficulty", source.task, source.difficulty)
    if problem := unread_fields(source):
        yield f"{key}: {problem}"
    for name in ("dataset_config", "dataset_revision"):
        if source.dataset is None and getattr(source, name) is not None:
            yield f"{key}.{name} is set, but {key}.dataset is not; remove it"
    if source.task is None and source.format == "fields":
        missing = [name for name in ("prompt_field", "answer_field") if getattr(source, name) is None]
        if missing:
            yield f"{key}.format = fields needs {' and '.join(f'{key}.{name}' for name in missing)}"


def unread_fields(source: DataSource) -> str | None:
    """Which columns a source names that its format would not read, and what to do; None if there are none."""
    named = [name for name in ("prompt_field", "answer_field") if getattr(source, name) is not None]
    if source.format != "code" or not named:
        return None
    return f"format = code reads the columns that such sets have, and not {' and '.join(named)}; remove that"


def _difficulty(key: str, task: str, sizes: tuple[int, int]) -> Iterator[str]:
    smallest, largest = TASK_SIZES.get(task, sizes)
    if not smallest <= sizes[0] <= sizes[1] <= largest:
        yield f"{key} = {list(sizes)}: {task} has problems of {smallest} to {largest}, smallest size first"


def file_problems(path: Path, key: str) -> Iterator[str]:
    """What keeps a data file from being read."""
    if path.suffix not in DATA_SUFFIXES:
        yield f"{key} = {path}: only {', '.join(DATA_SUFFIXES)} files can be read; give one of those"
    elif not path.is_file():
        what = "is a directory; name one file in it" if path.is_dir() else f"does not exist (in {Path.cwd()})"
        yield f"{key} = {path} {what}"
    elif path.stat().st_size == 0:
        yield f"{key} = {path} is empty; at least one problem is needed"


def file_or_task(value: str, key: str) -> tuple[Path | None, str | None, list[str]]:
    """(file, None) or (None, generated task) that a command-line option means, and what is wrong with it."""
    if is_task(value):
        return None, value, []
    path = typed_path(value, key)
    if path.exists() or path.suffix in DATA_SUFFIXES:
        return path, None, list(file_problems(path, key))
    problem = f"{key} = {value} is no file, and no generated task{nearest(value, TASKS)} (there is {', '.join(TASKS)})"
    return None, None, [problem]


def template_problems(config: Config) -> Iterator[str]:
    """Templates that the model's tokenizer cannot serve."""
    template, used = config.data.template, used_sources(config)
    if not used:
        return
    if config.data.system_prompt is not None and template in ("plain", "abel"):
        yield f"data.system_prompt is set, but data.template = {template} has no place for it; use chat or qwen-boxed"
    if config.model.generated is not None:
        for key, source in used.items():
            if source.task is None:
                yield (
                    f"model.generated knows only the words of a generated task, and {key} is none: set {key}.task, "
                    "or train a model from model.path"
                )
            elif source.task != _SPOKEN:
                yield f"model.generated knows only the words of {_SPOKEN}, and {key}.task = {source.task}: set that"
        warm, task = config.model.generated.warm_start, config.data.rl.task if config.data.rl is not None else None
        if config.data.rl is None:
            yield f"model.generated is made for the task of data.rl: set data.rl.task={_SPOKEN}, or take model.path"
        elif task == _SPOKEN:
            yield from _difficulty("model.generated.warm_start.difficulty", task, warm.difficulty)
        if template != "plain":
            yield f"data.template = {template} does not suit model.generated, which reads bare problems: set plain"
    elif template == "chat" and config.model.path is not None and not has_chat_template(config.model.path):
        yield (
            f"data.template = chat, but the tokenizer in {config.model.path} has no chat template; set data.template "
            "to plain, abel or qwen-boxed, or take an instruction-tuned model"
        )
