"""A resume is the same run: what makes the policy or its data is refused, the rest said, and nothing overwritten."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge_mcore.checkpoint.run_state import read_extra
from bridge_mcore.config.keys import walk_fields
from bridge_mcore.config.load import load_config
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import CheckpointError, ConfigError
from bridge_mcore.training.same_run import SameRun, recorded, settings, tokenizer_digests
from tests.support.fuzz import run_forked
from tests.training.test_run_lock import long_config
from tests.training.test_runs import metrics_of

#: What the issue of a resumed run is about: each of these made another policy or other data, and nothing was said.
REFUSED = {
    "model.dtype": "bfloat16",
    "model.generated.hidden_size": 128,
    "model.generated.warm_start.steps": 1,
    "adapter.rank": 8,
    "adapter.alpha": 400.0,
    "adapter.targets": ["linear_qkv"],
    "data.template": "qwen-boxed",
    "data.system_prompt": "hello",
    "reward.verifier": "choice",
    "reward.correct": 2.0,
    "reward.on_failure": "drop",
    "reward.noise": 0.5,
    "reward.length.weight": 2.0,
}
STATED = {
    "method.lam": 0.9,
    "optimizer.alpha": 2e-3,
    "optimizer.betas": [0.5, 0.5],
    "optimizer.weight_decay": 0.5,
    "optimizer.gradient_clip": None,
    "optimizer.schedule": "cosine",
    "objective.clip_range": 0.05,
    "auxiliary.mode": "lookahead",
    "training.prompts_per_step": 8,
    "rollout.samples_per_prompt": 2,
    "rollout.temperature": 0.3,
    "rollout.max_new_tokens": 8,
    "parallel.tensor": 2,
    "training.steps": 90,
}


def with_key(config: dict[str, Any], key: str, value: Any) -> Config:
    tree = copy.deepcopy(config)
    holder = tree
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(holder.get(section), dict):
            holder[section] = {}
        holder = holder[section]
    holder[name] = value
    return Config.model_validate(tree)


@pytest.fixture
def base(tmp_path) -> dict[str, Any]:
    return load_config(long_config(tmp_path / "run", tmp_path, 8)).model_dump(mode="json")


def compared(base: dict[str, Any], now: Config, step: int = 6) -> SameRun:
    before = {"config": settings(Config.model_validate(base))}
    run = SameRun(now, {**before, "data": {}, "tokenizer": {}, "model": {}}, step)
    run.check_settings()
    return run


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_what_makes_the_policy_is_refused_with_both_values(base, key, value):
    now = with_key(base, key, value)
    with pytest.raises(ConfigError) as caught:
        compared(base, now)
    assert f"{key} was " in str(caught.value) and "run.resume_changes=allow" in str(caught.value)
    now.run.resume_changes = "allow"
    assert [change[0] for change in compared(base, now).changes] == [key]


@pytest.mark.parametrize(("key", "value"), STATED.items())
def test_the_rest_is_said_in_a_line(base, key, value):
    (line,) = compared(base, with_key(base, key, value)).lines()
    assert line.startswith(f"· changed since step 6: {key} ") and " → " in line


@pytest.mark.parametrize(("key", "value"), {"run.seed": 9, "method.name": "sft", "optimizer.name": "sgd"}.items())
def test_another_kind_of_run_is_refused_whatever_is_allowed(base, key, value):
    now = with_key(base, key, value)
    now.run.resume_changes = "allow"
    with pytest.raises(ConfigError, match=rf"{key} was \S+ now it is {value}"):
        compared(base, now)


def test_every_key_is_refused_said_or_not_of_the_run(base):
    """No key of the schema, this version's or a later one's, changes in silence."""
    silent = []
    for key, _ in walk_fields(Config):
        if ".N" in key:
            continue
        before, now = settings(Config.model_validate(base)), settings(Config.model_validate(base))
        if key not in before:
            continue
        before[key] = ["something", "else"]
        run = SameRun(Config.model_validate(base), None, 6)
        run.before = {"config": before, "data": {}, "tokenizer": {}, "model": {}}
        try:
            run.check_settings()
        except ConfigError:
            continue
        if [change[0] for change in run.changes] != [key]:
            silent.append(key)
        assert now == run.record["config"]
    place = ["run.directory", "run.resume", "run.resume_changes", "run.wait_seconds", "run.threads"]
    assert silent == [*place, "expected"]


def test_a_number_in_place_of_a_schedule_is_one_change(base):
    run = compared(base, with_key(base, "method.lam", {"kind": "linear", "start": 0.0, "end": 1.0}))
    assert all(change[0].startswith("method.lam.") for change in run.changes)


def test_a_key_that_the_older_version_had_not_is_no_change(base):
    now = Config.model_validate(base)
    before = {key: value for key, value in settings(now).items() if key != "reward.tolerance"}
    run = SameRun(now, {"config": before, "data": {}, "tokenizer": {}, "model": {}}, 6)
    run.check_settings()
    assert run.changes == []
    more = with_key(base, "data.evaluation", [{"task": "running_sums", "split": "test"}])
    assert ("data.evaluation.0.task", None, "running_sums") in compared(base, more).changes


def test_fewer_steps_than_the_checkpoint_has_are_refused(base):
    with pytest.raises(ConfigError, match=r"training.steps = 4, but the checkpoint is after step 6"):
        compared(base, with_key(base, "training.steps", 4))


def test_another_evaluation_set_is_said_and_another_training_set_refused(base):
    def entry(name: str, digest: str) -> dict[str, Any]:
        return {"name": name, "sha256": digest * 64, "problems": 5}

    now = Config.model_validate(base)
    then = {"data.rl": entry("rl", "a"), "data.evaluation.0": entry("held", "b")}
    before = {"config": settings(now), "data": then, "tokenizer": {}, "model": {}}
    run = SameRun(now, before, 6)
    new = {
        "data.rl": entry("rl", "a"),
        "data.evaluation.0": entry("more", "d"),
        "data.evaluation.1": entry("held", "c"),
    }
    run.inputs(new, {}, {})
    assert run.changes == [
        ("the problems of data.evaluation.1", f"5 with SHA-256 {'b' * 12}…", f"5 with SHA-256 {'c' * 12}…")
    ]
    for other in ({"data.rl": entry("rl", "c")}, {}, {"data.rl": entry("rl", "a"), "data.sft": entry("sft", "d")}):
        with pytest.raises(ConfigError, match=r"the problems of data\.(rl|sft) was .*, now it is "):
            SameRun(now, before, 6).inputs(other, {}, {})


def test_a_tokenizer_is_known_by_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0, "y": 1}}, "padding": null}')
    (tmp_path / "b" / "tokenizer.json").write_text('{"padding": {"length": 3},\n "model": {"vocab": {"y": 1, "x": 0}}}')
    assert tokenizer_digests(tmp_path / "a") == tokenizer_digests(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text('{"model": {"vocab": {"x": 1, "y": 0}}}')
    assert tokenizer_digests(tmp_path / "a") != tokenizer_digests(tmp_path / "b")


@pytest.mark.parametrize(
    "extra",
    [
        {"run": 3},
        {"run": {}},
        {"run": {"config": {}, "data": [], "tokenizer": {}, "model": {}}},
        {"run": {"config": {}, "data": {"data.rl": {"name": "x"}}, "tokenizer": {}, "model": {}}},
    ],
)
def test_a_record_that_no_run_wrote_is_refused(tmp_path, extra):
    with pytest.raises(CheckpointError, match="cannot be read"):
        recorded(extra, tmp_path)


def test_a_checkpoint_of_a_version_without_record_has_none(tmp_path):
    assert recorded({"position": {}}, tmp_path) is None


# --- real runs --------------------------------------------------------------------------------------------------------


def train(place: Path, *arguments: str, code: int = 0) -> str:
    """A whole `train` there; what it printed."""
    outcome = run_forked(["train", *arguments], 240, place, {}, stop_at=(), imports=("bridge_mcore.training.loop",))
    assert outcome.code == code, outcome
    return outcome.text


def sums(seed: int, count: int = 24) -> list[dict[str, str]]:
    generator = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        a, b, c = (generator.randint(0, 9) for _ in range(3))
        trace = f"a{a}b{a + b}c{a + b + c}\\boxed{{{a + b + c}}}"
        rows[f"Q:a{a}b{b}c{c}A:"] = {"problem": f"Q:a{a}b{b}c{c}A:", "answer": str(a + b + c), "solution": trace}
    return list(rows.values())


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of 4 steps on a data file and a model directory, beside them."""
    root = tmp_path_factory.mktemp("stopped")
    train(root, str(long_config(root / "made", root, 1)), "checkpoint.every=0")
    shutil.move(root / "made" / "base", root / "base")
    write_rows(root / "rows.jsonl", sums(1))
    tree = yaml.safe_load((root / "long.yaml").read_text())
    tree["model"] = {"path": "base"}
    tree["run"]["directory"] = "run"
    tree["data"] = {"template": "plain", "rl": {"path": "rows.jsonl"}}
    tree["training"]["steps"] = 4
    tree["checkpoint"] |= {"export": False, "export_adapter": False}
    (root / "c.yaml").write_text(yaml.safe_dump(tree))
    train(root, "c.yaml")
    return root


