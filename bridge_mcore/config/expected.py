"""What a configuration is known to end with, and the digest that says whether a run still is that configuration."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, field_validator

from bridge_mcore.config.types import Allowed, Fraction, Section, Text

_DIGITS = 12
#: Sections that say where and how a run works, not what it trains; and keys of `evaluation` that only watch.
_BESIDE: dict[str, Any] = {
    "run": True, "slots": True, "checkpoint": True, "monitoring": True, "debug": True, "expected": True,
    "evaluation": {"every", "before", "samples"},
}  # fmt: skip


class Expected(Section):
    """The accuracy that runs of exactly these settings ended with; a run that ends compares its own with it."""

    accuracy: Annotated[tuple[Fraction, Fraction], Allowed("[lowest, highest], each from 0 to 1")] = Field(
        description="smallest and largest accuracy measured after the last step"
    )
    measured: Text = Field(description="how many runs were measured, and which: it follows the words 'measured over'")
    settings: Annotated[str, Field(pattern=f"^[0-9a-f]{{{_DIGITS}}}$"), Allowed(f"{_DIGITS} hexadecimal digits")] = (
        Field(description="digest of the measured runs' settings (settings in their summary.json), whatever the seed")
    )

    @field_validator("accuracy")
    @classmethod
    def _ordered(cls, accuracy: tuple[float, float]) -> tuple[float, float]:
        if accuracy[0] > accuracy[1]:
            raise ValueError("must be [lowest, highest], the lowest first")
        return accuracy


def settings_digest(config: Section) -> str:
    """Twelve hexadecimal digits of what a configuration trains: the same for every seed and directory.

    Keys at their defaults are left out, so that a key added later changes no digest.
    """
    kept = config.model_dump(mode="json", exclude=_BESIDE, exclude_defaults=True)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:_DIGITS]
