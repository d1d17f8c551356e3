r"""Are two mathematical answers the same? Math-Verify, with guards. Runs in a worker process only.

Math-Verify may take for ever or all the memory on ``9^{9^{9^9}}``; :mod:`bridge_mcore.rewards.worker` sees to that, so
its own timeouts (SIGALRM, main thread only) are off.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import sympy
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

from bridge_mcore.rewards.same import decide

logging.disable(logging.CRITICAL)  # "timeout is disabled"; stderr is closed anyway

# The box before phrases such as "final answer is", since the text is nothing but one box. No ExprExtractionConfig:
# where LaTeX fails it takes the last number it sees, so that `1, 2, 5?` would be a right answer for 5.
_READ = (LatexExtractionConfig(boxed_match_priority=0),)
_LIMITS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit)
#: Term multiplications of the exact arithmetic: more than in the trainer's process, since this one can be killed.
_WORK = 2_000_000


def equivalent(job: list[Any]) -> dict[str, Any]:
    """``{"equal": bool, "note": str}`` for ``[gold, answer, tolerance]``; a missing tolerance is 0.

    The texts are :func:`~bridge_mcore.rewards.exact.clean`. For ``[[[gold, answer], ...], tolerance]``, the share of a
    large batch, ``{"decisions": [[True | False | None, note], ...]}``, decided without Math-Verify.
    """
    if isinstance(job[0], list):
        return {"decisions": [decide(gold, answer, tolerance=job[1]) for gold, answer in job[0]]}
    gold, answer, *rest = job
    decision, note = decide(gold, answer, oracle=math_verify, tolerance=rest[0] if rest else 0.0, work=_WORK)
    return {"equal": decision is True, "note": note}


def math_verify(gold: str, answer: str) -> bool:
    """Whether two formulas are equal according to Math-Verify, less what it rounds."""
    one, other = _parse(gold), _parse(answer)
    if not _expressions(one) or not _expressions(other):
        return False
    if not _verify(one, other) and not _verify_with_imaginary_unit(one, other):
        return False
    return not _is_approximation(one, other) and not _differ_relatively(one, other)


def warm_up() -> None:
    """Compile the grammar's tables and the regular expressions."""
    math_verify(r"\frac{x^2}{2}+\sqrt{3}", r"0.5x^2+\sqrt3")


def _parse(text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", extraction_config=_READ, parsing_timeout=None)


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    # allow_set_relation_comp: 1 < x < 2 is the interval (1, 2)
    if verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None):
        return True
    # Against a lone variable Math-Verify compares spellings only, and finds that 2x/2 is not x.
    return any(
        isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr) and sympy.simplify(a - b).is_zero is True
        for a, b in itertools.product(gold, answer)
        if isinstance(a, sympy.Symbol) or isinstance(b, sympy.Symbol)
    )


def _expressions(parsed: list[Any]) -> list[Any]:
    return [item for item in parsed if not isinstance(item, str)]


def _verify_with_imaginary_unit(gold: list[Any], answer: list[Any]) -> bool:
    """Once more with the letter i as the imaginary unit: Math-Verify takes that of e^{i\\pi} for a variable."""
    if not any(_is_i(symbol) for item in _expressions(gold + answer) for symbol in item.atoms(sympy.Symbol)):
        return False
    one, other = (
        [_replace(item, lambda atom: sympy.I if _is_i(atom) else atom) for item in _expressions(parsed)]
        for parsed in (gold, answer)
    )
    return _verify(one, other)


def _is_i(atom: Any) -> bool:
    return isinstance(atom, sympy.Symbol) and atom.name == "i"


def _is_approximation(gold: list[Any], answer: list[Any]) -> bool:
    """The gold answer is exact, the given one has decimals, and taken at their word these are not equal to it.

    Math-Verify compares decimals after rounding to six places.
    """
    gold, answer = _expressions(gold), _expressions(answer)
    if any(item.atoms(sympy.Float) for item in gold) or not any(item.atoms(sympy.Float) for item in answer):
        return False
    return not _verify(gold, [_replace(item, _exact) for item in answer])


def _differ_relatively(gold: list[Any], answer: list[Any]) -> bool:
    """Math-Verify rounds to six places, to which 1e-8 and 2e-8 are equal."""
    for one, other in itertools.product(_expressions(gold), _expressions(answer)):
        if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)) or one.free_symbols | other.free_symbols:
            return False
        # What has no closed form is summed up or integrated in steps, which more digits would take too long for.
        digits, near = (30, "1e-12") if (one + other).atoms(*_LIMITS) else (300, "1e-250")
        left, right = (_replace(side, _exact).evalf(digits) for side in (one, other))
        if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
            return False
        if abs(left - right) > sympy.Float(near) * abs(left):
            return True
    return False


def _exact(atom: Any) -> Any:
    return sympy.Rational(str(atom)) if isinstance(atom, sympy.Float) else atom


def _replace(item: Any, change: Any) -> Any:
    """``item`` with every atom changed; unlike xreplace, keeps the order in which a set or conjunction was written."""
    if hasattr(item, "_unsorted_args"):
        return item.func(*(_replace(part, change) for part in item._unsorted_args))
    if isinstance(item, sympy.MatrixBase):
        return item.applyfunc(lambda part: _replace(part, change))
    if isinstance(item, sympy.Tuple):
        return item.func(*(_replace(part, change) for part in item.args))
    return item.xreplace({atom: change(atom) for atom in item.atoms() if change(atom) is not atom})
