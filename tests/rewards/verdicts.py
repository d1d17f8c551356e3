r"""Pairs that were once misjudged, and neighbours of their kinds, by the rules of :mod:`tests.rewards.cases`."""

from __future__ import annotations

from tests.rewards.cases import Cases

RIGHT: Cases = {
    "powers of e^{i pi}": [
        (r"e^{i\pi/3}", r"\frac{1+i\sqrt3}{2}"), (r"2e^{4\pi i/3}", r"-1-i\sqrt3"), (r"1+i\sqrt3", r"2e^{i\pi/3}"),
        (r"2\cos\frac\pi9", r"e^{i\pi/9}+e^{-i\pi/9}"), (r"e^{2\pi i/7}", r"\cos\frac{2\pi}7+i\sin\frac{2\pi}7"),
        (r"e^{i\pi/6}", r"\frac{\sqrt3}2+\frac i2"), (r"8e^{i\pi/4}", r"4\sqrt2+4\sqrt2i"),
        (r"e^{16\pi i/7}", r"e^{2\pi i/7}"), (r"-e^{i\pi/7}", r"e^{8i\pi/7}"), ("-1", r"(e^{i\pi/7})^7"),
        (r"e^{i\pi/5}", r"\exp(\frac{i\pi}{5})"), ("1", r"e^{2\pi i}"), ("i", r"e^{i\pi/2}"),
        (r"e^{2\pi i/3}, e^{4\pi i/3}", r"\frac{-1+i\sqrt3}2,\frac{-1-i\sqrt3}2"),
        (r"e^{\pi i/12}", r"\frac{\sqrt6+\sqrt2}{4}+i\frac{\sqrt6-\sqrt2}{4}"), ("e^{i}", r"\cos 1+i\sin 1"),
        ("e^{5i/3}", r"\cos\frac53+i\sin\frac53"),
    ],
    "words behind a number": [
        ("36", r"36\text{ apples}"), ("36", r"36\text{ values}"), ("36", r"36\text{ different ways}"),
        ("36", r"36\text{ ways}"), ("36", r"36\text{ square units}"), ("36", r"36\text{ units squared}"),
        ("36", r"36\text{ units^2}"), ("36", r"36\text{ positive integers}"), ("36", r"36\text{ integers}"),
        ("36", r"36\text{ two-digit numbers}"), ("36", r"36\text{ distinct pairs}"), ("36", r"36\text{ square feet}"),
        ("36", r"36\text{ sq. ft.}"), ("36", r"36\text{ cm squared}"),
        ("36", r"36\text{ cubic centimeters per second}"), ("36", r"36\text{ people per hour}"),
        ("36", r"36\text{ students in the class}"), ("36", r"36\text{ square tiles}"),
        ("36", r"36\text{ right triangles}"), ("36", r"36\text{ points}"), ("36", r"36\text{ the students}"),
        (r"36\text{ units}^2", "36"), (r"36\text{ m}^2", r"36\text{ meters squared}"),
        (r"36\text{ m}^2", r"36\text{ square meters}"), ("36", r"36\text{ units}^2"), (r"36\text{ hundred}", "3600"),
    ],
    "noon and midnight": [
        (r"12\text{ p.m.}", "12:00"), (r"12\text{ a.m.}", "0:00"), (r"12:30\text{ a.m.}", "0:30"),
        ("0:30", r"12:30\text{ AM}"), (r"12:15\text{ p.m.}", "12:15"), (r"12:15\text{ p.m.}", r"12:15\text{ PM}"),
        ("15:30", r"3:30\text{ p.m.}"), (r"11\text{ p.m.}", "23:00"), (r"9\text{ a.m.}", "9:00"),
        ("12:00", r"12\text{ p.m.}"),
    ],
}  # fmt: skip

