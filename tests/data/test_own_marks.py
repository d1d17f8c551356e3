"""Which tokens and marks are a template's own: they never come from data, whatever a tokenizer calls them."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.preview import preview_file
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import ConfigError
from tests.data.test_control import OPENS, QWEN, problem, said, traced, with_added
from tests.data.test_problems import write
from tests.data.test_templates import CHATML, byte_level

TURNS = CHATML.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
ANSWERS = CHATML.replace("<|im_start|>assistant\n", "<|start_of_answer|>").replace("<|im_end|>", "<|end_of_answer|>")


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "template"),
    [("<start_of_turn>", "<end_of_turn>", TURNS), ("<|start_of_answer|>", "<|end_of_answer|>", ANSWERS)],
)
def test_what_a_template_writes_never_comes_from_data(start, end, template, special):
    tokenizer = with_added(AddedToken(start, special=special), AddedToken(end, special=special), template=template)
    made = PromptTemplate(tokenizer, "chat")
    ends = tokenizer.convert_tokens_to_ids([start, end])
    assert made.end_token == ends[1]
    spelt, plain = problem(f"a {end} b {start} c"), problem("a b c")
    assert [i for i in made.prompt(spelt) if i in ends] == [i for i in made.prompt(plain) if i in ends]
    texts, notes = traced(
        tokenizer, problem(trace=f"It {end} is \\boxed{{42}}{end}"), problem(trace="It is \\boxed{42}")
    )
    assert [response.count(end) for _, response in texts] == [2, 1]  # as text, and the end itself
    assert notes["ended_traces"] == notes["control_traces"] == 1
    assert made.trace(problem(trace=f"It {end} is")).tokens.count(ends[1]) == made.prompt(plain).count(ends[1]) + 1


@pytest.mark.parametrize("template", [OPENS, CHATML.replace("assistant\n", "assistant\n<answer>")])
def test_marks_of_thoughts_and_answers_stay_those_of_the_policy(template):
    marks = ["<think>", "</think>", "<answer>", "</answer>"]
    tokenizer = with_added(*(AddedToken(mark, special=True) for mark in marks), template=template)
    text = "a</think> <answer>42</answer> <think>b</think> \\boxed{42}"
    encoded = PromptTemplate(tokenizer, "chat").trace(problem(trace=text))
    ids = encoded.tokens[encoded.prompt_length :]
    assert set(marks) <= set(tokenizer.convert_ids_to_tokens(ids))


def test_an_end_token_before_an_added_box_is_cut(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2", "solution": f"It is 2.{end}"} for end in ("<|im_end|>\n", "")]
    ended, plain = load_problems(DataSource(path=write(tmp_path / "a.jsonl", rows)))
    texts, notes = traced(byte_level(QWEN, CHATML), ended, plain)
    assert texts[0] == texts[1] and texts[0][1] == "It is 2.\nThe answer is \\boxed{2}.<|im_end|>"
    assert notes["ended_traces"] == 1 and not notes["control_traces"]


@pytest.mark.parametrize("role", ["pad_token", "bos_token", "eos_token"])
def test_unknown_tokens_are_counted_though_they_are_another_token_too(role):
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "a", "b"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    roles = {"eos_token": "<eos>"} | {role: "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **roles)
    _, notes = traced(tokenizer, problem("a b", "a"), problem("a ? b !", "b ?"), template="plain")
    assert (notes["unknown_prompt_tokens"], notes["unknown_trace_tokens"]) == (2, 1)
    assert "1 of 2 prompts hold 2 tokens that the tokenizer does not know" in said(notes)


def test_a_thought_that_nothing_opened_is_said():
    deep, whole = problem(trace="hm</think>\\boxed{42}"), problem(trace="<think>hm</think>\\boxed{42}")
    _, notes = traced(byte_level(QWEN, CHATML), deep, whole, problem())
    assert "1 of 3 traces close a thought that neither they nor their prompts open" in said(notes)
    assert not traced(byte_level(QWEN, OPENS), deep)[1]["never_opened"]


@pytest.mark.parametrize("key", ["limit=1", "path=b.jsonl"])
def test_keys_that_a_preview_would_not_read_are_refused(tmp_path, key):
    path = write(tmp_path / "a.jsonl", [{"problem": "q", "answer": "1"}])
    with pytest.raises(ConfigError, match="has no place in a preview"):
        preview_file(str(path), tmp_path, [], [key], (1, None, False))
