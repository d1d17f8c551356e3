r"""Read the unit at the end of an answer, so that ``5 m`` is not taken for ``5 cm``.

Math-Verify drops units. That is right when one of two answers leaves its unit out, and wrong when both have one and
they differ. Only words of the table below count; "students" and "pupils" may well be the same.
"""

from __future__ import annotations

import re

_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr",
    "cent": "",
    "dollar": "",
    "degree": "deg",
    "radian": "rad",
    "mph": "",
    "km/h": "kmh kph",
}
_UNIT = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_IN_TEXT = re.compile(
    r"(?s:.*)\\(?:text|textrm|mathrm|mbox|operatorname)\{(?P<unit>[A-Za-z./ ]{1,40})(?:\^(?P<inner>\d))?\}"
    r"(?:\^\{?(?P<outer>\d)\}?)?"
)
_BARE = re.compile(r"[+-]?[\d.,/]*\d\s?(?P<unit>[A-Za-z./ ]{1,40})(?:\^\{?(?P<inner>\d)\}?)?(?P<outer>)", re.ASCII)
_PREFIXES = {"square ": 2, "sq ": 2, "sq. ": 2, "cubic ": 3, "cu ": 3, "cu. ": 3}


def unit_of(text: str) -> str | None:
    r"""The unit at the end of an answer in canonical spelling, such as ``cm`` or ``cm^2``; None when none is known.

    It must be in ``\text{...}`` or the like, or be all that follows a plain number: in ``3s+5m`` the ``m`` is a
    variable.
    """
    found = _IN_TEXT.fullmatch(text) or _BARE.fullmatch(text)
    if found is None:
        return None
    word, power = found["unit"].strip().rstrip(".").lower(), found["inner"] or found["outer"] or "1"
    for prefix, prefix_power in _PREFIXES.items():
        if word.startswith(prefix):
            word, power = word.removeprefix(prefix), str(prefix_power)
    unit = _UNIT.get(word) or _UNIT.get(word.removesuffix("s")) or _UNIT.get(word.removesuffix("es"))
    if unit is None:
        return None
    return unit if power == "1" else f"{unit}^{power}"
