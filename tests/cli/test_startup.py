"""What is there before the first step: examples by name, the wheel, light commands, Ctrl-C at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bridge_mcore.config.built_in import EXAMPLES, config_path, names_in
from bridge_mcore.errors import ConfigError
from tests.monitoring.synthetic import write_run
from tests.monitoring.test_run_report import answer

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "megatron", "matplotlib", "datasets", "tokenizers", "pyarrow", "peft", "safetensors"}


def python(code: str, place: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the commands below are given."""
    made = tmp_path_factory.mktemp("place")
    (made / "answers.jsonl").write_text('{"gold": "2", "response": "\\\\boxed{2}"}\n')
    for name in ("a", "b"):
        answer(write_run(made / name, steps=4, total=4, every=2), 4, [True, name == "a"])
    answers = [{"id": "x", "sample": 0, "set": "sums", "prompt": "", "gold": "2", "response": "", "answer": "2",
                "verdict": "correct", "reason": "", "tokens": 1, "finished": True}]  # fmt: skip
    (made / "scored" / "records").mkdir(parents=True)
    (made / "scored" / "records" / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    settings = {"benchmarks": {"sums": {"samples": 1, "problems": {"x": "math"}}}}
    (made / "scored" / "settings.json").write_text(json.dumps(settings))
    return made


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "bridge-mcore train quickstart"),
        (["keys"], 0, "optimizer.alpha"),
        (["verify", "answers.jsonl"], 0, '"verdict": "correct"'),
        (["scores", "scored"], 0, "100.0"),
        (["report", "a", "--json"], 0, '"finished": true'),
        (["train", "quickstart", "trainig.steps=3"], 2, ""),
        (["train", "quickstrat"], 2, ""),
        (["convert", "inspect", "nowhere"], 2, ""),
        (["convert", "hf-to-hf", "nowhere", "new"], 2, ""),
        (["eval", "nowhere", "--data", "running_sums"], 2, ""),
    ],
)
def test_light_commands_import_nothing_heavy(place: Path, arguments: list[str], code: int, words: str) -> None:
    done = python(
        "import sys\nfrom bridge_mcore.__main__ import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        "except SystemExit as ending: print('code:', ending.code or 0)\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))\n",
        place,
    )
    *output, ended, heavy = done.stdout.splitlines()
    allowed = ["matplotlib"] if arguments[0] == "report" else []  # it draws
    assert (ended, heavy) == (f"code: {code}", f"heavy: {allowed}"), done.stderr
    assert words in "\n".join(output) and "Traceback" not in done.stderr


def test_ctrl_c_during_the_first_imports_is_quiet(tmp_path: Path) -> None:
    done = python(
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from bridge_mcore.__main__ import main\nmain()\n",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_slow_commands_say_what_they_load_first(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    done = python(
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print('torch', file=sys.stderr, flush=True); raise SystemExit(0)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from bridge_mcore.cli.main import main\nmain(['convert', 'inspect', 'm', '--json'])\n",
        tmp_path,
    )
    assert done.stdout == "" and done.stderr.splitlines() == ["· loading torch and Megatron …", "torch"]


def test_examples_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quickstart" in names_in(EXAMPLES)
    assert config_path(Path("quickstart")).read_bytes() == (ROOT / "examples" / "quickstart.yaml").read_bytes()
    (tmp_path / "quickstart").mkdir()  # a directory of that name is not meant
    assert config_path(Path("quickstart")).suffix == ".yaml"
    assert config_path(Path("quickstart.yaml")) == Path("quickstart.yaml")
    with pytest.raises(ConfigError, match="no example 'quickstrat'; did you mean 'quickstart'"):
        config_path(Path("quickstrat"))


def test_the_wheel_holds_the_examples_and_they_work_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools.build_meta import build_wheel as build; import sys; build(sys.argv[1])",
         str(tmp_path)],
        cwd=copied(tmp_path / "source"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for example in (ROOT / "examples").glob("*.yaml"):
            assert archive.read(f"bridge_mcore/examples/{example.name}") == example.read_bytes()
        assert not [name for name in names if name.startswith(("tests/", "tools/", "docs/", "examples/"))]
        archive.extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = "import sys; sys.argv[1:] = ['train', 'quickstart', 'training.steps=0']\n"
    code += "import bridge_mcore.__main__ as program; print(program.__file__, flush=True); program.main()"
    done = python(code, empty, tmp_path / "installed")
    assert done.stdout.startswith(str(tmp_path / "installed")), done.stdout
    assert (done.returncode, done.stderr.split(": must")[0]) == (2, "error: command line: training.steps = 0")
    assert not list(empty.iterdir())


def copied(place: Path) -> Path:
    """What a wheel is built from, where the build may write."""
    import shutil

    place.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    for name in ("bridge_mcore", "examples"):
        shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return place
