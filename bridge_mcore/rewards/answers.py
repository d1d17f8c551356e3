r"""See what kind of answer a text is: a value, a list, a set, a tuple, an interval, a matrix, an equation, words.

Only the structure is read here; the formulas in it stay text.
"""

from __future__ import annotations

import re

from bridge_mcore.rewards.conditions import as_condition, as_region, pieces_of
from bridge_mcore.rewards.exact import canonical, number
from bridge_mcore.rewards.formula import read_formula
from bridge_mcore.rewards.names import is_name
from bridge_mcore.rewards.pieces import REALS, complement, intersection, point
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.ratios import read_time
from bridge_mcore.rewards.structure import Answer, Piece, flat, plain_words, spans, split
from bridge_mcore.rewards.terms import Arithmetic
from bridge_mcore.rewards.tokens import Unreadable
from bridge_mcore.rewards.units import has_doubt, measure

#: Items in one list, rows in one matrix.
MAX_ITEMS = 100
_MAX_NESTING = 12
_RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\notin"])
_SET_SIGNS = frozenset([r"\cup", r"\cap", r"\setminus"])
_SEPARATORS = frozenset([",", ";", "and", "or", r"\lor", r"\vee", r"\wedge", r"\land"])
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_NUMERAL = re.compile(
    r"(?P<sign>-?)(?P<round>\()?(?:\\text\{)?(?P<digits>[0-9A-Za-z]+(?:,[0-9A-Za-z]{3})*(?:\.[0-9A-Za-z]+)?)\}?(?(round)\))"
    r"(?:_(?:\{\(?(?:\\text\{)? ?(?:base ?)?\}?(?P<base>\d+|[a-z]+)\}?\)?\}|(?P<b1>\d))"
    r"|(?:\\text\{ ?\(?(?:in )?| (?:in )?)base[- ]?\}?(?P<b2>\d+|[a-z]+)\)?\}?)",
    re.ASCII,
)
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES = {name: str(base) for base, name in enumerate(_BASE_NAMES.split(), 2)}
_CHOICE = re.compile(r"\(?(?P<letter>[A-J])(?P<end>\)?[.:)]?)(?P<content>.*)", re.DOTALL)
_BOLD_CHOICE = re.compile(r"\A\\(?:mathbf|boldsymbol|bm)\{([A-J])\}(?=[.:)\s]|\Z)")
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])|\b(?:or|and|not|for|if|when|unless|but|maybe)\b")
_WORDS = re.compile(r"[A-Za-z][A-Za-z .'-]*")
_REALS = {r"\mathbb{R}", r"\mathbbR", r"\R", "all real numbers", "all reals", "all real x", "real numbers"}
_SOME_REALS = re.compile(
    r"\\mathbb ?\{?R\}?(?P<marks>(?:[_^](?:\{(?:[-+*0]|(?:>|<|\\ge|\\le|\\ne) ?0)\}|[-+*0]))+)"
    r"|(?:all )?(?:the )?(?P<sign>positive|negative|non ?negative|non ?zero) real(?: number)?s"
)
_POSITIVE, _NEGATIVE = (Piece("0", r"\infty", False, False),), (Piece(r"-\infty", "0", False, False),)
_PARTS = {
    **dict.fromkeys(["^+", "_+", "_>0", "^*_+", "_+^*", "positive"], _POSITIVE),
    **dict.fromkeys(["^-", "_-", "_<0", "^*_-", "_-^*", "negative"], _NEGATIVE),
    **dict.fromkeys([r"_\ge0", "^+_0", "_0^+", "nonnegative", "non negative"], (Piece("0", r"\infty", True, False),)),
    **dict.fromkeys([r"_\le0", "^-_0", "_0^-"], (Piece(r"-\infty", "0", False, True),)),
    **dict.fromkeys(["^*", r"_\ne0", "nonzero", "non zero"], (*_NEGATIVE, *_POSITIVE)),
}
_REALS_BUT = re.compile(
    r"all real(?: numbers?| values?)?s?(?: of)?(?: \$?[a-z]\$?)?,? (?:except|excluding|other than|but)(?: for)? "
    r"(?:[a-z] ?= ?)?(?P<points>.+)",
    re.IGNORECASE,
)
_EMPTY = {
    r"\emptyset",
    r"\{\}",
    "no solution",
    "no solutions",
    "empty set",
    "there are no solutions",
    "there is no solution",
}


