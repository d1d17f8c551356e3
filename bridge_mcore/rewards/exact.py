r"""Compare answers without a computer algebra system: text, numbers, numerals in a base, units.

These rules come before Math-Verify, because they are exact and take microseconds, and because Math-Verify 0.9.0 is
lenient where a reward must not be: it accepts 0.333333 for 1/3, ``5 m`` for ``5 cm`` and ``12_7`` for ``12_8``, and it
rejects ``1.5e3`` for 1500 and ``\emptyset`` for "no solution". What these rules cannot decide goes to Math-Verify.
"""

from __future__ import annotations

import re
from fractions import Fraction

from bridge_mcore.rewards.units import unit_of
from bridge_mcore.rewards.verdict import Verdict

#: Longer numerals are not read as numbers: their arithmetic is quadratic, and no gold answer has so many digits.
MAX_NUMERAL = 1000

_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "π": r"\pi ",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∅": r"\emptyset ",
        "°": r"^\circ ",
        "²": "^2",
        "³": "^3",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
    }
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def clean(text: str) -> str:
    r"""``text`` without what only surrounds it: white space, ``$...$``, ``\(...\)``, ``\[...\]``, one final period.

    Common Unicode signs become their LaTeX. Only one period goes, so that ``0.333...`` does not turn into 0.333.
    """
    text = text.translate(_UNICODE).strip()
    for _ in range(4):  # `$5.$.` and the like; a bound, since each turn costs the length of the text
        before = text
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in _WRAPPERS:
            text = _unwrap(text, left, right)
        if text == before:
            break
    return text


def _unwrap(text: str, left: str, right: str) -> str:
    if len(text) < len(left + right) or not (text.startswith(left) and text.endswith(right)):
        return text
    inner = text[len(left) : -len(right)]
    # `$1$ or $2$` is not one wrapped formula; a backslash at the end would escape the wrapper
    return text if left in inner or right in inner or inner.endswith("\\") else inner.strip()


_TEXT_ONLY = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPELLING = [
    (re.compile(r"\\(?:left|right)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"(?<=\d)\\,(?=\d{3})"), ","),
    (re.compile(r"(?<!\\)\\!"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]|~"), " "),
    (re.compile(r"\s+"), " "),
    # A space between letters or digits separates (1 1/2, \pi r); any other one is typography.
    (re.compile(r"(?<![^\W_]) | (?![^\W_])"), ""),
]


def canonical(text: str) -> str:
    """One spelling for LaTeX that prints the same; for comparing texts, not for parsing."""
    if whole := _TEXT_ONLY.fullmatch(text):
        text = clean(whole[1])
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text.strip()


_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)(?:\\?\$)?(?P<decimal>{_DECIMAL})", re.ASCII)
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?)(?P<decimal>{_DECIMAL})"
    r"(?:[eE](?P<e>[+-]?\d{1,3})|(?:\\times|\\cdot|\*)\s?10(?:\^|\*\*)(?:\{(?P<braced>[+-]?\d{1,3})\}|(?P<digit>\d)))",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac(?:\{(?P<a>-?\d+)\}|(?P<a1>\d))(?:\{(?P<b>-?\d+)\}|(?P<b1>\d))|(?P<p>\d+)/(?P<q>-?\d+))",
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    r"""The value of a plain number in canonical spelling, exactly; None for anything else.

    Plain are integers and decimals (``-1,234.50``, ``.5``; a comma only between well-formed thousands; a dollar sign
    in front is dropped), ``1.5e3`` and ``1.5 \times 10^{3}``, and a fraction of two integers (``3/4``,
    ``-\frac{3}{4}``, ``\frac34``). Percentages, mixed numbers and everything with a letter are not.
    """
    if len(text) > MAX_NUMERAL:
        return None
    if text.startswith("(") and text.endswith(")") and "," not in text:  # with a comma it is a point
        text = text[1:-1]
    if found := _NUMBER.fullmatch(text):
        value = Fraction(found["decimal"].replace(",", ""))
    elif found := _SCIENTIFIC.fullmatch(text):
        exponent = int(found["e"] or found["braced"] or found["digit"])
        value = Fraction(found["decimal"].replace(",", "")) * Fraction(10) ** exponent
    elif found := _FRACTION.fullmatch(text):
        denominator = int(found["b"] or found["b1"] or found["q"])
        if denominator == 0:
            return None
        value = Fraction(int(found["a"] or found["a1"] or found["p"]), denominator)
    else:
        return None
    return -value if found["sign"] == "-" else value


_NUMERAL = re.compile(
    r"(?P<digits>[0-9A-Za-z]+(?:,[0-9A-Za-z]{3})*)_(?:\{(?:\\text\{)?(?P<base>\d+)\}?\}|(?P<b1>\d))", re.ASCII
)


def _numeral(text: str) -> tuple[str, int] | None:
    """(digits, base) of ``1203_7`` or ``1203_{7}``."""
    found = _NUMERAL.fullmatch(text)
    if found is None or not any(digit.isdigit() for digit in found["digits"]):
        return None
    return found["digits"].replace(",", "").lstrip("0").upper(), int(found["base"] or found["b1"])


_NOTHING = {r"\emptyset", r"\varnothing", r"\{\}", "no solution", "no solutions", "empty set", "the empty set"}


def compare(gold: str, answer: str) -> Verdict | None:
    """Decide a pair of :func:`clean` answers where that is certain; None leaves it to Math-Verify."""
    if gold == answer:
        return Verdict("correct", "identical")
    gold, answer = canonical(gold), canonical(answer)
    if gold == answer:
        return Verdict("correct", "identical but for spacing")
    gold_number, answer_number = number(gold), number(answer)
    if gold_number is not None and answer_number is not None:
        if gold_number == answer_number:
            return Verdict("correct", "equal numbers")
        return Verdict("incorrect", "a different number")
    gold_numeral, answer_numeral = _numeral(gold), _numeral(answer)
    if gold_numeral and answer_numeral:
        if gold_numeral == answer_numeral:
            return Verdict("correct", "equal numerals")
        return Verdict("incorrect", "a different number, or in a different base")
    if gold.lower() in _NOTHING and answer.lower() in _NOTHING:
        return Verdict("correct", "both say that there is nothing")
    gold_unit, answer_unit = unit_of(gold), unit_of(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return Verdict("incorrect", f"a different unit: {answer_unit}, not {gold_unit}")
    return None
