"""The command line as a user meets it: help, exit codes, what reaches the commands behind it."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridge_mcore import __version__
from bridge_mcore.cli.main import app, main
from bridge_mcore.config.replay import ReplayOptions
from bridge_mcore.errors import BridgeError, ConfigError, TrainingError
from bridge_mcore.evaluation.options import Subject
from bridge_mcore.evaluation.suites import Answers
from bridge_mcore.rollout.options import GenerateOptions
from tests.config.files import make_adapter, make_case, make_model, write

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "eval", "scores", "generate", "replay", "report", "selftest", "verify", "keys")
GOOD = "model: {generated: {}}\nrollout: {max_new_tokens: 24}\ndata: {rl: {task: running_sums}, template: plain}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "c.yaml", GOOD + f"run: {{directory: {tmp_path}/run}}\n")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reached the modules that do the work; none of them is imported."""
    calls: list[Any] = []
    for module, function in (
        ("bridge_mcore.launch.local", "run_training"),
        ("bridge_mcore.launch.local", "run_replay"),
        ("bridge_mcore.evaluation.command", "run_evaluation"),
        ("bridge_mcore.rollout.command", "run_generate"),
    ):
        fake = sys.modules.get(module)
        if not isinstance(fake, types.SimpleNamespace):
            fake = types.SimpleNamespace()
            monkeypatch.setitem(sys.modules, module, fake)
        setattr(fake, function, calls.append)
    return calls


