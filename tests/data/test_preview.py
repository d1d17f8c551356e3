"""What the preview shows is what training is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge_mcore.config.load import load_config
from bridge_mcore.config.schema import Data
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.pairs import encode_prompts, encode_traces
from bridge_mcore.data.preview import find_problems, preview, text_of, tokenizer_of
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import BridgeError, CheckpointError, ConfigError, DataError
from bridge_mcore.training.run_preview import preview_run
from tests.data.test_problems import write
from tests.data.test_templates import CHATML, byte_level

ROWS = [
    {"problem": f"What is {n} times {n}?", "answer": str(n * n), "solution": f"It is\n\\boxed{{{n * n}}} ü"}
    for n in range(2, 6)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    return folder


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "a.jsonl", ROWS)


@pytest.mark.parametrize("template", ["plain", "chat", "qwen-boxed", "abel"])
def test_the_tokens_are_those_of_training(model, data, template):
    from transformers import AutoTokenizer

    problems = find_problems(str(data), 3, None)
    settings = Data(template=template)
    found = preview(problems, model, settings, None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for view, encoded in zip(found.views, encode_traces(problems, tokenizer, settings, 10**6), strict=True):
        assert view.tokens == encoded.tokens
        assert view.trained == [False] * encoded.prompt_length + [True] * (len(encoded.tokens) - encoded.prompt_length)
        assert view.response.startswith("It is\n\\boxed{") and "times" in view.prompt
        assert view.trained[-1] and not view.cut
    names = dict(found.stops)
    assert names[PromptTemplate(tokenizer, template).end_token] == found.views[0].pieces[-1]
    assert {0, 7} <= set(names)  # generation_config.json's
    assert found.stop_texts == (("\nQuestion:",) if template == "abel" else ())
    alone = preview(problems, model, settings, None, prompts_only=True)
    for view, prompt in zip(alone.views, encode_prompts(problems, tokenizer, settings, 10**6), strict=True):
        assert view.tokens == prompt.tokens and not any(view.trained)


def test_the_limit_as_in_training(model, data):
    problems = find_problems(str(data), 1, None)
    whole = preview(problems, model, Data(template="abel"), None).views[0]
    limit = len(whole.tokens) - 3
    (cut,) = preview(problems, model, Data(template="abel", overlong="cut"), limit).views
    assert cut.cut and cut.tokens == whole.tokens[:limit] and cut.trained[-1]
    (dropped,) = preview(problems, model, Data(template="abel", overlong="drop"), limit).views
    assert "over the limit" in (dropped.left_out or "")
    with pytest.raises(DataError, match="the limit is"):
        preview(problems, model, Data(template="abel"), limit)
    text = text_of(preview(problems, model, Data(template="abel", overlong="cut"), limit))
    assert "cut at the limit: no end token" in text


def test_cut_counts_and_prompts_that_fill_the_limit(model):
    tokenizer = byte_level(["<|endoftext|>"], None)
    short, long = (Problem(str(n), "q" * n, "1", "trace of some length", "s") for n in (5, 60))
    counts = Notes()
    data = Data(template="plain", overlong="cut")
    encoded = encode_traces([short, long], tokenizer, data, 12, counts)
    assert counts == {"kept": 0, "cut": 1, "dropped": 1} and [len(e.tokens) for e in encoded] == [12]
    assert encoded[0].tokens[-1] != tokenizer.eos_token_id
    counts.clear()
    assert len(encode_prompts([short, long], tokenizer, data, 12, counts)) == 1  # a prompt is never cut
    assert counts == {"kept": 1, "cut": 0, "dropped": 1}
    unfinished = Problem("1", "q", "1", "so far", "s", finished=False)
    assert encode_traces([unfinished], tokenizer, data, 100)[0].tokens[-1] != tokenizer.eos_token_id


def test_what_can_be_shown(model, data, tmp_path):
    assert [p.answer for p in find_problems(str(data), 2, None)] == ["4", "9"]
    number = find_problems(str(data), 4, None)[2].id
    assert [p.answer for p in find_problems(str(data), 1, number[:8])] == ["16"]
    with pytest.raises(DataError, match="no problem with an id"):
        find_problems(str(data), 1, "zzz")
    assert find_problems("running_sums", 2, None)[1].prompt.startswith("Q:")
    (tmp_path / "recipe.yaml").write_text(f"prompts: [{{path: {data}}}]\n")
    assert [p.trace for p in find_problems(str(tmp_path / "recipe.yaml"), 1, None)] == [ROWS[0]["solution"]]
    with pytest.raises(BridgeError, match="no recipe"):
        find_problems("nothing", 1, None)
    with pytest.raises(CheckpointError, match="no directory"):
        preview(find_problems(str(data), 1, None), tmp_path / "no", Data(), None)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        preview(find_problems(str(data), 1, None), tmp_path, Data(), None)


def test_the_command(model, data, capsys):
    from bridge_mcore.cli.main import main

    def command(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ending:
            main(["data", "preview", str(data), "--model", str(model), *map(str, arguments)])
        assert not ending.value.code
        return capsys.readouterr().out

    text = command("--template", "qwen-boxed", "--tokens", "-n", 2)
    assert "<|im_start|>user↵\nWhat is 2 times 2?" in text
    assert "the last is '<|im_end|>'" in text and "an answer ends at" in text
    assert sum(line.startswith("+ ") for line in text.splitlines()) > 10
    found = json.loads(command("--json", "--template", "chat"))
    (problem,) = found["problems"]
    assert problem["tokens"] == len(problem["sequence"])
    assert problem["trained_tokens"] == sum(row["trained"] for row in problem["sequence"])
    assert "the policy goes on from here" in command("--rl")


RUN = """
model: {{path: {model}}}
method: {{name: bridge}}
training: {{max_length: 400}}
rollout: {{max_new_tokens: 50}}
data:
  template: chat
  instruction: Say what it is.
  rl:
    {{path: {train}, prompt_field: frage, answer_field: ergebnis, trace_field: loesung, reward: "plugin:mine.py:judge"}}
  evaluation:
    - {{path: {test}, prompt_field: frage, answer_field: ergebnis, limit: 2}}
