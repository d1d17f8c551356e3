"""Contradictions and missing things, found before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.config.checks import check_config, inference_problems
from bridge_mcore.config.data_checks import file_or_task
from bridge_mcore.config.load import load_config
from bridge_mcore.errors import ConfigError
from tests.config.files import make_adapter, make_model, write

GOOD = """
run: {directory: RUN}
model: {generated: {}}
training: {steps: 10}
rollout: {max_new_tokens: 24}
data:
  rl: {task: running_sums}
  evaluation: [{task: running_sums, split: test}]
  template: plain
"""


@pytest.fixture
def check(tmp_path: Path):
    """check(*overrides) → None, or the error's text."""
    (tmp_path / "c.yaml").write_text(GOOD.replace("RUN", str(tmp_path / "run")))

    def checker(*overrides: str) -> str | None:
        config = load_config(tmp_path / "c.yaml", overrides)
        try:
            return check_config(config)
        except ConfigError as error:
            return str(error)

    return checker


def test_a_good_configuration_passes(check) -> None:
    assert check() is None


EXTERNAL = ("rollout.engine=sglang", "servers.mode=external")


@pytest.mark.parametrize(
    "overrides",
    [
        ("method.name=rl_zero",),
        ("method.name=sft", "data.sft={task: running_sums}", "data.rl="),
        ("method.name=sft", "rollout.max_new_tokens=9999", "data.evaluation=[]"),  # nothing generates
        ("parallel.pipeline=2",),
        ("method.name=sft", "rollout.samples_per_prompt=1"),
        ("method.name=sft", "method.lam.kind=linear", "auxiliary.mode=lookahead", "auxiliary.rollouts=own"),  # unused
        ("method.name=cold_start", "method.sft_steps=9"),
        ("method.lam={kind: linear, start: 0, end: 1}",),
        ("method.lam={kind: constant, value: 0.3}",),
        ("auxiliary.mode=lookahead",),
        ("model.dtype=bfloat16",),
        ("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2", "parallel.data=2"),
        ("evaluation.before=false", "evaluation.after=false", "data.evaluation.0.path=gone.jsonl"),  # never read
        ("evaluation.max_new_tokens=600", "data.evaluation.0.max_new_tokens=9"),  # no set takes it
        ("data.evaluation.0.answers=4", "data.evaluation.0.temperature=1"),
        ("optimizer.schedule=cosine", "optimizer.warmup_steps=10"),  # a short trial of a long run's config
        ("run.resume=auto",),
        ("run.resume=restart",),
        ("data.evaluation=[]",),
        ("rollout.top_p=0.9",),
    ],
)
def test_these_pass_too(check, overrides: tuple[str, ...]) -> None:
    assert check(*overrides) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.generated=",), "there is no model: set model.path"),
        (("model.path=x",), "model.path = x and model.generated are both set"),
        (("model.generated.kv_heads=3",), "model.generated.kv_heads = 3 does not divide"),
        (("model.generated.head_dim=33",), "is odd"),
        (
            ("data.rl=", "method.name=rl_zero"),
            "method.name = rl_zero needs prompts with verifiable answers: set data.rl",
        ),
        (("data.rl=", "method.name=sft"), "method.name = sft needs expert traces: set data.sft"),
        (("data.rl.path=x.jsonl",), "data.rl needs exactly one of path"),
        (("data.rl.task=",), "data.rl needs exactly one of path (a file), dataset (a Hugging Face id) and task"),
        (
            ("data.evaluation.0.task=", "data.evaluation.0.path=gone.jsonl"),
            "data.evaluation.0.path = gone.jsonl does not",
        ),
        (("data.evaluation.0.task=", "data.evaluation.0.path=a.txt"), "only .jsonl, .json, .parquet files can be read"),
        (("data.evaluation.0.split=dev",), "has the splits train and test"),
        (("data.rl.dataset_config=main",), "data.rl.dataset_config is set, but data.rl.dataset is not"),
        (("data.evaluation=[]", "evaluation.every=5"), "evaluation.every = 5, but data.evaluation is empty"),
        (("data.template=chat",), "data.template = chat does not suit model.generated"),
        (("data.system_prompt=Hi",), "data.system_prompt is set, but data.template = plain has no place for it"),
        (("method.lam={kind: linear, start: 0}",), "method.lam.end is missing: a linear schedule needs start and end"),
        (("method.lam={start: 0, value: 0.5}",), "method.lam.start = 0 means nothing in a constant schedule"),
        (("method.lam={}",), "method.lam.value is missing"),
        (("auxiliary.mode=lookahead", "auxiliary.rollouts=own"), "choose mode persistent, or rollouts shared"),
        (("method.name=cold_start", "method.sft_steps=10"), "leaves no RL steps of training.steps = 10"),
        (("method.name=cold_start", "training.steps=1"), "training.steps of at least 2"),
        (("rollout.samples_per_prompt=1",), "never gives a signal; use at least 2"),
        (("reward.incorrect=1",), "reward.correct = 1 must be greater than reward.incorrect = 1"),
        (("rollout.max_new_tokens=512",), "leaves no room for a prompt in the model's context of 512 tokens"),
        (("training.max_length=20",), "rollout.max_new_tokens = 24 leaves no room for a prompt in training.max_length"),
        (("training.max_length=1000",), "training.max_length = 1000 is more than the model's context of 512"),
        (("evaluation.max_new_tokens=600",), "evaluation.max_new_tokens = 600 leaves no room"),
        (("data.evaluation.0.max_new_tokens=600",), "data.evaluation.0.max_new_tokens = 600 leaves no room"),
        (("data.evaluation.0.answers=4",), "data.evaluation.0.answers = 4 needs data.evaluation.0.temperature above 0"),
        (
            ("evaluation.before=false", "evaluation.after=false", "data.evaluation.0={path: gone.jsonl, every: 2}"),
            "data.evaluation.0.path = gone.jsonl does not",
        ),
        (("rollout.engine=sglang", "servers.python=gone"), "needs a virtual environment of its own: gone is not there"),
        (("rollout.engine=sglang", "servers.mode=external"), "needs servers.urls, such as"),
        ((*EXTERNAL, "servers.urls=[localhost:1]"), "'localhost:1' is no URL such as"),
        ((*EXTERNAL, "servers.urls=[http://a:1,http://a:1]"), "names a server twice"),
        ((*EXTERNAL, "servers.urls=[http://a:1]", "sync.method=tensor"), "tensor shares one host's memory"),
        ((*EXTERNAL, "servers.urls=[http://a:1]", "servers.router=managed"), "needs managed servers"),
        ((*EXTERNAL, "servers.urls=[http://a:1]", "servers.devices=[0]"), "servers.devices are GPUs"),
        ((*EXTERNAL, "servers.urls=[http://a:1]", "servers.auxiliary_count=1"), "are used with auxiliary.rollouts"),
        (("rollout.schedule=one_step_off",), "rollout.engine = embedded cannot"),
        (
            (*EXTERNAL, "servers.urls=[http://a:1]", "rollout.schedule=partial", "auxiliary.rollouts=own"),
            "needs rollout.schedule = synchronous",
        ),
        (
            (
                *EXTERNAL,
                "rollout.engine=vllm",
                "servers.urls=[http://a:1]",
                "rollout.temperature=0.7",
                "rollout.top_k=5",
            ),
            "renormalised over the sampled set",
        ),
        (
            (*EXTERNAL, "servers.urls=[http://a:1]", "rollout.schedule=partial", "sync.adapter=adapter"),
            "answers that go on cannot change their adapter",
        ),
        (
            (*EXTERNAL, "servers.urls=[http://a:1]", "servers.router=http://r:1", "sync.adapter=adapter"),
            "cannot have adapters of different versions",
        ),
        (("debug.only=training",), "needs debug.rollouts"),
        (("debug.only=sync",), "needs servers that weights are sent to"),
        (("run.resume=gone",), "run.resume = gone is no checkpoint directory"),
        (("run.resume=restrat",), "did you mean 'restart'?"),
        (("run.directory=/dev/null/x",), "/dev/null is a file"),
        (("adapter.path=gone",), "adapter.path = gone is not a directory"),
    ],
)
def test_one_contradiction(check, overrides: tuple[str, ...], message: str) -> None:
    text = check(*overrides)
    assert text is not None and message in text