@pytest.fixture
def place(stopped, tmp_path, monkeypatch) -> Path:
    """A copy of it, in which the command runs."""
    target = tmp_path / "place"
    shutil.copytree(stopped, target)
    monkeypatch.chdir(target)  # for what looks at the files afterwards
    return target


RESUME = ("c.yaml", "run.resume=auto", "training.steps=6")


def files(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name not in (".lock", ".ranks")}


def change_answers(place: Path) -> None:
    write_rows(place / "rows.jsonl", [{**row, "answer": row["answer"] + "1"} for row in sums(1)])


def change_order(place: Path) -> None:
    write_rows(place / "rows.jsonl", sums(1)[::-1])


def swap_tokens(place: Path) -> None:
    path = place / "base" / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tree))


def change_rope(place: Path) -> None:
    path = place / "base" / "config.json"
    tree = json.loads(path.read_text())
    tree.pop("rope_parameters", None)
    path.write_text(json.dumps({**tree, "rope_theta": 500000.0}))


def change_epsilon(place: Path) -> None:
    path = place / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.1}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_answers, r"the problems of data\.rl was 24 with SHA-256 \w{12}…, now it is 24 with SHA-256 \w{12}…"),
        (change_order, r"the problems of data\.rl was 24 with"),
        (swap_tokens, r"the tokenizer's tokenizer\.json was \w{12}…, now it is \w{12}…"),
        (change_rope, r"the model's rope was .*10000.*, now it is .*500000"),
        (change_epsilon, r"the model's norm_eps was 1e-06, now it is 0\.1"),
    ],
)
def test_other_inputs_are_refused_before_anything_is_written(place, change, said):
    change(place)
    before = files(place / "run")
    out = train(place, *RESUME, code=2)
    assert re.search(said, out) and "Traceback" not in out and "loading" not in out
    assert files(place / "run") == before


