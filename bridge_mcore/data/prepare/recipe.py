"""Recipes of `bridge-mcore data prepare`: which sources, how traces are paired, what is kept. See docs/data.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bridge_mcore.config.built_in import named_file, names_in
from bridge_mcore.config.load import load_section, raise_problems
from bridge_mcore.config.machine import processes_problem
from bridge_mcore.config.outputs import directory_problem
from bridge_mcore.config.rewards import RewardName
from bridge_mcore.config.schema import DataSource
from bridge_mcore.config.types import (
    Allowed,
    Fraction,
    Name,
    PositiveInt,
    Processes,
    Section,
    Seed,
    Template,
    Text,
    Tokens,
    UserPath,
    typed_path,
)
from bridge_mcore.config.yaml_source import read_yaml
from bridge_mcore.data.sources import SUFFIXES
from bridge_mcore.errors import ConfigError

_LARGEST = 1e12
BUILT_IN = Path(__file__).parent.parent / "recipes"


def _range(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is not None and not -_LARGEST <= value[0] <= value[1] <= _LARGEST:
        raise ValueError(f"must be [smallest, largest], each at most {_LARGEST:g}")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range), Allowed("[smallest, largest], both included, or null")]


class Origin(Section):
    """One source of rows. `path` wins over `dataset`, so that a copy can stand in for a recipe's hub id."""

    name: Name | None = Field(None, description="what reports and rows call it (default: made of path or dataset)")
    path: UserPath | None = Field(None, description="a .jsonl, .json or .parquet file, or a directory of them")
    dataset: Name | None = Field(None, description="a Hugging Face `datasets` id")
    dataset_config: Name | None = Field(None, description="configuration (subset) of the dataset")
    dataset_revision: Name | None = Field(None, description="commit, tag or branch; the card names the commit")
    split: Name = Field("train", description="split of the dataset")
    file: Name | None = Field(None, description="name of its copy below the recipe's `files`")
    about: Text | None = Field(None, description="where to get it, said if neither path nor dataset is given")
    format: Literal["auto", "gsm8k", "math", "fields"] = Field("auto", description="how rows are read")
    prompt_field: Name | None = Field(None, description="column of the problem; a.b is column b inside column a")
    answer_field: Name | None = Field(None, description="column of the right answer")
    trace_field: Name | None = Field(None, description="column of the trace (default: found by name)")
    trace_fields: list[Name] = Field([], description="columns of the traces, where there are several")
    golds: Literal["all", "any"] = Field(
        "all", description="a row with a list of right answers: a response must give all of them, or any one of them"
    )
    system_messages: Literal["keep", "drop"] = Field(
        "keep", description="system messages in lists of chat messages: part of the prompt, or left out"
    )
    reward: RewardName | None = Field(None, description="which reward judges its answers (default: column `reward`)")
    difficulty_field: Name | None = Field(None, description="column of the difficulty; -1, 0 and null mean unknown")
    only_field: Name | None = Field(None, description="column that `only_range` is about, such as a year")
    only_range: Range | None = Field(None, description="rows whose only_field is outside are left out and counted")
    prompt_suffix: Text | None = Field(None, description="text taken off the end of prompts, such as an instruction")
    thinking: Literal["keep", "open", "strip"] = Field(
        "keep",
        description="of traces 'thoughts</think>solution': as they are; with <think> in front; the solution only",
    )
    limit: PositiveInt | None = Field(None, description="use only the first rows")
    bad_rows: Literal["error", "skip"] = Field("error", description="unusable rows stop everything, or are counted")


TraceTier = Literal["exact", "normalised", "fuzzy"]


class Pairing(Section):
    tiers: list[TraceTier] = Field(["exact", "normalised", "fuzzy"], description="how questions may be recognised")
    threshold: Annotated[float, Field(gt=0.5, le=1)] = Field(0.7, description="least similarity of the fuzzy tier")
    keep: Literal["first", "shortest", "all"] = Field(
        "first", description="of a prompt's traces that verify: the first of the surest tier, the shortest, or all"
    )
    own: Literal["auto", "use", "ignore"] = Field(
        "auto", description="traces in the prompts' own rows; auto: used only without `traces` sources"
    )
    verify: bool = Field(True, description="keep a trace only if its last box is the prompt's answer")
    workers: Processes = Field(2, description="verifier processes")


