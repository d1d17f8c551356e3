r"""What may stand left of the ``=`` of an answer."""

from __future__ import annotations

import re

_NO_NAMES = "frac|sqrt|pi|infty|text|pm|mp|log|ln|sin|cos|tan|binom"
_MARKED = "mathbf|boldsymbol|bm|mathcal|mathbb|mathfrak|vec|overrightarrow|hat|widehat|bar|tilde|dot|ddot"
_ONE = r"(?:[A-Za-z]|\\(?!pi\b|infty)[A-Za-z]+)(?:_(?:\{\w+\}|\w))?"
_NAME = re.compile(
    rf"(?:\\overline\{{[A-Z ]+\}}|\\(?:{_MARKED})\{{(?:\\(?:{_MARKED})\{{[A-Za-z ]+\}}|\\?[A-Za-z ]+)\}}"
    r"|(?:\\(?:gcd|lcm)|\\text\{[^{}]*\})\(-?\d+(?:,-?\d+)+\)|\|[A-Z]\|"
    rf"|\\(?!{_NO_NAMES})[A-Za-z]+(?![A-Za-z])|[A-Za-z]|_(?:\{{[^{{}}]*\}}|\w)|'"
    r"|\^\{?\\prime\}?"
    rf"|\((?:{_ONE}(?:,{_ONE})*|-?\d+)\)|\\text\{{[^{{}}]*\}}| )+"
)


_MATRIX_NAME = re.compile(r"\^(?:\{(?:-1|\\?top|T|t|\\?prime|\*|\d)\}|\\top|[Tt*\d])\Z")


def is_name(text: str) -> bool:
    """``x``, ``AB``, ``f(x)``, ``\\angle ABC``, ``m_{\\max}``, ``(x, y)``: what stands left of the = of an answer."""
    return len(text) <= 60 and _NAME.fullmatch(text) is not None and text not in ("e", "i")


def is_matrix_name(text: str) -> bool:
    """``A``, ``A^{-1}``, ``\\mathbf{M}^T``: what may stand left of the = of a matrix."""
    return is_name(_MATRIX_NAME.sub("", text)) and not text[:1].islower()
