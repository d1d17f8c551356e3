"""Texts of data make no control tokens, open no thought twice, and what the tokenizer does not know is counted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridge_mcore.config.schema import Data
from bridge_mcore.data.notes import Notes, lines
from bridge_mcore.data.pairs import encode_prompts, encode_traces
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.stops import load_tokenizer
from bridge_mcore.data.templates import TEMPLATES, PromptTemplate
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import ConfigError, DataError
from tests.data.test_templates import ASK, CHATML, LLAMA, NO_SYSTEM, byte_level

OPENS = CHATML.replace("assistant\n", "assistant\n<think>\n")
DEAF = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
JSON = "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{% endfor %}"
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def problem(prompt: str = "6*7?", trace: str | None = "It is \\boxed{42}", **rest) -> Problem:
    return Problem("0" * 16, prompt, "42", trace, "test", **rest)


def said(notes: Notes) -> str:
    return "\n".join(lines("data.sft", Notes(), {"traces": notes}))


def traced(tokenizer, *problems: Problem, **data) -> tuple[list[tuple[str, str]], Notes]:
    """[(prompt, response) as text], and what was noted."""
    notes = Notes()
    found = encode_traces(list(problems), tokenizer, Data(**data), 10**6, notes)
    texts = [
        (tokenizer.decode(e.tokens[: e.prompt_length]), tokenizer.decode(e.tokens[e.prompt_length :])) for e in found
    ]
    return texts, notes


def with_added(*added: AddedToken, template: str | None = CHATML):
    tokenizer = byte_level(QWEN, template)
    tokenizer.add_tokens(list(added))
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "chat", [CHATML, JSON, LLAMA.replace("<|head|>", "<|im_start|>").replace("<|eot_id|>", "<|im_end|>")]
)
def test_no_text_of_a_question_becomes_a_control_token(template, chat, seed):
    """Whatever stands around the marks; the text as it is read again is the text."""
    rng = random.Random(seed)
    tokenizer = byte_level(QWEN, chat)
    marks = [*QWEN, "<|im_", "end|>", "<", "|"]
    control = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(mark) for mark in QWEN}
    empty = render(tokenizer, template, problem("x"))
    for _ in range(30):
        texts = [
            "".join(rng.choices([*marks, "a", " b", "é", "\n", "7"], k=rng.randrange(1, 9))) + "." for _ in range(2)
        ]
        asked = problem("q" + texts[0], texts[1].strip())
        ids = render(tokenizer, template, asked)
        assert [i for i in ids if i in control] == [i for i in empty if i in control]
        if chat != JSON or template != "chat":
            assert asked.prompt in tokenizer.decode(ids)
        (response,) = [r for _, r in traced(tokenizer, asked, template=template)[0]]
        ending = tokenizer.convert_ids_to_tokens(PromptTemplate(tokenizer, template).end_token)
        assert response == asked.trace + ending


def render(tokenizer, template: str, asked: Problem) -> list[int]:
    return PromptTemplate(tokenizer, template).prompt(asked)


def test_texts_without_marks_have_the_tokens_that_they_always_had():
    tokenizer = byte_level(QWEN, CHATML)
    ids = render(tokenizer, "chat", problem())
    text = f"<|im_start|>user\n6*7?{ASK}<|im_end|>\n<|im_start|>assistant\n"
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_control_tokens_are_counted_and_said():
    texts, notes = traced(
        byte_level(QWEN, CHATML), problem("Say <|im_end|> and <|endoftext|>.", "ok <|im_end|> \\boxed{42}"), problem()
    )
    assert notes["control_prompts"] == notes["control_traces"] == 1
    assert (notes["prompt_marks"], notes["trace_marks"]) == (2, 1)
    assert "1 of 2 prompts spell control tokens, 2 in all" in said(notes)
    assert "1 of 2 traces spell control tokens, 1 in all" in said(notes) and "the first: <|im_end|> in" in said(notes)
    assert texts[0][1] == "ok <|im_end|> \\boxed{42}<|im_end|>"
    assert not said(traced(byte_level(QWEN, CHATML), problem())[1])


def test_a_system_message_makes_none_either():
    tokenizer = byte_level(QWEN, CHATML)
    for asked, system in ((problem(system="a<|im_end|>b"), None), (problem(), "a<|im_end|>b")):
        ids = PromptTemplate(tokenizer, "chat", system).prompt(asked)
        assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
        assert "<|im_start|>system\na<|im_end|>b<|im_end|>" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    "ending", ["<|im_end|>", "<|endoftext|>", " <|im_end|>\n", "<|im_end|>\n<|endoftext|>", "<|endoftext|>" * 3]
)
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_end_tokens_at_the_end_of_a_trace_are_cut(ending, template):
    tokenizer = byte_level(QWEN, CHATML)
    texts, notes = traced(tokenizer, problem(trace="It is 42." + ending), problem(trace="It is 42."), template=template)
    assert texts[0][1] == texts[1][1] and notes["ended_traces"] == 1 and not notes["control_traces"]
    assert "1 of 2 traces spell an end token at their end, which was cut" in said(notes)


def test_a_trace_of_end_tokens_alone_is_none():
    with pytest.raises(DataError, match="no expert trace"):
        traced(byte_level(QWEN, CHATML), problem(trace="<|im_end|>"))


def test_tokens_that_look_like_control_or_belong_to_an_answer():
    """`<|fim|>` and a tool's are control tokens although their files do not say so; `<think>` is the policy's own."""
    fim, tool = AddedToken("<|fim_prefix|>", special=False), AddedToken("<tool_call>", special=False)
    think, end = AddedToken("<think>", special=True), AddedToken("</think>", special=False)
    tokenizer = with_added(fim, tool, think, end, AddedToken("word", special=False))
    text = "<think>a word</think> <|fim_prefix|> <tool_call> \\boxed{42}"
    ids = encode_traces([problem(trace=text)], tokenizer, Data(), 10**6)[0].tokens
    there = set(tokenizer.convert_ids_to_tokens(ids))
    assert {"<think>", "</think>", "word"} <= there and not {"<|fim_prefix|>", "<tool_call>"} & there
    assert tokenizer.decode(ids).endswith(text + "<|im_end|>")


def test_a_mark_that_the_model_itself_knows_is_taken_apart_or_refused():
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", *"<eos>ab"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")
    ids = render(tokenizer, "plain", problem("a <eos> b"))
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<", "e", "o", "s", ">", "b"]
    inner.model = models.WordLevel({"<eos>": 1, "a": 2}, unk_token="<eos>")
    odd = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    with pytest.raises(DataError, match="control token <eos>, which this tokenizer cannot read as text"):
        render(odd, "plain", problem("a <eos> a"))


@pytest.mark.parametrize("text", ["say </s> now.", "say</s>now.", "</s>now", "a</s>", "</s>", "no mark", "x</s></s> y"])
def test_a_tokenizer_that_puts_a_space_before_each_text_reads_the_text_as_it_is(text):
    """As Llama 2's does, whose vocabulary also holds the mark as a piece."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz</>.")]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    ids = render(tokenizer, "plain", problem(text))
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "trace", ["<think>\nSix sevens.\n</think>\n\\boxed{42}", "<think>Six sevens.\n</think>\n\\boxed{42}"]
)
def test_a_thought_is_opened_once(trace):
    tokenizer = byte_level([*QWEN, "<think>", "</think>"], OPENS)
    ((prompt, response),), notes = traced(tokenizer, problem(trace=trace))
    assert (prompt + response).count("<think>") == 1 and prompt.endswith("<think>\n")
    assert response == "Six sevens.\n</think>\n\\boxed{42}<|im_end|>"
    assert "1 of 1 traces open a thought that the prompt has opened" in said(notes) and not notes["never_closed"]
    assert "1 of 1 prompts open a thought" in said(notes)
    ((prompt, response),), notes = traced(tokenizer, problem(trace=trace), template="plain")
    assert response == trace + "<|endoftext|>" and not said(notes)  # no prompt opened it


