"""From verdicts to rewards: several kinds in one step, form, length and noise, and evaluations without it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from bridge_mcore.config.rewards import Form, Length, Reward
from bridge_mcore.config.schema import Config
from bridge_mcore.config.schema import Rollout as RolloutConfig
from bridge_mcore.data.pairs import EncodedPrompt
from bridge_mcore.data.problem import Problem
from bridge_mcore.evaluation.evaluate import HeldOut, evaluate
from bridge_mcore.rewards.judge import Judge
from bridge_mcore.rewards.mixed import Rewards, settings_of
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.training.collect import Collector

PARAMS = SamplingParams(32)
PROBLEMS = [
    Problem("0", "1 + 1?", "2", None, "sums", "math"),
    Problem("1", "Which letter?", "C", None, "letters", "choice"),
    Problem("2", "Who?", "Ann is a knight, Bob is a knave", None, "island", "logic"),
]
RESPONSES = [
    (r"\boxed{2}", r"\boxed{3}"),
    (r"\boxed{C}", "no box"),
    (r"\boxed{Bob is a knave, Ann is a knight}", r"\boxed{Ann is a knave, Bob is a knave}"),
]


def spelt(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def rollout(key: int, text: str, finished: bool = True) -> Rollout:
    return Rollout(key, (1,), spelt(text), np.zeros(len(text), np.float32), finished, 0)


class Canned:
    """An engine that says what it is told to."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.asked, self.keys = list(texts), [], []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        self.asked.append((len(requests), params))
        self.keys += [r.key for r in requests]
        return [rollout(r.key, text) for r, text in zip(requests, self.texts, strict=True)]


def collect(world, section: Reward, responses=RESPONSES):
    config = Config(reward=section, rollout=RolloutConfig(samples_per_prompt=2))
    rewards = Rewards(settings_of(section))
    try:
        judge = Judge(rewards, lambda tokens: bytes(tokens).decode())
        collector = Collector(config, Canned([]), judge, world[1])  # type: ignore[arg-type]
        prompts = [EncodedPrompt(problem, [1]) for problem in PROBLEMS]
        rollouts = [rollout(i, text) for i, text in enumerate(t for pair in responses for t in pair)]
        return collector.judged(prompts, rollouts, PARAMS, 0.0, 0)
    finally:
        rewards.close()


def test_each_problem_is_judged_by_its_own_reward(world):
    found = collect(world, Reward())
    assert [v.verdict for v in found.verdicts] == ["correct", "incorrect"] * 3
    assert found.metrics["reward"] == pytest.approx(0.5)
    assert [math.copysign(1, s.advantage) for s in found.samples] == [1, -1] * 3
    assert "correct" not in found.metrics and "reward_form" not in found.metrics


def test_form_and_length_are_added_and_shown_apart(world):
    section = Reward(
        incorrect=-1.0,
        form=Form(one_box=True, bonus=0.25, penalty=0.5),
        length=Length(kind="linear", limit=100, weight=0.1),
    )
    found = collect(world, section)
    form = [0.25, 0.25, 0.25, -0.5, 0.25, 0.25]
    length = [-0.1 * len(good) / 100 if i == 0 else 0 for pair in RESPONSES for i, good in enumerate(pair)]
    values = [v + f + n for v, f, n in zip([1, -1] * 3, form, length, strict=True)]
    assert found.metrics["reward"] == pytest.approx(sum(values) / 6, abs=1e-6)
    assert found.metrics["reward_form"] == pytest.approx(sum(form) / 6, abs=1e-6)
    assert found.metrics["reward_length"] == pytest.approx(sum(length) / 6, abs=1e-6)
    assert found.metrics["correct"] == 0.5


def test_noise_is_in_rewards_and_not_in_evaluations(world):
    noisy = Reward(noise=1.0)
    assert [v.verdict for v in collect(world, noisy).verdicts] == ["incorrect", "correct"] * 3
    rewards = Rewards(settings_of(noisy))
    try:
        examiner = Judge(rewards, lambda tokens: bytes(tokens).decode(), noise=False)
        texts = [t for pair in RESPONSES for t in pair] + [r"\boxed{2}", "?", "?"]
        engine = Canned(texts)
        sets = {
            "pairs": HeldOut([EncodedPrompt(p, [1]) for p in PROBLEMS], PARAMS, answers=2),
            "rare": HeldOut([EncodedPrompt(PROBLEMS[0], [1])], PARAMS, answers=3, every=7),
        }
        found = evaluate(sets, engine, examiner, world[1])  # type: ignore[arg-type]
        alone = Canned(texts[6:])
        evaluate({"rare": sets["rare"]}, alone, examiner, world[1])  # type: ignore[arg-type]
    finally:
        rewards.close()
    assert found.sets == {"pairs": 0.5, "rare": pytest.approx(1 / 3)}
    assert found.pass_at == {"pairs": 1.0, "rare": 1.0}
    assert (found.accuracy, found.counted) == (0.5, 3)
    assert len(set(engine.keys)) == 9 and alone.keys == engine.keys[6:]  # a set's draws do not depend on the others
    assert engine.asked == [(9, PARAMS)]  # both sets in one call: they are sampled alike
    assert [(r.set, r.id, r.sample) for r in found.records[4:8]] == [
        ("pairs", "2", 0), ("pairs", "2", 1), ("rare", "0", 0), ("rare", "0", 1),
    ]  # fmt: skip
    assert found.records[0].answer == "2" and found.records[3].answer is None


