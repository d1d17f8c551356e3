r"""Signs beyond ASCII as the LaTeX that they stand for; what only looks like another letter stays what it is."""

from __future__ import annotations

import re
import unicodedata

_GREEK_NAMES = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho varsigma sigma tau upsilon phi chi
    psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
"""
_GREEK = dict(zip(_GREEK_NAMES.split(), "αβγδεζηθικλμνξπρςστυφχψωΓΔΘΛΞΠΣΦΨΩ", strict=True))
_COMMANDS = {
    "times": "×✕✖⨯", "cdot": "·⋅∙•・", "pm": "±", "mp": "∓", "infty": "∞", "le": "≤≦⩽", "ge": "≥≧⩾", "ne": "≠",
    "approx": "≈", "equiv": "≡", "in": "∈", "cup": "∪⋃", "cap": "∩⋂", "setminus": "∖", "emptyset": "∅", "forall": "∀",
    "land": "∧", "lor": "∨", "langle": "⟨〈", "rangle": "⟩〉", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "mapsto": "↦", "to": "→", "notin": "∉", "sum": "∑", "prod": "∏", "int": "∫", "ell": "ℓ", "varphi": "ϕ",
    "vartheta": "ϑ", "varepsilon": "ϵ", "mid": "∣", "Omega": "Ω", "mu": "µ", "ldots": "…",
}  # fmt: skip
_PLAIN = {
    "-": "−–—―‒‐‑﹣", "/": "÷∕⁄", "*": "∗", ":": "∶", "'": "′’‘ʹ", "''": "″", '"': "“”", ",": "、", ".": "。",
    r"\mathbb{R}": "ℝ", r"\mathbb{Z}": "ℤ", r"\mathbb{N}": "ℕ", r"\mathbb{Q}": "ℚ", r"\mathbb{C}": "ℂ",
    r"^\circ ": "°º˚", r"^\circ\text{C}": "℃", r"^\circ\text{F}": "℉",
}  # fmt: skip
_TABLE = str.maketrans(
    {sign: f"\\{name} " for name, signs in (_GREEK | _COMMANDS).items() for sign in signs}
    | {sign: text for text, signs in _PLAIN.items() for sign in signs}
    | {sign: None for sign in "\u061c\u202c\u202d\u2066\u2069"}
    | {sign: None for sign in "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\ufeff\u00ad\u200e\u200f\ufe0e\ufe0f"}
)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ"
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-()ni" * 2)
_LEVELS = re.compile(f"(?P<up>[{_RAISED}]+)|(?P<down>[{_LOWERED}]+)")
#: Roots with what stands under them: a number, a letter, or what brackets hold.
_ROOT = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|(?=[({\\]))")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_DOTTED = re.compile("(\\d)\u0307")
_BARRED = re.compile("(?:\\d\u0305)+")


def to_latex(text: str) -> str:
    """``text`` with the signs that have one plain meaning in LaTeX, digits of all scripts as ASCII, and without what
    cannot be seen. Signs that turn the direction of reading stay: what they show is not what they say."""
    text = _DOTTED.sub(r"\\dot{\1}", text)
    text = _BARRED.sub(lambda found: r"\overline{" + found[0].replace("\u0305", "") + "}", text)
    text = _LEVELS.sub(_level, text)
    text = "".join(character if character.isascii() else _known(character) for character in text).translate(_TABLE)
    return _ROOT.sub(lambda found: rf"\sqrt{_DEGREES[found[1]]}" + (f"{{{found[2]}}}" if found[2] else ""), text)


def _level(found: re.Match[str]) -> str:
    text = found[0].translate(_LEVEL)
    return ("^" if found["up"] else "_") + (text if len(text) == 1 else f"{{{text}}}")


def _known(character: str) -> str:
    """Full-width forms, letters in mathematical fonts, vulgar fractions, digits and spaces of any kind."""
    if "\uff01" <= character <= "\uff5e" or "\U0001d400" <= character <= "\U0001d7ff":
        return unicodedata.normalize("NFKC", character)
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Zs":
        return " "
    if kind == "No" and (parts := unicodedata.normalize("NFKC", character).split("\u2044")) and len(parts) == 2:
        return rf"\frac{{{parts[0]}}}{{{parts[1]}}}" if parts[1] else character
    return character
