"""Bad input of every command: one short message and exit code 2, within seconds and before anything heavy.

Each input is a real command line in a forked process; what is valid is cut off where its work would begin. Seeds are
fresh; few inputs here, many with `-m slow`.
"""

from __future__ import annotations

import inspect
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

import pytest
import typer
import yaml

from bridge_mcore.cli.main import app
from bridge_mcore.config.schema import Config
from tests.config.files import make_adapter, make_case, make_model, write
from tests.support.fuzz import MEMORY, Outcome, run_forked
from tests.support.nonsense import DIGITS, TOO_LONG_NAME, TOO_LONG_PATH, bad_yaml, broken, file_with, keys_of, nonsense

GOOD: dict[str, Any] = {
    "run": {"directory": "run"},
    "model": {"generated": {}},
    "training": {"steps": 10},
    "rollout": {"max_new_tokens": 24},
    "data": {
        "rl": {"task": "running_sums"},
        "evaluation": [{"task": "running_sums", "split": "test"}],
        "template": "plain",
    },
}
SECONDS = 60  # the machine may be crowded; all of them together take seconds
LONGEST_TEXT = 4000
#: Loaded before the fork, for commands that are not cut off.
HEAVY = (
    "torch", "transformers", "matplotlib.backends.backend_agg", "bridge_mcore.config.checks",
    "bridge_mcore.checkpoint.convert", "bridge_mcore.checkpoint.inspect", "bridge_mcore.checkpoint.extract",
    "bridge_mcore.data.preview", "bridge_mcore.data.prepare.output", "bridge_mcore.evaluation.command",
    "bridge_mcore.monitoring.report", "bridge_mcore.platform.cpu",
)  # fmt: skip
LIGHT_COMMANDS = ("train", "eval", "generate", "replay", "selftest", "keys")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: a model, an adapter, a case, a run, data, and what is none of them."""
    place = tmp_path_factory.mktemp("fuzz")
    make_model(place / "model")
    make_adapter(place / "adapter")
    make_case(place / "case")
    write(place / "good.yaml", yaml.safe_dump(GOOD))
    write(place / "data.jsonl", '{"problem": "1+1?", "answer": "2"}\n')
    write(place / "answers.jsonl", '{"gold": "5", "response": "\\\\boxed{5}"}\n')
    (place / "done").mkdir()
    write(place / "done" / "metrics.jsonl", '{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
    (place / "empty").mkdir()
    (place / "math").mkdir()  # called like a recipe
    write(place / "file", "x")
    (place / "binary").write_bytes(b"\xff\xfe\x00")
    write(place / "deep.json", "[" * 100_000)
    (place / "nowhere").symlink_to("gone/gone")
    (place / "circle").symlink_to("circle")
    return place


#: Command lines that pass every check, by command; {PATH}s are what the paths in them are replaced by.
COMMANDS: dict[str, list[str]] = {
    "train": ["good.yaml"],
    "eval": ["model", "--data", "running_sums", "--template", "plain", "--output", "out"],
    "generate": ["model", "--prompt", "x", "--template", "plain"],
    "replay": ["case", "out"],
    "selftest": [],
    "report": ["done"],
    "scores": ["empty"],
    "verify": ["answers.jsonl"],
    "data preview": ["data.jsonl", "--model", "model"],
    "data stats": ["data.jsonl"],
    "data prepare": ["paper", "files=empty"],
    "convert inspect": ["model"],
    "convert hf-to-mcore": ["model", "out"],
    "convert mcore-to-hf": ["done", "out"],
    "convert hf-to-hf": ["model", "out"],
    "convert merge-adapter": ["model", "adapter", "out"],
    "convert extract-adapter": ["done", "out"],
}


def ran(place: Path, command: str, arguments: Sequence[str], **options: Any) -> Outcome:
    imports = {} if command in LIGHT_COMMANDS else {"imports": HEAVY}
    return run_forked([*command.split(), *arguments], SECONDS, place, **imports, **options)


def wrong(outcome: Outcome, nonsense: bool) -> str | None:
    """What is wrong with how a command ended."""
    if outcome.kind in ("traceback", "hang", "signal"):
        return outcome.kind
    if outcome.kind == "failed":
        return f"exit code {outcome.code}"
    if nonsense and outcome.kind == "ok":
        return "accepted nonsense"
    if outcome.kind == "refused" and "error: " not in outcome.text:
        return "no message"
    if outcome.kind == "refused" and len(outcome.text) > LONGEST_TEXT:
        return f"a message of {len(outcome.text)} characters"
    return None


def check(place: Path, cases: Iterable[tuple[str, str, Sequence[str]]], nonsense: bool = True, **options: Any) -> None:
    """Runs (what it is, command, arguments) and lists all that ended wrongly."""
    failures, count = [], 0
    for what, command, arguments in cases:
        outcome = ran(place, command, arguments, **options)
        count += 1
        if (found := wrong(outcome, nonsense)) is not None:
            shown = " ".join(arguments)[:150]
            failures.append(f"{found}: {what}: {command} {shown}\n    {outcome.seconds} s: {outcome.text[-600:]!r}")
    assert count > 0
    assert not failures, f"{len(failures)} of {count} inputs:\n" + "\n".join(failures)


few_or_all = pytest.mark.parametrize("count", [pytest.param(8, id="few"), pytest.param(1000, marks=pytest.mark.slow)])


def some(random: Random, cases: Iterable[Any], count: int) -> list[Any]:
    found = list(cases)
    return random.sample(found, min(count, len(found)))


# --- configurations --------------------------------------------------------------------------------------------------


def test_the_good_ones_are_good(place: Path) -> None:
    """Or else all the refusals below would say nothing."""
    for command in ("train", "eval", "generate", "replay", "selftest"):
        outcome = ran(place, command, COMMANDS[command])
        assert outcome.kind == "ok" and outcome.reached, outcome
    assert ran(place, "report", ["done", "--json"]).kind == "ok"
    assert ran(place, "verify", COMMANDS["verify"]).kind == "ok"
    assert ran(place, "convert inspect", ["model"]).kind != "traceback"


@pytest.mark.parametrize("count", [pytest.param(24, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_yaml_that_is_no_configuration(place: Path, seed: int, count: int) -> None:
    random = Random(seed)
    for what, content in some(random, bad_yaml(random).items(), count):
        (place / "bad.yaml").write_bytes(content)
        outcome = ran(place, "train", ["bad.yaml"])
        assert wrong(outcome, nonsense=True) is None, (what, outcome)
        assert "bad.yaml" in outcome.text and outcome.mib < 400, (what, outcome)
    assert not (place / "PWNED").exists()


@few_or_all
def test_an_alias_bomb_is_refused_at_once(place: Path, seed: int, count: int) -> None:
    """Not by time or memory, which grow a millionfold where aliases are followed."""
    bombs = {what: text for what, text in bad_yaml(Random(seed)).items() if what.startswith("billion")}
    assert len(bombs) == 3
    for what, content in bombs.items():
        (place / "bomb.yaml").write_bytes(content)
        outcome = ran(place, "train", ["bomb.yaml"], limits={"AS": 1 << 30, "CPU": 4})
        assert outcome.kind == "refused" and "aliases (*name) repeat more than" in outcome.text, (what, outcome)


@pytest.mark.parametrize("count", [pytest.param(20, id="few"), pytest.param(250, marks=pytest.mark.slow)])
def test_values_that_mean_nothing(place: Path, seed: int, count: int) -> None:
    random = Random(seed)
    every = [(key, value) for key in keys_of(Config) for value in nonsense(key)]

    def cases() -> Iterator[tuple[str, str, list[str]]]:
        for key, value in some(random, every, count):
            write(place / "value.yaml", file_with(key.path, value, GOOD))
            yield f"{key.path} = {value!r:.60}", "train", ["value.yaml"]

    check(place, cases())


#: Values that their own types allow, and that this configuration or machine does not.
TOGETHER = [
    ("run.directory", "/"), ("run.directory", "/proc/x"), ("run.directory", "/sys/x"), ("run.directory", "/dev/null"),
    ("run.directory", "file"), ("run.directory", "file/x"), ("run.directory", "nowhere"), ("run.directory", "circle"),
    ("run.directory", "/".join(["d" * 200] * 19)), ("run.resume", "/nonexistent"), ("run.threads", 99_999),
    ("model.path", "model"), ("model.generated.heads", 3), ("model.generated.head_dim", 3),
    ("model.generated.kv_heads", 3), ("model.generated.hidden_size", 7), ("model.generated.layers", 1_000_000),
    ("model.generated.intermediate_size", 1_000_000_000), ("model.generated.max_positions", 1),
    ("adapter.rank", 65), ("adapter.rank", 1_000_000), ("adapter.targets", []), ("adapter.targets", ["q_proj"] * 2),
    ("adapter.targets", ["../x"]), ("adapter.path", "/etc"), ("method.lam", {"kind": "linear"}), ("method.lam", {}),
    ("method.lam", {"kind": "linear", "start": 0, "end": 5}), ("optimizer.betas", [0.9, 0.9999999999999999]),
    ("objective.clip_range", 1e-300), ("objective.clip_range", [0.2, 1e300]), ("training.max_length", 513),
    ("rollout.max_new_tokens", 512), ("rollout.samples_per_prompt", 1), ("rollout.temperature", 1e-300),
    ("rollout.samples_per_prompt", 999_999), ("rollout.stop_token_ids", [-1]), ("rollout.schedule", "partial"),
    ("reward.verifier", "plugin:no_such_module_here:f"), ("reward.verifier", "plugin:gone.py:f"),
    ("reward.verifier", "plugin:os.gone:f"), ("reward.verifier", "plugin:os"), ("reward.verifier", "plugin::"),
    ("data.rl.reward", "plugin:/etc/gone.py:f"), ("data.rl.reward", "plugin:json.decoder.x:f"),
    ("reward.form", {"pattern": "(", "bonus": 1}), ("reward.form", {"pattern": "a{99999999999}", "bonus": 1}),
    ("reward.sandbox.output_mib", 1e30), ("reward.correct", 0), ("reward.workers", 99_999),
    ("data.rl.difficulty", [9, 2]), ("data.rl.difficulty", [1, 12]), ("model.generated.warm_start.difficulty", [1, 12]),
    ("data.rl.task", "gym:"), ("data.rl.path", "/"),
    ("data.rl", {"path": "/dev/zero"}), ("data.rl", {"path": "data.jsonl"}), ("data.rl", {"dataset": ""}),
    ("data.template", "chat"), ("parallel.tensor", 1000), ("parallel.data", 10_000), ("parallel.pipeline", 7),
    ("parallel.virtual_pipeline", 9), ("parallel.context", 512), ("parallel.expert", 2), ("debug.only", "training"),
    ("debug.rollouts", "/etc"), ("servers.port", 70_000), ("evaluation.every", 5.5),
    ("rollout", {"engine": "sglang"}), ("rollout", {"engine": "vllm"}),
]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(14, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_values_that_do_not_go_together(place: Path, seed: int, count: int) -> None:
    def cases() -> Iterator[tuple[str, str, list[str]]]:
        for key, value in some(Random(seed), TOGETHER, count):
            write(place / "together.yaml", file_with(key, value, GOOD))
            yield f"{key} = {value!r:.60}", "train", ["together.yaml"]

    check(place, cases())


@pytest.mark.parametrize("count", [pytest.param(10, id="few"), pytest.param(200, marks=pytest.mark.slow)])
def test_broken_configurations(place: Path, seed: int, count: int) -> None:
    """Bytes lost, doubled, changed: it may still be a configuration, and never ends in a traceback."""
    random = Random(seed)

    def cases() -> Iterator[tuple[str, str, list[str]]]:
        for _ in range(count):
            content = broken(random, (place / "good.yaml").read_bytes())
            (place / "broken.yaml").write_bytes(content)
            yield repr(content), "train", ["broken.yaml"]

    check(place, cases(), nonsense=False)


OVERRIDES = [
    "run.seed", "=", "run.seed=", "run.seed=x", f"run.seed={DIGITS}", f"data.evaluation.{DIGITS}.size=3",
    "data.evaluation.99999.size=3", "data.evaluation.-1.size=3", "a.b.c.d=1", ".=1", "run.=1", "run=5",
    "run.seed=!!python/object/apply:os.system [id]", "optimizer.alpha=*x", "optimizer.alpha={", "training.steps=1e30",
    "checkpoint.export=!!bool maybe", "x" * 5000, f"{'x' * 5000}=1", f"run.directory={TOO_LONG_PATH}",
    f"run.directory={TOO_LONG_NAME}", "run.directory=~no_such_user/x", "optimizer.alpha=1e29", "\x1b[31m=1",
]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(6, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_overrides(place: Path, seed: int, count: int) -> None:
    chosen = some(Random(seed), OVERRIDES, count)
    check(place, ((f"override {text:.50}", "train", ["good.yaml", text]) for text in chosen))


def test_twenty_thousand_unknown_keys(place: Path) -> None:
    """Seconds, not hours: some are named, the others counted."""
    write(place / "many.yaml", "".join(f"k{i}: 1\n" for i in range(20_000)))
    outcome = ran(place, "train", ["many.yaml"], limits={"CPU": 20})
    assert wrong(outcome, nonsense=True) is None and "(20000 problems)" in outcome.text, outcome
    assert "unknown key 'k0'" in outcome.text and "… and 19980 more" in outcome.text


# --- command lines ---------------------------------------------------------------------------------------------------


def numbers() -> Iterator[tuple[str, str, type]]:
    """(command, option, int or float) of every number on every command line."""
    groups: list[tuple[str, typer.Typer]] = [("", app)]
    groups += [(f"{group.name} ", group.typer_instance) for group in app.registered_groups if group.typer_instance]
    for prefix, group in groups:
        for registered in group.registered_commands:
            assert registered.callback is not None
            hints = get_type_hints(registered.callback, include_extras=True)
            for name in inspect.signature(registered.callback).parameters:
                kinds = [kind for kind in (int, float) if kind in _parts(hints[name])]
                if kinds:
                    declared = [o for mark in get_args(hints[name]) for o in getattr(mark, "param_decls", None) or ()]
                    option = declared[0] if declared else f"--{name.replace('_', '-')}"
                    yield f"{prefix}{registered.name}", option, kinds[0]


def _parts(hint: Any) -> list[Any]:
    return [hint, *(part for argument in get_args(hint) for part in _parts(argument))]


NUMBERS = list(numbers())


def test_all_numbers_of_command_lines_are_found() -> None:
    assert {command for command, _, _ in NUMBERS} <= COMMANDS.keys() | {"keys"}
    assert len(NUMBERS) > 40 and ("replay", "--tp", int) in NUMBERS and ("generate", "--top-p", float) in NUMBERS


@pytest.mark.parametrize("count", [pytest.param(16, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_numbers_of_command_lines(place: Path, seed: int, count: int) -> None:
    values = {int: ["-1", str(10**30), DIGITS, "1.5", "nan", "x", ""], float: ["nan", "inf", "1e300", "-1", "x", ""]}
    every = [(command, option, value) for command, option, kind in NUMBERS for value in values[kind]]
    check(
        place,
        (
            (f"{option} {value:.30}", command, [*COMMANDS[command], option, value])
            for command, option, value in some(Random(seed), every, count)
            if (option, value) != ("--seed", "-1")
        ),
    )


PATHS = [
    TOO_LONG_PATH, TOO_LONG_NAME, "/nonexistent/x", "empty", "file", "binary", "deep.json", "/dev/null", "..",
    "nowhere", "circle", "~no_such_user/x", "~", "--", "-", "", "/dev/zero", "a\nb", "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(16, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_paths_of_command_lines(place: Path, seed: int, count: int) -> None:
    """In place of each path of each command; some mean something there."""
    every = []
    for command, good in COMMANDS.items():
        for position, argument in enumerate(good):
            if (place / argument).exists() or argument == "out":
                every += [(command, [*good[:position], path, *good[position + 1 :]]) for path in PATHS]
    chosen = [(repr(arguments)[:80], command, arguments) for command, arguments in some(Random(seed), every, count)]
    check(place, chosen, nonsense=False, limits={**MEMORY, "FSIZE": 1 << 24})


OUTPUTS = ["/proc/x", "/sys/x/y", "file", "file/x", "circle", TOO_LONG_NAME, TOO_LONG_PATH]
WRITERS = [
    ("train", ["good.yaml", "run.directory={}"]), ("eval", [*COMMANDS["eval"][:-1], "{}"]), ("replay", ["case", "{}"]),
    ("selftest", ["--directory", "{}"]), ("selftest", ["--json", "{}/x.json"]),
    ("report", ["done", "--figure", "{}/x.png"]),
    ("convert hf-to-mcore", ["model", "{}"]), ("convert mcore-to-hf", ["done", "{}"]),
    ("convert hf-to-hf", ["model", "{}"]), ("convert merge-adapter", ["model", "adapter", "{}"]),
    ("convert extract-adapter", ["done", "{}"]), ("data prepare", ["paper", "files=empty", "output={}"]),
]  # fmt: skip


@pytest.mark.parametrize("count", [pytest.param(12, id="few"), pytest.param(1000, marks=pytest.mark.slow)])
def test_places_that_cannot_be_written(place: Path, seed: int, count: int) -> None:
    every = [
        (f"{command} into {path:.50}", command, [argument.replace("{}", path) for argument in arguments])
        for command, arguments in WRITERS
        for path in OUTPUTS
    ]
    check(place, some(Random(seed), every, count))


def test_nothing_is_left_where_it_was_tried(place: Path) -> None:
    before = set(place.iterdir())
    ran(place, "train", ["good.yaml", "run.directory=new/deep/run"])
    ran(place, "eval", [*COMMANDS["eval"][:-1], "new/evaluation"])
    assert set(place.iterdir()) == before


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("allowed", [64, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 100))])
def test_few_descriptors(place: Path, command: str, allowed: int) -> None:
    outcome = ran(place, command, COMMANDS[command], limits={"NOFILE": allowed})
    assert outcome.kind == "refused", outcome
    assert f"error: this process may have {allowed} open files (RLIMIT_NOFILE)" in outcome.text
    assert outcome.text.count("\n") == 1


def test_a_folder_called_like_a_recipe(place: Path) -> None:
    """`math` is a recipe and a folder here: listed, and used, as the recipe."""
    for arguments in ([], [""], ["--"]):
        outcome = ran(place, "data prepare", arguments)
        assert outcome.kind == "ok" and "math " in outcome.text, outcome
    assert "is a directory" not in ran(place, "data prepare", ["math"]).text
    assert "empty is a directory" in ran(place, "data prepare", ["empty"]).text


def test_a_server_that_is_not_there(place: Path) -> None:
    """Said at once, before the model is loaded, unless the user wants to wait."""
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        asked = [*COMMANDS["eval"], "--engine", "sglang", "--url", url]
        outcome = ran(place, "eval", asked)
        assert outcome.kind == "refused" and f"{url}: no server answers there (Connection refused)" in outcome.text
        assert ran(place, "eval", [*asked, "--server", "start_seconds=9"]).reached
    for url in ("file:///etc/passwd", "not a url", "http://", "http://x:99999999", "http://[::1", "ftp://x"):
        outcome = ran(place, "eval", [*COMMANDS["eval"], "--engine", "sglang", "--url", url])
        assert outcome.kind == "refused" and "is no URL" in outcome.text, (url, outcome)


# --- directories of runs ---------------------------------------------------------------------------------------------

LINES: list[object] = [
    [1], "x", {"step": "x"}, {"step": 1.5}, {"step": 10**20}, {"step": 2, "reward": 1e300}, {"step": 2, "accuracy": 5},
    {"step": 2, "accuracy": -0.1}, {"step": 2, "reward": 10**400},
]  # fmt: skip
EVALUATIONS: list[object] = [
    {"step": 2, "accuracy": "x"}, {"step": 2, "accuracy": 2}, {"step": 2, "sets": [1]}, {"step": 2, "sets": {"a": "b"}},
    {"step": 2, "accuracy": 0.5, "problems": -1}, {"step": 2, "accuracy": 0.5, "problems": 10**30},
]  # fmt: skip
CONFIGS = [
    "\t", f"run: {{seed: {DIGITS}}}", "training: {steps: x}", "method: {name: [1]}", "model: {path: 5}", "- 1",
    "model: {generated: 5}", "adapter: {rank: x}", "run: {seed: {}}", "x: " + "[" * 20_000,
]  # fmt: skip


def damaged_runs(place: Path) -> Iterator[tuple[str, str, list[str]]]:
    """`report` on runs with one file that no run has written."""
    good = json.dumps({"step": 1, "reward": 0.5}) + "\n"
    contents: list[tuple[str, str]] = [("metrics.jsonl", json.dumps(line) + "\n" + good) for line in LINES]
    contents += [("evaluation.jsonl", json.dumps(line) + "\n") for line in EVALUATIONS]
    contents += [("config.yaml", text) for text in CONFIGS]
    contents += [("summary.json", text) for text in ("[", "[1]", '{"a":' * 50_000, f'{{"seconds": {DIGITS}}}')]
    contents += [("metrics.jsonl", text) for text in ("[" * 100_000 + "\n" + good, f'{{"step": {DIGITS}}}\n' + good)]
    for number, (name, content) in enumerate(contents):
        run = place / f"damaged_{number}"
        run.mkdir(exist_ok=True)
        write(run / "metrics.jsonl", good)
        write(run / name, content)
        yield f"{name} {content!r:.60}", "report", [run.name]
    for name in ("metrics.jsonl", "evaluation.jsonl", "config.yaml", "summary.json"):
        run = place / f"directory_{name}"
        run.mkdir(exist_ok=True)
        if name != "metrics.jsonl":
            write(run / "metrics.jsonl", good)
        (run / name).mkdir(exist_ok=True)
        yield f"{name} is a directory", "report", [run.name]


@few_or_all
def test_damaged_runs(place: Path, seed: int, count: int) -> None:
    check(place, some(Random(seed), damaged_runs(place), count))


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "metrics.jsonl", "summary.json", "checkpoints"])
def test_a_run_directory_with_something_else_in_it(place: Path, name: str) -> None:
    run = place / f"odd_{name}"
    run.mkdir()
    if name == "checkpoints":
        write(run / name, "x")
    else:
        (run / name).mkdir()
    outcome = ran(place, "train", ["good.yaml", f"run.directory={run.name}", "run.resume=auto"])
    assert outcome.kind == "refused" and f"run.directory = {run.name}: {name} is a " in outcome.text, outcome