class Decontamination(Section):
    sources: list[Origin] = Field([], description="evaluation sets")
    ngram: Tokens = Field(13, description="tokens of the normal form that count as a shared passage")
    overlap: Fraction = Field(0.5, description="part of an evaluation problem that shared passages must cover")
    policy: Literal["drop", "report"] = Field("drop", description="leave such prompts out, or only report them")


class Filters(Section):
    prompt_length: Range | None = Field(None, description="tokens of the prompt's text (characters without tokenizer)")
    trace_length: Range | None = Field(None, description="tokens of the trace's text (characters without tokenizer)")
    difficulty: Range | None = Field(None, description="of prompts and of trace rows that have one")
    unknown_difficulty: Literal["keep", "drop"] = Field("keep", description="rows whose difficulty is not known")


class Limit(Section):
    length: Tokens | None = Field(
        None, description="longest prompt with trace: tokens with template and end token, else characters"
    )
    policy: Literal["drop", "cut"] = Field(
        "drop", description="longer traces are left out, or cut there and marked `finished: false`; both are counted"
    )


class Recipe(Section):
    output: UserPath = Field(Path("data/prepared"), description="directory to write; it appears when it is complete")
    files: UserPath | None = Field(None, description="directory with copies of the sources, instead of the hub")
    prompts: list[Origin] = Field([], description="prompts with answers; a problem of several sources is the first's")
    traces: list[Origin] = Field([], description="questions with traces, streamed; any size")
    pairing: Pairing = Pairing()
    decontaminate: Decontamination = Decontamination()
    filters: Filters = Filters()
    limit: Limit = Limit()
    tokenizer: UserPath | None = Field(None, description="directory of a tokenizer; without, lengths are characters")
    template: Template = Field("plain", description="of the length limit, as data.template")
    sample: Fraction = Field(1.0, description="part of the prompts that is kept, chosen by seed and content")
    seed: Seed = Field(0, description="of `sample`")


def built_in() -> list[str]:
    """Names of the recipes that come with the package."""
    return names_in(BUILT_IN)


def built_in_path(name: str) -> Path:
    """The file of a recipe that comes with the package."""
    return BUILT_IN / f"{name}.yaml"


def recipe_path(name: str) -> Path:
    """The file that a name or path means; a directory called like a recipe is not meant. ConfigError names the nearest
    recipe."""
    return named_file(typed_path(name, "RECIPE"), BUILT_IN, "recipe")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, changed by ``key=value``; `prompts.path=…` means the only source of a list.

    Raises ConfigError for unknown keys, sources that name nothing and keys that contradict each other.
    """
    path = recipe_path(name)
    recipe = load_section(Recipe, path, list(_numbered(path, overrides)))
    raise_problems(list(_problems(recipe)), f"{path} cannot be used as it is")
    return recipe


def origins(recipe: Recipe) -> Iterator[tuple[str, Origin]]:
    """Every source with its key, prompts first."""
    lists = {"prompts": recipe.prompts, "traces": recipe.traces, "decontaminate.sources": recipe.decontaminate.sources}
    for key, sources in lists.items():
        for number, origin in enumerate(sources):
            yield f"{key}.{number}", origin


def local_path(recipe: Recipe, origin: Origin) -> Path | None:
    """The file or directory that a source is read from, None for the hub: what `files` lacks comes from there."""
    if origin.path is not None:
        return origin.path
    if recipe.files is None or origin.file is None:
        return None
    path = recipe.files / origin.file
    return path if path.exists() or origin.dataset is None else None


def from_hub(recipe: Recipe) -> list[str]:
    """What a recipe reads from the hub although `files` is given, a line each."""
    return [
        f"· {origin.name or key}: {recipe.files} holds no {origin.file}; it is read from the hub ({origin.dataset})"
        for key, origin in origins(recipe)
        if recipe.files is not None and origin.file is not None and local_path(recipe, origin) is None
    ]


def trace_columns(origin: Origin) -> list[str]:
    """The columns of traces that a source names."""
    return origin.trace_fields or ([origin.trace_field] if origin.trace_field is not None else [])


def data_source(recipe: Recipe, origin: Origin) -> DataSource:
    """The same source in the schema of a run's configuration."""
    path = local_path(recipe, origin)
    keys = ("split", "format", "prompt_field", "answer_field", "limit", "bad_rows", "name", "golds", "system_messages",
            "reward")  # fmt: skip
    shared = {key: getattr(origin, key) for key in keys}
    hub = {key: getattr(origin, key) for key in ("dataset", "dataset_config", "dataset_revision")} if not path else {}
    trace = next(iter(trace_columns(origin)), None)
    return DataSource(path=path, trace_field=trace, **shared, **hub)


