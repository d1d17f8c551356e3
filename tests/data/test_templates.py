"""Templates and token limits, over small byte-level tokenizers like those of the Qwen2 and Llama-3 families."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bridge_mcore.config.schema import Data, DataSource
from bridge_mcore.data import chat_render
from bridge_mcore.data.pairs import check_tokenizer, encode_prompts, encode_traces
from bridge_mcore.data.problem import Problem, problem_id
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.templates import INSTRUCTION, TEMPLATES, PromptTemplate, render_prompt, render_trace
from bridge_mcore.data.texts import is_far_over
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import CheckpointError, ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
ODD_TEMPLATE = (
    "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}<|im_start|>{{ m | tojson }}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }} {{ eos_token }}"
)
ASK = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def byte_level(specials: list[str], template: str | None, bos: str | None = None, eos: str | None = None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["please reason step by step and put the final answer in a box: 42"] * 5, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos or specials[0])
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def qwen():
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML)


@pytest.fixture(scope="module")
def llama():
    return byte_level(["<|eos|>", "<|bos|>", "<|head|>", "<|eot_id|>"], LLAMA, bos="<|bos|>")


def problem(prompt: str = "What is 6 * 7?", trace: str | None = "6 * 7 = 42, \\boxed{42}") -> Problem:
    return Problem(problem_id(prompt, "42"), prompt, "42", trace, "test")


def test_plain_is_the_text_and_bos_by_default_only(qwen, llama):
    assert qwen.decode(render_prompt(problem(), qwen, "plain")) == "What is 6 * 7?"
    assert llama.decode(render_prompt(problem(), llama, "plain")) == "<|bos|>What is 6 * 7?"
    task = task_tokenizer("running_sums")  # knows a BOS, puts none
    (sums,) = load_problems(DataSource(task="running_sums", size=1))
    encoded = render_trace(sums, task, "plain")
    assert task.decode(encoded.tokens) == sums.prompt + sums.trace + "<eos>"
    assert task.decode(encoded.tokens[: encoded.prompt_length]) == sums.prompt


def test_chat_is_the_tokenizers_own_template(qwen, llama):
    ids = render_prompt(problem(), qwen, "chat")
    assert type(ids) is list and all(type(i) is int for i in ids)
    assert qwen.decode(ids) == f"<|im_start|>user\nWhat is 6 * 7?{ASK}<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == qwen.convert_tokens_to_ids("<|im_start|>")
    with_system = qwen.decode(render_prompt(problem(), qwen, "chat", "Be brief."))
    assert with_system.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    # One BOS, from the template, although the tokenizer would add another.
    ids = render_prompt(problem(), llama, "chat")
    assert ids.count(llama.bos_token_id) == 1 and ids[0] == llama.bos_token_id


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_is_what_transformers_makes_of_it(qwen, llama, system):
    """Although it is rendered elsewhere; of templates that know lists, dates, JSON and generation blocks, too."""
    odd = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ODD_TEMPLATE)
    messages = [{"role": "user", "content": "What is 6 * 7?" + INSTRUCTION}]
    messages = [{"role": "system", "content": system}, *messages] if system else messages
    for tokenizer in (qwen, llama, odd):
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert render_prompt(problem(), tokenizer, "chat", system) == wanted


ENDLESS = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "only for a long question": (
        "{% if messages[-1].content | length > 200 %}{% for a in range(100000) %}{% for b in range(100000) %}"
        "{% endfor %}{% endfor %}{% endif %}{{ messages[-1].content }}"
    ),
    "one operation without end": "{{ 7 ** (7 ** (7 ** 7)) }}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}"
    ),
    "a text that doubles": (
        "{% set ns = namespace(x='y') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
    ),
    "a wide text": "{{ 'x'.center(10 ** 10) }}",
    "a long text": "{{ 'x' * (10 ** 8) }}",
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
def test_a_template_that_does_not_end_is_ended(what, monkeypatch):
    """By its processor time, its memory or its length; and the next one is rendered as ever."""
    monkeypatch.setattr(chat_render, "CPU_SECONDS", 1)
    chat_render._RENDERER.close()
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ENDLESS[what])
    long = Problem("0" * 16, "word " * 100, "42", None, "test")
    with pytest.raises(ConfigError, match=r"refuses the messages \((it |the process)") as error:
        render_prompt(long, tokenizer, "chat")
    assert "\n" not in str(error.value)
    fine = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "{{ messages[-1].content }}!")
    assert fine.decode(render_prompt(long, fine, "chat")).endswith("!")


def test_a_template_sees_no_secrets(monkeypatch):
    """Were it to get out of jinja's sandbox, its process's environment holds none."""
    monkeypatch.setenv("SECRET_KEY", "hush")
    chat_render._RENDERER.close()
    fine = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "{{ messages[-1].content }}!")
    render_prompt(problem(), fine, "chat")
    process = chat_render._RENDERER._process
    assert process is not None
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PATH=" in environment and b"hush" not in environment


def test_text_that_is_no_unicode_is_named(qwen):
    """Half of a surrogate pair, as JSON can carry and a command line can hold."""
    broken = Problem("0" * 16, "\ud800 is what?", "42", "\udcff", "test")
    for template in TEMPLATES:
        with pytest.raises(DataError, match="not valid Unicode"):
            render_prompt(broken, qwen, template)
    with pytest.raises(DataError, match="not valid Unicode"):
        render_trace(replace(broken, prompt="Fine."), qwen, "plain")
    with pytest.raises(DataError, match="not valid Unicode"):
        render_prompt(problem(), qwen, "chat", "\ud800")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_what_is_far_too_long_is_not_tokenized(qwen, template):
    """Ten million characters: seconds and megabytes, not minutes and gigabytes; refused, dropped or cut as others."""
    huge = Problem("0" * 16, "word " * 2_000_000, "42", "step " * 2_000_000, "test")
    data = Data(template=template)
    with pytest.raises(DataError, match=r"prompt of [\d,]+ characters, far too many to be tokenized, the limit is 100"):
        encode_prompts([huge, problem()], qwen, data, 100)
    dropping = data.model_copy(update={"overlong": "drop"})
    assert [e.problem for e in encode_prompts([huge, problem()], qwen, dropping, 100)] == [problem()]
    cutting = data.model_copy(update={"overlong": "cut"})
    small = replace(huge, prompt="Go on.", trace="step " * 4000)  # tokenized as a whole where that costs little
    (found,) = encode_traces([small], qwen, cutting, 100)
    whole = PromptTemplate(qwen, template).trace(small)
    assert is_far_over(small.trace or "", 100) and found.tokens == whole.tokens[:100]


def test_unknown_text_of_any_length_is_one_token():
    """Where a tokenizer reads all of a long text as one unknown token, it is not too long."""
    tokenizer = task_tokenizer("running_sums")
    long = Problem("0" * 16, "日" * 100_000, "42", None, "test")
    assert encode_prompts([long], tokenizer, Data(template="plain"), 10)[0].tokens == [tokenizer.unk_token_id]


def test_qwen_boxed_and_abel_texts(qwen, llama):
    assert qwen.decode(render_prompt(problem(), qwen, "qwen-boxed")) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 6 * 7?"
        f"{ASK}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "system\nOther.<|im_end|>" in qwen.decode(render_prompt(problem(), qwen, "qwen-boxed", "Other."))
    abel = "Question:\nWhat is 6 * 7?\nAnswer:\nLet's think step by step.\n"
    assert qwen.decode(render_prompt(problem(), qwen, "abel")) == abel
    assert llama.decode(render_prompt(problem(), llama, "abel")) == "<|bos|>" + abel
    braces = problem("Solve $\\frac{a}{b} = {0}$ and {question}")
    assert braces.prompt in qwen.decode(render_prompt(braces, qwen, "abel"))
    assert braces.prompt in qwen.decode(render_prompt(braces, qwen, "qwen-boxed"))


def test_end_of_turn_is_the_templates_own(qwen, llama):
    def end(tokenizer, name):
        return tokenizer.convert_ids_to_tokens(PromptTemplate(tokenizer, name).end_token)

    assert end(qwen, "chat") == end(qwen, "qwen-boxed") == "<|im_end|>"
    assert end(qwen, "plain") == end(qwen, "abel") == "<|endoftext|>"
    assert end(llama, "chat") == "<|eot_id|>"
    assert end(llama, "plain") == "<|eos|>"
    assert PromptTemplate(llama, "plain").stop_tokens == [llama.eos_token_id]
    assert llama.convert_ids_to_tokens(PromptTemplate(llama, "chat").stop_tokens) == ["<|eot_id|>", "<|eos|>"]
    markless = byte_level(["<|eos|>"], "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert end(markless, "chat") == "<|eos|>"


@pytest.mark.parametrize(
    ("family", "template"),
    [("qwen", t) for t in TEMPLATES] + [("llama", t) for t in TEMPLATES if t != "qwen-boxed"],  # no ChatML tokens
)
def test_prompt_tokens_are_an_exact_prefix(request, family, template):
    tokenizer = request.getfixturevalue(family)
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    made = PromptTemplate(tokenizer, template)
    for _ in range(50):
        text = ["".join(rng.choices("ab 12\n\\{}$é∑ptherson", k=rng.randrange(1, 40))) + "." for _ in range(2)]
        item = problem(*text)
        encoded = made.trace(item)
        assert encoded.tokens[: encoded.prompt_length] == made.prompt(item) == render_prompt(item, tokenizer, template)
        response = encoded.tokens[encoded.prompt_length :]
        assert response[-1] == made.end_token and made.end_token not in response[:-1]
        assert tokenizer.decode(response[:-1]) == item.trace
        assert encoded.problem is item


def test_a_trace_with_its_own_end_mark_gets_no_second(qwen):
    encoded = render_trace(problem(trace="42<|im_end|>"), qwen, "chat")
    assert encoded.tokens.count(qwen.convert_tokens_to_ids("<|im_end|>")) == 2  # the user's turn and this one


def test_templates_that_do_not_suit(qwen, llama):
    with pytest.raises(ConfigError, match=r"no chat template|has none; set data\.template to plain"):
        render_prompt(problem(), task_tokenizer("running_sums"), "chat")
    with pytest.raises(ConfigError, match=r"qwen-boxed needs the token <\|im_start\|>"):
        render_prompt(problem(), llama, "qwen-boxed")
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        render_prompt(problem(), qwen, "chad")
    for name in ("plain", "abel"):
        with pytest.raises(ConfigError, match=r"data\.system_prompt: the template \w+ has no place for it"):
            render_prompt(problem(), qwen, name, "Be brief.")
    fussy = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], NO_SYSTEM)
    render_prompt(problem(), fussy, "chat")
    with pytest.raises(ConfigError, match=r"no system role.*try without data\.system_prompt"):
        render_prompt(problem(), fussy, "chat", "Be brief.")


def test_a_problem_without_a_trace(qwen):
    with pytest.raises(DataError, match=r"problem [0-9a-f]{16} of test \('No trace\?'\) has no expert trace"):
        encode_traces([problem(), problem("No trace?", None)], qwen, Data(template="plain"), 100)


def test_limits(qwen, caplog):
    items = [problem("short"), problem("long " * 20), problem("mid " * 5)]
    lengths = [len(render_prompt(item, qwen, "plain")) for item in items]
    data = Data(template="plain")
    assert [e.tokens for e in encode_prompts(items, qwen, data, max(lengths))] == [
        render_prompt(item, qwen, "plain") for item in items
    ]
    with pytest.raises(
        DataError, match=r"of test \('long .*the limit is 50; raise .*max_length .*overlong: drop"
    ) as error:
        encode_prompts(items, qwen, data, 50)
    assert f"prompt of {lengths[1]} tokens" in str(error.value) and "rollout.max_new_tokens" in str(error.value)
    drop = Data(template="plain", overlong="drop")
    assert [e.problem for e in encode_prompts(items, qwen, drop, 50)] == [items[0], items[2]]
    assert "dropped 1 of 3 problems" in caplog.text
    with pytest.raises(DataError, match="every one of 3 problems is over the limit"):
        encode_prompts(items, qwen, drop, 1)
    with pytest.raises(DataError, match=r"prompt and trace of \d+ tokens, the limit is 30; raise training\.max_length"):
        encode_traces(items, qwen, data, 30)
    whole = [len(render_trace(item, qwen, "plain").tokens) for item in items]
    assert len(encode_traces(items, qwen, drop, whole[2])) == 2
    with pytest.raises(DataError, match="no problems"):
        encode_prompts([], qwen, data, 30)


def test_tokenizer_must_fit_the_model(qwen):
    size = len(qwen)
    check_tokenizer(qwen, size)
    check_tokenizer(qwen, size + 64)  # padded vocabularies are common
    with pytest.raises(CheckpointError, match=rf"id {size - 1}, the model's vocab_size is {size - 1}"):
        check_tokenizer(qwen, size - 1)
    with pytest.raises(CheckpointError, match=rf"has {size} ids, the model's vocab_size is {4 * size}"):
        check_tokenizer(qwen, 4 * size)
    endless = PreTrainedTokenizerFast(tokenizer_object=qwen.backend_tokenizer)
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        check_tokenizer(endless, size)