def read(text: str, depth: int = 0, thousands: bool = True) -> Answer:
    """The structure of the canonical ``text``.

    :raises Unreadable: it has none, or too much of it.
    """
    if depth > _MAX_NESTING or not text:
        raise Unreadable
    for _ in range(3):
        if not text.startswith("{") or not spans(text):
            break
        text = canonical(text[1:-1])
        if not text:
            raise Unreadable
    words = plain_words(text)
    if words in _EMPTY or text in _EMPTY:
        return Answer("set", text)
    if words in _REALS or text in _REALS:
        return Answer("region", text, pieces=(REALS,))
    if "eal" in text or r"\mathbb" in text:
        if found := _SOME_REALS.fullmatch(words) or _SOME_REALS.fullmatch(text):
            part = found["sign"] or re.sub(r"[{} ]", "", found["marks"])
            if part in _PARTS:
                return Answer("region", text, pieces=_PARTS[part])
        if found := _REALS_BUT.fullmatch(flat(text)):
            return Answer("region", text, pieces=tuple(complement(_points(found["points"]))))
    if depth == 0 and (choice := _choice(text)):
        return choice
    parts, separators = split(text, _SEPARATORS, thousands)
    if separators:
        return _list(text, parts, separators, depth)
    parts, unions = split(text, _SET_SIGNS)
    if unions:
        return _union(text, parts, unions, depth)
    parts, signs = split(text, _RELATIONS)
    if signs:
        return _relation(text, parts, signs, depth)
    if found := _NUMERAL.fullmatch(text):
        base = found["base"] or found["b1"] or found["b2"]
        base = _BASES.get(base, base)
        # `AB_{16}`; of one letter with an index it would be a variable
        letters = found["digits"].isupper() and (found["round"] or len(found["digits"]) > 1) and base > "10"
        shown = any(digit.isdigit() for digit in found["digits"]) or (letters and len(base) == 2)
        if base.isdigit() and shown and 2 <= int(base[:4]) <= 36:
            digits = found["digits"].replace(",", "").upper().lstrip("0")
            return Answer("numeral", found["sign"] + digits, label=base)
    if found := _MATRIX.fullmatch(text):
        return _matrix(text, found, depth)
    if (at := text.find(r"\begin{")) > 0 and (found := _MATRIX.fullmatch(text, at)):
        return _scaled(text, text[:at], _matrix(text, found, depth))
    if bracketed := _bracketed(text, depth):
        return bracketed
    if time := read_time(text):
        return time
    parts, colons = split(text, frozenset([":"]))
    if colons and all(parts):
        return Answer("ratio", text, tuple(Answer("value", part) for part in parts))
    if _is_words(text, words):
        return Answer("words", text)
    return Answer("value", text)


def _is_words(text: str, words: str) -> bool:
    if not _WORDS.fullmatch(flat(text)):
        return False
    return text.startswith(r"\text{") or any(len(word) > 3 for word in words.split()) or words in ("yes", "no", "odd")


def _choice(text: str) -> Answer | None:
    r"""``C``, ``(C)``, ``C.``, ``(C) 12``: a letter, committed to, with perhaps the text of that choice."""
    text = flat(_BOLD_CHOICE.sub(r"\1", text))
    found = _CHOICE.fullmatch(text)
    if found is None or (text.startswith("(") != found["end"].startswith(")") and found["end"] != ")"):
        return None
    content = found["content"].strip()
    if content:
        if (
            not found["end"]
            or content[0] in ",;+*/^_=<>!)"
            or content.startswith(r"\approx")
            or _OTHER_CHOICE.search(content)
        ):
            return None
        if not _is_content(content):
            return None
    return Answer("choice", content, label=found["letter"])


def _is_content(content: str) -> bool:
    """One answer, which may follow the letter of its choice."""
    try:
        inner = read(canonical(content), 1)
    except Unreadable:
        return False
    if inner.kind != "value":
        return inner.kind in ("words", "tuple", "region", "set", "ratio") and not has_doubt(content)
    value = measure(inner.text)
    try:
        return value is not None and read_formula(value.value, Arithmetic()) is not None
    except (Unreadable, TooHard):
        return False


