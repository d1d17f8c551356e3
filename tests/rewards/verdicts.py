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