def test_all_are_reported_together(check) -> None:
    text = check("model.generated=", "rollout.schedule=partial", "reward.correct=-1", "parallel.sequence=true")
    assert text.splitlines()[0].endswith("(4 problems):") and len(text.splitlines()) == 5


def test_a_directory_that_holds_a_run(check, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert check() is None  # nothing was written yet
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert "run.resume=auto" in check() and "run.resume=restart" in check()
    assert check("run.resume=auto") is check("run.resume=restart") is None


class TestModelDirectory:
    """A model from files: method rl_zero on a data file, so that nothing else is in the way."""

    @pytest.fixture
    def check_model(self, check, tmp_path: Path):
        data = write(tmp_path / "d.jsonl", "{}\n")

        def checker(directory: Path, *overrides: str) -> str | None:
            base = (f"data.rl={{path: {data}}}", "data.evaluation=[]", "model.generated=", "data.template=chat")
            return check(*base, f"model.path={directory}", *overrides)

        return checker

    def test_good(self, check_model, tmp_path: Path) -> None:
        assert check_model(make_model(tmp_path / "m")) is None

    def test_absent(self, check_model, tmp_path: Path) -> None:
        assert "does not exist" in check_model(tmp_path / "gone")
        assert "hf download Qwen/Qwen3-8B --local-dir Qwen/Qwen3-8B" in check_model(Path("Qwen/Qwen3-8B"))

    def test_pickles_are_never_loaded(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        text = check_model(model)
        assert "pytorch_model.bin" in text and "pickles are never loaded: convert it to safetensors" in text

    def test_missing_shards(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "lacks model-2.safetensors, which model.safetensors.index.json names" in check_model(model)
        (model / "model.safetensors.index.json").write_text("[]")
        assert "model.safetensors.index.json is damaged" in check_model(model)

    def test_no_weights_no_tokenizer_no_config(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            (model / name).unlink()
        text = check_model(model)
        assert "has no weights" in text and "has no tokenizer" in text and "there is no config.json" in text

    @pytest.mark.parametrize(
        ("content", "message"), [("{", "cannot be read"), ("[]", "model_type"), ("{}", "model_type")]
    )
    def test_a_bad_config_json(self, check_model, tmp_path: Path, content: str, message: str) -> None:
        model = make_model(tmp_path / "m")
        (model / "config.json").write_text(content)
        assert message in check_model(model)

    def test_an_adapter_in_its_place(self, check_model, tmp_path: Path) -> None:
        adapter = make_adapter(tmp_path / "a")
        (adapter / "config.json").write_text("{}")
        assert "give its base model here and the adapter as adapter.path" in check_model(adapter)

    def test_layout_and_lengths_are_judged_by_config_json(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        assert check_model(model, "parallel.tensor=2") is None
        assert "key-value heads of" in check_model(model, "parallel.tensor=3")
        assert "context of 256" in check_model(model, "rollout.max_new_tokens=256")

    def test_a_tokenizer_without_chat_template(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m", chat_template=False)
        assert "has no chat template; set data.template to plain" in check_model(model)
        assert check_model(model, "data.template=abel") is None
        (model / "chat_template.jinja").touch()
        assert check_model(model) is None

    def test_adapter(self, check_model, tmp_path: Path) -> None:
        model, adapter = make_model(tmp_path / "m"), make_adapter(tmp_path / "a", r=8)
        text = check_model(model, f"adapter.path={adapter}")
        assert text == f"adapter.rank = 16, but the adapter in {adapter} has r = 8; set adapter.rank=8"
        assert check_model(model, f"adapter.path={adapter}", "adapter.rank=8") is None
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        assert "pickles are never loaded" in check_model(model, f"adapter.path={adapter}", "adapter.rank=8")

    def test_a_generated_model_needs_a_generated_task(self, check, tmp_path: Path) -> None:
        data = write(tmp_path / "d.jsonl", "{}\n")
        assert "model.generated knows only the words" in check(f"data.rl={{path: {data}}}")

    def test_fields_need_names(self, check_model, tmp_path: Path) -> None:
        model, name = make_model(tmp_path / "m"), "method.name=bridge"
        text = check_model(model, name, "data.rl.format=fields")
        assert "data.rl.format = fields needs data.rl.prompt_field and data.rl.answer_field" in text
        assert "data.rl has none (format fields without trace_field)" in text
        fields = ("data.rl.format=fields", "data.rl.prompt_field=q", "data.rl.answer_field=a", "data.rl.trace_field=t")
        assert check_model(model, name, *fields) is None

    def test_an_empty_data_file(self, check_model, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m")
        write(tmp_path / "d.jsonl", "")
        assert "d.jsonl is empty; at least one problem is needed" in check_model(model)


def test_inference(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", chat_template=False)
    assert inference_problems(model, "MODEL", "plain", 255) == []
    both = inference_problems(model, "MODEL", "chat", 256)
    assert "--template chat" in both[0] and "--max-new-tokens 256" in both[1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("running_sums", "running_sums"), ("runing_sums", "did you mean 'running_sums'?"), ("x.jsonl", "does not exist")],
)
def test_file_or_task(value: str, expected: Any) -> None:
    _, task, problems = file_or_task(value, "--data")
    assert task == expected or expected in problems[0]