def _list(text: str, parts: list[str], separators: list[str], depth: int) -> Answer:
    # `2, 3, and 4` has an empty part between its two separators
    parts = [part for part in parts if part]
    if not parts or len(parts) > MAX_ITEMS:
        raise Unreadable
    items = tuple(read(part, depth + 1) for part in parts)
    if len(items) == 1:
        if "or" in separators or "and" in separators:
            raise Unreadable
        return items[0]
    if region := as_condition(text, items, set(separators)):
        return region
    return Answer("list", text, items)


def _union(text: str, parts: list[str], signs: list[str], depth: int) -> Answer:
    """From left to right: unions, intersections, and differences."""
    if {r"\cup", r"\cap"} <= set(signs):
        raise Unreadable  # which of them binds first is not said
    read_parts = [read(part, depth + 1) for part in parts]
    if set(signs) == {r"\cup"} and all(item.kind == "set" for item in read_parts):
        return Answer("set", text, tuple(one for item in read_parts for one in item.items))
    label = next((item.label for item in read_parts if item.label), "")
    pieces = pieces_of(read_parts[0])
    for item, sign in zip(read_parts[1:], signs, strict=True):
        if sign == r"\cup":
            pieces = [*pieces, *pieces_of(item)]
        else:
            pieces = intersection(pieces, pieces_of(item) if sign == r"\cap" else complement(pieces_of(item)))
    return Answer("region", text, pieces=tuple(pieces), label=label)


def _points(text: str) -> list[Piece]:
    """``1 and 6``, ``\\pm 1``, ``\\{1,6\\}`` as points."""
    found = read(canonical(text), 1)
    items = found.items if found.kind in ("list", "set") else (found,)
    texts = [item.text for item in items]
    if any(item.kind != "value" for item in items):
        raise Unreadable
    if len(texts) == 1 and texts[0].startswith(r"\pm"):
        texts = [sign + texts[0].removeprefix(r"\pm").strip() for sign in ("-", "")]
    return [point(one) for one in texts]


def _relation(text: str, parts: list[str], signs: list[str], depth: int) -> Answer:
    if len(parts) > 6 or not parts[-1]:
        raise Unreadable
    if not parts[0]:
        if signs != [r"\approx"]:
            raise Unreadable
        return read(parts[1], depth + 1)
    if r"\in" in signs or r"\notin" in signs:
        if len(signs) != 1 or not is_name(parts[0]):
            raise Unreadable
        inner = read(parts[1], depth + 1)
        if signs == [r"\notin"]:
            return Answer("region", text, pieces=tuple(complement(pieces_of(inner))), label=parts[0])
        if inner.kind == "tuple":
            inner = as_region(inner)
        return Answer(inner.kind, text, inner.items, inner.signs, inner.pieces, label=parts[0])
    if all(sign in ("<", ">", r"\le", r"\ge") for sign in signs) and (pieces := _inequality(parts, signs)):
        return Answer("region", text, pieces=(pieces[1],), label=pieces[0])
    if signs == [r"\ne"] and is_name(parts[0]):
        return Answer("region", text, pieces=tuple(complement(_points(parts[1]))), label=parts[0])
    items = tuple(read(part, depth + 1) for part in parts)
    return Answer("relation", text, items, tuple(signs))


def _inequality(parts: list[str], signs: list[str]) -> tuple[str, Piece] | None:
    """The variable and interval of ``x > 1``, ``1 < x`` and ``1 < x \\le 2``."""
    names = [i for i, part in enumerate(parts) if is_name(part)]
    if len(names) != 1 or len(parts) > 3 or (len(parts) == 3 and names != [1]):
        return None
    if any(sign in (">", r"\ge") for sign in signs):
        if any(sign in ("<", r"\le") for sign in signs):
            return None
        turned = {">": "<", r"\ge": r"\le"}
        parts, signs = parts[::-1], [turned[sign] for sign in signs[::-1]]
    at = parts.index(parts[names[0]] if len(parts) == 3 else next(part for part in parts if is_name(part)))
    low, high = (parts[at - 1] if at else r"-\infty"), (parts[at + 1] if at + 1 < len(parts) else r"\infty")
    closed_low = at > 0 and signs[at - 1] == r"\le"
    closed_high = at < len(signs) and signs[at] == r"\le"
    if re.search(r"(?<![A-Za-z\\])[A-Za-df-hj-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", low + " " + high)):
        return None  # x < y has no ends that are numbers
    return parts[at], Piece(low, high, closed_low, closed_high)