def run(*arguments: str) -> int:
    """The exit code of main()."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 0
    return 0


def words(text: str) -> list[str]:
    return text.split(" ")


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command(self, command: str) -> None:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith("Usage: ") and "--help" in result.output

    @pytest.mark.parametrize("command", ["train", "eval", "generate", "replay", "selftest", "keys"])
    def test_an_example_line(self, command: str) -> None:
        assert f"  bridge-mcore {command}" in CliRunner().invoke(app, [command, "-h"]).output

    def test_the_commands_are_listed(self) -> None:
        output = CliRunner().invoke(app, ["--help"]).output
        assert all(f"\n  {command} " in output for command in COMMANDS)

    def test_version(self) -> None:
        assert CliRunner().invoke(app, ["--version"]).output == f"bridge-mcore {__version__}\n"

    def test_help_imports_nothing_heavy(self) -> None:
        code = (
            "import sys\nfrom bridge_mcore.cli.main import main\n"
            "try: main(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'transformers', 'numpy', 'sympy', 'matplotlib', 'datasets', 'megatron'}\n"
            "print('heavy:', sorted(heavy & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


class TestProcess:
    """The real thing, in a process of its own: few, they cost time."""

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bridge_mcore", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def test_a_bad_configuration(self, tmp_path: Path) -> None:
        done = self.run("train", write(tmp_path / "c.yaml", "training:\n  stesp: 5\n"))
        assert done.returncode == 2 and done.stdout == ""
        assert (
            done.stderr == f"error: {tmp_path}/c.yaml:2: unknown key 'training.stesp'; did you mean 'training.steps'?\n"
        )

    def test_no_heavy_import_before_the_checks(self, config: Path) -> None:
        code = (
            "import sys\nfrom bridge_mcore.cli.main import main\n"
            f"try: main(['train', {str(config)!r}, 'rollout.schedule=partial'])\n"
            "except SystemExit as ending: print(ending.code, 'torch' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout == "2 False\n" and "embedded cannot" in done.stderr


class TestExitCodes:
    def test_usage_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("tran") == 2
        assert "Did you mean 'train'?" in capsys.readouterr().err
        assert run("train") == 2
        assert run("generate", "x", "--template", "xml") == 2
        assert run("eval", "x", "--data", "y", "--samples", "0") == 2

    def test_nothing_shows_the_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 2
        captured = capsys.readouterr()
        assert "Usage: bridge-mcore" in captured.out + captured.err

    @pytest.mark.parametrize(
        ("error", "code"), [(ConfigError("x"), 2), (TrainingError("x"), 3), (BridgeError("x"), 1), (SystemExit(7), 7)]
    )
    def test_errors_of_the_run(
        self, monkeypatch, called, config: Path, capsys, error: BaseException, code: int
    ) -> None:
        def fail(_: object) -> None:
            raise error

        monkeypatch.setattr(sys.modules["bridge_mcore.launch.local"], "run_training", fail)
        assert run("train", config) == code
        captured = capsys.readouterr()
        assert captured.err == ("" if code == 7 else "error: x\n") and captured.out == ""

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setenv("BRIDGE_MCORE_DEBUG", "1")
        assert run("keys", "xyzzy") == 2
        assert "Traceback" in capsys.readouterr().err

    def test_a_bug(self, monkeypatch, called, config: Path, capsys) -> None:
        monkeypatch.setattr(sys.modules["bridge_mcore.launch.local"], "run_training", lambda _: 1 / 0)
        assert run("train", config) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback") and "ZeroDivisionError" in lines[-2] and "please report it" in lines[-1]

    def test_an_interrupt(self, monkeypatch, called, config: Path, capsys) -> None:
        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["bridge_mcore.launch.local"], "run_training", interrupt)
        assert run("train", config) == 130
        assert "Traceback" not in capsys.readouterr().err


class TestTrain:
    def test_what_it_runs(self, called: list[Any], config: Path) -> None:
        assert run("train", config, "training.steps=3", "run.seed=4") == 0
        assert called[0].training.steps == 3 and called[0].run.seed == 4

    def test_contradictions_stop_it(self, called: list[Any], config: Path, capsys) -> None:
        assert run("train", config, "data.rl=", "reward.correct=-1") == 2
        assert called == [] and "data.rl" in capsys.readouterr().err


class TestEvaluate:
    def test_options(self, called: list[Any], tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        assert run("eval", model, "--data", "running_sums", "--template", "plain") == 0
        (options,) = called
        assert options.subjects == (Subject("m", model),) and options.template == "plain"
        assert options.output == Path("evaluations/running_sums-test")
        (benchmark,) = options.suite.benchmarks
        assert (benchmark.source.task, benchmark.source.split) == ("running_sums", "test")
        assert options.answers == Answers(max_new_tokens=128)  # half of the context
        assert (options.serving.engine, options.serving.device) == ("embedded", "cpu")

    def test_more_options(self, called: list[Any], tmp_path: Path) -> None:
        model, data, output = make_model(tmp_path / "m"), write(tmp_path / "d.jsonl", "{}\n"), tmp_path / "o"
        options = words("--max-new-tokens 9 --limit 5 --samples 3 --temperature 0.5 --device cuda --seed 2")
        served = words("--engine sglang --server tensor=2 --server count=4 --url http://a:1 --url http://b:2")
        served += words("--server start_seconds=9")  # nobody is there yet
        assert run("eval", f"one={model}", "--data", data, *options, *served, "--output", output) == 0
        found = called.pop()
        assert (
            run("eval", f"one={model}", f"two={model}", "--data", data, *options, *served) == 2
        )  # one pair of servers
        assert run("eval", f"one={model}", f"two={model}", "--data", data, *options) == 0
        assert [s.label for s in called[0].subjects] == ["one", "two"] and called[0].subjects[1].path == model
        assert found.answers == Answers(max_new_tokens=9, samples=3, temperature=0.5)
        assert (found.limit, found.seed, found.output) == (5, 2, output)
        assert found.suite.benchmarks[0].source.path == data
        servers = found.serving.servers
        assert (servers.tensor, servers.count, servers.mode) == (2, 4, "external")
        assert servers.urls == ["http://a:1", "http://b:2"]

    def test_a_suite(self, called: list[Any], tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        (tmp_path / "math500").mkdir()
        write(tmp_path / "math500" / "test.jsonl", "{}\n")
        options = ("--template", "plain", "--data-dir", tmp_path, "--only", "math500,aime24")
        assert run("eval", model, "--suite", "paper", *options) == 0
        (found,) = called
        assert [b.name for b in found.suite.benchmarks] == ["math500", "aime24"]
        assert found.suite.max_new_tokens == 8192 and found.answers == Answers()
        assert found.output == Path("evaluations/paper")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "--suite NAME_OR_FILE"),
            (("--data", "running_sums", "--suite", "paper"), "--suite NAME_OR_FILE"),
            (("--data", "running_sum"), "did you mean 'running_sums'?"),
            (("--data", "gone.jsonl"), "does not exist"),
            (("--data", "running_sums", "--samples", "3"), "--samples 3 needs --temperature above 0"),
            (("--data", "running_sums", "--max-new-tokens", "256"), "leaves no room"),
            (("--data", "running_sums", "--only", "x"), "--only chooses benchmarks of a --suite"),
            (("--data", "running_sums", "--server", "tensor=2"), "--server needs --engine"),
            (("--data", "running_sums", "--engine", "vllm", "--server", "tensors=2"), "did you mean"),
            (("--data", "running_sums", "--url", "http://x:1"), "--url needs --engine"),
            (("--data", "running_sums", "--engine", "vllm", "--server", "mode=external"), "needs --url"),
            (
                ("--data", "running_sums", "--temperature", "inf"),
                "'--temperature': Input should be less than or equal to 1000",
            ),
            (("--suite", "papre"), "did you mean 'paper'?"),
            (("--suite", "paper", "--only", "math50"), "did you mean 'math500'?"),
            (("--suite", "paper", "--only", " , "), "names no benchmark; leave it out for all of them"),
            (("--suite", "paper", "--only", ""), "names no benchmark"),
            (("--suite", "paper", "--data-dir", "gone"), "--data-dir gone is no directory"),
        ],
    )
    def test_bad_ones(self, called: list[Any], tmp_path: Path, capsys, options: tuple[str, ...], message: str) -> None:
        assert run("eval", make_model(tmp_path / "m"), *options) == 2
        assert called == [] and message in capsys.readouterr().err

    def test_no_model(self, called: list[Any], tmp_path: Path, capsys) -> None:
        assert run("eval", "gone", "--data", "running_sums") == 2
        assert "MODEL gone: gone is no directory" in capsys.readouterr().err
        model = make_model(tmp_path / "m")
        assert run("eval", model, model, "--data", "running_sums") == 2
        assert "two models are called m" in capsys.readouterr().err
        for label in ("results.json", "a\nb", ".x", "x" * 250, "x" * 300):
            assert run("eval", f"{label}={model}", "--data", "running_sums") == 2
            said = capsys.readouterr().err
            assert "cannot name a directory" in said or "is too long" in said
        assert run("eval", "~nobody-here/x", "--data", "running_sums") == 2
        (tmp_path / "empty").mkdir()
        assert run("eval", model, tmp_path / "empty", "--data", "running_sums", "--template", "plain") == 2
        assert f"MODEL {tmp_path / 'empty'} is no model" in capsys.readouterr().err and called == []


class TestGenerate:
    def test_options(self, called: list[Any], tmp_path: Path) -> None:
        model, adapter = make_model(tmp_path / "m"), make_adapter(tmp_path / "a")
        options = words("--template plain --max-new-tokens 9 --temperature 0.5 --top-p 0.9 --samples 2 --seed 3")
        assert run("generate", model, "--prompt", "Hi", *options, "--adapter", adapter) == 0
        assert called == [GenerateOptions(model, "Hi", "plain", 9, 0.5, 0.9, 2, 3, "cpu", adapter)]

    def test_standard_input(self, called: list[Any], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["generate", str(make_model(tmp_path / "m"))], input="Hi\nyou\n")
        assert result.exit_code == 0 and called == [GenerateOptions(tmp_path / "m", "Hi\nyou", max_new_tokens=128)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--prompt", " "), "the prompt is empty"),
            (("--prompt", "x", "--top-p", "0"), "'--top-p': Input should be greater than or equal to"),
            (("--prompt", "x", "--samples", "2"), "--samples 2 needs --temperature above 0"),
            (("--prompt", "x", "--adapter", "gone"), "--adapter = gone is not a directory"),
        ],
    )
    def test_bad_ones(self, called: list[Any], tmp_path: Path, capsys, options: tuple[str, ...], message: str) -> None:
        model = make_model(tmp_path / "m", max_position_embeddings=512)
        assert run("generate", model, *options) == 2
        assert called == [] and message in capsys.readouterr().err


class TestReplay:
    def test_options(self, called: list[Any], tmp_path: Path) -> None:
        case = make_case(tmp_path / "case")
        options = words(
            "--dtype bfloat16 --micro-batch-size 3 --tp 2 --pp 2 --vpp 2 --dp 2 --cp 2 --sp --no-dist-opt --overwrite"
        )
        assert run("replay", case, tmp_path / "out", *options) == 0
        found: ReplayOptions = called[0]
        assert (found.source, found.target, found.dtype) == (case, tmp_path / "out", "bfloat16")
        assert (found.micro_batch_size, found.overwrite, found.device) == (3, True, "cpu")
        layout = found.parallel
        assert (layout.tensor, layout.pipeline, layout.data, layout.sequence) == (2, 2, 2, True)
        assert (layout.virtual_pipeline, layout.context, layout.distributed_optimizer) == (2, 2, False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [(("--vpp", "2"), "needs parallel.pipeline > 1"), (("--sp",), "needs parallel.tensor > 1")],
    )
    def test_bad_ones(self, called: list[Any], tmp_path: Path, capsys, options: tuple[str, ...], message: str) -> None:
        assert run("replay", make_case(tmp_path / "case"), tmp_path / "out", *options) == 2
        assert called == [] and message in capsys.readouterr().err

    def test_the_help_shows_files_that_are_right(self, tmp_path: Path) -> None:
        """The settings and lines that `replay --help` shows pass the checks."""
        text = CliRunner().invoke(app, ["replay", "--help"], terminal_width=200).output
        settings = text.split("for example:\n")[1].split("\n\n")[0]
        lines = text.split("a line a sample:\n")[1].split("\n\n")[0]
        case = make_case(tmp_path / "case")
        write(case / "settings.yaml", "".join(line.strip() + "\n" for line in settings.splitlines()))
        write(case / "batch.jsonl", lines)
        assert run("replay", case, case / "model") == 2  # only OUT is wrong
        from bridge_mcore.config.replay import check_replay

        check_replay(ReplayOptions(case, tmp_path / "out"))


def test_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "optimizer.alpha") == 0
    assert capsys.readouterr().out.startswith("optimizer.alpha = 5e-07\n    a number >= 1e-20 and <= 10; ")
