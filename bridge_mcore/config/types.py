"""The types that configurations are written in: bounded numbers, paths, pairs, and the base of every section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Allowed:
    """What a key allows, in words, where the bounds of its type do not say it (read by `config.keys`)."""

    text: str


def expanded(value: object) -> object:
    """`~` is the home directory; relative paths stay relative to the directory the command runs in."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; give a path, or null")
        value = Path(value)
    if isinstance(value, Path):
        try:
            return value.expanduser()
        except RuntimeError as error:  # `~name` of a user that does not exist
            raise ValueError(str(error)) from error
    return value


def _clip_range(value: float | tuple[float, float]) -> float | tuple[float, float]:
    low, high = value if isinstance(value, tuple) else (value, value)
    if not (0 < low < 1 and high > 0 and (isinstance(value, tuple) or high < 1)):
        raise ValueError("clips at 1 - ε_low and 1 + ε_high: ε, or ε_low, must be in (0, 1) and ε_high > 0")
    return value


def _betas(value: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError("both betas must be in [0, 1)")
    return value


def _size_range(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("must be [smallest, largest], with 1 <= smallest <= largest")
    return value


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
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
