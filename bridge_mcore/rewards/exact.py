r"""One spelling for answers, and the plain numbers among them, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

from bridge_mcore.rewards.latex import plain_latex
from bridge_mcore.rewards.phrases import without_phrases
from bridge_mcore.rewards.unicode import to_latex

#: Longer numerals are not read as numbers: their arithmetic is quadratic, and no gold answer has so many digits.
MAX_NUMERAL = 1000

#: Also those of Markdown: bold, italics, code.
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
)


def clean(text: str) -> str:
    r"""``text`` without what only surrounds it: white space, ``$...$``, ``\(...\)``, ``\[...\]``, one final period.

    Common Unicode signs become their LaTeX. Only one period goes, so that ``0.333...`` does not turn into 0.333.
    """
    if not text.isascii():
        text = to_latex(text)
    text = text.strip()
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


_TEXT_ONLY = re.compile(r"\\text\{([^{}]*)\}[,.]?")
_TEXT_IN_TEXT = re.compile(r"\\text\{\\text\{([^{}]*)\}\}")
#: What may be part of every spelling; without one of these characters nothing below applies but the spaces.
_COMMANDS = re.compile(r"[\\${}=<>!~^(\[\]]")
_SPELLING = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?|\\(?:displaystyle|textstyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|textup|mathrm|mbox|operatorname|rm)\s*\{"), r"\\text{"),
    (
        re.compile(r"\\text\{\s*(arc(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)h?|cot|sec|csc|ln|log|lg|exp|cis)\s*\}"),
        r"\\\1 ",
    ),
    (re.compile(r"\\text\{\s*([ei])\s*\}"), r"\1"),
    (re.compile(r"\\text\{\s*(\\[$%])\s*\}|\\text\{\s*\.?\s*\}\Z"), r"\1"),
    (re.compile(r"\\text\{\s*([,;])\s*\}"), r"\1 "),
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"(?<=\d)\\,(?=\d{3})"), ","),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])"), " "),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}"), r"^\\circ "),
    (re.compile(r"\\le(?:q|qslant)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\ge(?:q|qslant)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|not\s*=)(?![A-Za-z])|(?<![\d)\]}])!="), r"\\ne "),  # but 5!=120
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\mathbb\s*\{?R\}?\s*(?:-|\\backslash|\\smallsetminus)\s*(?=\\\{)"), r"\\mathbb{R}\\setminus"),
    (re.compile(r"\A\$(?=\d)(?=[^$]*\Z)"), r"\\$"),  # `$5`, where it opens no formula
    (re.compile(r"(?<!\\)\$"), ""),
]
_SPACES = [
    (re.compile(r"\s+"), " "),
    # A space between letters or digits separates (1 1/2, \pi r); any other one is typography.
    (re.compile(r"(?<![^\W_]) | (?![^\W_])"), ""),
]
_LIST_OF_THOUSANDS = re.compile(r"\d,\s*\d{3}(?!\d)")
_LIST_COMMA = re.compile(r"(?<=\d),\s+")


def canonical(text: str) -> str:
    """One spelling for LaTeX that prints the same."""
    if _COMMANDS.search(text):
        for pattern, replacement in _SPELLING[:1]:
            text = pattern.sub(replacement, text)
        text = plain_latex(text)
        for pattern, replacement in _SPELLING[1:5]:
            text = pattern.sub(replacement, text)
        if r"\text{\text" in text:
            text = _TEXT_IN_TEXT.sub(r"\\text{\1}", text)
        if whole := _TEXT_ONLY.fullmatch(text):
            text = clean(whole[1])
        for pattern, replacement in _SPELLING[5:]:
            text = pattern.sub(replacement, text)
    if "," in text and _LIST_OF_THOUSANDS.search(text):
        text = _LIST_COMMA.sub(";", text)  # `100, 200` is a list, `100,200` a number
    if " " in text or "\n" in text or "\t" in text:
        for pattern, replacement in _SPACES:
            text = pattern.sub(replacement, text)
    return without_phrases(text.strip())


_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(rf"(?P<sign>[+-]?)(?:\\?\$)?(?P<decimal>{_DECIMAL})", re.ASCII)
_SCIENTIFIC = re.compile(
    rf"(?P<sign>[+-]?)(?P<decimal>{_DECIMAL})"
    r"(?:[eE](?P<e>[+-]?\d{1,3})|(?:\\times|\\cdot|\*)\s?10(?:\^|\*\*)"
    r"(?:\{(?P<braced>[+-]?\d{1,3})\}|\((?P<round>[+-]?\d{1,3})\)|(?P<digit>\d)))",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac ?(?:\{(?P<a>-?\d+)\}|(?P<a1>\d)) ?(?:\{(?P<b>-?\d+)\}|(?P<b1>\d))"
    r"|(?P<p>\d+)/(?P<q>-?\d+))",
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
        exponent = int(found["e"] or found["braced"] or found["round"] or found["digit"])
        value = Fraction(found["decimal"].replace(",", "")) * Fraction(10) ** exponent
    elif found := _FRACTION.fullmatch(text):
        denominator = int(found["b"] or found["b1"] or found["q"])
        if denominator == 0:
            return None
        value = Fraction(int(found["a"] or found["a1"] or found["p"]), denominator)
    else:
        return None
    return -value if found["sign"] == "-" else value
