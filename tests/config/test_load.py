"""YAML and overrides in, a Config or one complete list of problems out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bridge_mcore.config.keys import schema_keys, suggestion
from bridge_mcore.config.load import dump_config, key_help, load_config
from bridge_mcore.config.schema import Config, Parallel, Schedule
from bridge_mcore.errors import ConfigError
from tests.config.files import write


@pytest.fixture
def load(tmp_path: Path):
    def loader(text: str = "", *overrides: str) -> Config:
        return load_config(write(tmp_path / "c.yaml", text), overrides)

    return loader


@pytest.fixture
def problem(load):
    def of(text: str = "", *overrides: str) -> str:
        with pytest.raises(ConfigError) as error:
            load(text, *overrides)
        return str(error.value)

    return of


def test_an_empty_file_gives_the_defaults(load) -> None:
    assert load() == Config() == load("# nothing\n") == load("run:\noptimizer:\n")


def test_defaults_are_not_shared_between_configs(load) -> None:
    load().run.seed = 5
    assert load().run.seed == 0


@pytest.mark.parametrize("text", ["5e-7", "5.e-7", "5E-7", ".5e-6", "0.0000005", "+5e-7"])
def test_floats_as_people_write_them(load, text: str) -> None:
    assert load(f"optimizer: {{alpha: {text}}}").optimizer.alpha == pytest.approx(5e-7, rel=1e-9)
    assert load("", f"optimizer.alpha={text}").optimizer.alpha == pytest.approx(5e-7, rel=1e-9)


def test_values_keep_their_text_where_text_is_meant(load) -> None:
    config = load("run: {directory: 2026-01-01}\ndata: {rl: {dataset_revision: 0123e45, name: on}}", "data.sft.name=7")
    assert config.run.directory == Path("2026-01-01")
    assert (config.data.rl.dataset_revision, config.data.rl.name, config.data.sft.name) == ("0123e45", "on", "7")


def test_leading_zeros_are_decimal(load) -> None:
    assert load("run: {seed: 010}").run.seed == 10


class TestOverrides:
    def test_scalars_lists_and_null(self, load) -> None:
        config = load(
            "training: {steps: 3}\nmodel: {path: x}",
            "training.steps=7",
            "objective.clip_range=[0.2, 0.28]",
            "optimizer.gradient_clip=",
            "model.path=null",
            "run.resume=auto",
            "evaluation.before=false",
        )
        assert config.training.steps == 7
        assert config.objective.clip_range == (0.2, 0.28)
        assert config.optimizer.gradient_clip is None and config.model.path is None
        assert config.run.resume == "auto" and config.evaluation.before is False

    def test_the_last_one_wins(self, load) -> None:
        assert load("", "run.seed=1", "run.seed=2").run.seed == 2

    def test_elements_of_lists(self, load) -> None:
        text = "data: {evaluation: [{task: running_sums}, {task: running_sums, seed: 3}]}"
        config = load(text, "data.evaluation.1.limit=5", "data.evaluation.2.path=x.jsonl")
        assert [source.limit for source in config.data.evaluation] == [None, 5, None]
        assert config.data.evaluation[1].seed == 3 and config.data.evaluation[2].path == Path("x.jsonl")

    def test_an_element_of_a_default_list_keeps_the_others(self, load) -> None:
        targets = load("", "adapter.targets.0=q_proj").adapter.targets
        assert targets == ["q_proj", "linear_proj", "linear_fc1", "linear_fc2"]

    def test_an_element_that_is_not_there(self, problem) -> None:
        assert "data.evaluation.3: it is empty; data.evaluation.0 would add one" in problem(
            "", "data.evaluation.3.limit=5"
        )

    def test_a_schedule_replaces_a_number_and_back(self, load) -> None:
        linear = load("method: {lam: 0.3}", "method.lam.kind=linear", "method.lam.start=0", "method.lam.end=1")
        assert linear.method.lam == Schedule(kind="linear", start=0, end=1)
        assert load("method: {lam: {kind: linear, start: 0, end: 1}}", "method.lam=0.3").method.lam == 0.3

    def test_auto_stands_for_the_layout_and_back(self, load) -> None:
        assert load("parallel: auto").parallel == load("parallel: {tensor: 2}", "parallel=auto").parallel
        assert load("parallel: auto").parallel == Parallel(auto=True)
        assert load("parallel: auto", "parallel={tensor: 2}").parallel == Parallel(tensor=2)
        assert load("parallel: auto", "parallel.tensor=2").parallel == Parallel(auto=True, tensor=2)

    def test_text_needs_no_quotes(self, load) -> None:
        config = load("", "data.system_prompt=You are: helpful [yes]", "data.rl.name='quoted'")
        assert config.data.system_prompt == "You are: helpful [yes]" and config.data.rl.name == "quoted"

    def test_a_section_at_once(self, load) -> None:
        assert load("data: {rl: {path: x.jsonl}}", "data.rl={task: running_sums}").data.rl.path is None

    def test_another_word_is_no_layout(self, problem) -> None:
        allowed = "parallel = best: must be auto, or a section with keys such as tensor, pipeline, data"
        assert allowed in problem("parallel: best") and allowed in problem("parallel: best", "parallel.tensor=2")

    @pytest.mark.parametrize("text", ["training.steps", "=5", "training..steps=5", ""])
    def test_not_key_value(self, problem, text: str) -> None:
        assert "is not KEY=VALUE, for example training.steps=10" in problem("", text)

    def test_unreadable_value(self, problem) -> None:
        assert problem("", "training.steps=[1").startswith("command line: training.steps: '[1' is not a value in YAML")


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "right"),
        [
            ("training.stesp", "training.steps"),
            ("steps", "training.steps"),
            ("learning_rate", "optimizer.alpha"),
            ("optimizer.lr", "optimizer.alpha"),
            ("training.seed", "run.seed"),
            ("model.dtpye", "model.dtype"),
            ("optimiser", "optimizer"),
            ("data.rl.pth", "data.rl.path"),
            ("data.evaluation.0.limt", "data.evaluation.0.limit"),
            ("training.warmup", "optimizer.warmup_steps"),
            ("rollout.alpha", "adapter.alpha"),
            ("tp", "parallel.tensor"),
        ],
    )
    def test_names_the_nearest_one(self, key: str, right: str) -> None:
        path = [int(part) if part.isdecimal() else part for part in key.split(".")]
        assert f"'{right}'" in suggestion(Config, path)

    def test_nothing_is_near(self) -> None:
        assert suggestion(Config, ["xyzzy"]) == ""

    def test_in_the_file_with_its_line(self, problem, tmp_path: Path) -> None:
        message = problem("run:\n  seed: 1\ntraining:\n  steps: 3\n  stesp: 4\n")
        assert message == f"{tmp_path}/c.yaml:5: unknown key 'training.stesp'; did you mean 'training.steps'?"

    def test_on_the_command_line(self, problem) -> None:
        assert problem("", "a.b=1") == "command line: unknown key 'a.b'"


class TestWrongValues:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("training.steps=-1", "training.steps = -1: must be a whole number > 0"),
            ("training.steps=1.5", "training.steps = 1.5: must be a whole number > 0"),
            ("training.steps=", "training.steps = null: must be a whole number > 0"),
            ("training.steps=true", "training.steps = true: must be a whole number > 0"),
            ("optimizer.alpha=fast", "optimizer.alpha = fast: must be a number >= 1e-20 and <= 10"),
            ("optimizer.alpha=.inf", "optimizer.alpha = Infinity: must be a number >= 1e-20 and <= 10"),
            ("reward.correct=.nan", "reward.correct = NaN: must be a number"),
            ("rollout.top_p=1.5", "rollout.top_p = 1.5: must be a number >= 1e-06 and <= 1"),
            ("model.dtype=fp16", "model.dtype = fp16: must be float32 | bfloat16"),
            ("evaluation.before=5", "evaluation.before = 5: must be true or false"),
            ("optimizer.betas=[0.9]", "optimizer.betas = [0.9]: must be two numbers in [0, 1)"),
            ("optimizer.betas=[0.9, 1]", "both betas must be in [0, 1)"),
            ("objective.clip_range=1.2", "must be in (0, 1)"),
            ("objective.clip_range=[0.2, 0]", "ε_high > 0"),
            ("method.lam=1.5", "method.lam = 1.5: must be a number >= 0 and <= 1, or a section"),
            ("method.lam={kind: cosine, start: 0, end: 2}", "method.lam.end = 2: must be a number >= 0 and <= 1"),
            ("method.lam={kind: lin}", "method.lam.kind = lin: must be constant | linear | cosine"),
            ("method.name=brigde", "unknown method 'brigde'; did you mean 'bridge'?"),
            ("adapter.targets=[q_porj]", "unknown LoRA target 'q_porj'"),
            ("data.rl.difficulty=[5, 2]", "smallest <= largest"),
            ("data.rl=5", "data.rl = 5: must be a section"),
            ("data.evaluation=[5]", "data.evaluation.0 = 5: must be a section"),
            ("run.directory=' '", "run.directory =  : is empty"),
            ("run.directory=~no_such_user/x", "run.directory"),
            ("device=tpu", "device = tpu: must be cpu | cuda"),
        ],
    )
    def test_says_what_is_allowed(self, problem, override: str, message: str) -> None:
        text = problem("", override)
        assert message in text and text.startswith("command line: ") and "\n" not in text

    def test_all_problems_at_once_with_their_places(self, problem, tmp_path: Path) -> None:
        text = "run: {seed: x}\noptimizer:\n  alpha: -1\n  lr: 3\nmethod:\n  lam: {kind: lin, stat: 0}\n"
        message = problem(text, "training.steps=0", "nonsense")
        assert message.splitlines()[0] == f"{tmp_path}/c.yaml cannot be used as it is (7 problems):"
        for place, key in [
            ("c.yaml:1", "run.seed"),
            ("c.yaml:3", "optimizer.alpha"),
            ("c.yaml:4", "'optimizer.lr'"),
            ("c.yaml:6", "method.lam.kind"),
            ("c.yaml:6", "'method.lam.stat'"),
            ("command line", "training.steps"),
            ("command line", "nonsense"),
        ]:
            assert any(place in line and key in line for line in message.splitlines()), (place, key, message)

    def test_long_values_are_cut(self, problem) -> None:
        assert len(problem("", "model.dtype=" + "x" * 500)) < 200


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("run: {seed: 1}\nrun: {seed: 2}", "c.yaml:2: 'run' is given twice, first at "),
            ("run:\n  seed: 1\n  seed: 1", "c.yaml:3: 'run.seed' is given twice"),
            ("run:\n\tseed: 1", "c.yaml:2: this is not valid YAML"),
            ("run: [1\ntraining: 2", "c.yaml:2: this is not valid YAML"),
            ("- a", "holds a list"),
            ("text", "holds a single value"),
            ("run: {seed: 1}\n---\nrun: {seed: 2}", "this is not valid YAML"),
            ("run: {seed: !!python/object/apply:os.getpid []}", "the tag tag:yaml.org,2002:python/object/apply"),
            ("run: &r {directory: *r}", "contains itself"),
            ("run: \x00", "this is not valid YAML"),
            ("? [a]\n: 1", "keys are names"),
        ],
    )
    def test_bad_yaml(self, problem, text: str, message: str) -> None:
        assert message in problem(text)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_bytes(b"run:\n  directory: \xff\xfe\n")
        with pytest.raises(ConfigError, match=r"c\.yaml:2: this is not UTF-8"):
            load_config(tmp_path / "c.yaml")

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no file"):
            load_config(tmp_path / "none.yaml")
        with pytest.raises(ConfigError, match="is a directory"):
            load_config(tmp_path)

    def test_a_byte_order_mark_anchors_and_merges(self, load) -> None:
        text = "\ufeffdata:\n  rl: &rl {task: running_sums, seed: 1}\n  sft: {<<: *rl, seed: 2}\n  evaluation: [*rl]\n"
        config = load(text)
        assert (config.data.rl.seed, config.data.sft.seed, config.data.sft.task) == (1, 2, "running_sums")
        (held_out,) = config.data.evaluation
        assert config.data.rl.model_dump().items() <= held_out.model_dump().items()

    def test_paths(self, load, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        config = load("run: {directory: ~/runs/a, resume: ~/ckpt}\nmodel: {path: models/x}")
        assert config.run.directory == Path("/home/someone/runs/a") and config.run.resume == "/home/someone/ckpt"
        assert config.model.path == Path("models/x")


def test_dump_loads_back_to_an_equal_config(load, tmp_path: Path) -> None:
    config = load(
        "method: {lam: {kind: cosine, start: 0, end: 0.9}}\nmodel: {generated: {layers: 3}}",
        "objective.clip_range=[0.2, 0.3]",
        "data.rl.task=running_sums",
        "data.evaluation.0.path=x y.jsonl",
        "data.evaluation.0.name=5e-7",
        "data.system_prompt=ä: #1\nnext",
        "run.directory=2026-01-01",
        "optimizer.gradient_clip=",
    )
    text = dump_config(config)
    again = load_config(write(tmp_path / "again.yaml", text))
    assert again == config
    assert dump_config(again) == text
    assert list(yaml.safe_load(text)) == list(Config.model_fields)


@pytest.mark.parametrize(
    "text",
    ["5e-7", "0x10", "1:30", "2026-01-01", "yes", "~", "", " a ", "#", "a: b", "- x", "ü\n\tü", "'\"", "=", "<<"],
)
def test_dump_keeps_text_as_text_for_any_reader(text: str) -> None:
    config = Config(data={"system_prompt": text})
    assert yaml.safe_load(dump_config(config))["data"]["system_prompt"] == text


class TestKeys:
    def test_every_key_has_a_description(self) -> None:
        assert [key.path for key in schema_keys() if not key.description] == []

    def test_every_listed_key_can_be_asked_for(self) -> None:
        for key in schema_keys():
            assert schema_keys(prefix=key.path)[0].path == key.path

    def test_sections_and_elements(self) -> None:
        assert {key.path.split(".")[0] for key in schema_keys(prefix="optimizer")} == {"optimizer"}
        assert schema_keys(prefix="data.evaluation.0.limit")[0].path == "data.evaluation.N.limit"
        assert "rollout.top_p = 1.0\n    a number >= 1e-06 and <= 1" in key_help()

    def test_markdown(self) -> None:
        lines = key_help("model.dtype", markdown=True).splitlines()
        assert lines[2].startswith("| `model.dtype` | float32 \\| bfloat16 | `float32` |")

    def test_unknown_prefix(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'optimizer'"):
            key_help("optimiser")
