"""What a model is given, token by token: the same template, limit and stop rules that training uses, made visible."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import read_json_object
from bridge_mcore.config.load import load_values
from bridge_mcore.config.model_files import directory_sizes
from bridge_mcore.config.rewards import plugins_among
from bridge_mcore.config.schema import Config, Data, DataSource, is_task
from bridge_mcore.config.types import typed_path
from bridge_mcore.config.yaml_source import read_yaml
from bridge_mcore.data.card import CARD
from bridge_mcore.data.contradictions import note_contradictions
from bridge_mcore.data.notes import Notes, lines
from bridge_mcore.data.pairs import encode_prompts, encode_traces
from bridge_mcore.data.problem import DEFAULT_REWARD, Problem
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.stops import load_tokenizer, stop_token_ids
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import CheckpointError, ConfigError, DataError

_DATA_FILES = ("train_sft.jsonl", "train_rl.jsonl")
#: Problems of a bare file that are counted, where fewer are shown.
MOST_COUNTED = 1000


@dataclass(frozen=True)
class View:
    """One sequence.

    Attributes:
        tokens: ids, in order.
        pieces: the text of each token; a character of several tokens shows as U+FFFD in each.
        trained: whether the loss is on the token; of a prompt alone, none is.
        prompt, response: the texts before and after the place where training begins.
        cut: the trace goes on beyond the limit; no end token follows.
        left_out: why training would drop it, or None.
        title: what it is of, where several sources are shown.
    """

    problem: Problem
    tokens: list[int]
    pieces: list[str]
    trained: list[bool]
    prompt: str
    response: str
    cut: bool
    left_out: str | None
    title: str = ""

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        problem = {"id": self.problem.id, "source": self.problem.source, "answer": self.problem.answer}
        counts = {"tokens": len(self.tokens), "trained_tokens": sum(self.trained)}
        rows = [
            {"id": token, "text": piece, "trained": trained}
            for token, piece, trained in zip(self.tokens, self.pieces, self.trained, strict=True)
        ]
        texts = {"prompt": self.prompt, "response": self.response, "cut": self.cut, "left_out": self.left_out}
        title = {"of": self.title} if self.title else {}
        return title | problem | counts | texts | {"reward": self.problem.reward, "sequence": rows}


@dataclass(frozen=True)
class Preview:
    """Views of some problems with one tokenizer and template, what ends an answer, and what was done to the data."""

    views: list[View]
    template: str
    stops: list[tuple[int, str]]
    stop_texts: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        stops = [{"id": token, "text": text} for token, text in self.stops]
        rest = {"stop_tokens": stops, "stop_texts": list(self.stop_texts), "remarks": list(self.remarks)}
        return {"template": self.template, **rest, "problems": [view.as_json() for view in self.views]}


def find_problems(
    data: str,
    number: int,
    wanted: str | None,
    source: DataSource = DataSource(bad_rows="skip"),
    notes: Notes | None = None,
) -> list[Problem]:
    """The first `number` problems of a file, prepared directory, generated task or recipe, or those of an id.

    Args:
        source: how the rows of a file are read.
        notes: gets what was done to them.
    Raises DataError or ConfigError if `data` is none of these, or has no such id.
    """
    problems = _problems(data, None if wanted else number, source, notes)
    if wanted is not None:
        problems = [problem for problem in problems if problem.id.startswith(wanted)]
        if not problems:
            raise DataError(f"{data} has no problem with an id that begins with {wanted}")
    return problems[:number]


def _problems(data: str, limit: int | None, source: DataSource, notes: Notes | None) -> list[Problem]:
    path = typed_path(data, "DATA")
    if path.is_dir() and (path / CARD).is_file():
        path = next((path / name for name in _DATA_FILES if (path / name).is_file()), path)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        plugins = plugins_among([source.reward])
        return load_problems(source.model_copy(update={"path": path, "limit": limit}), plugins=plugins, notes=notes)
    if is_task(data):
        return load_problems(DataSource(task=data, size=limit or 64))
    from bridge_mcore.data.prepare.read import Item, Opened, problems_of
    from bridge_mcore.data.prepare.recipe import data_source, load_recipe

    recipe = load_recipe(data)
    origin = recipe.prompts[0]
    opened = Opened("prompts.0", origin, data_source(recipe, origin), origin.name or data, {})
    items = (item for item in problems_of(opened, streaming=True) if isinstance(item, Item))
    found = islice(items, limit)
    return [
        Problem(i.id, i.prompt, i.answer, next(iter(i.traces), None), i.source, i.reward, system=i.system)
        for i in found
    ]


def is_configuration(data: str) -> bool:
    """Whether `data` is the YAML file of a run (a recipe has other keys). Raises ConfigError for broken YAML."""
    path = typed_path(data, "DATA")
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    tree = read_yaml(path).tree
    return isinstance(tree, dict) and any(key in Config.model_fields for key in tree)


def preview_file(
    data: str, model: Path, settings: Sequence[str], keys: Sequence[str], chosen: tuple[int, str | None, bool]
) -> Preview:
    """A preview of what is no run's: a file, prepared directory, generated task or recipe.

    Args:
        settings: KEY=VALUE as in a run's configuration, of `data` and training.max_length.
        keys: KEY=VALUE of a data source.
        chosen: how many problems are shown, or the id of those; and whether without their traces.
    """
    path = typed_path(data, "DATA")
    if keys and (path.suffix in (".yaml", ".yml") or not path.exists()):
        raise ConfigError(f"--source says how a data file is read, and {data} is none; a recipe has such keys itself")
    config = load_values(Config, settings)
    source = load_values(DataSource, ["bad_rows=skip", *keys])
    for key, instead in (("path", "the file is the first argument"), ("limit", "-n says how many are shown")):
        if getattr(source, key) is not None:
            raise ConfigError(f"--source {key}=… has no place in a preview: {instead}; leave it out")
    number, wanted, prompts_only = chosen
    notes = Notes()
    problems = find_problems(data, max(number, MOST_COUNTED), wanted, source, notes)
    return preview(problems, model, config.data, config.training.max_length, prompts_only, number, notes)


def preview(
    problems: Sequence[Problem],
    model: Path,
    data: Data,
    limit: int | None,
    prompts_only: bool = False,
    shown: int | None = None,
    rows: Notes | None = None,
) -> Preview:
    """The sequences that training would make of problems, at most `limit` tokens long by `data.overlong`.

    Args:
        limit: None for the model's context.
        shown: so many are shown; all are counted in the remarks.
        rows: what was done to them when they were read.

    Raises CheckpointError for a directory without a usable tokenizer, ConfigError for a template that does not suit
    it, DataError where training would stop.
    """
    tokenizer = tokenizer_of(model)
    template = PromptTemplate(tokenizer, data.template, data.system_prompt, data.instruction)
    limit = limit or directory_sizes(model).context or sys.maxsize  # as in training; a tokenizer alone has no context
    shown = len(problems) if shown is None else shown
    made: dict[str, Notes] = {}
    views = [_view(problem, tokenizer, data, limit, prompts_only, made) for problem in problems[:shown]]
    rest = data.model_copy(update={"overlong": "drop"})
    for what, encode in (("prompts", encode_prompts), ("traces", encode_traces)):
        others = [p for p in problems[shown:] if what == _encoded_as(p, prompts_only)]
        with suppress(DataError):  # all of them too long, or no text for this template: said of those that are shown
            encode(others, tokenizer, rest, limit, made.setdefault(what, Notes()))  # type: ignore[operator]
    rows = Notes() if rows is None else rows
    _contradictions(problems, rows, prompts_only)
    made = {what: notes for what, notes in made.items() if notes}
    stops = [(token, _text(tokenizer, [token])) for token in stop_token_ids(model, template)]
    from bridge_mcore.rewards.golds import text_golds

    said = (*lines("data", rows, made), *text_golds(problems))
    return Preview(views, data.template, stops, template.stop_texts, said)


def _encoded_as(problem: Problem, prompts_only: bool) -> str:
    return "prompts" if prompts_only or problem.trace is None else "traces"


def _contradictions(problems: Sequence[Problem], rows: Notes, prompts_only: bool) -> None:
    from bridge_mcore.rewards.mixed import Rewards

    found = [(rows, problem) for problem in problems]
    with closing(Rewards()) as rewards:
        note_contradictions(found, [] if prompts_only else found, rewards.judge)


def _view(problem: Problem, tokenizer: Any, data: Data, limit: int, prompts_only: bool, made: dict[str, Notes]) -> View:
    what, counts = _encoded_as(problem, prompts_only), Notes()
    try:
        if what == "prompts":
            tokens = encode_prompts([problem], tokenizer, data, limit, counts)[0].tokens
            start = len(tokens)
        else:
            encoded = encode_traces([problem], tokenizer, data, limit, counts)[0]
            tokens, start = encoded.tokens, encoded.prompt_length
    except DataError as error:
        if not counts["dropped"]:
            raise
        return View(problem, [], [], [], "", "", False, str(error))
    finally:
        made.setdefault(what, Notes()).include(counts)
    return view_of(problem, tokens, start, tokenizer, bool(counts["cut"]))


def view_of(problem: Problem, tokens: list[int], start: int, tokenizer: Any, cut: bool, title: str = "") -> View:
    """A sequence of which `start` tokens are the prompt's."""
    pieces = [_text(tokenizer, [token]) for token in tokens]
    trained = [position >= start for position in range(len(tokens))]
    texts = _text(tokenizer, tokens[:start]), _text(tokenizer, tokens[start:])
    return View(problem, tokens, pieces, trained, *texts, cut or not problem.finished, None, title)


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokenizer_of(model: Path) -> Any:
    """The tokenizer of a model's directory, or of one that holds a tokenizer alone. Raises CheckpointError."""
    if not model.is_dir():
        raise CheckpointError(f"{model} is no directory; give a model's directory, or a tokenizer's")
    size = None  # of a tokenizer alone
    if (model / "config.json").exists():
        config = read_json_object(model / "config.json")
        text = config.get("text_config")
        size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    return load_tokenizer(model, size if isinstance(size, int) else None)


