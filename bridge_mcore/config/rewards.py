"""Sections about rewards: which one judges what, its limits, and what is added to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.types import (
    Allowed,
    Fraction,
    Gibibytes,
    Mebibytes,
    NonNegativeFloat,
    Processes,
    RewardValue,
    Seconds,
    Section,
    Seed,
    Text,
    Tokens,
    Tolerance,
)

#: Rewards by name; a user's own function is `plugin:MODULE:FUNCTION` or `plugin:FILE.py:FUNCTION`.
REWARDS = ("math", "choice", "code", "logic", "gym")
PLUGIN = "plugin:"


def reward_problem(name: str) -> str | None:
    """What is wrong with the name of a reward; None if nothing is."""
    if name.startswith(PLUGIN):
        place, colon, function = name.removeprefix(PLUGIN).rpartition(":")
        fine = bool(place and colon and function.isidentifier())
        return None if fine else f"'{name}': write plugin:MODULE:FUNCTION or plugin:FILE.py:FUNCTION"
    if name in REWARDS:
        return None
    return f"unknown reward '{name}'{nearest(name, REWARDS)}; there is {', '.join(REWARDS)} and plugin:MODULE:FUNCTION"


def plugins_among(names: Iterable[str | None]) -> frozenset[str]:
    """The plugins among the names of rewards that a user's configuration, suite or command line gives."""
    return frozenset(name for name in names if name is not None and name.startswith(PLUGIN))


def unnamed_plugin(name: str, allowed: Collection[str]) -> str | None:
    """Why a reward that is not among the `allowed` plugins may not be built; None for any that is no plugin.

    A plugin is code, imported and called with the user's rights. So it comes from what the user wrote as settings,
    and data, which may be anybody's, can only name what stands there letter by letter.
    """
    if not name.startswith(PLUGIN) or name in allowed:
        return None
    return (
        f"the reward '{name}' is code, and no setting names it: data may choose among {', '.join(REWARDS)}; if you "
        "trust this code, set it as `reward` of the data source, or as reward.verifier"
    )


def _known(name: str) -> str:
    if problem := reward_problem(name):
        raise ValueError(problem)
    return name


RewardName = Annotated[
    Text, AfterValidator(_known), Allowed(" | ".join((*REWARDS, "plugin:MODULE:FUNCTION", "plugin:FILE.py:FUNCTION")))
]


#: What is said of an answer that leaves the computing to others.
Unfinished = Literal["refuse", "repeats"]


class Form(Section):
    """A bonus for responses of a certain form. Off unless something is asked for."""

    one_box: bool = Field(False, description="exactly one \\boxed{}, and closed")
    think: bool = Field(False, description="one <think>…</think>, at the very start")
    answer: bool = Field(False, description="exactly one <answer>…</answer>")
    finished: bool = Field(False, description="it ended before the limit of tokens")
    pattern: Text | None = Field(None, description="a regular expression that must be found in it")
    bonus: NonNegativeFloat = Field(0.0, description="added if all that is asked for is there")
    penalty: NonNegativeFloat = Field(0.0, description="subtracted if something is not")

    @model_validator(mode="after")
    def _compiles(self) -> Form:
        asked = self.one_box or self.think or self.answer or self.finished or self.pattern is not None
        if (self.bonus or self.penalty) and not asked:
            raise ValueError("a bonus or penalty needs a form: set one_box, think, answer, finished or pattern")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"pattern is no regular expression: {error}") from None
        return self


class Length(Section):
    """A punishment for long responses. Off without `limit`."""

    kind: Literal["soft_overlong", "linear"] = Field(
        "soft_overlong",
        description="soft_overlong: DAPO's Eq. (13), down to -1 over the last `cache` tokens before `limit`; linear: "
        "length / limit, of right answers only",
    )
    limit: Tokens | None = Field(None, description="tokens at which the punishment is whole; null: off")
    cache: Tokens | None = Field(None, description="soft_overlong: tokens over which it grows, at most `limit`")
    weight: NonNegativeFloat = Field(1.0, description="what it is multiplied with")

    @model_validator(mode="after")
    def _has_its_cache(self) -> Length:
        if self.cache is not None and self.limit is None:
            raise ValueError("cache is set, but limit is not, so that nothing is punished: set limit too")
        fits = self.cache is not None and self.limit is not None and self.cache <= self.limit
        if self.limit is not None and self.kind == "soft_overlong" and not fits:
            raise ValueError(f"soft_overlong needs a cache of 1 to {self.limit} tokens")
        return self


class Sandbox(Section):
    """Limits of candidate programs, of the reward `code`."""

    cpu_seconds: Seconds = Field(6.0, description="CPU seconds of one test, unless the problem says")
    program_seconds: Seconds = Field(120.0, description="seconds of all tests of one program")
    memory_mib: Mebibytes = Field(1024, description="address space of a program, on top of Python's own")
    output_mib: Mebibytes = Field(16, description="what it may write to stdout, to stderr and to each file")
    scratch_mib: Mebibytes = Field(16, description="all files in its scratch folder, which is in memory")
    packages: bool = Field(False, description="installed packages can be imported, not the standard library alone")
    unsafe: bool = Field(
        False, description="run programs even where network, files or processes cannot be kept from them"
    )


class Reward(Section):
    verifier: RewardName = Field("math", description="which reward judges problems that do not say")
    correct: RewardValue = Field(1.0, description="reward of a correct response")
    incorrect: RewardValue = Field(0.0, description="Eq. (3) has -1, the experiments 0")
    workers: Processes = Field(2, description="processes of each reward")
    cpu_seconds: Seconds = Field(5.0, description="CPU time limit of one comparison")
    wall_seconds: Seconds = Field(60.0, description="wall-clock backstop of one comparison")
    memory_gib: Gibibytes = Field(2.0, description="address space limit of one process")
    tolerance: Tolerance = Field(
        0.0, description="math: relative difference at which a number with decimals counts as the right one"
    )
    unfinished: Unfinished = Field(
        "refuse",
        description="math: an answer that is still to be computed (`3+4`, a sum, a power) where the gold is a plain "
        "number is wrong; repeats: only where it repeats the question",
    )
    thoughts: bool = Field(
        False,
        description="answers inside a thought (`<think>…`) count; false: where the response or the prompt opens one, "
        "only what follows its end is read",
    )
    partial: bool = Field(False, description="gym and plugin: a score between 0 and 1 is the reward")
    on_failure: Literal["incorrect", "drop"] = Field(
        "incorrect", description="reward of a time-out or crash; both are counted and logged"
    )
    stop_undecided: Fraction | None = Field(
        0.5,
        description="a run stops, and is saved, where more than this share of the verdicts of 5 steps in a row was not "
        "reached, or all of one step's, or all of one reward's for 5 steps; null: it goes on",
    )
    noise: Fraction = Field(0.0, description="probability that a verdict is flipped (never in evaluations)")
    noise_seed: Annotated[Seed, Field(ge=0)] = Field(0, description="which ones are")
    form: Form = Field(Form(), description="a bonus for responses of a certain form")
    length: Length = Field(Length(), description="a punishment for long responses")
    sandbox: Sandbox = Field(Sandbox(), description="limits of candidate programs")
