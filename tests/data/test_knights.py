"""Knights and Knaves, against a solver that reads the prompt's English and shares no code with the generator."""

from __future__ import annotations

import re
from itertools import islice, product

import pytest

from bridge_mcore.data.knights import draw, generate_knights, stream_knights
from bridge_mcore.data.problem import Problem
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.logic import LogicReward
from bridge_mcore.rewards.protocol import Attempt


def truth_of(text: str, speaker: str, who: dict[str, bool]) -> bool:
    """Whether an English statement is true."""
    text = text[0].lower() + text[1:] if not text.startswith(tuple(who)) else text
    if text.startswith("it is not true that "):
        return not truth_of(text.removeprefix("it is not true that "), speaker, who)
    if found := re.fullmatch(r"if (.*), then (.*)", text):
        return not truth_of(found[1], speaker, who) or truth_of(found[2], speaker, who)
    for word, meaning in ((" if and only if ", "=="), (" and ", "and"), (" or ", "or")):
        if word in text:
            left, right = (truth_of(part, speaker, who) for part in text.split(word))
            return {"==": left == right, "and": left and right, "or": left or right}[meaning]
    found = re.fullmatch(r"(.*) (?:is|am) a (knight|knave)", text)
    assert found, text
    person = speaker if found[1].lower() == "i" else found[1]
    return who[person] == (found[2] == "knight")


def solve(prompt: str) -> list[dict[str, bool]]:
    said = re.findall(r'^(\w+) says: "(.*)\."$', prompt, re.MULTILINE)
    names = [name for name, _ in said]
    worlds = (dict(zip(names, values, strict=True)) for values in product((True, False), repeat=len(names)))
    return [who for who in worlds if all(truth_of(text, name, who) == who[name] for name, text in said)]


def gold(problem: Problem) -> dict[str, bool]:
    return {m[1]: m[2] == "knight" for m in re.finditer(r"(\w+) is a (knight|knave)", problem.answer)}


@pytest.mark.parametrize("people", range(2, 9))
def test_one_solution_and_it_is_the_answer(people: int, seed: int) -> None:
    problems = generate_knights(seed, "train", (people, people), 40)
    for problem in problems:
        assert solve(problem.prompt) == [gold(problem)], problem.prompt
        assert len(gold(problem)) == people and problem.reward == "logic"
    assert len({problem.id for problem in problems}) == 40


def test_traces_are_proofs(seed: int) -> None:
    """Every step outside a supposition is true of the solution; every supposition is false; the box is the answer."""
    for problem in generate_knights(seed, "train", (2, 8), 150):
        who = gold(problem)
        *steps, box = problem.trace.split("\n")
        assert box == f"\\boxed{{{problem.answer}}}"
        concluded: dict[str, bool] = {}
        for step in steps:
            for name, kind in re.findall(r"(?:, |So )(\w+) is a (knight|knave)\.$", step) if step[0] != " " else []:
                assert who[name] == (kind == "knight"), problem.trace
                assert name not in concluded
                concluded[name] = kind == "knight"
            if found := re.match(r"Suppose (\w+) is a (knight|knave)\.", step):
                assert who[found[1]] != (found[2] == "knight"), problem.trace
        assert concluded == who
        assert sum("Suppose" in step for step in steps) == sum("contradicts" in step for step in steps)


def test_steps_follow(seed: int) -> None:
    """Each "By what X says, Y is a …" outside suppositions follows from X's words and the steps before it."""
    for problem in generate_knights(seed, "test", (2, 6), 60):
        said = dict(re.findall(r'^(\w+) says: "(.*)\."$', problem.prompt, re.MULTILINE))
        known: dict[str, bool] = {}
        for step in problem.trace.split("\n"):
            found = re.match(r"By what (\w+) says(?:, which is (?:true|a lie))?, (\w+) is a (knight|knave)\.", step)
            if found:
                worlds = (dict(zip(said, values, strict=True)) for values in product((True, False), repeat=len(said)))
                fits = [
                    w
                    for w in worlds
                    if known.items() <= w.items() and truth_of(said[found[1]], found[1], w) == w[found[1]]
                ]
                assert {w[found[2]] for w in fits} == {found[3] == "knight"}, problem.trace
                known[found[2]] = found[3] == "knight"
            elif found := re.match(r"So (\w+) is a (knight|knave)\.", step):
                known[found[1]] = found[2] == "knight"


def test_the_reward_reads_trace_and_answer(seed: int) -> None:
    problems = generate_knights(seed, "train", (2, 8), 100)
    reward = LogicReward()
    reward.judge([Attempt(problem.answer, problem.trace) for problem in problems])
    assert reward.counts == {"correct": 100}


def test_the_same_on_every_machine() -> None:
    puzzle = draw(0, 0, (3, 3))
    assert puzzle.answer == "Emma is a knight, Olivia is a knight, Frank is a knight"
    assert puzzle.prompt.split("\n")[1:4] == [
        'Emma says: "If Frank is a knave, then I am a knave."',
        'Olivia says: "If Frank is a knave, then Emma is a knight."',
        'Frank says: "Olivia is a knight."',
    ]
    assert puzzle.trace == KNOWN_TRACE


KNOWN_TRACE = r"""
By what Emma says, Emma is a knight.
By what Emma says, which is true, Frank is a knight.
By what Olivia says, Olivia is a knight.
\boxed{Emma is a knight, Olivia is a knight, Frank is a knight}
""".strip()


def test_splits_and_prefixes(seed: int) -> None:
    test = {problem.prompt for problem in generate_knights(seed, "test", (2, 3), 50)}
    for other in (seed, seed + 1):
        assert not test & {problem.prompt for problem in generate_knights(other, "train", (2, 4), 300)}
    large = generate_knights(seed, "train", (2, 5), 60)
    assert generate_knights(seed, "train", (2, 5), 20) == large[:20]
    sizes = {len(gold(problem)) for problem in islice(stream_knights(seed, "train", (2, 5)), 100)}
    assert sizes == {2, 3, 4, 5}


@pytest.mark.parametrize("sizes", [(1, 3), (2, 9), (4, 3)])
def test_bad_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="is no range of people; knights has 2 to 8"):
        generate_knights(0, "train", sizes, 1)


def test_bad_split_and_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not 'dev'"):
        generate_knights(0, "dev", (2, 2), 1)
    monkeypatch.setattr("bridge_mcore.data.knights._FRUITLESS_DRAWS", 200)
    monkeypatch.setattr("bridge_mcore.data.knights.NAMES", ("Alice", "Bob"))
    with pytest.raises(DataError, match=r"knights of 2 to 2 people has only about \d+ different problems"):
        generate_knights(0, "test", (2, 2), 500)
