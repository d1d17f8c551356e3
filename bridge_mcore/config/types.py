"""The types that configurations are written in: bounded numbers, paths, pairs, and the base of every section.

Every number has both bounds, far beyond what anybody trains with: a value outside is a slip of the pen (a rate of 1e29,
5e7 for 5e-7) or would end in an overflow, a NaN or a full memory long after the start.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from bridge_mcore.config.json_file import one_line
from bridge_mcore.errors import ConfigError


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Allowed:
    """What a key allows, in words, where the bounds of its type do not say it (read by `config.keys`)."""

    text: str


def expanded(value: object) -> object:
    """`~` is the home directory; relative paths stay relative to the directory the command runs in.

    ValueError for what no file system takes: it would be found much later, by the first that touches it.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; give a path, or null")
        _encodable(value)
        value = Path(value)
    if isinstance(value, Path):
        try:
            value = value.expanduser()
        except RuntimeError:
            raise ValueError("there is no such user here; spell the directory out") from None
        if len(os.fsencode(value)) > _LONGEST_PATH or any(len(os.fsencode(p)) > _LONGEST_NAME for p in value.parts):
            raise ValueError(f"is too long: a path has at most {_LONGEST_PATH} bytes, each name in it {_LONGEST_NAME}")
    return value


def typed_path(text: str, key: str) -> Path:
    """A path that stands for itself on a command line, `~` spelt out. ConfigError names `key` where it is none."""
    try:
        return Path(str(expanded(text)))
    except ValueError as error:
        raise ConfigError(f"{key} {one_line(text, 200)}: {error}") from None


def _encodable(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return value


def checked_text(value: str) -> str:
    """Text that can be handed on to other programs; ValueError if it is none."""
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"has {len(value):,} characters; {_LONGEST_TEXT:,} are the most")
    return _encodable(value)


def _name(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give a name")
    if not value.isprintable() or len(value) > _LONGEST_NAME:
        raise ValueError(f"is no name: it has at most {_LONGEST_NAME} characters, all of them printable")
    return value


def _clip_range(value: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = value if isinstance(value, tuple) else (value, value)
    if not (0 < low < 1 and high > 0 and (isinstance(value, tuple) or high < 1)):
        raise ValueError("clips at 1 - ε_low and 1 + ε_high: ε, or ε_low, must be in (0, 1) and ε_high > 0")
    if low < _SMALLEST_CLIP or not _SMALLEST_CLIP <= high <= 1 / _SMALLEST_CLIP:
        raise ValueError(f"ε_low must be at least {_SMALLEST_CLIP:g}, and ε_high at most {1 / _SMALLEST_CLIP:g}")
    return value


def _betas(value: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError("both betas must be in [0, 1)")
    if max(value) > _LARGEST_BETA:
        raise ValueError(f"both betas must be at most {_LARGEST_BETA}: in fp32 a larger one is all but 1")
    return value


def _size_range(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1] <= _LARGEST_SIZE:
        raise ValueError(f"must be [smallest, largest], with 1 <= smallest <= largest <= {_LARGEST_SIZE:,}")
    return value


def _temperature(value: float) -> float:
    if 0 < value < _COLDEST:
        raise ValueError(f"must be 0 (greedy), or at least {_COLDEST}: logits divided by less overflow")
    return value


_LONGEST_PATH, _LONGEST_NAME, _LONGEST_TEXT = 4000, 255, 100_000
_SMALLEST_CLIP, _LARGEST_BETA, _LARGEST_SIZE, _COLDEST = 1e-6, 0.999999, 1_000_000, 0.001

#: Steps, rows and intervals of a run.
PositiveInt = Annotated[int, Field(gt=0, le=1_000_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000_000)]
#: What one step, or one process, holds at once.
Count = Annotated[int, Field(gt=0, le=1_000_000)]
Processes = Annotated[int, Field(gt=0, le=100_000)]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]
TokenId = Annotated[int, Field(ge=0, le=100_000_000)]
Width = Annotated[int, Field(gt=0, le=1_000_000)]
Mebibytes = Annotated[int, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(10**18), le=10**18)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e6)]
PositiveFloat = Annotated[float, Field(ge=1e-9, le=1e9)]
LearningRate = Annotated[float, Field(ge=1e-20, le=10)]
Epsilon = Annotated[float, Field(ge=1e-30, le=1)]
Seconds = Annotated[float, Field(ge=0.1, le=1e7)]
Gibibytes = Annotated[float, Field(ge=0.1, le=1e6)]
SampledTemperature = Annotated[float, Field(ge=_COLDEST, le=1000)]
Temperature = Annotated[
    float,
    Field(ge=0, le=1000),
    AfterValidator(_temperature),
    Allowed(f"0, or a number >= {_COLDEST} and <= 1000"),
]
Probability = Annotated[float, Field(ge=1e-6, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Tolerance = Annotated[float, Field(ge=0, le=0.5)]
Ratio = Annotated[float, Field(ge=1e-6, le=1e6)]
RewardValue = Annotated[float, Field(ge=-1e6, le=1e6)]
#: Text that other programs get; a name is shown in tables and made part of other names.
Text = Annotated[str, AfterValidator(checked_text)]
Name = Annotated[str, AfterValidator(_name)]
UserPath = Annotated[Path, BeforeValidator(expanded)]
ClipRange = Annotated[
    float | tuple[float, float],
    AfterValidator(_clip_range),
    Allowed("a number in (0, 1), or [ε_low, ε_high]"),
]
Betas = Annotated[tuple[float, float], AfterValidator(_betas), Allowed("two numbers in [0, 1)")]
SizeRange = Annotated[tuple[int, int], AfterValidator(_size_range), Allowed("[smallest, largest], whole numbers > 0")]

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16"]
Template = Literal["plain", "chat", "qwen-boxed", "abel"]