"""


@pytest.fixture
def run_file(model, tmp_path):
    def rows(numbers: range) -> list[dict]:
        return [{"frage": f"{n} mal {n}?", "ergebnis": n * n, "loesung": f"Answer: {n * n}"} for n in numbers]

    train, test = write(tmp_path / "train.jsonl", rows(range(9))), write(tmp_path / "test.jsonl", rows(range(20, 29)))
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(model=model, train=train, test=test))
    return path


def test_a_configuration_shows_its_own_data(model, run_file):
    """Own column names, reward, instruction and template: the tokens that the template makes of what was written."""
    config = load_config(run_file)
    found = preview_run(config, None, 2, None, None)
    assert [view.title for view in found.views] == [
        "data.rl", "data.rl", "data.sft", "data.sft", "data.evaluation.0", "data.evaluation.0"
    ]  # fmt: skip
    tokenizer = tokenizer_of(model)
    for view, number, trained in zip(found.views, (0, 1, 0, 1, 20, 21), (0, 0, 1, 1, 0, 0), strict=True):
        asked = f"<|im_start|>user\n{number} mal {number}?\nSay what it is.<|im_end|>\n<|im_start|>assistant\n"
        answer = f"Answer: {number * number}<|im_end|>" if trained else ""
        assert view.tokens == tokenizer(asked + answer, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([t for t, learned in zip(view.tokens, view.trained, strict=True) if learned]) == answer
    assert not found.remarks
    assert [view.title for view in preview_run(config, "data.evaluation", 1, None, None).views] == ["data.evaluation.0"]
    boxed = preview_run(load_config(run_file, ["data.rl.reward=math"]), "data.sft", 1, None, None)
    assert boxed.views[0].response == "Answer: 0\nThe answer is \\boxed{0}.<|im_end|>"
    assert any("9 of 9 traces got a box" in remark for remark in boxed.remarks)


def test_a_configuration_is_refused_as_training_refuses_it(run_file, tmp_path):
    with pytest.raises(
        ConfigError, match=r"data\.sfd is nothing .*did you mean 'data\.sft'.*data\.rl, data\.sft, data\.ev"
    ):
        preview_run(load_config(run_file), "data.sfd", 1, None, None)
    with pytest.raises(ConfigError, match=r"data\.sft is nothing that this run reads.*rl_zero"):
        preview_run(load_config(run_file, ["method.name=rl_zero"]), "data.sft", 1, None, None)
    with pytest.raises(DataError, match="no column 'fragen'"):
        preview_run(load_config(run_file, ["data.rl.prompt_field=fragen"]), None, 1, None, None)
    with pytest.raises(DataError, match="the limit is"):
        preview_run(load_config(run_file, ["training.max_length=60"]), "data.rl", 1, None, None)
    with pytest.raises(DataError, match="no problem with an id"):
        preview_run(load_config(run_file), None, 1, "zz", None)


def test_a_generated_model_has_its_words_before_it_is_made():
    found = preview_run(load_config(Path("examples/quickstart.yaml")), "data.rl", 2, None, None)
    assert found.views[0].prompt.startswith("Q:") and not found.remarks


def test_the_command_takes_configurations_and_own_columns(run_file, model, tmp_path, capsys):
    from bridge_mcore.cli.main import main

    def command(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ending:
            main(["data", "preview", *map(str, arguments)])
        said = capsys.readouterr()
        return said.out if not ending.value.code else f"{ending.value.code}: {said.err}"

    assert command("quickstart", "-n", 2) == command("examples/quickstart.yaml", "-n", 2)
    text = command(run_file)
    assert "data.sft: problem" in text and "Answer: 0<|im_end|>" in text and "reward  plugin:mine.py:judge" in text
    assert "got a box" in command(run_file, "data.sft", "data.rl.reward=math")
    assert "one part" in command(run_file, "data.sft", "data.rl")
    found = json.loads(command(run_file, "data.rl", "--json"))
    assert [view["of"] for view in found["problems"]] == ["data.rl"] and found["remarks"] == []
    keys = ("prompt_field=frage", "answer_field=ergebnis", "trace_field=loesung", "reward=choice")
    options = [word for key in keys for word in ("--source", key)]
    text = command(tmp_path / "train.jsonl", "--model", model, *options)
    assert "Answer: 0<|im_end|>" in text and "boxed" not in text
    assert command(tmp_path / "train.jsonl", *options).startswith("2: error: give --model")
    assert "running_sums is none" in command("running_sums", "--model", model, "--source", "reward=choice")
    assert command(tmp_path / "train.jsonl", "data.rl", "--model", model).startswith("2: error: 'data.rl' goes with")