def _numbered(path: Path, overrides: Sequence[str]) -> Iterator[str]:
    if not overrides:
        return
    tree = read_yaml(path).tree
    tree = tree if isinstance(tree, dict) else {}
    inner = tree.get("decontaminate")
    lists = {
        "prompts": tree.get("prompts"),
        "traces": tree.get("traces"),
        "decontaminate.sources": inner.get("sources") if isinstance(inner, dict) else None,
    }
    for override in overrides:
        found = re.match(r"(prompts|traces|decontaminate\.sources)\.(?!\d+[.=])(\w+)", override)
        if found is None:
            yield override
            continue
        sources = lists[found[1]] or []
        if len(sources) > 1:
            names = ", ".join(f"{found[1]}.{i} ({_called(source)})" for i, source in enumerate(sources))
            raise ConfigError(f"command line: {found[0]} could be of several sources; say which: {names}")
        yield f"{found[1]}.0{override[len(found[1]) :]}"


def _called(source: object) -> str:
    keys = ("name", "path", "file", "dataset")
    found = (source.get(key) for key in keys) if isinstance(source, dict) else iter(())
    return str(next((value for value in found if value), "unnamed"))


def _problems(recipe: Recipe) -> Iterator[str]:
    if not recipe.prompts:
        yield "prompts is empty: name at least one source of problems with answers"
    for key, origin in origins(recipe):
        path = local_path(recipe, origin)
        by_hand = origin.path is None and origin.dataset is None and origin.file is not None
        if by_hand and not (path is not None and path.exists()):
            # In the recipe's own words; all of them at once, and before anything is fetched.
            folder = recipe.files or "DIR"
            yield (
                f"{origin.name or key}: its file is to be fetched by hand: {origin.about or origin.file}. Put it at "
                f"{folder}/{origin.file}"
                + ("" if recipe.files else " in any directory DIR and add files=DIR")
                + "; what else is not there comes from the hub"
            )
        elif path is None and origin.dataset is None:
            yield f"{key}: give {key}.path (a file or directory) or {key}.dataset (a hub id)"
        elif path is not None and not path.exists():
            yield f"{key}: {path} does not exist (in {Path.cwd()})" + (
                f"; it is {origin.about}" if origin.about else ""
            )
        elif path is not None and path.is_file() and path.suffix not in SUFFIXES:
            yield f"{key}: {path} ends in '{path.suffix}'; choose from {', '.join(SUFFIXES)}"
        if origin.trace_field is not None and origin.trace_fields:
            yield f"{key}: trace_field and trace_fields say the same; give one of them"
        if (origin.only_field is None) != (origin.only_range is None):
            yield f"{key}: only_field and only_range go together"
    if recipe.files is not None and not recipe.files.is_dir():
        yield f"files = {recipe.files} is no directory (in {Path.cwd()})"
    names = [origin.name for origin in recipe.prompts if origin.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"prompts: two sources are called {name}; reports could not tell them apart"
    if recipe.tokenizer is not None and not (recipe.tokenizer / "tokenizer_config.json").is_file():
        yield f"tokenizer = {recipe.tokenizer} holds no tokenizer_config.json; give a model's or tokenizer's directory"
    if (problem := processes_problem("pairing.workers", recipe.pairing.workers)) is not None:
        yield problem
    if (problem := directory_problem(recipe.output)) is not None:
        yield f"output = {recipe.output}: {problem}"
