"""What `bridge-mcore replay` reads besides weights: options, settings.yaml and batch.jsonl, checked without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import Field

from bridge_mcore.config.json_file import one_line, parse_json
from bridge_mcore.config.load import load_section, raise_problems
from bridge_mcore.config.machine import layout_problems
from bridge_mcore.config.model_files import adapter_problems, directory_sizes, model_problems
from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.outputs import directory_problem
from bridge_mcore.config.parallel import parallel_problems, world_problems, world_size
from bridge_mcore.config.schema import Parallel
from bridge_mcore.config.types import (
    Betas,
    ClipRange,
    Epsilon,
    Fraction,
    LearningRate,
    NonNegativeFloat,
    PositiveFloat,
    Section,
)
from bridge_mcore.errors import ConfigError, DataError

#: Lines of batch.jsonl that one error message lists.
_MOST_PROBLEMS = 20
_RL_FIELDS = ("advantage", "behaviour_logprobs", "reference_logprobs", "temperature")
_FIELDS = ("kind", "tokens", "prompt_length", *_RL_FIELDS)

CASE_HOLDS = "a case holds model/, adapter/, batch.jsonl, settings.yaml and, if θ̂ differs from θ, auxiliary/"


@dataclass(frozen=True)
class ReplayOptions:
    """One replay: the case, where the result goes, and how it is computed.

    Attributes:
        source: directory of the case.
        target: directory that gets model/, auxiliary/, adapter/ and metrics.json.
        dtype: of the live weights, float32 or bfloat16.
        device: cpu or cuda.
        micro_batch_size: sequences of one micro-batch; None lets the trainer choose.
        parallel: the layout.
        overwrite: replace what `target` holds.
    """

    source: Path
    target: Path
    dtype: str = "float32"
    device: str = "cpu"
    micro_batch_size: int | None = None
    parallel: Parallel = field(default_factory=Parallel)
    overwrite: bool = False


class ReplayOptimizer(Section):
    """The rule that turns gradients into updates; its state is fresh."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="adamw has decoupled weight decay")
    betas: Betas = Field((0.9, 0.95), description="AdamW's decay rates of the two moments")
    eps: Epsilon = Field(1e-8, description="AdamW's ε")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay of matrices")
    weight_decay_1d: bool = Field(False, description="also decay norms and biases")


class ReplaySettings(Section):
    """settings.yaml of a case."""

    lam: Fraction = Field(description="λ, penalty weight of Eq. (7)")
    alpha: LearningRate = Field(description="learning rate of θ and θ̂")
    beta: LearningRate = Field(description="learning rate of w")
    optimizer: ReplayOptimizer = ReplayOptimizer()
    clip_range: ClipRange = Field(0.2, description="ε, or (ε_low, ε_high)")
    kl_coefficient: NonNegativeFloat = Field(0.0, description="weight of the KL to the reference")
    kl_estimator: Literal["k3"] = "k3"
    reference: Literal["model", "recorded"] = Field(
        "model", description="model: model/ without the adapter; recorded: each sample's reference_logprobs"
    )
    loss_aggregation: Literal["token_mean"] = "token_mean"
    gradient_clip: PositiveFloat | None = Field(None, description="largest norm of each group's gradient")


@dataclass(frozen=True)
class ReplaySample:
    """A line of batch.jsonl; `advantage` and `behaviour_logprobs` are None for SFT.

    `temperature` (of sampling; log-probabilities are taken at it) and `reference_logprobs` are what a run's own cases
    add, so that its step is repeated as it was.
    """

    kind: Literal["sft", "rl"]
    tokens: list[int]
    prompt_length: int
    advantage: float | None = None
    behaviour_logprobs: list[float] | None = None
    reference_logprobs: list[float] | None = None
    temperature: float = 1.0


def read_settings(path: Path) -> ReplaySettings:
    """Reads settings.yaml; raises ConfigError with every problem."""
    return load_section(ReplaySettings, path)


