r"""Answers that equal the gold and yet are none: what the question says already, what is still to be computed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bridge_mcore.rewards.answers import read
from bridge_mcore.rewards.exact import canonical, number
from bridge_mcore.rewards.formula import read_formula
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.shape import Shape, is_unreduced, shape_of
from bridge_mcore.rewards.structure import INFINITIES, Answer
from bridge_mcore.rewards.terms import Arithmetic
from bridge_mcore.rewards.tokens import Unreadable
from bridge_mcore.rewards.values import free_of_variables, measure_value

#: What is computed: a product, sum, power, function, absolute value. Fractions, roots, decimals, units, mixed numbers
#: and powers of ten are not.
_TO_COMPUTE = re.compile(
    r"\\(?:binom|cdot|times|div|ast|sum|prod|int|lim|max|min|gcd|lcm|lfloor|lceil|lvert|det|pi|pm|mp)(?![A-Za-z])"
    r"|[!^*+|]|[\d)}]-|-\(-|--|\)\(|\)\\frac|[\d}]\(|\)\d"
)
_LETTER = re.compile(r"[A-Za-z]")
_FINISHED = re.compile(r"\\(?:frac|sqrt|overline|infty)(?![A-Za-z])")
_POWER_OF_TEN = re.compile(
    r"-?(?:\(?-?[\d.,]+\)? ?(?:\*|\\times|\\cdot) ?)?10(?:\^|\*\*)(?:\d|\{-?\d{1,3}\}|\(-?\d{1,3}\))", re.ASCII
)
_ROOT = re.compile(r"\\sqrt|\bsqrt")
_FORMULA = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[.?!:;](?:\s|\Z)")
_SIGNS = re.compile(r"=|<|>|\\(?:le|ge|ne|approx|in|equiv|text\{[^{}]*\})(?![A-Za-z])|,(?!\d{3})")
_ASKED = re.compile(
    r"\b(?:simplif|factor|expand|rewrit|express|reduc|evaluat|comput|calculat|convert|writ|multipl|combin|rationali"
    r"|what is|find the value|determine the value|perform)", re.IGNORECASE,
)  # fmt: skip
_ANOTHER_FORM = re.compile(
    r"\b(?:convert|rewrit|writ|express|chang)\w*\b(?:[^.?!]|\.(?=[\d\\])){0,300}?"
    r"\b(?:(?:as|to|into) an? |in (?:scientific|standard|exponential|decimal|fraction))"
    r"|\bprime factori[sz]ation\b",
    re.IGNORECASE,
)
_FACTOR, _EXPAND = re.compile(r"\bfactor(?:ise|ize)?\b", re.IGNORECASE), re.compile(r"\bexpand\b", re.IGNORECASE)
_MOST_FORMULAS = 60
#: What a constant is not given by, unless the gold answer is; a polar form may be.
_KINDS_TO_COMPUTE = [
    re.compile(rf"\\(?:{names})(?![A-Za-z])|(?<![A-Za-z\\])(?:{names})(?![A-Za-z])")
    for names in (
        "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|arccot|arcsec|arccsc|asin|acos|atan",
        "int",
        "sum",
        "prod",
        "lim",
        "binom",
        "lfloor|lceil",
    )
] + [re.compile("!")]
_POLAR = re.compile(r"e\^|\\exp|cis")


def why_unfinished(gold: str, answer: str, question: str, refuse: bool) -> str | None:
    """Why an answer that is equal to the gold one is none; None where it is one. Both are out of their boxes.

    refuse: what is still to be computed is wrong wherever the gold is a number, not only where it repeats the question.
    """
    gold, answer = canonical(gold), canonical(answer)
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return None
    try:
        golds, given = list(_values(read(gold))), list(_values(read(answer)))
    except (Unreadable, ValueError, RecursionError):
        return None
    numbers = bool(golds) and all(_is_number(value) for value in golds)
    if numbers and refuse and (left := next(filter(_is_to_compute, given), None)):
        return f"still to be computed: {left[:60]}"
    if not numbers and refuse and (left := _left_to_compute(golds, given, question)):
        return f"still to be computed: {left[:60]}"
    if _repeats_percent(gold, answer, question):
        return "the answer only repeats a percentage of the question"
    if len(given) == 1 and len(golds) == 1 and _repeats(golds[0], given[0], question, numbers):
        return "the answer only repeats an expression of the question"
    return None


def _values(answer: Answer) -> Iterator[str]:
    """The values that an answer is made of, without units. Of the members of ``2+3 = 5`` that which is finished."""
    if answer.kind == "value":
        yield measure_value(answer.text)
    elif answer.kind == "relation":
        members = [list(_values(item)) for item in answer.items]
        done = [values for values in members if values and all(_is_number(value) for value in values)]
        yield from done[-1] if done else members[-1]
    elif answer.kind == "region":
        yield from (end for piece in answer.pieces for end in (piece.low, piece.high))
    else:
        for item in answer.items:
            yield from _values(item)


def _is_number(value: str) -> bool:
    return value in INFINITIES or number(value) is not None


def _is_to_compute(value: str) -> bool:
    if _is_number(value) or _POWER_OF_TEN.fullmatch(value):
        return False
    rest = _FINISHED.sub("", value)
    return _TO_COMPUTE.search(value) is not None or _LETTER.search(rest) is not None


def _left_to_compute(golds: list[str], given: list[str], question: str) -> str | None:
    """The first value with something to compute that no gold has: of constants, and where a formula is to be worked
    out."""
    constant = bool(golds) and all(_is_constant(value) for value in golds)
    if not constant and not _ASKED.search(question):
        return None
    if constant:
        said = " ".join(golds)
        for kind in _KINDS_TO_COMPUTE:
            spared = kind.search(said) or _POLAR.search(said)
            if not spared and (left := next(filter(kind.search, given), None)):
                return left
    shapes = [shape_of(value) for value in golds]
    if any(shape is None or is_unreduced(shape) for shape in shapes):
        return None
    return next((value for value in given if (shape := shape_of(value)) is not None and is_unreduced(shape)), None)


def _is_constant(value: str) -> bool:
    if _is_number(value):
        return True
    try:
        return free_of_variables(read_formula(value, Arithmetic()))
    except (Unreadable, TooHard):
        return False


def _repeats_percent(gold: str, answer: str, question: str) -> bool:
    """A percentage of the question, which is to be written as something else."""
    if not answer.endswith("%") or gold.endswith("%") or not _ANOTHER_FORM.search(question[-4000:]):
        return False
    asked, given = (text.replace(" ", "").replace("\\", "").replace("$", "") for text in (question[-4000:], answer))
    return re.search(r"(?<![\d.,])" + re.escape(given), asked) is not None


def _repeats(gold: str, answer: str, question: str, is_number: bool) -> bool:
    question = question[-4000:]
    if is_number and (_is_to_compute(answer) or (not _is_number(answer) and _ROOT.search(answer))):
        spelled = canonical(question.replace("$", " ")).replace(" ", "")
        if answer.replace(" ", "") in spelled:
            return True
    shape = shape_of(answer)
    if shape is None or shape == shape_of(gold) or not _ASKED.search(question):
        return False
    if not is_number and _has_another_form(gold, shape, question):
        return True
    if _is_number(answer) and _is_reduced(answer) and not _ANOTHER_FORM.search(question):
        return False
    return any(shape == shape_of(part) for part in _expressions(question))


def _has_another_form(gold: str, shape: Shape, question: str) -> bool:
    """A sum where a product is asked for, or the other way round."""
    if isinstance(shape, tuple) and shape[:2] == ("*", "-1") and len(shape) == 3:
        shape = shape[2]
    asked, given = (one[0] if isinstance(one, tuple) else "" for one in (shape_of(gold) or "", shape))
    if _FACTOR.search(question):
        return asked in ("*", "^") and given == "+"
    return bool(_EXPAND.search(question)) and asked == "+" and given in ("*", "^")


def _is_reduced(text: str) -> bool:
    """An integer, a decimal, or a fraction in lowest terms."""
    value = number(text)
    digits = [int(part) for part in re.findall(r"\d+", text)]
    return value is not None and ("." in text or len(digits) < 2 or value.denominator in digits)


def _expressions(question: str) -> Iterator[str]:
    """The formulas of a question and their sides; without dollar signs, what stands between its words."""
    formulas = [next(filter(None, found)) for found in _FORMULA.findall(question)] or _WORD.split(question)
    for formula in formulas[:_MOST_FORMULAS]:
        formula = formula.strip(" .,?;:")
        for part in (formula, *_SIGNS.split(formula)):
            if part and part.strip():
                yield part.strip()
