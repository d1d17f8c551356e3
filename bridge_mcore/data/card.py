"""The card of a prepared data set: what it was made of, what was left out, and hashes that tell if it was changed.

`card.json` lies beside the files that `bridge-mcore data prepare` writes. A run that reads such a file can copy the
card into its directory, and so says exactly what it saw.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import read_json, shown
from bridge_mcore.errors import DataError

CARD = "card.json"
#: Raised when a key changes its meaning.
FORMAT = "bridge-mcore data card 1"


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def card_of(path: Path, verify: bool = True) -> dict[str, Any] | None:
    """The card of a prepared data file, or None for a file that has none.

    Raises DataError if the card is unreadable, or (`verify`) if the file is no longer the one that it describes.
    """
    path = path.expanduser()
    place = path.parent / CARD
    if not place.is_file():
        return None
    try:
        card = read_json(place, kind=DataError)
    except DataError as error:
        raise DataError(f"no readable card: {error}, or remove it") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        return None  # somebody else's card.json
    outputs = card.get("outputs")
    if not isinstance(outputs, dict):
        raise DataError(f"no readable card: {place} names no outputs; prepare the data again, or remove it")
    described = outputs.get(path.name)
    if described is None:
        return None
    said = described.get("sha256") if isinstance(described, dict) else None
    if not isinstance(said, str):
        raise DataError(f"no readable card: {place} has no sha256 of {path.name}; prepare the data again, or remove it")
    if verify and (found := file_hash(path)) != said:
        raise DataError(
            f"{path} was changed after it was prepared: its SHA-256 is {found[:12]}…, {place} says "
            f"{shown(said[:12])[1:-1]}…; prepare it again, or remove the card if the change is meant"
        )
    return card