def read_batch(path: Path, vocabulary: int | None = None, context: int | None = None) -> list[ReplaySample]:
    """Reads batch.jsonl. Raises DataError naming line and field of what is wrong.

    With `vocabulary` and `context` (from the model's config.json) token ids and lengths are checked against them.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; give JSON lines") from None
    samples: list[ReplaySample] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            problems.append(f"line {number}: this is not JSON ({error})")
            continue
        found = list(_row_problems(row, vocabulary, context))
        problems += [f"line {number}: {problem}" for problem in found]
        if not found:
            # null fields are absent ones
            samples.append(
                ReplaySample(**{name: value for name, value in row.items() if name in _FIELDS and value is not None})
            )
    if not samples and not problems:
        raise DataError(f"{path} is empty; give at least one sample, a JSON object a line")
    if problems:
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"… and {len(problems) - _MOST_PROBLEMS} more"]
        one = f"{path}, {problems[0]}"
        raise DataError(one if len(problems) == 1 else "\n  - ".join([f"{path} cannot be used:", *problems]))
    return samples


def _row_problems(row: Any, vocabulary: int | None, context: int | None) -> Iterator[str]:
    if not isinstance(row, dict):
        yield 'expected an object such as {"kind": "sft", "tokens": [5, 7, 9], "prompt_length": 1}'
        return
    for name in row:
        hint = nearest(name, _FIELDS) if name not in _FIELDS else ""
        if hint:  # a misspelt field; others, such as an id, are the writer's own
            yield f"unknown field '{name}'{hint}"
    kind = row.get("kind")
    if kind not in ("sft", "rl"):
        yield f'kind = {json.dumps(kind)}: must be "sft" or "rl"'
    tokens, prompt = row.get("tokens"), row.get("prompt_length")
    if not isinstance(tokens, list) or len(tokens) < 2 or not all(_is_int(token) and token >= 0 for token in tokens):
        yield "tokens: must be a list of at least 2 token ids, whole numbers >= 0"
        return
    if vocabulary is not None and max(tokens) >= vocabulary:
        yield f"tokens: {max(tokens)} is outside the model's vocabulary of {vocabulary}"
    if context is not None and len(tokens) > context:
        yield f"tokens: {len(tokens)} are more than the model's context of {context}"
    if not _is_int(prompt) or not 1 <= prompt < len(tokens):
        most = f"{len(tokens) - 1} (tokens less one)"
        yield f"prompt_length = {json.dumps(prompt)}: must be a whole number from 1 to {most}"
        return
    if kind == "rl":
        yield from _rl_problems(row, len(tokens) - prompt)
    elif kind == "sft":
        for name in _RL_FIELDS:
            if row.get(name) is not None:
                yield f"{name}: means nothing in a sample of kind sft; remove it, or set kind to rl"


def _rl_problems(row: dict[str, Any], response: int) -> Iterator[str]:
    if not _is_finite(row.get("advantage")):
        yield f"advantage = {json.dumps(row.get('advantage'))}: must be a finite number"
    temperature = row.get("temperature")
    if temperature is not None and not (_is_finite(temperature) and temperature > 0):
        yield f"temperature = {json.dumps(temperature)}: must be a number above 0"
    for name in ("behaviour_logprobs", "reference_logprobs"):
        logprobs = row.get(name)
        if name == "reference_logprobs" and logprobs is None:
            continue
        if not isinstance(logprobs, list) or not all(_is_finite(value) for value in logprobs):
            yield f"{name}: must be a list of finite numbers, one per response token"
        elif len(logprobs) != response:
            yield f"{name}: {len(logprobs)} values for {response} response tokens (tokens less prompt_length)"


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_replay(options: ReplayOptions, world: int | None = None) -> None:
    """Raises ConfigError or DataError, with all that is wrong, before anything heavy is imported.

    `world` is the number of processes where it is given (torchrun); without it the layout's own is started.
    """
    source, target = options.source, options.target
    if not source.is_dir():
        raise ConfigError(f"IN = {source} is not a directory; {CASE_HOLDS}")
    missing = [name for name in ("model/", "adapter/", "batch.jsonl", "settings.yaml") if not (source / name).exists()]
    if missing:
        raise ConfigError(f"IN = {source} lacks {', '.join(missing)}; {CASE_HOLDS}")
    sizes = directory_sizes(source / "model")
    problems = [
        *model_problems(source / "model", "model", tokenizer=False),
        *adapter_problems(source / "adapter", "adapter"),
        *parallel_problems(options.parallel, sizes),
        *world_problems(options.parallel, world or world_size(options.parallel)),
        *layout_problems(world_size(options.parallel)),
        *_target_problems(source, target, options.overwrite),
    ]
    if (source / "auxiliary").exists():
        problems += model_problems(source / "auxiliary", "auxiliary", tokenizer=False)
    settings = None
    try:
        settings = read_settings(source / "settings.yaml")
    except ConfigError as error:
        problems.append(str(error))
    raise_problems(problems, f"{source} cannot be replayed")
    samples = read_batch(source / "batch.jsonl", sizes.vocabulary, sizes.context)
    assert settings is not None
    for kind, share, needed in (("sft", "1 - lam", settings.lam < 1), ("rl", "lam", settings.lam > 0)):
        if needed and not any(sample.kind == kind for sample in samples):
            raise DataError(
                f"{source / 'batch.jsonl'}: no {kind} samples, but settings.yaml gives J_{kind.upper()} the weight "
                f"{share} > 0 (lam = {settings.lam:g}): add some, or change lam"
            )


def _target_problems(source: Path, target: Path, overwrite: bool) -> Iterator[str]:
    out = target.resolve()
    inputs = [(source / name).resolve() for name in ("model", "auxiliary", "adapter")]
    if source.resolve().is_relative_to(out) or any(out.is_relative_to(held) for held in inputs):
        yield f"OUT = {target} would replace what IN = {source} holds; choose another OUT"
    elif (problem := directory_problem(target)) is not None:
        yield f"OUT = {one_line(target, 200)}: {problem}"
    elif target.exists() and any(target.iterdir()) and not overwrite:
        yield f"OUT = {target} is not empty; choose another directory, or say --overwrite"