def test_a_thought_that_is_never_closed_or_opened_again_is_said():
    opens, plain = byte_level(QWEN, OPENS), byte_level(QWEN, CHATML)
    assert "1 of 1 traces never close the thought" in said(traced(opens, problem())[1])
    assert "never close" in said(traced(plain, problem(trace="<think>\nhm \\boxed{42}"))[1])
    assert "never close" not in said(traced(opens, problem(trace="so\n</think>\n42"), problem(finished=False))[1])
    closed = byte_level(QWEN, OPENS.replace("<think>\n", "<think>\n\n</think>\n\n"))
    assert "opened and closed" in said(traced(closed, problem(trace="<think>a</think>b"))[1])
    notes = Notes()  # of what is evaluated, too
    encode_prompts([problem()], opens, Data(), 10**6, notes)
    assert "1 of 1 prompts open a thought" in "\n".join(lines("data.evaluation.0", Notes(), {"prompts": notes}))


def test_a_system_message_of_a_row_goes_before_that_of_the_run():
    tokenizer = byte_level(QWEN, CHATML)
    own = problem(system="Be kind.")
    for template in ("chat", "qwen-boxed"):
        texts, notes = traced(tokenizer, own, problem(), template=template, system_prompt="Be brief.")
        assert "system\nBe kind.<|im_end|>" in texts[0][0] and "brief" not in texts[0][0]
        assert "system\nBe brief.<|im_end|>" in texts[1][0]
        assert "1 of 2 prompts have a system message of their own row" in said(notes)
    for template in ("plain", "abel"):
        with pytest.raises(DataError, match=rf"the template {template} has no place for it; set system_messages: drop"):
            traced(tokenizer, own, template=template)
    with pytest.raises(DataError, match="chat has no place for it"):
        traced(byte_level(QWEN, DEAF), own)
    with pytest.raises(ConfigError, match=r"data\.system_prompt: the chat template .* leaves system messages out"):
        traced(byte_level(QWEN, DEAF), problem(), system_prompt="Be brief.")
    with pytest.raises(ConfigError, match=r"no system role.*system_messages: drop"):
        traced(byte_level(QWEN, NO_SYSTEM), own)


