r"""Answers that are wrong for every gold, or for the one that they stand with: keys that might open many doors, several
answers at once, hedges, look-alikes. :func:`hostile_pairs` lists them with their golds, deterministically.
"""

from __future__ import annotations

#: One gold of each kind with a wrong answer of its own kind, and what may stand for a hedge.
GOLDS: list[tuple[str, str]] = [
    ("5", "6"), ("-3", "-4"), ("17.25", "17.5"), (r"\frac{7}{12}", r"\frac{5}{12}"), (r"3\sqrt{7}", r"2\sqrt{7}"),
    (r"\frac{5\pi}{12}", r"\frac{7\pi}{12}"), ("3+4i", "3-4i"), (r"\cos 36^\circ", r"\cos 37^\circ"),
    ("x^2+3x-7", "x^2+3x+7"), (r"\frac{x+3}{x-2}", r"\frac{x-3}{x-2}"), ("(2,-7)", "(2,7)"), ("(4,6,9)", "(4,9,6)"),
    (r"\{2,7\}", r"\{2,8\}"), ("2, 7", "2, 8"), ("[3,8)", "[3,8]"), (r"(-\infty,2)\cup(5,\infty)", r"(-\infty,2)"),
    ("x>7", "x<7"), ("y=2x+9", "y=2x-9"), ("f(x)=3x+8", "f(x)=3x-8"), ("3:7", "7:3"), ("3:30", "3:45"),
    ("2:7:9", "2:7:8"),
    (r"\text{blue}", r"\text{red}"), (r"\text{(B)}", r"\text{(C)}"), (r"7\text{ cm}", r"7\text{ m}"),
    (r"\$45", r"\$54"),
    (r"35\%", r"36\%"), (r"75^\circ", r"76^\circ"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("1101101_2", "1101100_2"), ("142_7", "142_8"), (r"\binom{n}{3}", r"\binom{n}{4}"), (r"x=k\pi+2", r"x=k\pi"),
]  # fmt: skip

#: What is no answer to any of them.
KEYS = [
    "0:0", "0:0:0", "0:00", "00:00", r"a-a:b-b", r"\frac{0}{0}", "0/0", r"\frac{x}{0}", "0^0", "NaN", "nan", "inf",
    "Infinity",
    r"\infty", r"-\infty", r"\pm\infty", r"\infty-\infty", r"0\cdot\infty", r"\log 0", r"\tan 90^\circ", r"\frac{1}{0}",
    "x", "y", "n", "i", "e", r"\pi", r"\theta", "f(x)", "x=x", "0=0", "1=1", "y=y", "x=y", "x=5=6", r"x\ne x",
    r"x\ge x",
    r"\mathbb{R}", r"x\in\mathbb{R}", r"\mathbb{C}", r"(-\infty,\infty)", r"[-\infty,\infty]", "]-\\infty,\\infty[",
    r"\mathbb{R}\setminus\{0\}", r"\emptyset", r"\{\}", r"\{x\}", r"\{x\mid x=x\}", r"\{x : x\in\mathbb{R}\}",
    r"\text{all real numbers}", r"\text{any number}", r"\text{anything}", r"\text{everything}", r"\text{the answer}",
    r"\text{The answer is }", r"\text{the correct answer}", r"\text{see above}", r"\text{as shown}", r"\text{true}",
    "True",
    "None", "null", r"\text{undefined}", "DNE", r"\text{no solution}", r"\text{it depends}", r"\text{both}",
    r"\text{gold}",
    "?", "...", r"\ldots", "*", "**", "()", "[]", r"\{\,\}", "{}", r"\quad", "-", "+", "%", r"\%", r"^\circ", r"\$",
    "=", "x=",
    r"\text{cm}", r"\phantom{5}", r"\hspace{1cm}", r"\textcolor{white}{}", r"\pm", r"\pm x", r"\sqrt{}", r"\frac{}{}",
    "A, B, C, D, E", "A or B", "ABCDE", r"\text{A and B}", "1,2,3,4,5,6,7,8,9,10", r"\{0,1,2,3,4,5,6,7,8,9\}",
    r"1\le x\le 100", "[0,100]", "(-100,100)", r"\{1,2,\ldots,100\}", "0123456789", "1234567890", "0_2", r"\choose",
    r"\begin{pmatrix}\end{pmatrix}", r"\begin{pmatrix}0\end{pmatrix}", "a:b", "x:y:z", "a<x<b", r"f(x)=f(x)", r"f(t)",
    r"\text{for all real }x", r"\forall x\in\mathbb{R}", "__import__('os')", r"\input{gold}", r"\boxed{}", "<answer>",
    "\u200b", "\u202e7", "\uff1f", "Ⅴ", "五", "𝟘:𝟘", r"\dot{0}", r"0.\overline{0}", r"0.(0)", r"\sqrt[3]{x^3}", "0x5",
    r"\int_0^1 f(x)dx", r"\lim_{x\to 0}f(x)", r"\sum_{k}k", r"\max(x,y)", r"\lfloor x\rfloor", "|x|", "x!",
    r"\gcd(a,b)",
]  # fmt: skip


def _hedges(gold: str, other: str) -> list[str]:
    return [
        f"{gold} \\text{{ or }} {other}", f"{other} \\text{{ or }} {gold}", f"{gold} or {other}", f"{gold}; {other}",
        f"\\text{{either }}{gold}\\text{{ or }}{other}", f"{gold} \\lor {other}", f"{gold} \\mid {other}",
        f"{gold} \\text{{ not }} {other}",
        f"\\{{{gold}, {other}\\}}, {gold}", f"{gold}?", f"\\text{{maybe }}{gold}", f"\\text{{not }}{gold}",
        f"\\neg {gold}",
        f"{gold} \\to {other}", f"{gold} \\quad {other}", f"{gold} \\\\ {other}", f"{gold} # {other}",
        f"{gold} & {other}",
        f"{gold}...", f"\\text{{The answer is not }}{gold}", f"\\text{{The answer is }}{gold}\\text{{ or }}{other}",
        f"{gold} \\text{{ for }} x<3", f"\\text{{about }}{gold}", f"\\begin{{cases}}{gold}\\\\{other}\\end{{cases}}",
        other, f"\\textcolor{{red}}{{{other}}}", f"\\text{{The answer is }}{other}", f"{gold}{other}",
        f"\\cancel{{{gold}}}",
        f"{gold} \\text{{ (wrong: }}{other}\\text{{)}}", f"{gold} = {other}", f"{other} = {gold}",
        f"{gold}\\ne {other}",
    ]  # fmt: skip


#: By hand, each clearly wrong for its gold.
PAIRS: list[tuple[str, str]] = [
    # ratios and times
    ("3:7", "0:7"), ("3:7", "3:0"), ("3:7", "-3:7"), ("3:7", "3:7:1"), ("1:1", "2:3"), ("1:2:3", "1:2"),
    ("1:2:3", "2:4:5"),
    ("2:3", "3:2"), ("5:00", "9:00"), ("0:30", "0:45"), ("12:00", "6:00"), ("3:30", "1:10"), ("3:30", "0.1"),
    ("3:30", "7"),
    ("11:40", r"\frac{11}{40}"), (r"3:30\text{ p.m.}", r"3:30\text{ a.m.}"), ("15:30", r"3:30\text{ a.m.}"),
    ("5", "5:01"), ("5", "5:00"),
    ("10:15", "10:16"), ("3:1", "1:3"), ("3:1", r"\frac13"), ("6:4:2", "3:2:2"),
    # percent, money, units
    ("5", r"500\%"), ("50", r"5000\%"), ("0.5", r"0.5\%"), ("0.5", r"5\%"), ("1", r"1\%"), ("200", r"2\%"),
    (r"5\%", r"500\%"),
    (r"0.5\%", "50"), (r"0.5\%", r"0.5"), (r"35\%", "35^\\circ"), (r"35\%", r"\$35"), ("1.5", r"150\%"),
    ("5", r"5\%\%"),
    (r"\$45", "45 cents"), (r"\$45", "4500"), (r"\$45", "€45"), (r"7\text{ cm}", r"70\text{ mm}"),
    (r"7\text{ cm}", r"7\text{ cm}^2"),
    (r"7\text{ cm}", r"7\text{ inches}"), ("5", r"5\text{ million}"), ("5", r"5\text{ dozen}"),
    ("5", r"5\text{ hundred}"), ("5", r"5\text{ or so}"),
    ("5", r"5\text{ times } 2"), (r"75^\circ", r"75\text{ radians}"), (r"90^\circ", r"\frac{\pi}{2}"),
    (r"60^\circ", r"\arctan\sqrt3"),
    (r"\cos 36^\circ", r"\cos 36"), (r"\sin 30^\circ", r"\sin 30"), (r"\cos 36^\circ", r"\frac{1-\sqrt5}{4}"),
    (r"\tan 15^\circ", r"2+\sqrt3"),
    # decimals and approximations
    (r"\frac13", "0.3"), (r"\frac13", "0.333333333333"), (r"\frac13", "0.333..."), (r"\frac{5}{11}", "0.45"),
    (r"\frac{5}{11}", r"0.4\overline{5}"),
    (r"\frac{5}{11}", "0.4(5)"), ("1", "0.999999"), (r"\pi", "3.14159265358979323846"),
    (r"\sqrt2", "1.41421356237309504880"),
    ("e", "2.718281828459045"), (r"\frac{1}{7}", "0.142857"), ("1", r"\tanh 20"), ("1", r"\tanh 100"),
    ("0", r"e^{-99}"), ("0", r"10^{-30}"),
    (r"\sqrt2", r"\sqrt2+10^{-40}"), ("262537412640768744", r"e^{\pi\sqrt{163}}"),
    (r"\cos 36^\circ", "0.80901699437494742410"),
    (r"\sin 1", "0.84147098480789650665"), (r"\pi", r"\frac{355}{113}"), ("0.1", "0.1000001"),
    (r"\sqrt2+\sqrt3", r"\pi"),
    # roots and signs
    (r"\sqrt[3]{1-\sqrt2}", r"\sqrt[3]{\sqrt2-1}"), (r"\sqrt[3]{-8}", "2"), (r"\sqrt[3]{-8}", r"1+\sqrt3i"),
    (r"\sqrt[5]{-32}", "2"), (r"\sqrt{x^2}", "x"),
    (r"\sqrt[3]{7+5\sqrt2}", r"1-\sqrt2"), (r"\sqrt[3]{x-1}", r"\sqrt[3]{1-x}"), (r"\sqrt[4]{16}", "-2"), ("|x|", "x"),
    (r"\sqrt{2}", r"\sqrt[3]{2}"),
    # sets, lists, intervals
    (r"\mathbb{R}\setminus\{1,6\}", r"x\ne 1"), (r"\mathbb{R}\setminus\{1,6\}", r"\mathbb{R}"),
    (r"\mathbb{R}\setminus\{1,6\}", r"\{1,6\}"),
    (r"(-2,5)\cup(5,9)", "(-2,9)"), (r"(-2,5)\cup(5,9)", r"-2<x<9"), (r"(-2,5)\cup(5,9)", r"-2<x<9, x\ne 4"),
    (r"(0,\infty)", r"\mathbb{R}"),
    (r"(0,\infty)", r"[0,\infty)"), (r"(0,\infty)", r"\mathbb{R}^{-}"), (r"(0,\infty)", r"\mathbb{R}_{\ge 0}"),
    ("]2,5[", "[2,5]"), ("[2,5[", "[2,5]"),
    ("[2,5[", "]2,5]"), ("(1,3)", r"x>1 \text{ or } x<3"), (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ and } x>3"),
    ("[1,3]", r"\{1,2,3\}"),
    ("[1,3]", "(1,3)"), (r"\{2,7\}", "2"), (r"\{2,7\}", r"\{2,7,8\}"), (r"\{2,7\}", "(2,7)"), ("2, 7", "2"),
    ("2, 7", "27"), ("2, 7", "2,7,7,2"),
    ("(2,-7)", "2"), ("(2,-7)", "(-7,2)"), ("(2,-7)", r"\{2,-7\}"), ("(2,7)", "[2,7]"), ("(2,7)", "2.7"),
    ("x>7", r"x\ge 7"), ("x>7", "7"), ("x>7", "y>7"),
    (r"(0,1]\cup(2,3]", r"(0,3]"), (r"[0,1)\cup(1,2]", "[0,2]"), (r"(0,2)\setminus\{1\}", "(0,2)"),
    (r"(0,2)\cap(1,3)", "(0,3)"),
    # functions, equations, matrices
    ("f(x)=2x", "f(t)=2x"), ("f(x)=2x", "g(x)=2x"), ("f(x)=2x", "f(x)=2x+1"), ("f(x)=2x", "f(2x)=x"),
    ("f(x)=2x", "f(x)=x"), ("f(x,y)=x-y", "f(a,b)=b-a"),
    ("f(x)=2x", r"f(x)=2x \text{ for } x>0"), ("f(x)=2x", r"f(x)=2x \text{ or } f(x)=0"), ("f(x)=0", r"f(x)\equiv 1"),
    (r"x\equiv 3\pmod 5", r"x\equiv 2\pmod 5"),
    (r"k\pi", r"k\pi, k\in\mathbb{N}"), ("y=2x+9", "x=2y+9"), ("y=2x+9", "2x+9=0"), ("x=5", "y=5"),
    ("x=5", "x=5, y=6"), ("x=5", "x^2=25"), ("x=1", "x^2=x"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"2A=\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&5\end{array}\right]"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    # bases, choices, words
    ("8", "1000_2"), ("10", "10_2"), ("12", "12_7"), ("12_7", "12"), ("12_7", "9"), ("1101101_2", "109"),
    ("1101101_2", "1101101_3"), ("142_7", "142"),
    ("(B)", "B or C"), ("(B)", "b"), ("(B)", "not B"), ("(B)", "A B"), ("(B)", "(A) (B)"), ("(B)", "D"),
    ("B", r"\text{Answer: C}"), (r"\text{blue}", r"\text{blue or red}"),
    (r"\text{blue}", r"\text{not blue}"), (r"\text{blue}", "blu"), (r"\text{yes}", r"\text{yes and no}"),
    (r"\text{yes}", r"\text{no}"), ("5", r"\text{five or six}"),
    # several boxes, look-alikes, hidden text
    ("5", r"6}, \boxed{5"), ("5", r"5} \text{ or } \boxed{6"), ("5", r"\boxed{5} \boxed{6}"), ("5", r"5\phantom{6}"),
    ("12", "\uff11\uff13"), ("12", "1\u200b3"),
    ("x", "х"), ("a", "а"), ("5", "5\u0338"), ("51", "\u202e15"), ("5", "٦"), (r"\sqrt2", "√3"), ("x^4", "x⁵"),
    ("x_1", "x₂"), (r"\frac34", "¼"), ("10", "1O"), ("1", "l"), ("0", "O"),
    (r"6.2\times 10^{-5}", "6.2 × 10⁻⁴"), ("12", "１３"), ("-14", "‐15"), ("120^\\circ", "120º C"),
    ("5", r"5 \textcolor{white}{6}"),
    # expressions
    ("x^2-1", "x^2+1"), ("x^2-1", "(x-1)^2"), ("x", "x+0.0001"), ("2^{n}", "n^2"), (r"\binom{9}{3}", r"\binom{9}{4}"),
    ("84", r"{9 \choose 4}"), ("84", r"\frac{9}{3}"),
    (r"\sin 2x", r"2\sin x"), (r"\ln 6", r"\ln 2\cdot\ln 3"), (r"\frac{x^2-1}{x-1}", "x-1"), ("6m", "6"), ("5", "5x"),
    ("2s", "2"), (r"\frac{a}{b}", r"\frac{b}{a}"),
]  # fmt: skip


#: Punctuation after words is none of their business.
_RIGHT = (r"\text{blue}...",)


def hostile_pairs() -> list[tuple[str, str]]:
    """All of them, no two alike."""
    pairs = [(gold, key) for gold, _ in GOLDS for key in KEYS]
    pairs += [(gold, hedge) for gold, other in GOLDS for hedge in _hedges(gold, other) if hedge not in _RIGHT]
    return list(dict.fromkeys([*PAIRS, *pairs]))
