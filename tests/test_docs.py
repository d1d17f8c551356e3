"""The pages against what they speak of: links lead somewhere, keys and commands exist, every metric is explained."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from bridge_mcore.config.keys import schema_keys
from tests.support.fuzz import run_forked

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: `a.b.c` or `a.b=value`, as pages write keys; N stands for a number in a list.
KEY = re.compile(r"`([a-z_]+(?:\.(?:[a-z_]+|N|\d+))+)(?:=[^`]*)?`")
#: First words of dotted names that are no keys: files, modules, fields of other formats.
SECTIONS = {key.path.split(".")[0] for key in schema_keys() if "." in key.path}


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def known(dotted: str) -> bool:
    """Whether it is a key or a section, with any number in a list written as N."""
    name = re.sub(r"\.\d+(?=\.|$)", ".N", dotted)
    name = re.sub(r"^data\.(rl_more|sft_more)\.N", "data.rl", name).replace("data.sft.", "data.rl.")
    return any(k.path == name or k.path.startswith(name + ".") for k in schema_keys())


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{target}: there is no such file"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_keys_exist(page):
    wrong = [
        name
        for name in KEY.findall(page.read_text())
        if name.split(".")[0] in SECTIONS and not known(name) and not re.search(r"\.(json|jsonl|yaml|py|md)$", name)
    ]
    assert not wrong


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines of `bridge-mcore` in a page: in its code, and in text between backticks."""
    text = page.read_text()
    lines = re.findall(r"^(?: {4}|\$ )?(?:\$ )?(?:\.venv/bin/)?(bridge-mcore .*)$", text.replace("\\\n", " "), re.M)
    lines += re.findall(r"`(bridge-mcore [^`]+)`", text)
    for line in lines:
        words = shlex.split(re.split(r"\s+# ", line)[0].replace("…", ""), posix=True)
        yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_commands_exist_with_their_options(page):
    from bridge_mcore.cli.main import app

    root = typer.main.get_command(app)
    for words in commands(page):
        command, rest = root, list(words)
        while (known_commands := getattr(command, "commands", None)) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            assert name in known_commands, f"bridge-mcore {' '.join(words)}: there is no command {name}"
            command = known_commands[name]
        options = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help": None}
        for word, value in zip(rest, [*rest[1:], "--"], strict=bool(rest)):
            if word.startswith("--"):
                name, _, own = word.partition("=")
                assert name in options, f"bridge-mcore {' '.join(words)}: no option {word}"
                bare = own or getattr(options[name], "is_flag", True) or not value.startswith("--")
                assert bare, f"bridge-mcore {' '.join(words)}: {word} needs a value"
            elif command.name == "train" and (match := re.match(r"([a-z_]+(?:\.\w+)+)=", word)):
                assert known(match[1]), f"bridge-mcore {' '.join(words)}: no key {match[1]}"


#: Metrics that only servers, schedules or failures give; the others are in the run below.
ELSEWHERE = {
    "undecided", "staleness", "sync_mib", "sync_probe_gap", "rollouts_retried", "rollouts_stale", "server_losses",
    "seconds_confirm", "seconds_release",
}  # fmt: skip


def test_every_metric_is_explained_and_none_that_is_not(tmp_path):
    """A run with all that adds a metric writes exactly what docs/metrics.md explains."""
    text = (ROOT / "docs/metrics.md").read_text().partition("## Every metric")[2].partition("## Evaluations")[0]
    explained = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    outcome = run_forked(
        [
            "train", "examples/quickstart.yaml", f"run.directory={tmp_path / 'run'}",
            "model.generated.warm_start.steps=2", "training.steps=2", "training.prompts_per_step=4",
            "training.traces_per_step=4", "rollout.samples_per_prompt=2", "objective.kl_coefficient=0.01",
            "auxiliary.rollouts=own", "reward.form.one_box=true", "reward.form.bonus=0.1", "reward.length.limit=20",
            "reward.length.cache=5", "rollout.correction=truncated", "data.evaluation.0.size=4", "evaluation.every=1",
            "evaluation.before=false", "evaluation.after=false", "optimizer.warmup_steps=1",
        ],
        seconds=200, cwd=ROOT, stop_at=(),
    )  # fmt: skip
    assert outcome.kind == "ok", outcome
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    written = {key for line in lines for key in json.loads(line)} - {"step"}
    assert written - explained == set(), "docs/metrics.md does not explain these"
    assert explained - written == ELSEWHERE
    source = "\n".join(p.read_text() for p in (ROOT / "bridge_mcore").rglob("*.py"))
    assert [name for name in ELSEWHERE if f'"{name}"' not in source] == []
