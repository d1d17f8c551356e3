r"""Take the unit off the end of an answer, so that ``5 m`` is not taken for ``5 cm``, nor ``5 m`` for five times m.

A unit may be left out on either side, but two units that are both there must be the same; nothing is converted. Words
that are no unit of the table ("students", "ways") count as labels and are ignored: "pupils" may well be the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "nm": "nanometer nanometre",
    "in": "inch",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "ton": "tonne",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "gallon": "gal",
    "quart": "qt",
    "cup": "",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr",
    "am": "a.m",
    "pm": "p.m",
    "cent": "",
    "dollar": "usd",
    "euro": "",
    "degree": "deg",
    "radian": "rad",
    "mph": "",
    "n": "newton",
    "j": "joule",
    "kj": "kilojoule",
    "w": "watt",
    "kw": "kilowatt",
    "pa": "pascal",
    "v": "volt",
    "hz": "hertz",
    "k": "kelvin",
    "ev": "electronvolt",
    "mol": "mole",
    "%": "percent percentage pct",
}
_UNIT = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_COMPOUND = {"mi/h": "mph", "kmh": "km/h", "kph": "km/h", "fps": "ft/s"}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MONEY = {"$": "dollar", "\\$": "dollar", "€": "euro", "£": "sterling", "\\pounds": "sterling"}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
#: Words that turn a label into a second answer, a range or a hedge.
_NO_LABEL_NAMES = """
    or and about approximately approx roughly around circa maybe perhaps possibly probably nearly almost not no
    to at least most than more less over under between up plus minus half if when where either neither otherwise
    but dozen score double twice times pi infinity