WRONG: Cases = {
    "powers of e^{i pi}": [
        (r"e^{i\pi/3}", "-1"), (r"e^{2\pi i/3}", "1"), (r"8e^{i\pi/3}", "-8"), (r"2e^{3\pi i/5}", r"2e^{\pi i/5}"),
        (r"e^{2\pi i/7}", r"e^{4\pi i/7}"), ("-1", r"e^{i\pi/7}"), ("2", r"1-e^{i\pi/3}"),
        (r"e^{2\pi i/3}, e^{4\pi i/3}", "1,1"), (r"e^{i\pi/7}", r"e^{-i\pi/7}"), (r"e^{i\pi/6}", r"e^{-i\pi/6}"),
        (r"\sqrt{e^{8i\pi/7}}", r"e^{4i\pi/7}"), (r"e^{i\pi/4}", "1"), (r"e^{i\pi/4}", "i"), (r"3^{2i\pi}", "1"),
        ("1", "(-1+10^{-20}i)^{2/3}"), ("e^{ix}", "e^{-ix}"), ("-1", "e^{7i/3}"),
    ],
    "all but equal constants": [
        (r"\pi", r"\pi+e^{-1000}"), (r"\pi", r"\pi\cos(10^{-300})"), (r"\sqrt2", r"\sqrt2+e^{-1000}"),
        (r"\pi", r"\pi\tanh 1000"), (r"\pi", r"\pi+e^{-9000}"), ("e^{1000}", r"e^{1000}+\pi"),
        (r"\pi", r"\pi\cos(e^{-1000})"), (r"\pi", r"\pi+\sin(e^{-1000})"), (r"\pi", r"\pi+e^{-e^{9}}"),
        (r"\pi", r"\pi+2^{-1000}"), (r"\sqrt2", r"\sqrt{2+e^{-1000}}"),
        (r"\pi", r"\pi\frac{\sin(10^{-300})}{10^{-300}}"), (r"\pi", r"\pi+\pi^{-900}"), ("e^{1000}", "e^{1000}+1"),
        (r"\ln 2", r"\ln(2+e^{-1000})"), (r"\ln 2", r"\ln(2+2e^{-2000})"),
    ],
    "words behind a number": [
        ("36", r"36\text{ squared}"), ("36", r"36\text{ cubed}"), ("36", r"36\text{ factorial}"),
        ("36", r"36\text{ tenths}"), ("36", r"36\text{ hundredths}"), ("36", r"36\text{ thousandths}"),
        ("36", r"36\text{ halves}"), ("36", r"36\text{ thirds}"), ("36", r"36\text{ quarters}"),
        ("36", r"36\text{ quadrillion}"), ("36", r"36\text{ gross}"), ("36", r"36\text{ lakh}"),
        ("36", r"36\text{ triple}"), ("36", r"36\text{ reciprocal}"), ("36", r"36\text{ permille}"),
        ("36", r"36\text{ negative}"), ("36", r"36\text{ below zero}"), ("36", r"36\text{ point five}"),
        ("36", r"36\text{ add one}"), ("36", r"36\text{ subtract one}"), ("36", r"36\text{ divided by two}"),
        ("36", r"36\text{ mod seven}"), ("36", r"36\text{ percent percent}"), ("36", r"36\text{ thirty seven}"),
        ("36", r"36\text{ alternatively forty}"), ("36", r"36\text{ alternatively}"), ("36", r"36\text{ wrong}"),
        ("36", r"36\text{ is false}"), ("36", r"36\text{ is too small}"), ("36", r"36\text{ fails}"),
        ("36", r"36\text{ isn't it}"), ("36", r"36\text{ can't be}"), ("36", r"36\text{ never}"),
        ("36", r"36\text{ unless}"), ("36", r"36\text{ except}"), ("36", r"36\text{ without}"),
        ("36", r"36\text{ I guess}"), ("36", r"36\text{ I think}"), ("36", r"36\text{ likely}"),
        ("36", r"36\text{ hopefully}"), ("36", r"36\text{ unsure}"), ("36", r"36\text{ estimated}"),
        ("36", r"36\text{ rounded}"), ("36", r"36\text{ ish}"), ("36", r"36\text{ apples squared}"),
        ("36", r"36\text{ square}"), ("36", r"36\text{ multiplied by nine}"), ("36", r"36\text{ millionths}"),
        ("36", r"36\text{ fifths}"), ("36", r"36\text{ crore}"), ("36", r"36\text{ billions}"),
        ("36", r"36\text{ raised}"), ("36", r"36\text{ but wrong}"), ("36", r"36\text{ we believe}"),
        ("36", r"36\text{ that fails}"), ("36", r"36\text{ does not work}"), ("36", r"36\text{ instead}"),
        ("36", r"36\text{ thirty-seven}"), ("36", r"36\text{ apples minus one}"), ("36", r"36\text{ choose two}"),
        ("36", r"36\text{ modulo ten}"), ("36", r"36\text{ -ish}"), ("36", r"36\text{ won't}"),
        ("36", r"36\text{ shouldn't}"), ("36", r"36\text{ uncertain}"), ("36", r"36\text{ presumably}"),
        ("36", r"36\text{ is incorrect}"), ("36", r"36\text{ rounded down}"), ("36", r"36\text{ degrees below zero}"),
        ("36", r"36\text{ cubed units off by one}"), ("36", r"36\text{ apples^2}"),
    ],
    "noon and midnight": [
        (r"12\text{ p.m.}", "0:00"), (r"12\text{ a.m.}", r"12\text{ p.m.}"), (r"12\text{ p.m.}", "24:00"),
        (r"12:30\text{ p.m.}", "0:30"), (r"3:30\text{ a.m.}", "15:30"), ("0:30", r"12:30\text{ p.m.}"),
        (r"1\text{ p.m.}", r"12\text{ p.m.}"), (r"12:30\text{ a.m.}", r"12:30\text{ p.m.}"), ("1:00", "13:00"),
    ],
}  # fmt: skip

