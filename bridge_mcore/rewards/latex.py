r"""LaTeX that prints the same, in one spelling: what only changes the look goes, other notations become the usual one.

Every rule here is about how an answer is written. None may change what it says, nor take away what a reader sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_SIZES = "tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
_NOTHING = (
    f"{_SIZES}|scriptstyle|scriptscriptstyle|limits|nolimits|bfseries|itshape|rmfamily|centering|noindent|par|null|relax"
    r"|strut|mathstrut|mathopen|mathclose|mathpunct|nonumber|notag|allowbreak|nobreak|hfill|protect|boldmath"
)
_SPACE_NAMES = "enspace|enskip|thinspace|medspace|thickspace|negthinspace|negmedspace|negthickspace|newline|space"
_LENGTH = r"-?\s*\d*\.?\d+\s*(?:pt|em|ex|mu|cm|mm|in)"
#: Commands around a content that they only dress.
_DRESS = (
    "mathsf|mathtt|mathit|mathnormal|ensuremath|underline|uline|fbox|framebox|mathord|mathop|mathbin|mathrel"
    f"|mathopen|mathclose|mathinner|smash|underbrace|overbrace|{_SIZES}"
)
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_DRESSED = re.compile(rf"\\(?:{_DRESS})\s*\{{((?:[^{{}}]|{_GROUP})*)\}}")
_BOLD = re.compile(rf"\\(?:mathbf|boldsymbol|bm|pmb)\s*\{{((?:[^{{}}]|{_GROUP})*)\}}")
#: A letter in bold may be a vector; a number or a formula in bold is only bold.
_BOLD_NAME = re.compile(r"\s*(?!\\pi\s*\Z)(?:\\?[A-Za-z]+|\\(?:hat|vec|bar)\s*\{?\\?[A-Za-z]+\}?)\s*")
_INFIX = re.compile(r"\{((?:[^{}]|" + _GROUP + r")*?)\\(over|choose|atop)(?![A-Za-z])((?:[^{}]|" + _GROUP + r")*)\}")
_BARE_INFIX = re.compile(r"\(?\s*(\d+|[a-z])\s*\\(over|choose)\s*(\d+|[a-z])\s*\)?")
#: What may follow a command in braces of its own: `\cmd{...}`.
_RARE = re.compile(
    rf"\\(?:{_NOTHING}|{_SPACE_NAMES}|{_DRESS}|mathbf|boldsymbol|bm|pmb|[hv]?phantom|[hv]space|[hm]?skip|m?kern|mskip"
    r"|textcolor|color|colorbox|fcolorbox|over|choose|atop|textsf|texttt|textsc|textsl|textmd|emph|hbox|middle|m(?:left|right)"
    r"|nicefrac|sfrac|flatfrac|degrees?|textdegree|ang|leqq|geqq|lbrack|rbrack|dot|bar|overset|overline|label|tag"
    r"|[pbBvV]?matrix|begin|hline|cr|bmod|coloneqq|vcentcolon|equiv|rm|bf|it|sf|tt|mapsto|[ij]math|hat|vec|widehat)(?![A-Za-z])"
    r"|\\\\\s*\Z|\A\s*\\\\|\A\s*<|:=|\{\}\s*\^|(?<!\\)\\\Z|\\text\{\s*\^|\d\s*\\circ|\\math(?:bb|cal|frak|scr)\s*\{\d"
    r"|[)\]]\s*(?:-|\\backslash|\\smallsetminus)\s*\\\{|\(\s*[a-z]\s*\\ne|\{\s*(?:with|but|where)\s*\}"
    r"|\\(?:text|mathrm)\{\s*o\s*\}|[_^]\{?(?:\d{1,4}|[a-z])\}?\s*C_|\b(?:np|numpy|math)\.|\^\s*\{?\s*(?:\\text\{)?o|\.\d*\(\d|\{:\}|[\]\[]"
)
_RULES: list[_Rule] = [
    (re.compile(r"\\(?:label|tag\*?)\s*\{[^{}]*\}|\\hline(?![A-Za-z])"), ""),
    # A hidden number would be a second answer; anything else that is hidden only makes room.
    (re.compile(r"\\[hv]?phantom\s*(?:\{[^{}1-9]*\}|-)"), ""),
    (re.compile(r"\b(?:np|numpy|math)\.(?=[a-z])"), ""),
    (re.compile(r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:hskip|mskip|m?kern)\s*" + _LENGTH), " "),
    (re.compile(r"\\(?:textcolor|colorbox)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}"), ""),
    (re.compile(r"\\(?:textsf|texttt|textsc|textsl|textmd|emph|hbox)\s*\{"), r"\\text{"),
    (re.compile(rf"\\(?:{_SPACE_NAMES})(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:middle|mleft|mright)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\(?:nicefrac|sfrac|flatfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\leqq(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\geqq(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\lbrack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\{:\}"), ":"),
    (re.compile(r"(?<!\\)\{\}(?=\s*\^)|(?<!\\)\\\Z"), ""),
    (re.compile(r"\\text\{\s*\^\\circ\s*\}|(?<=\d)\s*\\circ(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\math(?:bb|cal|frak|scr)\s*\{(\d[\d.,]*)\}"), r"\1"),
    (re.compile(r"(?<=[)\]])\s*(?:-|\\backslash|\\smallsetminus)\s*(?=\\\{)"), r"\\setminus "),
    (re.compile(r"\s*\(\s*([a-z]\s*\\ne(?:q)?(?![A-Za-z])[^()]*)\)\s*\Z"), r",\1"),
    (re.compile(r"\\text\{[\s,]*(?:with|but|where)\s*\}(?=\s*[a-z]\s*\\ne)"), ","),
    (re.compile(r"(?:\{\})?[_^]\{?(\d+|[a-z])\}?\s*C_\{?(\d+|[a-z])\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\{\s*\\(?:rm|bf|it|sf|tt)\s+([A-Za-z. ]+)\}"), r"\\text{\1}"),
    (re.compile(r"\\(?:rm|bf|it|sf|tt)(?![A-Za-z{])\s*(?!\{)"), ""),
    (re.compile(r"\A\s*<([^<>=]+,[^<>=]+)>\s*\Z"), r"\\langle \1\\rangle"),
    (re.compile(r"\\([ij])math(?![A-Za-z])"), r"\1"),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm|hat|vec|widehat)\s*\{\s*\\(?:mathbf|boldsymbol|bm|hat|vec|widehat)\s*\{?\s*([ijk])"
                r"\s*\}?\s*\}"), r"\\hat{\1}"),
    (re.compile(r"\\ang\s*\{([^{}]*)\}"), r"\1^\\circ "),
    (re.compile(r"\^\s*(?:\{\s*)?\\(?:degrees?|textdegree)(?![A-Za-z])(?:\s*\})?|\\(?:degrees?|textdegree)(?![A-Za-z])"),
     r"^\\circ "),
    (re.compile(r"(?<=[\d)}])\s*\^\s*(?:\{\s*o\s*\}|\{?\s*\\(?:text|mathrm)\{\s*o\s*\}\s*\}?|o)(?![A-Za-z])"),
     r"^\\circ "),
    (re.compile(r":=|\\coloneqq(?![A-Za-z])|\\vcentcolon\s*="), "="),
    (re.compile(r"(?:[a-zA-Z]\s*:\s*)?(?<![A-Za-z\\])([a-zA-Z])\s*\\mapsto(?![A-Za-z])\s*"), r"f(\1)="),
    (re.compile(r"\\pmatrix\s*\{(.*)\}", re.DOTALL), r"\\begin{pmatrix}\1\\end{pmatrix}"),
    (re.compile(r"\\bmatrix\s*\{(.*)\}", re.DOTALL), r"\\begin{bmatrix}\1\\end{bmatrix}"),
    (re.compile(r"\\cr(?![A-Za-z])"), r"\\\\"),
    (re.compile(r"\\begin\{([pbBvV]?)(?:small)?matrix\*?\}(?:\[[lcr]\])?"), r"\\begin{\1matrix}"),
    (re.compile(r"\\end\{([pbBvV]?)(?:small)?matrix\*?\}"), r"\\end{\1matrix}"),
    (re.compile(r"\A\s*\\begin\{(aligned|gathered|split|(?:align|gather|equation)\*?)\}((?:[^&\\]|\\[^\\])*)\\end\{\1\}\s*\Z"),
     r"\2"),
    (re.compile(r"\\begin\{array\}\s*(?:\[[tcb]\])?\s*\{(?:[^{}]|\{[^{}]*\})*\}"), r"\\begin{array}"),
    (re.compile(r"\A\s*(?:\\\\\s*)+|(?:\\\\\s*)+\Z"), ""),
]  # fmt: skip
_NOTHING_RULE = re.compile(rf"\\(?:{_NOTHING})(?![A-Za-z])\s*")

#: A matrix as programs print it: `[[1, 2], [3, 4]]`.
_ROWS = re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]")
_ROW = re.compile(r"\[([^\[\]]*)\]")
_BRACKETED_MATRIX = re.compile(
    r"(?P<open>\(|\[|\\\{|\|)\s*\\begin\{(?:matrix|array)\}(?P<inside>(?:(?!\\begin\{|\\end\{).)*)"
    r"\\end\{(?:matrix|array)\}\s*(?P<close>\)|\]|\\\}|\|)",
    re.DOTALL,
)
_FENCES = {"()": "p", "[]": "b", r"\{\}": "B", "||": "v"}

#: `f(x) \\equiv 0` says of a function what = says; between numbers it is a congruence.
_IDENTITY = re.compile(r"(?<=\))\s*\\equiv(?![A-Za-z])")

_DOT = r"(?:\\dot\s*(?:\{\s*(?:\d)\s*\}|\d)|\\overset\s*\{\s*\.\s*\}\s*\{\s*\d\s*\})"
_FRONT = r"(?<![\d.])(?P<front>\d*\.\d*)"  # each numeral is tried once, from its beginning
_DOTTED = re.compile(rf"{_FRONT}(?P<first>{_DOT})(?:(?P<between>(?:\d|{_DOT})*)(?P<last>{_DOT}))?")
_BAR = re.compile(
    rf"{_FRONT}\s*(?P<brace>\{{\s*)?\\(?:overline|bar|widebar)\s*"
    r"(?:\{\s*(?P<group>\d+)\s*\}|(?P<one>\d))(?(brace)\s*\})"
)
_ROUND = re.compile(r"(?<![\w.)}])(?P<front>\d*\.\d*)\((?P<period>\d+)\)(?=\s*(?:[,;)}\]%]|\\%|\\text|\\\}|\Z))")

#: Intervals as they are written in French: an end that is left out has its bracket turned outwards.
_OUTWARD = re.compile(
    r"(?P<open>[\[\]])\s*(?P<low>[^\[\],;]+?)\s*(?P<comma>[,;])\s*(?P<high>[^\[\],;]+?)\s*(?P<close>[\[\]])"
    r"(?=\s*(?:\Z|[,;)}]|\\(?:cup|cap|setminus|text|\})|and|or))"
)

_BEFORE_INTERVAL = re.compile(r"(?:\A|\\(?:cup|cap|in|notin|setminus)|[=,;({|:]|\b(?:and|or)\b|\})\s*\Z")
_BETWEEN_INTERVALS = re.compile(r"\\(?:cup|cap|setminus)|[=<>]")


def plain_latex(text: str) -> str:
    """``text`` without what only dresses it, and with rare notations in the usual one."""
    if _RARE.search(text) is None:
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    for _ in range(8):  # dress over dress; a bound, since each turn costs the length of the text
        before = text
        text = _DRESSED.sub(r"{\1}", text)
        text = _NOTHING_RULE.sub("", text)
        text = _BOLD.sub(lambda found: found[0] if _BOLD_NAME.fullmatch(found[1]) else "{" + found[1] + "}", text)
        if any(command in text for command in ("\\over", "\\choose", "\\atop")):
            text = _INFIX.sub(_quotient, text)
        if text == before:
            break
    if whole := _ROWS.fullmatch(text.strip()):
        text = (
            r"\begin{bmatrix}" + r"\\".join(row.replace(",", "&") for row in _ROW.findall(whole[1])) + r"\end{bmatrix}"
        )
    if whole := _BARE_INFIX.fullmatch(text.strip()):
        text = _quotient(whole)
    if r"\equiv" in text and "mod" not in text:
        text = _IDENTITY.sub("=", text)
    text = _BRACKETED_MATRIX.sub(_matrix, text)
    if "." in text:
        text = _ROUND.sub(r"\g<front>\\overline{\g<period>}", _BAR.sub(_period, _DOTTED.sub(_dotted, text)))
    return text if r"\begin" in text else _OUTWARD.sub(_interval, text)


def _quotient(found: re.Match[str]) -> str:
    command = "frac" if found[2] == "over" else "binom"
    return rf"\{command}{{{found[1].strip()}}}{{{found[3].strip()}}}"


def _matrix(found: re.Match[str]) -> str:
    fence = _FENCES.get(found["open"] + found["close"])
    if fence is None:
        return found[0]
    return rf"\begin{{{fence}matrix}}{found['inside']}\end{{{fence}matrix}}"


def _dotted(found: re.Match[str]) -> str:
    """A period has a dot on its first and its last digit, or on each of them."""
    period = "".join(re.findall(r"\d", found["first"] + (found["between"] or "") + (found["last"] or "")))
    return found["front"] + rf"\overline{{{period}}}"


def _period(found: re.Match[str]) -> str:
    return found["front"] + rf"\overline{{{found['group'] or found['one']}}}"


def _interval(found: re.Match[str]) -> str:
    ends = found["low"] + found["high"]
    is_whole = _BEFORE_INTERVAL.search(found.string[: found.start()]) and not _BETWEEN_INTERVALS.search(ends)
    if (found["open"], found["close"]) == ("[", "]") or not is_whole or ends.count("(") != ends.count(")"):
        return found[0]
    opening, closing = ("[" if found["open"] == "[" else "("), ("]" if found["close"] == "]" else ")")
    return f"{opening}{found['low']}{found['comma']}{found['high']}{closing}"
