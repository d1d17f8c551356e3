r"""Right answers in the spellings that models and people use, by kind, and wrong ones that look like them.

As :mod:`tests.rewards.cases`, whose rules these follow.
"""

from __future__ import annotations

from tests.rewards.cases import Cases

_M = r"\begin{pmatrix} 4 & 0 \\ -3 & 7 \end{pmatrix}"

RIGHT: Cases = {
    "angles in degrees": [
        (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"), (r"\frac{1+\sqrt5}{4}", r"\cos 36^\circ"),
        (r"\sin 15^\circ", r"\frac{\sqrt6-\sqrt2}{4}"),
        (r"\tan 22.5^\circ", r"\sqrt2-1"), (r"\cos 36^\circ", r"\cos\frac{\pi}{5}"), (r"\cot 15^\circ", r"2+\sqrt3"),
        (r"\sin 18^\circ", r"\frac{\sqrt5-1}{4}"),
        (r"\frac{\sqrt{2-\sqrt2}}{2}", r"\sin\frac{45}{2}^\circ"), ("2", r"\sec 60^\circ"),
        (r"\csc 10^\circ", r"\frac{1}{\sin 10^\circ}"),
        (r"\tan^2 15^\circ", r"7-4\sqrt3"), (r"\cos 36^\circ", r"\cos(36°)"), (r"\cos 36^\circ", r"\cos(36)^\circ"),
        (r"\cos 36^\circ", r"\cos 36\degree"),
        (r"\sin(x+30^\circ)", r"\sin(x+\frac{\pi}{6})"), (r"\sin 80^\circ", r"2\sin 40^\circ\cos 40^\circ"),
        (r"\cos 20^\circ", r"\sin 10^\circ+\sin 50^\circ"),
        (r"\sin^{-1}\frac12", r"\frac{\pi}{6}"), (r"\arctan\frac34", r"\tan^{-1}(0.75)"),
        (r"\frac{\pi}{4}", r"\arctan 1"), (r"\arccos\frac13", r"\cos^{-1}\left(\frac13\right)"),
        (r"\arctan\frac12", r"\operatorname{arccot} 2"), (r"\sin^2(x)", r"\sin(x)^2"),
    ],
    "signs for degrees": [
        (r"120^\circ", r"120\degree"), (r"120^\circ", "120^o"), (r"120^\circ", "120º"), (r"120^\circ", "120°"),
        (r"120^\circ", r"120^{\text{o}}"), (r"120^\circ", r"120\textdegree"),
        (r"120^\circ", r"120^{\degree}"), (r"120^\circ", r"\ang{120}"), (r"120^\circ", r"120^{ \circ }"),
        (r"30^\circ\text{C}", "30℃"),
    ],
    "odd roots": [
        (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1"), (r"\sqrt[3]{1-\sqrt2}", r"-\sqrt[3]{\sqrt2-1}"),
        (r"\sqrt[3]{-27}+1", "-2"), (r"\sqrt[3]{7+5\sqrt2}", r"1+\sqrt2"),
        (r"\sqrt[3]{7-5\sqrt2}", r"1-\sqrt2"), (r"\sqrt[5]{1-\sqrt3}", r"-\sqrt[5]{\sqrt3-1}"),
        (r"\sqrt[7]{-128}", "-2"), (r"\sqrt[3]{x-1}", r"-\sqrt[3]{1-x}"),
        (r"\sqrt[3]{-x}", r"-\sqrt[3]{x}"), (r"\sqrt[3]{x^2}", "x^{2/3}"), (r"\sqrt[3]{x^3y}", r"x\sqrt[3]{y}"),
        (r"\sqrt[3]{9-4\sqrt5}", r"-\sqrt[3]{4\sqrt5-9}"),
        ("-2", "(-8)^{1/3}"), ("∛2", "2^{1/3}"), (r"\sqrt[3]{20+14\sqrt2}+\sqrt[3]{20-14\sqrt2}", "4"),
    ],
    "matrices": [
        (_M, r"\left[\begin{array}{cc} 4 & 0 \\ -3 & 7 \end{array}\right]"),
        (r"\left[\begin{array}{cc} 4 & 0 \\ -3 & 7 \end{array}\right]", r"\begin{bmatrix}4 & 0\\-3 & 7\end{bmatrix}"),
        (_M, r"\mathbf{A} = " + _M), (_M, r"\left(\begin{smallmatrix} 4 & 0 \\ -3 & 7 \end{smallmatrix}\right)"),
        (_M, r"\begin{bsmallmatrix} 4 & 0 \\ -3 & 7 \end{bsmallmatrix}"),
        (_M, r"\pmatrix{4 & 0 \cr -3 & 7}"), (_M, r"\left(\begin{matrix}4&0\\-3&7\end{matrix}\right)"),
        (_M, r"\bigl(\begin{matrix}4&0\\-3&7\end{matrix}\bigr)"), (_M, r"A^{-1} = " + _M),
        (_M, r"\begin{bmatrix*}[r] 4 & 0 \\ -3 & 7 \end{bmatrix*}"),
        (_M, r"\begin{Bmatrix} 4 & 0 \\[2pt] -3 & 7 \end{Bmatrix}"),
        (_M, r"\left[\begin{array}{c|c} 4 & 0 \\ \hline -3 & 7 \end{array}\right]"),
        (_M, r"M = N^{T} = " + _M),
        (r"\begin{vmatrix}a&b\\c&d\end{vmatrix}", r"\left|\begin{array}{cc}a&b\\c&d\end{array}\right|"),
    ],
    "vectors": [
        ("(1,2)", r"\langle 1, 2\rangle"), ("(1,2)", r"\vec{v}=(1,2)"), ("(1,2)", "<1,2>"), ("(1,2)", "⟨1,2⟩"),
        ("(1,2)", r"\overrightarrow{AB} = (1,2)"), ("(1,2)", r"\left\langle 1,2\right\rangle"),
        (r"3\mathbf{i}-\mathbf{j}", r"3\hat{i}-\hat{j}"), (r"3\mathbf{i}-\mathbf{j}", r"3\hat{\imath}-\hat{\jmath}"),
        (r"3\mathbf{i}-\mathbf{j}", r"3\mathbf{\hat{i}}-\hat{\mathbf{j}}"),
        (r"3\mathbf{i}-\mathbf{j}", r"3\vec{i}-\vec{j}"),
    ],
    "intervals less points": [
        (r"(-2,5) \cup (5, 9)", r"-2<x<9, x\ne 5"), (r"\mathbb{R}\setminus\{1,6\}", r"x\ne 1, x \ne 6"),
        (r"(0,\infty)", r"\mathbb{R}^{+}"),
        (r"\mathbb{R}\setminus\{1,6\}", r"(-\infty,1)\cup(1,6)\cup(6,\infty)"),
        (r"[0,\infty)\setminus\{6\}", r"[0,6)\cup(6,\infty)"), (r"\mathbb{R}\setminus\{1,6\}", r"x \ne 1, 6"),
        (r"\mathbb{R}\setminus\{1,6\}", r"x \ne 1 \text{ and } x \ne 6"),
        (r"\mathbb{R}\setminus\{1,6\}", r"\{x \mid x\ne 1, x\ne 6\}"),
        (r"\mathbb{R}\setminus\{1,6\}", r"x\in\mathbb{R}, x\ne 1, x\ne 6"),
        (r"\mathbb{R}\setminus\{1,6\}", r"x\notin\{1,6\}"),
        (r"\mathbb{R}\setminus\{1,6\}", r"\text{all real numbers except } 1 \text{ and } 6"),
        (r"\mathbb{R}\setminus\{-1,1\}", r"x\ne\pm 1"),
        (r"\{x\in\mathbb{R} \mid x\ne 1\}", r"(-\infty,1)\cup(1,\infty)"), (r"(1,3)", r"x>1 \text{ and } x<3"),
        ("(1,3)", "x>1, x<3"), (r"(-\infty,1)\cup(3,\infty)", "x<1, x>3"),
        (r"(-\infty,0]\cup[1,\infty)", r"\mathbb{R}\setminus(0,1)"), (r"(1,2)", r"(0,2)\cap(1,3)"),
        (r"[0,\infty)", r"\mathbb{R}_{\ge 0}"), (r"(0,\infty)", r"\mathbb{R}_{>0}"), (r"(-\infty,0)", r"\mathbb{R}^-"),
        (r"\mathbb{R}\setminus\{0\}", r"\mathbb{R}^*"), (r"(0,\infty)", r"\text{positive real numbers}"),
        (r"(-\infty,1)\cup\{2\}", r"x<1 \text{ or } x=2"), (r"(1,2)\cup(3,4)", "(1,2), (3,4)"),
        (r"(0,1]\cup(2,3]", r"0<x\le 1 \text{ or } 2<x\le 3"),
        (r"(-\infty,2)\cup(2,\infty)", "ℝ∖{2}".replace("{", r"\{").replace("}", r"\}")),
    ],
    "outward brackets": [
        ("]2, 5[", "(2,5)"), ("[2,5[", "[2,5)"), ("]2;5]", "(2,5]"), (r"\left]-\infty, 3\right]", r"x\le 3"),
        (r"]0,1[\cup]1,2[", r"(0,1)\cup(1,2)"), ("(2,5)", r"x\in\,]2,5["), ("(0,1]", r"\left]0,1\right]"),
    ],
    "print commands": [
        ("58", r"\large 58"), ("58", r"\Large{58}"), ("58", r"\textcolor{blue}{58}"), ("58", r"\mathsf{58}"),
        ("58", r"\mathtt{58}"), ("58", r"\phantom{x}58"), ("58", r"58 \\"), ("58", "**58**"),
        ("58", r"\mathbf{58}"), ("58", r"{\color{red} 58}"), ("58", r"\displaystyle 58"), ("58", r"\mbox{58}"),
        ("58", r"\hspace{2mm}58\hspace*{1em}"), ("58", r"\underline{58}"), ("58", r"\fbox{58}"),
        ("58", r"\ensuremath{58}"),
        ("58", r"\colorbox{yellow}{58}"), ("58", r"\boldsymbol{58}"), ("58", r"\pmb{58}"), ("58", r"\,58\!"),
        ("58", r"58\thinspace"), ("58", r"\Huge\textcolor[rgb]{1,0,0}{58}"), ("58", r"\bigl.58\bigr."),
        ("58", r"\textbf{\large 58}"),
        ("58", r"\phantom{0}58"), ("58", r"58\,\,"), ("58", "`58`"), ("58", "__58__"), ("58", r"\mathrm{58}"),
        ("58", r"\rm 58"), ("58", r"\bf 58"), ("58", r"{\bf 58}"), ("58", r"58\newline"),
        (r"\frac{5}{8}", r"\nicefrac{5}{8}"), (r"\frac{5}{8}", r"{5 \over 8}"),
        (r"\frac{5}{8}", r"\boldsymbol{\frac{5}{8}}"), ("x^2", r"\mathit{x}^2"), ("x=58", r"\boxed{x=58}"),
        (r"\frac{5}{8}", r"\displaystyle\frac{\;5\;}{8}"), ("58", r"\text{\textbf{58}}"), ("58", r"58\label{a}"),
        ("58", r"\mathop{58}"),
    ],
    "binomials": [
        (r"{9 \choose 3}", "84"), ("84", r"{9 \choose 3}"), (r"\binom{9}{3}", "84"), (r"\binom{9}{3}", r"9 \choose 3"),
        (r"\dbinom93", r"\tbinom{9}{6}"), (r"{n \choose 2}", r"\frac{n(n-1)}{2}"),
        (r"{2n \choose n}+1", r"1+\binom{2n}{n}"),
        (r"\frac{{9 \choose 3}}{2}", "42"),
    ],
    "unicode": [
        ("12", "12\u200b"), (r"6.2 \times 10^{-5}", "6.2 × 10⁻⁵"), ("x^4", "x⁴"), ("x_1", "x₁"), ("-14", "−14"),
        ("12", "１２"), ("(1,2)", "（１，２）"), ("12", "\ufeff12"), ("12", "𝟏𝟐"), ("12", "١٢"), (r"\frac34", "¾"),
        (r"1\frac34", "1¾"),
        ("x^{12}", "x¹²"), ("x_{10}", "x₁₀"), (r"\sqrt{12}", "√12"), (r"\sqrt{x+1}", "√(x+1)"), ("50\\%", "50％"),
        ("1:2", "1：2"), ("1:2", "1∶2"), (r"\frac12", "1⁄2"), (r"\mathbb{R}", "ℝ"), (r"\alpha+\omega", "α+ω"),
        ("x^2+1", "𝑥²+1"),
        (r"\{1,2\}", "｛1，2｝".replace("｛", r"\{").replace("｝", r"\}")), ("12", "12\u2060"), ("-5", "－5"),
        ("3-2", "3–2"), (r"x\ge 2", "x ⩾ 2"), (r"\lfloor x\rfloor", "⌊x⌋"), ("f'(x)", "f′(x)"), (r"\frac78", "⅞"),
        ("x^{-1}", "x⁻¹"), ("a^n", "aⁿ"), (r"2\pi", "2𝜋"),
        ("1 000".replace(" ", ","), "1,000"), ("5", "\u200e5\u200f"), ("12", "12\u00a0"), (r"A\cdot B", "A∙B"),
    ],
    "repeating decimals": [
        (r"\frac{5}{11}", "0.(45)"), (r"\frac13", r"0.\dot{3}"), (r"\frac13", r"0.\dot3"), (r"\frac13", r"0.\bar{3}"),
        (r"\frac13", r"0.\bar3"), (r"\frac16", r"0.1\dot{6}"), (r"\frac16", "0.1(6)"),
        (r"\frac17", r"0.\dot{1}4285\dot{7}"), (r"\frac{5}{11}", r"0.\dot4\dot5"),
        (r"\frac13", "0.3\u0305"), (r"\frac13", "0.3\u0307"), (r"\frac13", r"0.{\overline{3}}"),
        (r"\frac{5}{11}", r"0.\overline{45}"), (r"-\frac13", r"-0.(3)"), (r"\frac13, \frac23", "0.(3), 0.(6)"),
        (r"\frac13", r"0.\overset{.}{3}"), (r"\frac{41}{333}", r"0.\dot{1}2\dot{3}"),
    ],
    "ratios and times": [
        ("3:5", "6:10"), (r"11:40 \text{ a.m.}", r"11{:}40\text{ AM}"), ("2:7:9", "4:14:18"),
        ("3:30", "3:30"), ("3:30", "03:30"), ("3:30", "3:30:00"), ("3:30", r"3:30\text{ p.m.}"), ("15:30", "3:30 PM"),
        (r"5\text{ p.m.}", "5:00 PM"), (r"\sqrt2:1", r"2:\sqrt2"), ("x:y", "2x:2y"),
        ("0:3", "0:6"), ("1:1:1", "2:2:2"), (r"\frac12:\frac13", "3:2"),
    ],
    "functions": [
        ("f(x)=2x", "f(t)=2t"), ("f(x)=2x", r"f(x)=2x \text{ for all real } x"),
        ("f(x)=2x", r"f(x)=2x \quad \forall x\in\mathbb{R}"), ("f(x)=2x", r"f(x) \equiv 2x"),
        ("f(x)=2x", r"x\mapsto 2x"), ("f(x)=2x", r"f: x \mapsto 2x"), ("f(x)=2x", r"f(x):=2x"),
        ("f(x)=2x", r"f(x)=2x, x\in\mathbb{R}"),
        ("f(n)=n+1", r"f(k)=k+1 \text{ for all positive integers } k"),
        ("f(n)=n+1", r"f(m)=m+1\ (\forall m\in\mathbb{N})"), ("f(x,y)=x-y", "f(a,b)=a-b"),
        ("f(x)=x, f(x)=2-x", "f(t)=2-t, f(t)=t"), ("f(x)=c", r"f(x)=c \text{ for any real number } x"),
        ("P(x)=x^2+1", "P(t)=t^2+1"),
        ("f(x)=0", r"f(x)\equiv 0"), ("f(x)=\\sin x", "f(t)=\\sin t"),
    ],
    "sentences": [
        ("5", r"\text{The answer is }5"), ("5", r"\text{The answer is 5}"), ("5", "The answer is 5"),
        ("5", r"\text{Answer: }5"), ("5", r"\text{Final answer: } 5."), ("B", r"\text{Answer: B}"),
        (r"\frac12", r"\text{The final answer is }\frac12"), ("5", r"\text{Thus the answer is }5"),
        ("5", r"\text{Answer} = 5"),
        ("5", r"\text{The answer is } x=5"), ("1,2", r"\text{The solutions are }1\text{ and }2"),
    ],
    "base two": [
        ("1011100_2", "1011100"), ("1011100", "1011100_2"), ("1011100_2", "(1011100)_2"),
        ("1011100_2", r"1011100_{(2)}"), ("1011100_2", r"1011100\text{ base }2"),
        ("1011100_2", r"1011100_{\text{two}}"), ("1011100", r"1011100_{\text{two}}"), ("52_8", r"52_{\text{eight}}"),
        ("2A_{16}", r"(2A)_{16}"),
    ],
    "percent": [
        ("5", r"5\%"), ("0.5", r"50\%"), (r"\frac14", r"25\%"), ("1", r"100\%"), (r"150\%", "1.5"), ("0.07", r"7\%"),
    ],
    "products": [
        ("(n-2)2^n+1", "1+2^n(n-2)"), (r"\frac{\lambda_{\text{red}}}{\sqrt2}", r"\lambda_{\text{red}} / \sqrt{2}"),
        (r"\arcsin\frac{10}{13}", "np.arcsin(10/13)"),
    ],
}  # fmt: skip

WRONG: Cases = {
    "ratios and times": [
        ("2:7:9", "0:0:0"), ("5:00", "9:00"), ("0:30", "0:45"), ("3:5", "0:5"), ("3:5", "0:0"), ("1:1", "2:3"),
        ("3:30", "1:10"), ("12:00", "6:00"), ("3:30", "0.1"), ("5", "5:01"), ("x:y", "0:0"), ("3:1", "a-a:b-b"),
    ],
    "intervals": [
        ("(-2,5) \\cup (5, 9)", "(-2,9)"), ("[2,5[", "[2,5]"), (r"(1,3)", r"x>1 \text{ or } x<3"),
        (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ and } x>3"), (r"(0,5)", r"(0,5), (1,2)"),
    ],
    "matrices": [
        (_M, r"\left[\begin{array}{cc} 4 & 0 \\ 3 & 7 \end{array}\right]"), (_M, "2A = " + _M),
        (_M, r"\left|\begin{array}{cc} 4 & 0 \\ -3 & 7 \end{array}\right|"),
    ],
    "repeating decimals": [
        (r"\frac{1}{3}", "0.3"), (r"\frac{5}{11}", "0.4(5)"), (r"\frac13", "0.333..."), (r"\frac{9}{20}", "0.(45)"),
    ],
    "unicode": [("12", "１３"), ("x", "х"), ("5", "5\u0338"), ("x^4", "x⁵"), ("15", "\u202e51")],
    "functions": [
        ("f(x)=2x", "f(t)=2x"), ("f(x)=2x", "f(t)=xt"), ("f(x)=2x", "g(x)=2x"), ("f(x,y)=x-y", "f(y,x)=x-y"),
        ("f(x)=2x", r"f(x)=2x \text{ for } x>3"), (r"k\pi, k\in\mathbb{Z}", r"k\pi, k\in\mathbb{N}"),
    ],
    "sentences": [
        ("5", r"\text{The answer is }6"), ("5", r"\text{The answer is not }5"),
        ("5", r"\text{The answer is }5\text{ or }6"), ("5", r"\text{The answer is }"),
    ],
    "base two": [("10", "10_2"), ("1011100_2", "92"), ("1011100", "1011100_3")],
    "percent": [("5", r"500\%"), ("50", r"5000\%")],
    "constants": [
        ("1", r"\tanh 20"), ("1", "1+e^{-400}"), ("262537412640768744", r"e^{\pi\sqrt{163}}"),
        (r"\cos 36^\circ", r"\cos 36"),
        (r"\sin 1", "0." + "8414709848078965066525023216302989996225630607983710656727517"), (r"\sqrt{x^2}", "x"),
    ],
}  # fmt: skip
