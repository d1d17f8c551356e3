r"""Words around an answer that are part of the sentence, not of what it says: "The answer is", "for all real x"."""

from __future__ import annotations

import re

_HINT = re.compile(
    r"there |answer|result|solution|ans\b|forall|\\to|for (?:all|any|every|each)|\\in ?\\mathbb", re.IGNORECASE
)
_LEADING = re.compile(
    r"\s*(?P<text>\\text\{)?\s*(?:(?:so|thus|hence|therefore|then)(?:,\s*|\s+))?(?:(?:the|our|my)\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer|ans|result|solution)s?\s*(?:\(s\))?(?:is|are|=|:|\s)+(?P<close>\s*\})?\s*",
    re.IGNORECASE,
)
#: "There are 36 ways": a number, with its label.
_THERE = re.compile(r"\A\s*\\text\{\s*there (?:is|are)\s*\}\s*(?=\d[\d,.]*(?:\s*\\text|\Z))", re.IGNORECASE)
_SET = r"(?:\\mathbb ?\{?[RCQZN]\}?|\\R)(?:\^\{?[+*]\}?|_\{?[+>0-9]+\}?)?"
_VARIABLES = r"[a-zA-Z](?:\s*,\s*[a-zA-Z])*"
_JOIN = r"(?:[\s,;]|\\text\{[\s,;]*\})*"
#: For whom a formula holds. Over the reals for any formula; over other sets only where it defines a function, since
#: k \pi with k in \mathbb{N} is less than with k in \mathbb{Z}.
_FOR = r"\(?(?:\\text\{[\s,(]*|[\s,(])*(?:\\forall|for (?:all|any|every|each)|where)[\s}]*(?:\\text\{)?\s*"


def _holding_for(said: str, kinds: str, sets: str) -> re.Pattern[str]:
    words = rf"(?:(?:{kinds})s?[\s}}]*(?:of )?)*(?:{_VARIABLES})?[\s}}]*"
    member = rf"(?:(?:\\in|\\text\{{ ?in ?\}}) ?{sets})?\}}?\)?"
    return re.compile(
        rf"(?P<said>{said}){_JOIN}(?:{_FOR}{words}{member}|[,(]\s*\(?{_VARIABLES} ?\\in ?{sets}\)?)", re.DOTALL
    )


_FOR_REALS = _holding_for(r".*?\S", "real|value|number", r"(?:\\mathbb ?\{?R\}?|\\R)")
_FOR_ANY = _holding_for(
    rf"[a-zA-Z]\({_VARIABLES}\)=.*?\S", "real|positive|natural|rational|complex|integer|value|number", _SET
)

#: The same before the answer, and where a function goes from and to.
_FIRST = re.compile(
    rf"{_FOR}(?:(?:real|number|value)s?[\s}}]*)*(?:{_VARIABLES})?[\s}}]*"
    r"(?:\\in ?\\mathbb ?\{?R\}?)?[,:]\s*(?=[a-zA-Z]\()"
    rf"|[a-zA-Z] ?: ?{_SET} ?\\to ?{_SET}\s*[,;]\s*"
)


def without_phrases(text: str) -> str:
    """The canonical ``text`` without a beginning such as ``\\text{The answer is }`` and without an end such as
    ``\\text{ for all real }x``. What restricts an answer (``for x > 0``) stays."""
    if _HINT.search(text) is None or len(text) > 1000:
        return text
    if (found := _LEADING.match(text)) and bool(found["text"]) == bool(found["close"]):
        text = text[found.end() :].strip()
    text = _THERE.sub("", text, count=1)
    text = _FIRST.sub("", text, count=1) if _FIRST.match(text) else text
    for pattern in (_FOR_REALS, _FOR_ANY):
        if (found := pattern.fullmatch(text)) and _balanced(found["said"]):
            text = found["said"].strip(" ,;")
    return text


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count("(") == text.count(")")