@pytest.mark.parametrize("reward", ["math", "plugin:mine.py:judge", "choice", "logic", "code", "gym"])
def test_the_instruction(reward):
    tokenizer = byte_level(QWEN, CHATML)
    asked = problem(reward=reward)

    def prompt(template: str, **data) -> str:
        return tokenizer.decode(encode_prompts([asked], tokenizer, Data(template=template, **data), 10**6)[0].tokens)

    for template in ("chat", "qwen-boxed"):
        assert f"6*7?{ASK if reward == 'math' else ''}<|im_end|>" in prompt(template)
        assert "user\n6*7?<|im_end|>" in prompt(template, instruction=None) == prompt(template, instruction="")
        assert "user\n6*7?\nSay it.<|im_end|>" in prompt(template, instruction="Say it.")
    assert prompt("plain") == "6*7?" and prompt("plain", instruction="Say it.") == "6*7?\nSay it."
    assert prompt("abel", instruction="Say it.").startswith("Question:\n6*7?\nSay it.\nAnswer:")


def test_a_question_that_asks_for_a_box_itself():
    asked = problem("6*7? Put it into \\boxed{}.")
    tokenizer = byte_level(QWEN, CHATML)
    assert "1 of 1 questions ask for a \\boxed{} themselves" in said(traced(tokenizer, asked)[1])
    assert "themselves" not in said(traced(tokenizer, asked, instruction=None)[1])


def test_what_the_tokenizer_does_not_know_is_counted():
    tokenizer = task_tokenizer("running_sums")
    known, strange = problem("Q:a1A:", "1\\boxed{1}"), problem("Q:a1A: é?", "1 ! \\boxed{1}")
    _, notes = traced(tokenizer, known, strange, template="plain")
    unknown = tokenizer.unk_token_id
    counted = [
        tokenizer(text, add_special_tokens=False)["input_ids"].count(unknown)
        for text in (strange.prompt, strange.trace)
    ]
    assert [notes["unknown_prompt_tokens"], notes["unknown_trace_tokens"]] == counted and min(counted) > 0
    assert f"1 of 2 prompts hold {counted[0]} tokens that the tokenizer does not know" in said(notes)
    assert f"1 of 2 traces hold {counted[1]} tokens that the tokenizer does not know" in said(notes)


def test_characters_that_a_tokenizer_drops_are_said():
    inner = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<eos>": 2}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    _, notes = traced(tokenizer, problem("ab", "ba"), problem("aéb", "ba"), template="plain")
    assert "1 of 2 prompts hold characters that the tokenizer drops" in said(notes) and not notes["lost_traces"]


def test_a_trace_that_begins_with_its_question():
    asked = problem("How much is 6*7?")
    _, notes = traced(byte_level(QWEN, CHATML), replace(asked, trace=f"{asked.prompt} It is 42."), asked)
    assert "1 of 2 traces begin with their own question" in said(notes)


def test_a_word_of_several_characters_is_no_loss(tmp_path):
    """`Q:` is a word of its own in a vocabulary that has no `Q`."""
    task_tokenizer("running_sums").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    saved = load_tokenizer(tmp_path)
    _, notes = traced(saved, problem("Q:a1b2A:", "1a3b\\boxed{3}"), template="plain")
    assert not said(notes)
