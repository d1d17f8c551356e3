"""The generated task and its tokenizer."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.rows import last_boxed
from bridge_mcore.data.tasks import MOST_TERMS, draw, held_out, running_sum, stream_problems
from bridge_mcore.data.tokenizer import task_tokenizer, task_vocabulary
from bridge_mcore.errors import ConfigError, DataError


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return seed


def source(**keys) -> DataSource:
    return DataSource(**{"task": "running_sums", "size": 200, **keys})


def test_the_example_of_the_docstring():
    assert running_sum([3, 2, 1]) == ("Q:a3b2c1A:", "a3=3b2=5c1=6\\boxed{6}", "6")


def test_problems_are_right(seed):
    low, high = sorted(random.Random(seed).sample(range(2, MOST_TERMS + 1), 2))
    problems = load_problems(source(seed=seed, difficulty=(low, high)))
    assert len(problems) == 200 == len({p.prompt for p in problems}) == len({p.id for p in problems})
    sizes = set()
    for problem in problems:
        terms = [int(t) for t in re.findall(r"[a-z](\d)", problem.prompt)]
        steps = re.findall(r"[a-z](\d)=(\d+)", problem.trace.split("\\")[0])
        assert [int(term) for term, _ in steps] == terms
        assert [int(total) for _, total in steps] == [sum(terms[: i + 1]) for i in range(len(terms))]
        assert problem.answer == last_boxed(problem.trace) == str(sum(terms))
        sizes.add(len(terms))
    assert sizes == set(range(low, high + 1))


def test_the_same_on_every_machine():
    assert [draw(0, i, (2, 8)) for i in range(3)] == [[3, 6, 9, 7, 8, 4, 4], [8, 4, 4], [3, 5, 1]]
    assert held_out("Q:a3b2c1A:") is False


def test_a_smaller_set_is_the_beginning_of_a_larger_one(seed):
    small, large = (load_problems(source(seed=seed, size=n)) for n in (50, 300))
    assert large[:50] == small
    assert load_problems(source(seed=seed, size=300, limit=50)) == small
    assert load_problems(source(seed=seed + 1, size=50)) != small


def test_no_test_problem_is_in_any_train_set(seed):
    test = {p.prompt for p in load_problems(source(seed=seed, split="test", difficulty=(2, 5), size=100))}
    for other, difficulty in ((seed, (2, 5)), (seed + 1, (2, 5)), (seed + 2, (1, 8))):
        train = {p.prompt for p in load_problems(source(seed=other, difficulty=difficulty, size=2000))}
        assert not test & train
    prompts = [running_sum(draw(seed, i, (4, 8)))[0] for i in range(4000)]
    assert 0.07 < sum(map(held_out, prompts)) / 4000 < 0.13


def test_stream_is_endless_and_keeps_the_split(seed):
    problems = list(islice(stream_problems(seed, "train", (1, 2)), 500))
    assert not any(held_out(p.prompt) for p in problems)
    assert len({p.prompt for p in problems}) < 110


def test_more_problems_than_there_are():
    with pytest.raises(DataError, match=r"has only about \d+ different problems in its test split, 200 are asked for"):
        load_problems(source(split="test", difficulty=(2, 2)))


@pytest.mark.parametrize("difficulty", [(0, 3), (2, MOST_TERMS + 1), (5, 4)])
def test_bad_difficulty(difficulty):
    bad = source().model_copy(update={"difficulty": difficulty})
    with pytest.raises(ConfigError, match="is no range of terms; running_sums has 1 to 11"):
        load_problems(bad)


def test_bad_split_and_task():
    with pytest.raises(ConfigError, match="splits train and test, not 'validation'"):
        load_problems(source(split="validation"))
    with pytest.raises(ConfigError, match="no tokenizer for the task 'sums'"):
        task_tokenizer("sums")


def test_vocabulary():
    words = task_vocabulary()
    assert len(words) % 8 == 0 and len(set(words)) == len(words)
    tokenizer = task_tokenizer("running_sums")
    assert len(tokenizer) == len(words) == tokenizer.vocab_size
    assert tokenizer.convert_tokens_to_ids(words) == list(range(len(words)))
    specials = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert len({*specials}) == 4 and None not in specials


@pytest.mark.parametrize("config", [None, Qwen2Config, Qwen3Config, LlamaConfig])
def test_tokenizer_reloads_beside_every_architecture(tmp_path, seed, config):
    """AutoTokenizer may choose a class by config.json's model_type; the tokens must be the same whatever it does."""
    tokenizer = task_tokenizer("running_sums")
    tokenizer.save_pretrained(tmp_path)
    if config is not None:
        config(vocab_size=len(tokenizer), architectures=["X"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast and len(loaded) == len(tokenizer)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    for problem in load_problems(source(seed=seed, difficulty=(1, MOST_TERMS))):
        terms = (len(problem.prompt) - 4) // 2
        for text, length in ((problem.prompt, 2 + 2 * terms), (problem.trace, 4 * terms + 3)):
            ids = loaded(text)["input_ids"]
            assert len(ids) == length  # one token per number, label and mark; nothing added
            assert ids == tokenizer(text)["input_ids"]
            assert loaded.decode(ids) == text == loaded.decode([*ids, loaded.eos_token_id], skip_special_tokens=True)
    rng = random.Random(seed)
    # A policy may sample any tokens; what they decode to must not gain spaces.
    ids = [rng.randrange(4, len(task_vocabulary()) - 2) for _ in range(50)]
    assert loaded.decode(ids) == "".join(task_vocabulary()[i] for i in ids)


def test_tokenizer_reads_numbers_greedily():
    tokenizer = task_tokenizer("running_sums")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("05 100?")["input_ids"])
    assert pieces == ["0", "5", "<unk>", "10", "0", "<unk>"]
