"""Sections about the engine that generates: how it is asked, its servers, and how they get the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bridge_mcore.config.types import (
    Allowed,
    Count,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Processes,
    Ratio,
    SampledTemperature,
    Seconds,
    Section,
    Text,
    TokenId,
    Tokens,
    UserPath,
)


class Rollout(Section):
    engine: Literal["embedded", "sglang", "vllm"] = Field("embedded", description="what generates the responses")
    schedule: Literal["synchronous", "one_step_off", "partial"] = Field(
        "synchronous",
        description="synchronous: generate, then train; one_step_off: the next batch is generated while this one "
        "trains; partial: answers that are not finished go on with the next weights",
    )
    over_sampling: Ratio = Field(
        0.5, description="partial: prompts in flight beyond a step's own, as a share of training.prompts_per_step"
    )
    samples_per_prompt: Count = Field(5, description="group size")
    max_new_tokens: Tokens = Field(3072, description="longest response, tokens")
    temperature: SampledTemperature = Field(1.0, description="sampling temperature")
    top_p: Probability = Field(1.0, description="sample from the smallest set of tokens with this probability")
    top_k: TokenId = Field(0, description="sample from this many most likely tokens; 0: from all")
    batch_size: Count = Field(256, description="sequences that the embedded engine decodes together")
    stop_token_ids: list[TokenId] = Field([], description="besides the model's own end tokens")
    max_logprob_gap: PositiveFloat | None = Field(
        0.1, description="stop if engine and trainer differ by more than this in mean |log-probability|"
    )
    correction: Literal["none", "truncated", "masked"] = Field(
        "none",
        description="importance sampling between engine and trainer: truncated caps a token's ratio at "
        "correction_range's end, masked leaves out tokens whose ratio is outside correction_range",
    )
    correction_range: tuple[Ratio, Ratio] = Field(
        (0.5, 2.0), description="smallest and largest ratio π_trainer / π_engine of one token"
    )

    @field_validator("correction_range")
    @classmethod
    def _holds_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < 1 < value[1]:
            raise ValueError("must be [low, high] with low < 1 < high: equal policies have ratio 1")
        return value


class Servers(Section):
    """SGLang or vLLM servers, of rollout.engine sglang or vllm."""

    mode: Literal["managed", "external"] = Field(
        "managed", description="managed: started, watched and ended by the run; external: those at `urls`"
    )
    urls: list[Text] = Field([], description="external: http://host:port of each server")
    count: Processes = Field(1, description="managed: servers on each host")
    tensor: Processes = Field(1, description="tensor-parallel size of each server")
    auxiliary_urls: list[Text] = Field([], description="external: servers of θ̂, for auxiliary.rollouts own")
    auxiliary_count: Annotated[int, Field(ge=0, le=100_000)] = Field(
        0, description="managed: servers of θ̂'s own on each host; 0: θ and θ̂ take turns on the same ones"
    )
    router: Annotated[Text | None, Allowed("null | managed | a URL")] = Field(
        None, description="SGLang's router in front of the servers; null: each trainer balances its requests itself"
    )
    python: UserPath | None = Field(
        None, description="managed: interpreter of the engine's virtual environment (default: .venv-ENGINE/bin/python)"
    )
    port: int = Field(0, ge=0, le=65000, description="managed: first port; 0 takes free ones")
    devices: list[TokenId] | None = Field(
        None, description="managed: GPUs of a host's servers, `tensor` for each (default: those after the trainer's)"
    )
    colocated: bool = Field(False, description="servers share the trainer's GPUs and give up memory while it trains")
    memory_fraction: Probability | None = Field(
        None, description="share of device memory for weights and cache (default: the engine's own)"
    )
    arguments: list[Text] = Field([], description="managed: more arguments of the server's command line")
    environment: list[Text] = Field([], description="managed: environment variables of the servers, NAME=VALUE each")
    in_flight: Count = Field(256, description="requests that one server works on at once, over all trainers")
    request_seconds: Seconds = Field(1800.0, description="time limit of one answer")
    start_seconds: Seconds = Field(1200.0, description="time limit of a server's start, or of its coming back")
    health_seconds: Seconds = Field(15.0, description="a server that is silent for so long is taken as lost")
    retries: NonNegativeInt = Field(3, description="how often one request is asked again after a failure")
    max_restarts: NonNegativeInt = Field(3, description="losses of servers that a run survives")

    @field_validator("environment")
    @classmethod
    def _assignments(cls, value: list[str]) -> list[str]:
        for entry in value:
            if "=" not in entry[1:]:
                raise ValueError(f"'{entry}' is no NAME=VALUE")
        return value


class Sync(Section):
    """How the engine gets the weights that are trained."""

    method: Literal["auto", "disk", "tensor", "distributed"] = Field(
        "auto",
        description="disk: through a directory; tensor: through memory of the same host; distributed: a process group "
        "of trainer and servers; auto: distributed, tensor on CPU and for colocated SGLang, disk for colocated vLLM",
    )
    adapter: Literal["merged", "adapter"] = Field(
        "merged", description="merged: the engine gets θ + (α/r)BA; adapter: it gets θ, and w as a LoRA adapter"
    )
    bucket_mib: Ratio = Field(256.0, description="tensors are sent in buckets of this many MiB; two are held")
    check: Literal["auto", "checksum", "probe"] = Field(
        "auto",
        description="proof that the weights arrived: checksum of every tensor (CPU servers of tensor 1), "
        "log-probabilities of a probe prompt, or auto: both where they can be had",
    )
    probe_tolerance: PositiveFloat | None = Field(
        None, description="largest mean difference of the probe's log-probabilities (default: 1e-4 in fp32, else 0.05)"
    )
    stale: Literal["refuse", "correct"] = Field(
        "refuse",
        description="answers of older weights than the schedule allows: stop, or count them and let the importance "
        "ratio correct them",
    )
    directory: UserPath | None = Field(None, description="disk: where weights are put (default: run.directory/sync)")


class Debug(Section):
    save_case_every: NonNegativeInt = Field(0, description="steps between saved `replay` cases; 0: only on NaN")
    save_rollouts: bool = Field(False, description="write every step's rollouts to run.directory/rollouts")
    only: Literal["rollouts", "training", "sync"] | None = Field(
        None,
        description="rollouts: generate and save, no updates; training: train on `rollouts`, no engine; sync: send "
        "the weights training.steps times and check that they arrived",
    )
    rollouts: UserPath | None = Field(None, description="directory of saved rollouts, for debug.only training")


#: Where a managed engine's interpreter is looked for.
def default_python(engine: str) -> Path:
    """.venv-ENGINE/bin/python in the present directory."""
    return Path(f".venv-{engine}") / "bin" / "python"
