"""Answers that are meant to cost time or memory, to crash what reads them, or to pass for something else."""

from __future__ import annotations

import random


def towers(rng: random.Random) -> list[str]:
    digit = rng.randrange(3, 10)
    return [
        f"{digit}^{{{digit}^{{{digit}^{{{digit}}}}}}}",
        f"{digit}**{digit}**{digit}**{digit}",
        f"{digit}^{digit}^{digit}^{digit}",
        r"2^{" * 40 + "2" + "}" * 40,
        r"10^{10^{10}}",
        r"(10^{100})^{100}",
        r"2^{2^{2^{2^{2^{2}}}}} - 2^{65536}",
        r"(-1)^{10^{30}+1}",
        r"0^{0^{0^{0}}}",
        r"1.0000001^{10^{12}}",
        r"(1+10^{-9})^{10^9}",
        r"\sqrt[1000000007]{2}",
        r"\sqrt[10^{20}]{10^{20}}",
        r"x^{10^{9}} + 1",
        r"(x+1)^{1000000}",
        r"(x+1)^{400} - 1",
        "((((x+1)^{30}+1)^{30}+1)^{30}+1)^{30}",
        r"e^{e^{e^{e^{e}}}}",
        r"i^{i^{i^{i}}}",
        "1e999999999",
        "1e999",
        r"5 \times 10^{999999999}",
        r"7^{-9^{9^{9}}}",
    ]


def large_operators() -> list[str]:
    return [
        r"(10^9)!",
        "99999!",
        "400!!!!",
        "((5!)!)!",
        "5" + "!" * 1000,
        r"\binom{10^9}{10^8}",
        r"\binom{100000}{50000}",
        r"\sum_{k=1}^{10^9} k^{k}",
        r"\prod_{k=1}^{10^9} k",
        r"\int_0^{1} \int_0^{1} \sin(x^{x^{x}}) dx dx",
        r"\lim_{x \to 0} \frac{\sin x}{x^{100000}}",
        r"\lfloor 10^{10^{8}} \rfloor",
        r"\sin(10^{10^{10}})",
        r"\sin" * 200 + "x",
        r"\sin(" * 300 + "x" + ")" * 300,
        r"\log_{2}" * 100 + "2",
        r"\gcd(10^{10^{9}}, 6^{10^9})",
        r"\frac{1}{0}",
        r"\frac{0}{0}",
        r"\log 0",
        r"\tan 90^\circ",
        r"\sqrt{" + "2^{61}-1" + "}" + r"\sqrt{170141183460469231731687303715884105727}",
        r"\sqrt{" + "1" * 300 + "}",
        "x" + "(x+1)" * 60,
        "".join(f"(x_{{{n}}}+y_{{{n}}})" for n in range(40)),
        "+".join(f"\\sqrt{{{n}}}" for n in range(2, 90)),
        r"\frac{1}{" + "+".join(f"\\sqrt{{{n}}}" for n in range(2, 60)) + "}",
        "*".join(f"\\frac{{x+{n}}}{{y+{n}}}" for n in range(40)),
    ]


def nesting() -> list[str]:
    return [
        r"\frac{" * 300 + "1" + "}{2}" * 300,
        r"\frac1{1+" * 150 + "1" + "}" * 150,
        "(" * 1500 + "1" + ")" * 1500,
        "{" * 1500 + "1" + "}" * 1500,
        "[" * 1500 + "1" + "]" * 1500,
        "|" * 2000 + "1" + "|" * 2000,
        r"\{" * 900 + "1" + r"\}" * 900,
        r"\left(" * 400 + "1" + r"\right)" * 400,
        r"\sqrt{" * 500 + "2" + "}" * 500,
        r"\sqrt" * 700 + "2",
        r"\text{" * 500 + "a" + "}" * 500,
        r"\boxed{" * 500,
        "(" * 3000,
        ")" * 3000,
        "(1," * 1000 + "1" + ")" * 1000,
        "({[" * 600 + "1" + "]})" * 600,
        "-" * 4000 + "1",
        "+-" * 2000 + "1",
        "1+(" * 900 + "1" + ")" * 900,
        "x^{" * 900 + "x" + "}" * 900,
        "x_{" * 900 + "x" + "}" * 900,
        r"\begin{pmatrix}" * 100 + "1" + r"\end{pmatrix}" * 100,
        r"\begin{pmatrix}" * 200,
        "f(" * 1000 + "x" + ")" * 1000,
        r"\overline{" * 500 + "1" + "}" * 500,
    ]


