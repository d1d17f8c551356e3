"""Nobody's data runs code: every door of docs/doors.md is tried, and none stands in the package that is not listed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_mcore.cli.main import main
from bridge_mcore.config.load import load_config
from bridge_mcore.config.replay import read_batch, read_settings
from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.prepare.recipe import load_recipe
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.sources import read_dataset
from bridge_mcore.data.stops import load_tokenizer
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import BridgeError
from bridge_mcore.evaluation.command import read_answers, run_scores
from bridge_mcore.evaluation.suites import load_suite
from bridge_mcore.monitoring.runs import load_run
from tests.doors import doors_in, doors_of

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "bridge_mcore", ROOT / "docs" / "doors.md"
_ROW = re.compile(r"^\| (`[^|]*\.py`[^|]*) \| ([^|]*) \|", re.MULTILINE)
_QUOTED = re.compile(r"`([^`]+)`")


# ---- the list ----------------------------------------------------------------------------------------------------


def listed(page: str) -> dict[str, set[str]]:
    """Doors by file, as the page's tables have them: files in the first column, what they reach for in the second."""
    found: dict[str, set[str]] = {}
    for files, doors in _ROW.findall(page):
        for file in _QUOTED.findall(files):
            found.setdefault(file, set()).update(_QUOTED.findall(doors))
    return found


def test_every_door_of_the_package_stands_in_the_list_and_none_besides() -> None:
    there, said = doors_in(PACKAGE), listed(PAGE.read_text("utf-8"))
    missing = {file: doors - said.get(file, set()) for file, doors in there.items() if doors - said.get(file, set())}
    gone = {file: doors - there.get(file, set()) for file, doors in said.items() if doors - there.get(file, set())}
    assert not missing, f"new doors: say in {PAGE} who supplies the text and what bounds it: {missing}"
    assert not gone, f"{PAGE} lists what is there no more: {gone}"


@pytest.mark.parametrize(
    ("source", "doors"),
    [
        ("import pickle as p\np.loads(x)", {"pickle.loads"}),
        ("from pickle import loads as fine\nfine(x)", {"pickle.loads"}),
        ("def f():\n    from torch import load\n    return map(load, x)", {"torch.load"}),
        ("import importlib.util\nimportlib.util.find_spec(x)", {"importlib.util.find_spec"}),
        ("import pickle\nclass A(pickle.Unpickler): pass", {"pickle.Unpickler"}),
        ("run = exec\nrun(x)", {"exec"}),
        ("import re\nre.compile(x)\nmodel.eval()\n'{}'.format(x)\ngetattr(a, 'b', None)", set()),
        ("text.format(x)\ngetattr(a, b)", {"format", "getattr"}),
        ("import os\nos.execvp(x, y)\nos.spawnl(x)", {"os.execvp", "os.spawnl"}),
        ("import subprocess as s\ndef f(run=s.run): ...", {"subprocess.run"}),
        ("Auto.from_pretrained(x)", {"from_pretrained"}),
    ],
)
def test_the_list_would_notice(source: str, doors: set[str]) -> None:
    assert doors_of(source) == doors


def test_no_code_of_a_model_directory_is_trusted() -> None:
    """Every `from_pretrained` says so itself: a default may change, and a word in a configuration is no licence."""
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
            ):
                given = {word.arg: word.value for word in node.keywords}
                said = given.get("trust_remote_code")
                assert isinstance(said, ast.Constant) and said.value is False, f"{path}, line {node.lineno}"
                seen += 1
    assert seen >= 2


# ---- the doors, tried --------------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that hostile text would make, were it run."""
    return tmp_path / "canary"


def refused(act: Callable[[], object], canary: Path) -> str:
    """What is said to a hostile input; the canary must not be there, whether it is refused or read as data."""
    try:
        act()
        said = ""
    except BridgeError as error:
        said = str(error)
    assert not canary.exists()
    return said


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_row_that_names_a_plugin(suffix: str, skip: bool, tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(canary)!r}, 'w')\ndef f(*_): return True\n")
    rows = [{"problem": f"{i}?", "answer": "1", "reward": reward}
            for i, reward in enumerate(("math", f"plugin:{file}:f", "plugin:timeit:timeit"))]  # fmt: skip
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    source = DataSource(path=path, bad_rows="skip" if skip else "error")
    said = refused(lambda: load_problems(source), canary)
    assert ("is code, and no setting names it" in said) is not skip
    if skip:
        assert [problem.reward for problem in load_problems(source)] == ["math"]


