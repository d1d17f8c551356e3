"""Whether two spellings of a problem ask the same thing: only words that carry no mathematics may differ.

A ratio alone does not tell: of the pairs of different MATH problems that are more than 0.9 alike, most differ in one
number, one point's name, "distinguishable" for "indistinguishable", or where a "not" stands. So what differs is looked
at token by token, in place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from bridge_mcore.data.prepare.text import digest

#: Words that may come, go or stand for each other. Not among them: or, not, only, exactly, any, above, between, …
_WORDING_TEXT = """
    a an the this that these those it its there here such following given
    of in on at to for from by with as about
    is are was were be been being am has have had do does did can could will would shall should might
    and so then thus hence therefore also too
    if when where while which who whose what whats s how
    find determine compute calculate evaluate solve obtain get show give tell work out figure state
    let suppose assume consider say denote denotes denoted define defined call called know known
    we us you your i me my our one they their them he she his her him
    value values answer answers result expression problem question please
    satisfy satisfies satisfying satisfied hold holds holding make makes making take takes
    equal equals equation form written expressed express possible respectively simplify simplified
    help need needs want wants try trying explain ask asks asked thanks thank hello hi everyone someone anyone
"""
_WORDING = frozenset(_WORDING_TEXT.split())
#: Words of one line say the same.
_SYNONYMS = {
    word: line.split()[0]
    for line in """
        largest greatest biggest maximum maximal highest
        smallest least minimum minimal lowest
        0 zero
        2 two
        3 three
        4 four
        5 five
        6 six
        7 seven
        8 eight
        9 nine
        10 ten
        12 twelve
        100 hundred
        1000 thousand
        circ degree degrees \\circ
        percent \\%
        dollar dollars
        solution solutions root roots
        many number count
        ways way
        chosen selected picked
        choose select pick
    """.strip().splitlines()
    for word in line.split()
}
#: A request for a form of the answer, without a number (rounding changes the answer).
_REQUEST = re.compile(
    r"(?:please\s+)?(?:express|give|write|enter|leave|state|provide)\s+(?:your|the)\s+(?:final\s+)?answers?\b[^.\d$\\]*(?:\.|$)",
    re.IGNORECASE,
)
_ENDINGS = ("s", "es", "d", "ed", "ing", "ly", "al")


def without_request(text: str) -> str:
    """A problem without "Express your answer as a common fraction." and the like, unless that is all there is."""
    return _REQUEST.sub(" ", text).strip() or text


def hard_tokens(form: Sequence[str]) -> bytes:
    """A digest of the numbers, variables, operators and commands: equal wherever :func:`same_question` says yes."""
    known = sorted(_SYNONYMS.get(token, token) for token in form if token not in _WORDING)
    return digest(" ".join(token for token in known if len(token) == 1 or not token.isalpha()))


def same_question(one: Sequence[str], other: Sequence[str], matcher: SequenceMatcher[str]) -> bool:
    """Whether what differs between two token lists is wording only; `matcher` compares the one with the other."""
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            continue
        left = [token for token in one[i1:i2] if token not in _WORDING]
        right = [token for token in other[j1:j2] if token not in _WORDING]
        if len(left) != len(right) or not all(map(_same_word, left, right)):
            return False
    return True


def _same_word(one: str, other: str) -> bool:
    """The same word inflected, misspelt by one letter, or a synonym. Numbers, variables and commands only equal."""
    if one == other or _SYNONYMS.get(one, one) == _SYNONYMS.get(other, other):
        return True
    if not (one.isalpha() and other.isalpha() and min(len(one), len(other)) > 2):
        return False
    short, long = sorted((one, other), key=len)
    if long.startswith(short) and long[len(short) :] in _ENDINGS and len(short) > 3:
        return True
    if len(short) > 4 and short[:-1] == long[: len(short) - 1] and long[len(short) - 1 :] in ("ing", "ed", "ies"):
        return True  # dividing, divide
    return len(short) > 5 and one[:3] == other[:3] and not _in_order(one) and _one_slip(short, long)


def _in_order(word: str) -> bool:
    """Names of polygons: ABCDEF."""
    return list(word) == sorted(word)


def _one_slip(short: str, long: str) -> bool:
    """One letter is missing, too many, another one, or two neighbours are swapped."""
    start = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(long) - len(short) == 1:
        return short[start:] == long[start + 1 :]
    if len(long) != len(short):
        return False
    swapped = short[start : start + 2] == long[start : start + 2][::-1] and short[start + 2 :] == long[start + 2 :]
    return swapped or short[start + 1 :] == long[start + 1 :]