def _matrix(text: str, found: re.Match[str], depth: int) -> Answer:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
    if not rows or len(rows) > MAX_ITEMS or r"\begin" in found[2]:
        raise Unreadable
    items = []
    for row in rows:
        cells = row.split("&")
        if len(cells) > MAX_ITEMS:
            raise Unreadable
        items.append(Answer("tuple", row, tuple(read(cell.strip(), depth + 1) for cell in cells)))
    # vertical bars make it a determinant
    return Answer("matrix", text, tuple(items), label="|" if found[1][0] in "vV" else "")


def _scaled(text: str, scale: str, matrix: Answer) -> Answer:
    """A matrix times a number, entry by entry.

    :raises Unreadable: it is no number, or the matrix a determinant.
    """
    scale = scale.strip().removesuffix(r"\cdot").rstrip("* ")
    scale = "-1" if scale == "-" else scale
    try:
        read_formula(scale, Arithmetic())
    except TooHard as error:
        raise Unreadable from error
    if matrix.label or any(cell.kind != "value" for row in matrix.items for cell in row.items):
        raise Unreadable

    def times(cell: Answer) -> Answer:
        one, other = number(scale), number(cell.text)
        if one is None or other is None:
            return Answer("value", f"({scale})({cell.text})")
        value = one * other
        return Answer("value", rf"\frac{{{value.numerator}}}{{{value.denominator}}}")

    rows = tuple(Answer("tuple", row.text, tuple(times(cell) for cell in row.items)) for row in matrix.items)
    return Answer("matrix", text, rows)


_BUILDER = re.compile(r"(?P<name>[a-z])(?:\\in ?\\mathbb\{R\}|\\in ?\\mathbb ?R)?(?:\\mid|\||:)(?P<condition>.*)")


def _bracketed(text: str, depth: int) -> Answer | None:
    """A set, tuple or interval, if the first bracket of ``text`` closes at its end."""
    opening = next((mark for mark in (r"\{", r"\langle", "(", "[", "{") if text.startswith(mark)), None)
    closing = next((mark for mark in (r"\}", r"\rangle", ")", "]", "}") if text.endswith(mark)), None)
    if opening is None or closing is None or not spans(text):
        return None
    inner = text[len(opening) : -len(closing)].strip()
    if opening == r"\{" and (builder := _BUILDER.fullmatch(inner)):
        region = read(builder["condition"], depth + 1)
        if region.kind != "region" or region.label != builder["name"]:
            raise Unreadable
        return region
    if opening == r"\{" and ("|" in inner or ":" in inner or r"\mid" in inner):
        raise Unreadable
    if (opening, closing) == ("(", ")") and not split(inner, _SEPARATORS, False)[1]:
        return read(inner, depth + 1)
    parts, separators = split(inner, _SEPARATORS, ";" in inner)
    if any(sign in ("or", r"\lor", r"\vee") for sign in separators) or not all(parts) or len(parts) > MAX_ITEMS:
        raise Unreadable
    items = tuple(read(part, depth + 1) for part in parts)
    if opening in (r"\{", "{"):
        if closing not in (r"\}", "}"):
            raise Unreadable
        return Answer("set", text, items)
    if opening == r"\langle":
        return Answer("tuple", text, items)
    if (opening, closing) == ("(", ")"):
        return Answer("tuple", text, items)
    if len(items) == 2:
        low, high = (item.text for item in items)
        return Answer("region", text, pieces=(Piece(low, high, opening == "[", closing == "]"),))
    if (opening, closing) == ("[", "]") and len(items) == 1:
        return None
    if (opening, closing) == ("[", "]"):
        return Answer("tuple", text, items)
    raise Unreadable