def test_a_row_does_not_get_a_plugin_into_prepared_data(tmp_path: Path, canary: Path, capsys) -> None:
    rows = [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2", "reward": "plugin:timeit:timeit"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output: {tmp_path}/out\nprompts: [{{path: {data}, bad_rows: skip}}]\n")
    with pytest.raises(SystemExit):
        main(["data", "prepare", str(recipe), "prompts.bad_rows=error"])
    assert "line 2: the reward 'plugin:timeit:timeit' is code" in capsys.readouterr().err
    main_ok(["data", "prepare", str(recipe)])
    written = [json.loads(line) for line in (tmp_path / "out" / "train_rl.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in written] == ["math"]
    assert "is code" in (tmp_path / "out" / "dropped.jsonl").read_text()


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_yaml_makes_no_objects(tmp_path: Path, canary: Path) -> None:
    """Configurations, recipes, suites, replay cases and the configuration in a run's directory."""
    path = tmp_path / "config.yaml"
    path.write_text(f"!!python/object/apply:os.system ['touch {canary}']\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    for read in (load_config, lambda p: load_recipe(str(p)), lambda p: load_suite(str(p)), read_settings,
                 lambda p: load_run(p.parent)):  # fmt: skip
        assert refused(lambda read=read: read(path), canary), read


def test_a_dataset_brings_no_script(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (folder / "data.jsonl").write_text('{"problem": "1?", "answer": "1"}\n')
    refused(lambda: list(read_dataset(DataSource(dataset=str(folder)))), canary)
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(canary), "w")

    (folder / "set.py").unlink()
    (folder / "data.jsonl").unlink()
    (folder / "data.pkl").write_bytes(pickle.dumps(Evil()))
    assert refused(lambda: list(read_dataset(DataSource(dataset=str(folder)))), canary)


@pytest.fixture
def tokenizer_directory(tmp_path: Path, canary: Path) -> Path:
    """A directory with a tokenizer that asks for code of its own to be run."""
    directory = tmp_path / "model"
    task_tokenizer("running_sums").save_pretrained(directory)
    code = f"open({str(canary)!r}, 'w')\nclass Evil: pass\n"
    for name in ("tokenization_evil.py", "modeling_evil.py", "configuration_evil.py"):
        (directory / name).write_text(code)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    config["tokenizer_class"] = "Evil"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({
        "model_type": "evil", "architectures": ["Evil"], "vocab_size": 100,
        "auto_map": {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},
    }))  # fmt: skip
    return directory


def test_a_model_directory_brings_no_code(tokenizer_directory: Path, canary: Path) -> None:
    from bridge_mcore.data.prepare.measure import Measure
    from bridge_mcore.data.preview import tokenizer_of
    from bridge_mcore.model.families import find_family

    for read in (lambda p: load_tokenizer(p, 100), tokenizer_of, lambda p: Measure(p, "plain"), find_family):
        refused(lambda read=read: read(tokenizer_directory), canary)


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(template: str, canary: Path) -> None:
    tokenizer = task_tokenizer("running_sums")
    tokenizer.chat_template = template.replace("CANARY", str(canary))
    problem = load_problems(DataSource(task="running_sums", size=1))[0]
    assert "refuses the messages" in refused(lambda: PromptTemplate(tokenizer, "chat").prompt(problem), canary)


def test_records_of_an_evaluation_name_neither_code_nor_places(tmp_path: Path, canary: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    record = {
        "set": "x", "id": "1", "sample": 0, "prompt": "?", "gold": "1", "response": "1", "answer": "1",
        "verdict": "correct", "reason": "", "tokens": 1, "finished": True, "reward": "plugin:timeit:timeit",
    }  # fmt: skip
    outside.write_text(json.dumps(record) + "\n")
    directory = tmp_path / "run" / "model"
    (directory / "records").mkdir(parents=True)
    settings = {"samples": 1, "problems": {"1": "plugin:timeit:timeit"}}
    for name in ("../../../outside", "records/../x", ".hidden", ""):
        (directory / "settings.json").write_text(json.dumps({"benchmarks": {name: settings}}))
        assert "is damaged at the benchmark" in refused(lambda: read_answers(directory), canary)
    (directory / "settings.json").write_text(json.dumps({"benchmarks": {"x": settings}}))
    outside.rename(directory / "records" / "x.jsonl")
    before = set(sys.modules)
    run_scores([directory], "text", 1, 1)
    assert "timeit" not in set(sys.modules) - before


def test_saved_rollouts_and_cases_hold_numbers_only(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "batch.jsonl"
    for row in ({"kind": "plugin:timeit:timeit", "tokens": [1, 2], "prompt_length": 1},
                {"kind": "rl", "tokens": ["__import__('os')"], "prompt_length": 1},
                {"kind": "rl", "tokens": [1, 2], "prompt_length": 1, "reward": "plugin:timeit:timeit"}):  # fmt: skip
        path.write_text(json.dumps(row) + "\n")
        assert "line 1" in refused(lambda: read_batch(path), canary)


HOSTILE = "\x1b]0;owned\x07\x1b[2K\x1b[1A\u202e"


def test_texts_of_files_do_not_act_on_the_terminal(tmp_path: Path) -> None:
    """In errors, warnings and everything that a command prints of its data."""
    data = tmp_path / "rows.jsonl"
    rows = [{"problem": f"{HOSTILE}?", "answer": f"{HOSTILE}1"}, {"problem": "2?", "answer": "1", "reward": HOSTILE},
            {"problem": "3?", "answer": "1", "reward": "plugin:m:f"}]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    task_tokenizer("running_sums").save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]
    for arguments in (["data", "stats", str(data)], ["data", "preview", str(data), *model, "--template", "plain"],
                      ["data", "preview", str(data), *model, "--template", "plain", "--json", "--tokens"],
                      ["data", "prepare", str(data), f"output={tmp_path}/\x1b[1A"]):  # fmt: skip
        command = [sys.executable, "-m", "bridge_mcore", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120)
        out = (done.stdout + done.stderr).decode()
        assert out and not set("\x1b\x07\u202e") & set(out), arguments
        assert "Traceback" not in out, out