def long_ones() -> list[str]:
    return [
        "1" * 4000,
        "1" * 3_000_000,
        "x" * 4000,
        "1+" * 1900 + "1",
        "1," * 2000 + "1",
        "1,000" * 800,
        "1,000," * 600 + "000",
        "0." + "3" * 4000,
        r"0.\overline{" + "3" * 3000 + "}",
        "1e" + "9" * 3000,
        "a,b " * 1000,
        ",".join(str(n) for n in range(900)),
        r"\{" + ",".join(f"\\sqrt{{{n}}}" for n in range(99)) + r"\}",
        r"\{" + ",".join(["x+1"] * 99) + r"\}",
        "=".join(["x"] * 1500),
        "<".join(str(n) for n in range(1000)),
        ":".join(["1"] * 1500),
        r"\cup".join(["(0,1)"] * 400),
        r"\text{ or }".join(["5"] * 300),
        r"\begin{pmatrix}" + r"1&2\\" * 500 + r"\end{pmatrix}",
        r"\begin{pmatrix}" + (("&".join(["x"] * 30)) + r"\\") * 30 + r"\end{pmatrix}",
        r"1\pm" * 30 + "1",
        r"\pm " * 1000,
        r"\%" * 2000,
        "5" + "%" * 2000,
        r"5^\circ" * 500,
        r"5\text{ a}" * 300,
        "5 " + "a " * 1900,
        r"5\text{" + "meters per " * 300 + "second}",
        "5" + r"\text{m}/" * 400 + r"\text{s}",
        r"\alpha" * 700 + "!",
        r"\ab" * 1300 + "=5",
        r"\aaaaaaaaaaaaaaaa" * 200 + "#",
        "a_" * 2000,
        "1" + "_" * 3000,
        "z" * 2000 + "_{" + "9" * 1900 + "}",
        "$" * 3000,
        "\\" * 3999,
        " " * 3000 + "1" + " " * 900,
        "x" + " " * 2000 + "y" + " " * 1900,
        "." * 4000,
        "!" * 4000,
        "&" * 4000,
        r"\\" * 2000,
        "~" * 4000,
        r"\!" * 1900 + "7",
        "{,}" * 1300,
        r"\quad" * 800,
        "7" + r"\left.\right." * 300,
    ]


def strange(rng: random.Random) -> list[str]:
    noise = "".join(chr(rng.choice([rng.randrange(1, 128), rng.randrange(160, 0xD7FF)])) for _ in range(2000))
    brackets = "".join(rng.choices(r"()[]{}|,;=<>^_\$&%", k=3000))
    tokens = [r"\frac", r"\sqrt", "{", "}", "1", "x", "^", "_", r"\left(", r"\pm", r"\text{"]
    commands = "".join(rng.choices(tokens, k=700))
    return [
        noise.replace("{", "").replace("}", ""),
        brackets.replace("{", "").replace("}", ""),
        commands + "}" * 700,
        "\0\ud800\uffff" * 100,
        "\u202e5\u202d6",
        "５６",
        "٣٤",
        "Ⅴ",
        "5\u0338",
        "\u200b",
        "∞" * 500,
        "√" * 1000 + "2",
        "½" * 900,
        "π" * 1500,
        r"\input{/etc/passwd}",
        r"\def\x{\x\x}\x",
        r"\newcommand{\a}{\a\a}\a",
        "__import__('os').system('true')",
        "lambda: 5",
        "{{5}}" * 400 + "#",
        "exec('while 1: pass')",
        r"\csname end\endcsname",
        "%5",
        "<script>17</script>",
        "NaN",
        "inf",
        "None",
        "True",
        "[1, 2, 3][0]",
        "x if x else y",
    ]


def hostile_answers(rng: random.Random) -> list[str]:
    """All of them; no two are equal."""
    return list(dict.fromkeys([*towers(rng), *large_operators(), *nesting(), *long_ones(), *strange(rng)]))