#: Question, gold, answer.
ASKED_RIGHT: list[tuple[str, str, str]] = [
    ("Express $0.25$ as a common fraction.", r"\frac14", r"\frac{1}{4}"), ("What part is it?", r"\frac14", r"25\%"),
    ("What is the probability? It was $0.25$ before.", r"\frac14", "0.25"),
    ("What is the probability that it is at least $0.3$?", "0.5", r"\frac12"), ("What is $-(-5)$?", "5", "5"),
    ("Find the prime factorization of $40$.", r"2^3\cdot5", r"5\cdot2^3"),
    (r"Write $\frac12$ as a percent.", r"50\%", r"50\%"), (r"Express $\frac14$ as a percent.", r"25\%", "25"),
    ("Evaluate $(1+2i)6-3i$.", "6+9i", "9i+6"), ("What is it?", "6+9i", "3(2+3i)"),
    ("How long is it?", r"2\sqrt2", r"\sqrt8"), ("How long is it?", r"\frac{\sqrt3}2", r"\frac{2\sqrt3}{4}"),
    ("Find it.", r"\cos 36^\circ", r"\sin 54^\circ"), ("Factor $x^2-1$.", "(x-1)(x+1)", "(x+1)(x-1)"),
    ("Factor $x^2-1$.", "(x-1)(x+1)", "-(1-x)(1+x)"), ("Simplify $2x+3x$.", "5x", r"x\cdot 5"),
    ("Find the angle.", r"\arctan 2", r"\frac\pi2-\arctan\frac12"),
    ("Compute the sum.", r"\frac{n(n+1)(2n+1)}{6}", r"\frac16n(n+1)(2n+1)"),
    ("Write it.", r"2e^{i\pi/3}", r"2(\cos\frac\pi3+i\sin\frac\pi3)"),
    ("Find it.", r"\frac{1+\sqrt5}{2}", r"\frac12+\frac{\sqrt5}{2}"), ("Compute it.", "2^{1009}", r"2\cdot2^{1008}"),
    ("Compute it.", r"\frac{3\pi}{4}", r"\frac34\pi"), ("Evaluate $(1+2i)6-3i$.", "6+9i", r"\frac{12+18i}{2}"),
]  # fmt: skip

ASKED_WRONG: list[tuple[str, str, str]] = [
    ("Express $0.25$ as a common fraction.", r"\frac14", "0.25"),
    (r"Express $25\%$ as a common fraction.", r"\frac14", r"25\%"),
    ("Convert 0.25 to a fraction.", r"\frac14", "0.25"), (r"Convert $\frac34$ to a decimal.", "0.75", r"\frac34"),
    (r"Express $0.\overline{57}$ as a common fraction.", r"\frac{19}{33}", r"0.\overline{57}"),
    (r"Express $0.\overline{57}$ as a common fraction.", r"\frac{19}{33}", r"0.\dot5\dot7"),
    (r"Express $0.\overline{57}$ as a common fraction.", r"\frac{19}{33}", "0.(57)"),
    (r"Write $50\%$ as a decimal.", "0.5", r"50\%"),
    ("Write $1{,}500{,}000$ in scientific notation.", r"1.5\times10^6", "1500000"),
    ("Find the prime factorization of $40$.", r"2^3\cdot5", "40"), ("What is $-(-5)$?", "5", "-(-5)"),
    ("What is $--5$?", "5", "--5"), ("Write 0.125 as a fraction in lowest terms.", r"\frac18", "0.125"),
    ("Express 1.5 as an improper fraction.", r"\frac32", "1.5"),
    ("Evaluate $(1+2i)6-3i$.", "6+9i", "(1+2i)6-3i+1-1"),
    ("Evaluate $(1+2i)6-3i$.", "6+9i", r"\frac{2((1+2i)6-3i)}{2}"),
    ("Evaluate $(1+2i)6-3i$.", "6+9i", "1-(1-(1+2i)6+3i)"),
    (r"Compute $\sin^{-1}(-\frac12)$.", r"-\frac\pi6", r"\sin^{-1}\left(-\frac12\right)"),
    (r"Compute $\sin 60^\circ$.", r"\frac{\sqrt3}2", r"\sin\frac\pi3"),
    (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"\sqrt[2]{8}"), (r"Simplify $\sqrt{8}$.", r"2\sqrt2", "8^{1/2}"),
    (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"\sqrt{4\cdot2}"), ("Factor $x^2-1$.", "(x-1)(x+1)", "-(1-x^2)"),
    ("Simplify $2x+3x$.", "5x", "x(2+3)"), (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"\sqrt8+1-1"),
    (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"\frac{3\sqrt8}{3}"),
    (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"\sqrt{(\sqrt8)^2}"),
    (r"Simplify $\sqrt{8}$.", r"2\sqrt2", r"1-(1-\sqrt8)"), ("How long is it?", r"\frac{\sqrt3}2", r"\cos 30^\circ"),
    ("Find the angle.", r"\frac\pi4", r"\arctan 1"), (r"Simplify $\sqrt{8}$.", r"2\sqrt2", "8^{0.5}"),
]  # fmt: skip
