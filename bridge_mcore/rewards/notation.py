"""The signs and names that formulas are written with."""

from __future__ import annotations

import re

from bridge_mcore.rewards.functions import NAMED

GREEK_NAMES = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi
    varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(GREEK_NAMES.split())
PLAIN_WORDS = {*NAMED, "sqrt", "pi", *GREEK} - {"nu", "xi", "mu"}
CLOSING = {"(": ")", "[": "]", "{": "}", r"\lvert": r"\rvert", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
ROUNDED = {"|": "abs", r"\lvert": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}
TOKEN = re.compile(
    r"(?P<repeating>\d*\.\d*\\overline\{\d+\})|(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|[-+*/^_(){}\[\]|!'])",
    re.ASCII,
)
SUBSCRIPT = re.compile(
    r"\{\\text\{(?P<text>[A-Za-z0-9 ]+)\}\}|\{(?P<braced>\\?[A-Za-z0-9]+(?:[,+-][A-Za-z0-9]+)*)\}"
    r"|(?P<one>[A-Za-z0-9]|\\[A-Za-z]+)",
    re.ASCII,
)
MIXED = re.compile(r" ?\\frac(?:\{(\d+)\}|(\d))\s?(?:\{(\d+)\}|(\d))| (\d+)/(\d+)(?!\d)", re.ASCII)
ARGUMENT = re.compile(r"\(\s?(?:[A-Za-z]|\d+|\\[a-z]+)\s?\)", re.ASCII)
#: `dM/dt` is no quotient, and Math-Verify takes it for 0; in `\frac{d}{2}` the d is a variable.
DERIVATIVE = re.compile(r"\\frac ?\{ ?(?:d|\\partial)[^&]{0,60}?\}\{ ?(?:d ?(?:[A-Za-z]|\\)|\\partial)")
VARIABLE = r"\\?[A-Za-z]+(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]))?"
PLAIN_DERIVATIVE = re.compile(
    rf"\\frac ?\{{(?:d|\\partial) ?(?:\^(?:\{{\d\}}|\d) ?)?(?:{VARIABLE})?\}}"
    rf"\{{(?:d|\\partial) ?{VARIABLE}(?:\^(?:\{{\d\}}|\d))?\}}"
)
PRIMES = re.compile(r"'+|\^(?:\{\s?(?:\\prime\s?)+\}|\\prime(?![A-Za-z]))")
#: Marks on a letter that make it another variable.
ACCENTS = {
    "dot": "dot",
    "ddot": "ddot",
    "hat": "hat",
    "bar": "bar",
    "vec": "vec",
    "mathbf": "vec",
    "boldsymbol": "vec",
}
ACCENTED = re.compile(rf"\{{({VARIABLE})\}}|([A-Za-z]|\\[A-Za-z]+)")
CIRC = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])")