"""
_NO_LABEL = frozenset(_NO_LABEL_NAMES.split())
_TEXT = r"\\text\{[^{}]{0,60}\}"
_TAIL = re.compile(rf"(?:{_TEXT}|\^(?:\{{-?\d\}}|-?\d)|/|\\cdot(?![a-z])|[ .])+")
_FIRST_TEXT = re.compile(r"(?<!_)(?<!_\{)\\text\{")
_BARE = re.compile(
    r"(?P<value>[+-]?(?:[\d.,/]*\d|\\frac\{\d+\}\{\d+\})) ?"
    r"(?P<unit>[A-Za-z][A-Za-z./ ]{0,40}(?:\^(?:\{\d\}|\d))?)",
    re.ASCII,
)
_DEGREES = re.compile(r"\^(?:\{\\circ\}|\\circ)(?:\\text\{ ?(?P<text>[CF]) ?\}| ?(?P<bare>[CF]))?")
#: The degrees at the end of `\sin 60^\circ` belong to the angle.
_ANGLE = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc)(?:\\frac|\\(?:alpha|beta|gamma|theta|phi)|[^)A-Za-z\\]|[a-z](?![a-z]))*(?:\([^()]*\))?\^\{?\\circ\}?\Z"
)
_UNIT_CHARACTERS = re.compile(r"[A-Za-z./ ^0-9{}'*%-]*", re.ASCII)
_OPERATOR_END = re.compile(r"(?:[-+*/^_=<>,;:({\[&|]|\\[A-Za-z]+)\s*")


class Measure(NamedTuple):
    """A value with its unit."""

    value: str
    unit: str | None = None
    #: ``5 m`` in mathematics is five times m; the unit stands only where the other side has the same.
    doubtful: bool = False


def measure(text: str) -> Measure | None:
    """Split the canonical ``text`` into a value and a unit; None where words follow that are neither unit nor label."""
    sign, rest = ("-", text[1:]) if text[:1] == "-" else ("", text)
    for mark, unit in _MONEY.items():
        if rest.startswith(mark):
            inner = measure(sign + rest[len(mark) :].strip())
            return inner and (Measure(inner.value, unit) if inner.unit in (None, unit) else None)
    for mark in ("\\%", "%"):
        if text.endswith(mark):
            return Measure(text.removesuffix(mark).strip(), "%")
    for mark in ("\\$", "$", "€", "£"):
        if text.endswith(mark) and len(text) > len(mark):
            return Measure(text.removesuffix(mark).strip(), _MONEY[mark])
    if _ANGLE.search(text):
        return Measure(text)
    if (at := max(text.rfind("^\\circ"), text.rfind("^{\\circ"))) > 0 and (found := _DEGREES.fullmatch(text, at)):
        scale = found["text"] or found["bare"]
        return Measure(text[:at].strip(), f"degree {scale}" if scale else "degree")
    if found := _FIRST_TEXT.search(text):
        at = found.start()
        if at == 0 or not _TAIL.fullmatch(text, at) or _ends_in_operator(text[:at]):
            return None
        return _with_unit(text[:at].strip(), re.sub(r"\\text\{|\}(?!\d)|\\cdot", " ", text[at:]))
    if found := _BARE.fullmatch(text):
        return _bare(text, found)
    return Measure(text)


def _ends_in_operator(value: str) -> bool:
    return re.search(_OPERATOR_END.pattern + r"\Z", value[-40:]) is not None and not value.endswith(r"\pi")


def _bare(text: str, found: re.Match[str]) -> Measure | None:
    """Letters after a plain number without ``\\text``: a unit, or variables."""
    unit = re.sub(r"\.(?=[A-Za-z]{2})", ". ", found["unit"])
    word = unit.split("^")[0].strip(" .").lower()
    known = read_unit(unit)
    if len(word) > 3 and " " not in word and known == "" and word.isalpha():
        return _with_unit(found["value"], unit)  # `9 values`
    if " " in word and all(len(part) > 1 for part in word.split()):
        return _with_unit(found["value"], unit)
    if not known:
        return _with_unit(found["value"], unit) if word in _SCALES else Measure(text)
    return Measure(found["value"], known, doubtful=len(word) == 1 or word in ("mg", "kw", "ev", "pa", "kj"))


def _with_unit(value: str, words: str) -> Measure | None:
    parts = words.split()
    if parts and (scale := parts[0].lower().strip(".")) in _SCALES:
        inner = _with_unit(value, " ".join(parts[1:]))
        return inner and inner._replace(value=f"({value})*10^{{{_SCALES[scale]}}}")
    unit = read_unit(words)
    return None if unit is None else Measure(value, unit or None)


def read_unit(words: str) -> str | None:
    """The canonical spelling of a unit in words, "" for a label, None where the words may change the answer."""
    doubtful = ".." in words
    words = words.strip(" .").lower()
    if doubtful or not _UNIT_CHARACTERS.fullmatch(words) or len(words.split()) > 6:
        return None
    if has_doubt(words):
        return None
    if re.search(r"(?<![\^{a-z-])\d", words):
        return None  # a second number
    sides = [_side(part) for part in re.sub(r"\bper\b|\bpr\b", "/", words).split("/")]
    if len(sides) > 1 and sides[0] in ("dollar", "cent", "euro", ""):
        sides = sides[:1]  # 5 dollars per hour, 5 people per hour
    unit = "/".join(sides)
    return _COMPOUND.get(unit, unit)


def has_doubt(text: str) -> bool:
    """There are words in ``text`` that hedge, add or take back."""
    return bool(_NO_LABEL & set(re.findall("[a-z]+", text.lower())))


def _side(words: str) -> str:
    """The unit words of a numerator or denominator with their powers; what follows "of" is a label."""
    units: list[str] = []
    power = ""
    for word in words.split(" of ")[0].replace("*", " ").split():
        name, _, exponent = word.replace("{", "").replace("}", "").partition("^")
        if name.strip(".") in ("square", "sq", "cubic", "cu"):
            power = _POWERS[name.strip(".")]
        elif name in ("squared", "cubed") and units:
            units[-1] += "^" + _POWERS[name]
        elif not name and exponent and units:
            units[-1] += "^" + exponent
        elif unit := _known(name):
            units.append(unit + (f"^{exponent or power}" if (exponent or power) not in ("", "1") else ""))
            power = ""
    return "*".join(units)


def _known(name: str) -> str | None:
    name = name.rstrip(".")
    return _UNIT.get(name) or _UNIT.get(name.removesuffix("s")) or _UNIT.get(name.removesuffix("es"))