def test_what_is_allowed_is_said_kept_and_recorded(place):
    """Twice: the first files stay, and each change has the step from which it holds."""
    change_answers(place)
    first = {name: (place / "run" / name).read_text() for name in ("config.yaml", "data.json")}
    out = train(place, *RESUME, "run.resume_changes=allow", "optimizer.alpha=2e-3")
    assert "· changed since step 4: optimizer.alpha 0.001 → 0.002" in out
    assert "· changed since step 4: the problems of data.rl 24 with" in out
    assert {name: (place / "run" / f"{name[:-5]}.step_4{name[-5:]}").read_text() for name in first} == first
    _, extra = read_extra(place / "run" / "checkpoints" / "step_00000006")
    assert extra["run"]["config"]["optimizer.alpha"] == 2e-3
    out = train(place, "c.yaml", "run.resume=auto", "training.steps=7", "optimizer.alpha=2e-3", "method.lam=0.25")
    assert "· changed since step 6: method.lam 0.5 → 0.25" in out and "optimizer.alpha" not in out
    lines = [json.loads(line) for line in (place / "run" / "changes.jsonl").read_text().splitlines()]
    assert {(line["step"], line["key"]) for line in lines} == {
        (4, "training.steps"), (4, "optimizer.alpha"), (4, "the problems of data.rl"),
        (6, "training.steps"), (6, "method.lam"),
    }  # fmt: skip
    assert next(line for line in lines if line["key"] == "method.lam") == {
        "step": 6, "key": "method.lam", "before": 0.5, "after": 0.25,
    }  # fmt: skip
    assert yaml.safe_load((place / "run" / "config.step_6.yaml").read_text())["method"]["lam"] == 0.5


def test_the_same_data_under_another_path_is_the_same_run(place):
    shutil.move(place / "rows.jsonl", place / "moved.jsonl")
    out = train(place, *RESUME, "data.rl.path=moved.jsonl")
    assert "· changed since step 4: data.rl.path rows.jsonl → moved.jsonl" in out


def test_gaps_in_the_metrics_are_said(place):
    path = place / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[3])
    assert "metrics.jsonl lacks steps 2 to 3 of 4" in train(place, *RESUME)
    assert [row["step"] for row in metrics_of(place / "run")] == [1, 4, 5, 6]


def test_metrics_that_are_gone_are_said(place):
    (place / "run" / "metrics.jsonl").unlink()
    assert "metrics.jsonl lacks steps 1 to 4 of 4" in train(place, *RESUME)


def test_a_run_without_checkpoints_says_that_it_starts_anew(place):
    shutil.rmtree(place / "run" / "checkpoints")
    out = train(place, *RESUME)
    assert "run/checkpoints holds no checkpoint: the run starts anew, from step 1" in out
    assert (place / "run" / "metrics.jsonl.previous").exists()