def text_of(found: Preview, with_tokens: bool = False) -> str:
    """A preview for people: what the model sees, a line, what it learns; with `with_tokens`, one line a token."""
    parts = []
    for view in found.views:
        reward = "" if view.problem.reward == DEFAULT_REWARD else f"\nreward  {view.problem.reward}"
        title = f"{view.title}: " if view.title else ""
        parts.append(f"{title}{view.problem}\nanswer  {view.problem.answer}{reward}")
        if view.left_out is not None:
            parts.append(f"left out: {view.left_out}")
            continue
        learned = sum(view.trained)
        parts.append(_ruled(f"the model sees: {len(view.tokens) - learned} tokens, not trained on", view.prompt))
        if learned:
            end = "cut at the limit: no end token" if view.cut else f"the last is {view.pieces[-1]!r}"
            parts.append(_ruled(f"and learns: {learned} tokens ({end})", view.response))
        else:
            parts.append("── and the policy goes on from here")
        if with_tokens:
            width = max(len(str(token)) for token in view.tokens)
            rows = zip(view.tokens, view.pieces, view.trained, strict=True)
            parts.append("\n".join(f"{'+' if t else ' '} {token:>{width}}  {piece!r}" for token, piece, t in rows))
        else:
            parts.append(f"ids  {_ids(view.tokens)}")
        parts.append("")
    stops = ", ".join(f"{token} {text!r}" for token, text in found.stops)
    parts.append(f"template {found.template}; an answer ends at {stops}")
    if found.stop_texts:
        texts = ", ".join(map(repr, found.stop_texts))
        parts.append(f"a base model may go on all the same: what comes after {texts} is neither judged nor trained on")
    return "\n".join([*parts, *found.remarks])


def _ruled(title: str, text: str) -> str:
    return f"── {title} {'─' * max(0, 90 - len(title))}\n" + text.replace("\n", "↵\n")


def _ids(tokens: list[int], ends: int = 24) -> str:
    if len(tokens) <= 2 * ends:
        return " ".join(map(str, tokens))
    left = len(tokens) - 2 * ends
    return f"{' '.join(map(str, tokens[:ends]))} … {left} more … {' '.join(map(str, tokens[-ends:]))}"
