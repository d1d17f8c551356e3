r"""One spelling for problems that are written in many: what "normalised text" means in pairing and decontamination.

Two problems have the same normal form if they differ only in

* Unicode (NFKC; minus signs, quotes, Greek letters, superscripts and the common signs become ASCII or LaTeX),
* letter case, white space, line breaks, the punctuation of prose,
* how formulas are delimited and laid out: `$…$`, `\(…\)`, `\left`, `\,`, `\displaystyle`, `\dfrac` for `\frac`,
  `\cdot` and `\times` for `*`, braces around one token, `\text{…}`, thousands separators in numbers.

What carries meaning stays: every number, variable, operator, command, bracket, prime and factorial, in order. Groups of
several tokens keep brackets, so that `x^{2n}` is not `x^2 n`. Products of variables are one token a letter. The form is
a list of tokens; joined with spaces it is text that can be compared and hashed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from itertools import zip_longest

#: Before NFKC, which would turn x² into x2.
_SIGNS = str.maketrans(
    {sign: f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {sign: f"_{digit}" for digit, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
    | dict.fromkeys("−–—‐‑‒", "-")
    | dict.fromkeys("’‘′`´", "'")
    | dict.fromkeys("“”„«»", '"')
    | dict.fromkeys("×·∙⋅*", r" \times ")
    | {"÷": r" \div ", "⁄": "/", "…": "...", "⋯": "...", "°": r" \circ ", "√": r" \sqrt "}
    | {"≤": r" \le ", "≥": r" \ge ", "≠": r" \ne ", "±": r" \pm ", "∞": r" \infty ", "∈": r" \in "}
    | {"π": r" \pi ", "α": r" \alpha ", "β": r" \beta ", "γ": r" \gamma ", "δ": r" \delta ", "ε": r" \epsilon "}
    | {"θ": r" \theta ", "λ": r" \lambda ", "μ": r" \mu ", "σ": r" \sigma ", "φ": r" \phi ", "ω": r" \omega "}
    | {"∠": r" \angle ", "△": r" \triangle ", "∑": r" \sum ", "∏": r" \prod ", "∫": r" \int ", "→": r" \to "}
)
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{asy\}.*?\\end\{asy\}", re.DOTALL | re.IGNORECASE)
#: Layout only: size of brackets and fractions, spacing, the ends of displayed formulas.
_LAYOUT = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|"
    r"quad|qquad|hspace\*?\{[^{}]*\}|vspace\*?\{[^{}]*\}|noindent|par|newline|hfill|phantom\{[^{}]*\}|label\{[^{}]*\}|"
    r"nonumber|notag|allowbreak|strut|mathstrut)(?![A-Za-z])|\\[,;:! ()\[\]]|\\\\(?:\[[^\]]*\])?|[~&]"
)
_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|emph|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|hbox|"
    r"operatorname\*?)(?![A-Za-z])"
)
_SAME = (
    dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), r"\frac")
    | dict.fromkeys((r"\cdot", r"\times", r"\ast"), "*")
    | dict.fromkeys((r"\leq", r"\leqslant"), r"\le")
    | dict.fromkeys((r"\geq", r"\geqslant"), r"\ge")
    | dict.fromkeys((r"\ldots", r"\dots", r"\cdots", r"\dotsc", r"\dotsb"), "...")
    | dict.fromkeys((r"\mid", r"\vert", r"\lvert", r"\rvert"), "|")
    | dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom")
    | {r"\neq": r"\ne", r"\lt": "<", r"\gt": ">", r"\div": "/", r"\rightarrow": r"\to", r"\degree": r"\circ"}
    | {r"\lbrace": r"\{", r"\rbrace": r"\}", r"\varepsilon": r"\epsilon", r"\varphi": r"\phi", r"\colon": ":"}
)
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|,\\!)(?=\d{3}(?!\d))")
_HYPHEN = re.compile(r"(?<=[A-Za-z]{2})-(?=[A-Za-z]{2})|(?<=\d)-(?=[A-Za-z]{2})|(?<=[A-Za-z]{2})-(?=\d)")
_PRIME = re.compile(r"(?<![^\W\d_])([^\W\d_])('{1,3})(?![^\W\d_'])")
_DIGITS = re.compile(r"(\\[dtc]?frac)\s*(\d)\s*(\d)")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\[{}%#$_|]|\d+(?:\.\d+)?|\.\d+|[^\W\d_]+|\.\.\.|\S")
_PROSE = frozenset((*".,;:?\"'`$", r"\$"))
_VOWEL = re.compile(r"[aeiouyà-ɏ]|[^\x00-\x7f]")
_SHORT_WORDS = "am an as at be by do go he hi if in is it me my no of oh ok on or so to up us vs we"
_SHORT = frozenset(_SHORT_WORDS.split())


def tokens(text: str, drawings: bool = True) -> list[str]:
    """The tokens of a problem's normal form; without `drawings`, Asymptote code is left out."""
    if not drawings:
        text = _DRAWING.sub(" ", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = _THOUSANDS.sub("", text)
    text = _LAYOUT.sub(" ", text)
    text = _STYLE.sub(" ", text)
    text = _DIGITS.sub(r"\1{\2}{\3}", _HYPHEN.sub(" ", text))
    text = _PRIME.sub(lambda found: found[1] + r"\prime " * len(found[2]), text)
    raw = [_SAME.get(token, token) for token in _TOKEN.findall(text)]
    return _grouped([part for token in raw for part in _parts(_spelt(token))])


def _parts(token: str) -> Iterable[str]:
    """Products of variables letter by letter, as `jx` and `j x` are the same: what is no word has no vowel, or two
    letters."""
    product = token.isalpha() and (token not in _SHORT if len(token) == 2 else not _VOWEL.search(token))
    return token if product else (token,)


def _spelt(token: str) -> str:
    if token[0] == ".":
        return f"0{token}" if token[1:].isdigit() else token
    return token if token[0] == "\\" and token[1:2].isupper() else token.lower()


def _grouped(raw: list[str]) -> list[str]:
    """Drop prose punctuation and the braces around single tokens; other braces become brackets."""
    found: list[str] = []
    opened: list[int] = []
    for position, token in enumerate(raw):
        if token == "{":
            opened.append(len(found))
            found.append("(")
        elif token == "}":
            if not opened:
                continue
            start = opened.pop()
            if len(found) - start <= 2:  # the bracket and at most one token
                del found[start]
            else:
                found.append(")")
        elif token == "!":
            # A factorial follows a number, one letter or a bracket; prose's mark follows a word.
            before = raw[position - 1] if position else ""
            if before[-1:] in (")", "}", "]", "!") or before.isdigit() or (len(before) == 1 and before.isalpha()):
                found.append("!")
        elif token not in _PROSE:
            found.append(token)
    # 30^\circ is 30°, f^\prime is f'
    marks = (r"\circ", r"\prime")
    return [t for t, after in zip_longest(found, found[1:]) if t != "^" or after not in marks]


def normal_form(text: str) -> str:
    """The normal form as text."""
    return " ".join(tokens(text))


def digest(text: str) -> bytes:
    """16 bytes that stand for a text: among a billion texts, two share theirs with a probability of 2e-21."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
