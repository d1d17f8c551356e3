"""``bridge-mcore verify``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bridge_mcore.cli import verify as command
from bridge_mcore.errors import DataError

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command()(command.verify)
SCRIPT = "import typer; from bridge_mcore.cli.verify import verify; typer.run(verify)"


def line(gold: object, response: object) -> bytes:
    return json.dumps({"gold": gold, "response": response}).encode() + b"\n"


def run(source: Path | str, *arguments: str, stdin: bytes | None = None) -> tuple[list[dict[str, str]], str]:
    result = CliRunner().invoke(app, [str(source), *arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0
    return [json.loads(text) for text in result.stdout.splitlines()], result.stderr


def test_one_verdict_a_line_in_order_and_bad_lines_are_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(command, "MAX_LINE", 2_000_000)
    rows: list[tuple[bytes, str, str]] = [
        (b"\xef\xbb\xbf" + line("5", r"\boxed{5}"), "correct", "identical"),
        (line("5", r"\boxed{6}"), "incorrect", "different number"),
        (b"\n", "", ""),
        (b"not JSON\n", "error", "line 4: not JSON"),
        (line("x+1", r"\boxed{1+x}"), "correct", "equivalent"),
        (b'["5", "5"]\n', "error", "line 6: not a JSON object"),
        (b'{"gold": "5"}\n', "error", 'line 7: "response" is missing'),
        (line(5, r"\boxed{5}"), "error", 'line 8: "gold" is not a string'),
        (b'{"gold": "\xff"}\n', "error", "line 9: not UTF-8"),
        (b"[" * 100_000 + b"\n", "error", "line 10: JSON that is too deep"),
        (line("5", "x" * 3_000_000), "error", "line 11: longer than"),
        (line("5", "x" * 1_500_000 + r"\boxed{5}"), "correct", ""),
        (b'{"gold": ' + b"9" * 9999 + b"}\r\n", "error", "line 13"),
        (line("", r"\boxed{5}"), "error", "gold answer is empty"),
        (line("5", r"\boxed{\ud800}")[:-1], "incorrect", ""),
    ]
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"".join(content for content, _, _ in rows))
    verdicts, log = run(file, "--workers", "1")
    expected = [(verdict, reason) for _, verdict, reason in rows if verdict]
    assert [verdict["verdict"] for verdict in verdicts] == [verdict for verdict, _ in expected]
    for verdict, (_, reason) in zip(verdicts, expected, strict=True):
        assert reason in verdict["reason"] and set(verdict) == {"verdict", "reason"}
    assert str(file) in verdicts[2]["reason"] and '{"gold": "..."' in verdicts[2]["reason"]
    assert "14 lines" in log and "correct 3, incorrect 2, timeout 0, error 9" in log


def test_standard_input_and_many_lines() -> None:
    content = b"".join(line(str(n % 7), f"\\boxed{{{n % 5}}}") for n in range(3000))
    verdicts, _ = run("-", stdin=content)
    assert [v["verdict"] == "correct" for v in verdicts] == [n % 7 == n % 5 for n in range(3000)]


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    verdicts, log = run(tmp_path / "empty")
    assert verdicts == [] and "0 lines" in log


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(DataError, match=str(file)):
            command.verify(file)


def test_a_partner_at_the_pipe_gets_each_verdict_before_it_writes_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        for answer, verdict in (("5", "correct"), ("6", "incorrect")):
            process.stdin.write(line("5", f"\\boxed{{{answer}}}"))
            assert json.loads(process.stdout.readline())["verdict"] == verdict
        process.stdin.close()
        assert process.wait(timeout=300) == 0


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_bytes(line("5", r"\boxed{5}") * 20_000)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(file)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    log = process.stderr.read().decode()
    assert process.wait(timeout=300) == 0
    assert "Traceback" not in log and "BrokenPipe" not in log
    process.stderr.close()


def test_a_file_that_cannot_be_judged_at_all_ends_so(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(line("", r"\boxed{5}") * 3)
    with pytest.raises(
        DataError, match="none of the 3 lines could be judged; the first: error: the gold answer is empty"
    ):
        run(file, "--workers", "1")
    file.write_bytes(b"")
    assert run(file, "--workers", "1")[0] == []


def test_golds_that_only_their_own_spelling_can_meet_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(line("5", r"\boxed{5}") + 2 * line("t(0,4]$", r"\boxed{4}") + line(r"\text{Ann}", r"\boxed{Ann}"))
    _, log = run(file, "--workers", "1")
    assert "1 of 3 different golds can only be compared as text" in log and "t(0,4]" in log
    file.write_bytes(line("5", r"\boxed{5}"))
    assert "as text" not in run(file, "--workers", "1")[1]


def test_a_line_with_its_question_is_judged_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    row = {"gold": "7", "response": r"\boxed{3+4}"}
    rows = [row, row | {"prompt": "What is $3+4$?"}, row | {"prompt": 5}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [verdict["verdict"] for verdict in run(file, "--workers", "1")[0]] == ["correct", "incorrect", "correct"]
