"""A run's data as tokens: what training is given, and what `bridge-mcore data preview CONFIG` shows."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

from bridge_mcore.config.data_checks import evaluates, plugins_of
from bridge_mcore.config.schema import Config
from bridge_mcore.data.pairs import EncodedPrompt, encode_prompts, encode_traces
from bridge_mcore.data.templates import EncodedTrace
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.mixed import Rewards, settings_of
from bridge_mcore.training.data_record import DataRecord


def read_prompts(config: Config, tokenizer: Any, context: int, record: DataRecord) -> list[EncodedPrompt]:
    """Prompts of RL that leave room for a response within `context` tokens."""
    data = config.data
    if data.rl is None:
        raise ConfigError(f"data.rl is needed by method '{config.method.name}'")
    found = record.load("data.rl", data.rl, *data.rl_more)
    limit = context - config.rollout.max_new_tokens
    return encode_prompts(found, tokenizer, data, limit, record.counts("data.rl", "prompts"))


def trace_key(config: Config) -> str:
    """Where the traces of SFT stand: without a source of their own, in that of RL."""
    return "data.rl" if config.data.sft is None else "data.sft"


def read_traces(config: Config, tokenizer: Any, context: int, record: DataRecord) -> list[EncodedTrace]:
    """Traces of SFT with their prompts, at most `context` tokens long."""
    data, key = config.data, trace_key(config)
    source, more = (data.rl, data.rl_more) if data.sft is None else (data.sft, data.sft_more)
    if source is None:
        raise ConfigError(f"data.sft is needed by method '{config.method.name}'")
    found, counts = record.load(key, source, *more), record.counts(key, "traces")
    if data.sft is None:  # a problem of RL needs none
        without = [problem for problem in found if problem.trace is None]
        if len(without) == len(found):
            raise DataError(
                f"data.rl has no trace in any of its {len(found)} rows; name the column that holds them "
                "(data.rl.trace_field), or set data.sft"
            )
        if without:
            counts.add("without_trace", str(without[0]), len(without))
        found = [problem for problem in found if problem.trace is not None]
    return encode_traces(found, tokenizer, data, context, counts)


def evaluated_tokens(config: Config) -> list[int]:
    """Longest answers, of each evaluation set."""
    default = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    return [held.max_new_tokens or default for held in config.data.evaluation] if evaluates(config) else []


def read_held_out(config: Config, number: int, tokenizer: Any, context: int, record: DataRecord) -> list[EncodedPrompt]:
    """Prompts of an evaluation set that leave room for its answers within `context` tokens."""
    key = f"data.evaluation.{number}"
    found = record.load(key, config.data.evaluation[number])
    mend = f"lower evaluation.max_new_tokens or {key}.max_new_tokens"
    limit = context - evaluated_tokens(config)[number]
    return encode_prompts(found, tokenizer, config.data, limit, record.counts(key, "prompts"), mend)


def check_contradictions(config: Config, record: DataRecord) -> None:
    """Note what contradicts in the data that was read, by the run's own rewards, without their noise.

    Raises DataError if `data.contradictions` is error.
    """
    settings = replace(settings_of(config.reward, plugins_of(config)), noise=0.0)
    with closing(Rewards(settings)) as rewards:
        record.check_contradictions(rewards.judge)