def test_a_plugin_judges_with_a_score(world, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(response, gold, prompt):\n    return 0.25 if 'C' in response else 1.0\n")
    section = Reward(partial=True)
    problems = [Problem(p.id, p.prompt, p.answer, None, p.source, f"plugin:{file}:score") for p in PROBLEMS]
    config = Config(reward=section, rollout=RolloutConfig(samples_per_prompt=1))
    rewards = Rewards(settings_of(section, frozenset({problems[0].reward})))
    try:
        judge = Judge(rewards, lambda tokens: bytes(tokens).decode())
        collector = Collector(config, Canned([]), judge, world[1])  # type: ignore[arg-type]
        rollouts = [rollout(i, good) for i, (good, _) in enumerate(RESPONSES)]
        found = collector.judged([EncodedPrompt(p, [1]) for p in problems], rollouts, PARAMS, 0.0, 0)
    finally:
        rewards.close()
    assert found.metrics["reward"] == pytest.approx((1 + 0.25 + 1) / 3)
    assert found.metrics["correct"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"form": {"bonus": 0.5}}, "needs a form"),
        ({"form": {"penalty": 0.5}}, "needs a form"),
        ({"length": {"cache": 5}}, "limit is not"),
        ({"length": {"limit": 5}}, "needs a cache"),
    ],
)
def test_shaping_that_would_do_nothing_is_refused(section, said):
    with pytest.raises(ValueError, match=said):
        Reward(**section)


def test_an_evaluation_that_nobody_judged_says_so(world, capsys):
    """Its sets have no accuracy, and those that depend on it have none; a part that is undecided counts as wrong."""
    sums = [PROBLEMS[0], Problem("3", "2 + 2?", "4", None, "sums", "math")]
    dead = [Problem(p.id, p.prompt, p.answer, None, "dead", "choice") for p in sums]
    half = [PROBLEMS[1], dead[0]]
    rewards = Rewards(settings_of(Reward()))
    try:
        examiner = Judge(rewards, lambda tokens: bytes(tokens).decode(), noise=False)
        sets = {n: HeldOut([EncodedPrompt(p, [1]) for p in ps], PARAMS) for n, ps in
                {"sums": sums, "dead": dead, "half": half}.items()}  # fmt: skip
        texts = [r"\boxed{2}", r"\boxed{5}", r"\boxed{2}", r"\boxed{4}", r"\boxed{C}", r"\boxed{C}"]
        found = evaluate(sets, Canned(texts), examiner, world[1])  # type: ignore[arg-type]
        fine = evaluate({"sums": sets["sums"]}, Canned(texts[:2]), examiner, world[1])  # type: ignore[arg-type]
    finally:
        rewards.close()
    assert found.accuracy is None and found.sets == {"sums": 0.5, "half": 0.5}
    assert found.undecided == {"dead": 2, "half": 1} and found.summary()["undecided"] == found.undecided
    assert fine.summary() == {"accuracy": 0.5, "sets": {"sums": 0.5}, "problems": 2}
    why = (
        "could not be judged, the first by choice: error: the gold answer '2' is no letter (C, or C/4 of four choices)"
    )
    assert capsys.readouterr().out.splitlines() == [
        f"· evaluation of dead: 2 of 2 answers {why}; its accuracy is not known",
        f"· evaluation of half: 1 of 2 answers {why}",
    ]


def test_scores_that_do_not_count_are_said_once(world, capsys):
    plugin = "plugin:tests.rewards.plugins:value"
    problems = [EncodedPrompt(Problem(str(i), "?", "2", None, "own", plugin), [1]) for i in range(2)]

    def answer(texts: Sequence[str], partial: bool) -> list[float]:
        section = Reward(partial=partial, verifier=plugin, workers=1)
        rewards = Rewards(settings_of(section, frozenset([plugin])))
        try:
            judge = Judge(rewards, lambda tokens: bytes(tokens).decode())
            settings = Config(reward=section, rollout=RolloutConfig(samples_per_prompt=2))
            collector = Collector(settings, Canned([]), judge, world[1])  # type: ignore[arg-type]
            rollouts = [rollout(i, text) for i, text in enumerate(texts)]
            return [collector.judged(problems, rollouts, PARAMS, 0.0, 0).metrics["reward"] for _ in range(2)]
        finally:
            rewards.close()

    scores = ("True", "0.25", "{'correct': False, 'score': 0.5}", "False")
    assert answer(scores, partial=False) == [0.25, 0.25]
    (said,) = capsys.readouterr().out.splitlines()
    assert f"the reward {plugin} gives scores (the first: 0.25)" in said and "reward.partial=true" in said
    assert answer(scores, partial=True) == [1.75 / 4] * 2
    assert answer(("True", "False", "1.0", "{'correct': False, 'score': 0}"), partial=False) == [0.5, 0.5]
    assert capsys.readouterr().out == ""


def test_answers_without_the_form_that_a_reward_reads_are_counted(world):
    empty = [("none", "none"), ("none", "none"), ("none", r"\boxed{Ann is a knave, Bob is a knave}")]
    assert collect(world, Reward(), empty).metrics["unanswered"] == pytest.approx(5 / 6)
    assert collect(world, Reward()).metrics["unanswered"] == pytest.approx(1 / 6)
