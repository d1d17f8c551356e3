r"""Random answers with others that are equal by construction or unequal by value.

An expression is a tree. Equal ones come from it by rewriting steps that hold for all values, and both are written in
random spellings. Unequal ones come from a change, and count only where their values, which mpmath computes from the
trees without the package, are clearly apart at two random points.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import mpmath

Tree = tuple[Any, ...]
Pair = tuple[str, str]
_VARIABLES = ("x", "y", "a")


def number(rng: random.Random) -> Tree:
    value = Fraction(rng.choice([-1, 1]) * rng.randrange(1, 13), rng.choice([1, 1, 1, 2, 3, 4, 5, 7]))
    return ("n", value)


def leaf(rng: random.Random, variables: bool) -> Tree:
    kind = rng.random()
    if variables and kind < 0.5:
        return ("v", rng.choice(_VARIABLES))
    if kind < 0.6:
        return ("root", ("n", Fraction(rng.randrange(2, 20))), rng.choice([2, 2, 2, 3, 5]))
    if kind < 0.66:
        return ("pi",)
    if kind < 0.72 and not variables:
        return (rng.choice(["sin", "cos"]), Fraction(rng.randrange(1, 60) * 6))
    return number(rng)


def expression(rng: random.Random, depth: int, variables: bool) -> Tree:
    if depth == 0 or rng.random() < 0.15:
        return leaf(rng, variables)
    kind = rng.random()
    a = expression(rng, depth - 1, variables)
    if kind < 0.4:
        return ("+", a, expression(rng, depth - 1, variables))
    if kind < 0.7:
        return ("*", a, expression(rng, depth - 1, variables))
    if kind < 0.8:
        return (
            "/",
            a,
            rng.choice([("n", Fraction(rng.randrange(2, 9))), ("root", ("n", Fraction(rng.randrange(2, 12))), 2)]),
        )
    if kind < 0.9:
        return ("^", a, 2)
    return ("-", a)


def value(tree: Tree, at: dict[str, Any]) -> Any:
    """By mpmath, with real roots of odd degree."""
    kind = tree[0]
    if kind == "n":
        return mpmath.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "v":
        return at[tree[1]]
    if kind == "pi":
        return +mpmath.pi
    if kind in ("sin", "cos"):
        return getattr(mpmath, kind)(mpmath.mpf(tree[1].numerator) / tree[1].denominator * mpmath.pi / 180)
    if kind == "root":
        inside = value(tree[1], at)
        size = mpmath.root(abs(inside), tree[2])
        return -size if inside < 0 else size
    if kind == "^":
        return value(tree[1], at) ** tree[2]
    if kind == "-":
        return -value(tree[1], at)
    a, b = value(tree[1], at), value(tree[2], at)
    return a + b if kind == "+" else a * b if kind == "*" else a / b


def far_apart(one: Tree, other: Tree, rng: random.Random) -> bool:
    """The values differ clearly at two points."""
    for _ in range(2):
        at = {name: mpmath.mpf(rng.uniform(0.3, 2.7) * rng.choice([-1, 1])) for name in _VARIABLES}
        try:
            a, b = value(one, at), value(other, at)
        except ZeroDivisionError:
            return False
        if abs(a - b) <= mpmath.mpf("1e-5") * (1 + abs(a) + abs(b)):
            return False
    return True


def rewritten(tree: Tree, rng: random.Random) -> Tree:
    """One step at one place that leaves the value for all values of the variables."""
    children = [i for i, part in enumerate(tree) if isinstance(part, tuple)]
    if children and rng.random() < 0.55:
        i = rng.choice(children)
        return (*tree[:i], rewritten(tree[i], rng), *tree[i + 1 :])
    ways = [("+", ("+", tree, k := number(rng)), ("n", -k[1])), ("/", ("*", k, tree), k), ("-", ("-", tree))]
    kind = tree[0]
    if kind in ("+", "*"):
        ways += [(kind, tree[2], tree[1])] * 4
    if kind == "*" and tree[1][0] == "+":
        ways += [("+", ("*", tree[1][1], tree[2]), ("*", tree[1][2], tree[2]))] * 4
    if kind == "*" and tree[2][0] == "+":
        ways += [("+", ("*", tree[1], tree[2][1]), ("*", tree[1], tree[2][2]))] * 4
    if kind == "^":
        ways += [("*", tree[1], tree[1])] * 3
        if tree[1][0] == "+":
            a, b = tree[1][1:]
            ways += [("+", ("+", ("^", a, 2), ("*", ("n", Fraction(2)), ("*", a, b))), ("^", b, 2))] * 3
    if kind == "/":
        ways += [("*", tree[1], ("/", ("n", Fraction(1)), tree[2])), ("/", ("*", tree[1], k), ("*", tree[2], k))] * 2
    if kind == "-":
        ways += [("*", ("n", Fraction(-1)), tree[1])] * 3
    if kind == "n":
        ways += [("+", ("n", tree[1] - 7), ("n", Fraction(7))), ("/", ("n", tree[1] * 6), ("n", Fraction(6)))]
    if kind == "root" and tree[1][0] == "n":
        ways += [("/", ("root", ("n", tree[1][1] * 3 ** tree[2]), tree[2]), ("n", Fraction(3)))] * 3
        if tree[2] % 2:
            ways += [("-", ("root", ("n", -tree[1][1]), tree[2]))] * 3
    if kind in ("sin", "cos"):
        ways += [("cos" if kind == "sin" else "sin", 90 - tree[1]), (kind, tree[1] + 360)] * 3
    return rng.choice(ways)


def changed(tree: Tree, rng: random.Random) -> Tree:
    """Another tree: a number, sign or operation is another one."""
    children = [i for i, part in enumerate(tree) if isinstance(part, tuple)]
    if children and rng.random() < 0.7:
        i = rng.choice(children)
        return (*tree[:i], changed(tree[i], rng), *tree[i + 1 :])
    kind = tree[0]
    if kind == "n":
        return ("n", tree[1] + rng.choice([1, -1, Fraction(1, 2), 10]))
    if kind in ("sin", "cos"):
        return (kind, tree[1] + rng.choice([6, 12, 90]))
    if kind == "root":
        return ("root", tree[1], tree[2] + 1)
    if kind in ("+", "*", "/"):
        return (rng.choice([k for k in ("+", "*") if k != kind]), *tree[1:])
    return rng.choice([("-", tree), ("+", tree, ("n", Fraction(1)))])


def latex(tree: Tree, rng: random.Random) -> str:
    """A random spelling."""
    kind = tree[0]
    if kind == "n":
        return _number(tree[1], rng)
    if kind == "v":
        return str(tree[1])
    if kind == "pi":
        return rng.choice([r"\pi", "π", r"{\pi}"])
    if kind in ("sin", "cos"):
        degrees = rng.choice([r"^\circ", r"^{\circ}", "°", r"\degree"])
        inside = (
            f"{tree[1]}{degrees}"
            if rng.random() < 0.6
            else _fraction(tree[1].numerator, 180 * tree[1].denominator, r"\pi")
        )
        return rf"\{kind}({inside})"
    if kind == "root":
        inside = latex(tree[1], rng)
        return rf"\sqrt{{{inside}}}" if tree[2] == 2 else rf"\sqrt[{tree[2]}]{{{inside}}}"
    if kind == "-":
        return f"-{_factor(tree[1], rng)}"
    if kind == "^":
        return f"{_factor(tree[1], rng)}^" + rng.choice(["2", "{2}"])
    if kind == "+":
        return f"{latex(tree[1], rng)}{rng.choice(['+', ' + '])}{_factor(tree[2], rng)}"
    if kind == "*":
        signs = [r"\cdot ", r" \times ", "*"]
        sign = rng.choice([*signs, ""] if tree[1][0] not in ("v", "pi") else signs)  # y(x) is a function of x
        return f"{_factor(tree[1], rng)}{sign}{_factor(tree[2], rng, always=sign == '')}"
    if rng.random() < 0.7:
        return rf"\{rng.choice(['frac', 'dfrac'])}{{{latex(tree[1], rng)}}}{{{latex(tree[2], rng)}}}"
    return f"({_factor(tree[1], rng)}/{_factor(tree[2], rng, always=True)})"


def _factor(tree: Tree, rng: random.Random, always: bool = False) -> str:
    text = latex(tree, rng)
    if not always and (tree[0] in ("v", "pi", "root", "sin", "cos") or (tree[0] == "n" and text.isdigit())):
        return text
    return rng.choice([f"({text})", rf"\left({text}\right)"])


def _fraction(top: int, bottom: int, times: str = "") -> str:
    return rf"\frac{{{top}{times}}}{{{bottom}}}"


def _number(of: Fraction, rng: random.Random) -> str:
    sign, size = "-" if of < 0 else "", abs(of)
    if size.denominator == 1:
        return f"{sign}{size.numerator}" if rng.random() < 0.8 else f"{sign}{size.numerator}.0"
    ways = [
        sign + _fraction(size.numerator, size.denominator),
        sign + _fraction(3 * size.numerator, 3 * size.denominator),
    ]
    if 1000 % size.denominator == 0:
        ways.append(f"{sign}{float(size)}")
    return rng.choice(ways)


_LISTS = [
    ("{}, {}", "{}, {}"), (r"\{{ {}; {} \}}", r"\left\{{ {}; {} \right\}}"), ("({}; {})", r"\left( {}; {} \right)"),
    (r"\begin{{pmatrix}} {} \\ {} \end{{pmatrix}}", r"\left[\begin{{array}}{{c}} {} \\ {} \end{{array}}\right]"),
]  # fmt: skip
_DRESSES = [
    "{}",
    "{}",
    "${}$",
    r"\displaystyle {}",
    r"\textcolor{{red}}{{{}}}",
    r"\text{{The answer is }}{}",
    "{{{}}}",
    r"{}\,",
    "{} .",
]


def fuzzed_pair(rng: random.Random) -> tuple[Pair, bool]:
    """A gold, an answer, and whether they are equal."""
    variables, equal = rng.random() < 0.5, rng.random() < 0.5
    parts = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        one = expression(rng, rng.choice([1, 2, 2, 3]), variables)
        other = one
        for _ in range(rng.randrange(0, 5)):
            other = rewritten(other, rng)
        parts.append((one, other))
    if not equal:
        i = rng.randrange(len(parts))
        other = changed(parts[i][1], rng)
        while not far_apart(parts[i][0], other, rng):
            other = changed(other, rng)
        parts[i] = (parts[i][0], other)
    texts = [(latex(one, rng), latex(other, rng)) for one, other in parts]
    if len(texts) == 1:
        return (texts[0][0], rng.choice(_DRESSES).format(texts[0][1])), equal
    gold, answer = rng.choice(_LISTS)
    return (gold.format(*(one for one, _ in texts)), answer.format(*(other for _, other in texts))), equal
