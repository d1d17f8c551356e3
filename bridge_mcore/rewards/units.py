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
_MONEY = {"$": "dollar", "\\$": "dollar", "€": "euro", "£": "sterling", "\\pounds": "sterling", "¢": "cent"}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
#: Words that turn a label into a second answer, a range or a hedge.
_NO_LABEL_NAMES = """
    or and about approximately approx roughly around circa maybe perhaps possibly probably nearly almost not no
    to at least most than more less over under between up plus minus half if when where either neither otherwise
    but dozen score double twice times pi infinity
"""
_NO_LABEL = frozenset(_NO_LABEL_NAMES.split())
#: Numerals; part of a label only where a hyphen joins them to something else, as in "two-digit".
_NUMERAL_NAMES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion trillion quadrillion quintillion lakh crore
"""
_NUMERALS = frozenset(_NUMERAL_NAMES.split())
_ORDINAL_NAMES = "third fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth quarter"
#: Words of which none may be part of a label: fractions, operations, verbs and pronouns, hedges.
_NEVER_IN_LABEL_NAMES = """
    halves gross triple quadruple thrice reciprocal inverse opposite permille mille negative
    factorial add added adding subtract subtracted subtracting divide divided multiply multiplied
    raised choose mod modulo root squareroot above
    is are was were be been isnt cannot can could would should may might must will does do did has have had fail fails
    failed i we you it he she they my our this that these those there which what who
    alternatively alternately instead rather actually wait sorry wrong false incorrect untrue mistake error invalid too
    never none nothing unless except excluding without with ignoring assuming if guess guessing think believe suppose
    likely unlikely presumably hopefully unsure uncertain certain sure apparently seemingly arguably estimate estimated
    estimation guesstimate rounded rounding truncated ish somewhat sort kind like close near everything anything
    any every whichever whatever
"""
_NEVER_IN_LABEL = frozenset(
    [
        *_NEVER_IN_LABEL_NAMES.split(),
        *(ordinal + end for ordinal in _ORDINAL_NAMES.split() for end in ("", "s")),
        *(scale + "s" for scale in _NUMERALS),
    ]
)
#: Most words of a label, but for units, articles and what follows "of".
_LABEL_WORDS = 3
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
    r"(?:sin|cos|tan|cot|sec|csc|cis)(?:\\frac|\\(?:alpha|beta|gamma|theta|phi)|[^)A-Za-z\\]|[a-z](?![a-z]))*(?:\([^()]*\))?\^\{?\\circ\}?\Z"
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
    for mark in ("\\$", "$", "€", "£", "¢"):
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
    if has_doubt(words) or "n't" in words or _changes_value(words):
        return None
    if re.search(r"(?<![\^{a-z-])\d", words):
        return None  # a second number
    sides = []
    for part in re.sub(r"\bper\b|\bpr\b", "/", words).split("/"):
        if (side := _side(part)) is None:
            return None
        sides.append(side)
    if len(sides) > 1 and sides[0] in ("dollar", "cent", "euro", ""):
        sides = sides[:1]  # 5 dollars per hour, 5 people per hour
    if len(sides) == 1 and "^-" in sides[0]:  # m s^{-2} is m/s^2
        parts = sides[0].split("*")
        below = [part.replace("^-", "^").removesuffix("^1") for part in parts if "^-" in part]
        sides = ["*".join(part for part in parts if "^-" not in part), *below]
    unit = "/".join(sides)
    return _COMPOUND.get(unit, unit)


def has_doubt(text: str) -> bool:
    """There are words in ``text`` that hedge, add or take back."""
    return bool(_NO_LABEL & set(re.findall("[a-z]+", text.lower())))


def _changes_value(words: str) -> bool:
    """There is a numeral, a fraction, an operation, a verb or a hedge in the words behind a value."""
    for word in words.split():
        parts = re.findall("[a-z]+", word)
        if any(part in _NEVER_IN_LABEL for part in parts) or (parts and all(part in _NUMERALS for part in parts)):
            return True
    return False


def _side(words: str) -> str | None:
    """The unit words of a numerator or denominator with their powers; what follows "of" is a label. None where a power
    stands with no unit, or there is too much of a label."""
    units: list[str] = []
    labels: list[str] = []
    power = ""
    for word in words.split(" of ")[0].replace("*", " ").split():
        name, _, exponent = word.replace("{", "").replace("}", "").partition("^")
        if name.strip(".") in ("square", "sq", "cubic", "cu"):
            power = _POWERS[name.strip(".")]
        elif (name in ("squared", "cubed") or not name) and exponent + name:
            raised = _POWERS.get(name, exponent)
            if units:
                units[-1] += "^" + raised
            elif labels[-1:] not in (["unit"], ["units"]):
                return None
        elif unit := _known(name):
            units.append(unit + (f"^{exponent or power}" if (exponent or power) not in ("", "1") else ""))
            power = ""
        elif exponent and name not in ("unit", "units"):
            return None
        else:
            labels += [name] if name.strip(".") not in ("", "a", "an", "the", "different", "distinct") else []
            power = ""
    if power or len(labels) > _LABEL_WORDS or ("%" in units and len(units) > 1):
        return None
    return "*".join(units)


def _known(name: str) -> str | None:
    name = name.rstrip(".")
    return _UNIT.get(name) or _UNIT.get(name.removesuffix("s")) or _UNIT.get(name.removesuffix("es"))
