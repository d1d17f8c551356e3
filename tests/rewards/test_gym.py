"""reasoning-gym's own scorers in our workers. Skipped where the package is not installed, but for what is said then."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards import gym
from bridge_mcore.rewards.box.values import encode
from bridge_mcore.rewards.gym import GymReward
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")


@pytest.fixture(scope="module")
def reward() -> Iterator[GymReward]:
    shared = GymReward(workers=1, partial=True)
    yield shared
    shared.close()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        GymReward()


def test_what_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "require_gym", lambda: None)
    quick = GymReward()
    gold = json.dumps({"dataset": "countdown", "entry": {"d": []}})
    attempts = [Attempt("", "<answer>1</answer>"), Attempt("[]", "<answer>1</answer>"), Attempt(gold, "1"),
                Attempt(gold, f"<answer>{'1' * 30_000}</answer>")]  # fmt: skip
    assert [verdict.verdict for verdict in quick.judge(attempts)] == ["error", "error", "incorrect", "incorrect"]
    quick.close()


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("(1 + 2) * 3 / 4 - 5**2", True),
        ("x**2*sin(x) + exp(-x)/2 + C", True),
        ("[[0, 1], ['A', \"B\"]]", True),
        ("Q _ _ _", True),
        ("7e3 + x1", True),
        ("1if exec('x')else 2", False),
        ("__import__('os')", False),
        ("open('x')", False),
        ("x.__class__", False),
        ("ｅｘｅｃ('1')", False),
        ("[].append", False),
        ("_a", False),
        ("'\\145'", False),
        ("0x1f >> 0x3", True),
        ("0x1g", False),
    ],
)
def test_expressions(answer: str, plain: bool) -> None:
    assert gym.is_expression(answer) is plain


#: What sympy would evaluate although no word of it is a name: it reads the text in quotes as an expression again.
HIDDEN = ["S('o''p''e''n''(1)')", 'S("e" "x" "e" "c")', r"S('\157\160\145\156(1)')"]


@pytest.mark.parametrize("text", HIDDEN)
def test_names_in_pieces_are_names_to_sympy(text: str) -> None:
    assert not gym.is_expression(text, strings=False)


CODE = "__import__('os').system('id')"
ENTRIES = [
    ("number_sorting", {"answer": CODE, "metadata": {}}, {"answer": "['1.5', '-2']", "metadata": {}}),
    ("bitwise_arithmetic", {"metadata": {"problem": CODE}}, {"metadata": {"problem": "(0x3a << 0x1)"}}),
    ("polynomial_multiplication", {"answer": CODE}, {"answer": "3*x**2 - y"}),
    ("polynomial_multiplication", {"answer": HIDDEN[0]}, {"answer": "x"}),
    ("simple_integration", {"metadata": {"integrand": CODE}}, {"metadata": {"integrand": "7*X**9"}}),
    ("intermediate_integration", {"metadata": {"integrand": HIDDEN[2]}}, {"metadata": {"integrand": "exp(2*x)"}}),
]


@pytest.mark.parametrize(("name", "hostile", "usual"), ENTRIES)
def test_an_entry_is_data_and_not_code(name: str, hostile: dict, usual: dict) -> None:
    """Some scorers evaluate their entry, which a row may hold: such a gold is unreadable, and never scored."""
    found = gym.read_gold(json.dumps({"dataset": name, "entry": encode(hostile)}))
    assert isinstance(found, str) and f"the scorer of {name} would evaluate" in found
    assert gym.read_gold(json.dumps({"dataset": name, "entry": encode(usual)})) == (name, encode(usual))


def test_a_composite_is_no_task() -> None:
    assert "composite" in str(gym.read_gold(json.dumps({"dataset": "composite", "entry": encode({})})))


@needs_gym
def test_only_registered_names_have_scorers(reward: GymReward) -> None:
    gold = json.dumps({"dataset": "os", "entry": encode({"answer": "1"})})
    (verdict,) = reward.judge([Attempt(gold, "<answer>1</answer>")])
    assert verdict.verdict == "error" and "not registered" in verdict.reason


@needs_gym
def test_no_entry_of_its_own_is_refused(seed: int) -> None:
    import reasoning_gym

    from bridge_mcore.data.gym import gym_problem

    for name in sorted(gym.EVALUATED | set(gym._EVALUATED_OF_ENTRY)):
        for entry in reasoning_gym.create_dataset(name, seed=seed, size=20):
            assert not isinstance(gym.read_gold(gym_problem(name, entry, name).answer), str), (name, entry)


@needs_gym
def test_its_own_answers_are_right(reward: GymReward) -> None:
    from bridge_mcore.data.gym import generate_gym

    attempts = []
    for name in ("basic_arithmetic", "knights_knaves", "countdown", "rearc", "leg_counting", "syllogism"):
        import reasoning_gym

        for problem, entry in zip(generate_gym(name, 3, "train", 2), _entries(reasoning_gym, name), strict=True):
            assert problem.reward == "gym"
            answer = entry["answer"]
            attempts.append(Attempt(problem.answer, f"so <answer>{answer}</answer>"))
    verdicts = reward.judge(attempts)
    assert {verdict.verdict for verdict in verdicts} == {"correct"}, verdicts
    assert verdicts[0] == Verdict("correct", "score 1", 1.0)
    wrong = reward.judge([Attempt(a.gold, "<answer>no idea</answer>") for a in attempts])
    assert {verdict.verdict for verdict in wrong} == {"incorrect"}
    assert all((verdict.score or 0) < 1 for verdict in wrong)


def _entries(package, name: str) -> list[dict]:
    """The first two entries of the train split, found again without the generator under test."""
    from bridge_mcore.data.gym import gym_problem
    from bridge_mcore.data.tasks import held_out

    dataset = package.create_dataset(name, seed=3, size=100)
    entries = (dataset[i] for i in range(100))
    found: dict[str, dict] = {}
    for entry in entries:
        prompt = gym_problem(name, entry, name).prompt
        if not held_out(prompt):
            found.setdefault(prompt, entry)
    return list(found.values())[:2]


@needs_gym
def test_what_a_scorer_evaluates_can_do_nothing(reward: GymReward, tmp_path: Path, monkeypatch) -> None:
    """countdown gives the answer to sympy's parser, which evaluates it as Python."""
    from bridge_mcore.data.gym import generate_gym

    (problem,) = generate_gym("countdown", 1, "train", 1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for attack in (
            f"__import__('os').mkdir('{tmp_path}/made')",
            f"open('{tmp_path}/made', 'w').write('x')",
            f"__import__('os').system('touch {tmp_path}/made')",
            f"__import__('socket').create_connection(('127.0.0.1', {port}))",
        ):
            (verdict,) = reward.judge([Attempt(problem.answer, f"<answer>{attack}</answer>")])
            assert verdict == Verdict("incorrect", "an answer that is no expression")
            with monkeypatch.context() as patch:  # the second line of defence: the worker itself
                patch.setattr(gym, "EVALUATED", set())
                (verdict,) = reward.judge([Attempt(problem.answer, f"<answer>{attack}</answer>")])
                assert verdict.verdict != "correct"
        assert not list(tmp_path.iterdir())
        with pytest.raises(TimeoutError):
            server.accept()
    assert reward.judge([Attempt(problem.answer, "<answer>1+1</answer>")])[0].verdict == "incorrect"


@needs_gym
def test_scores_between_are_kept_only_if_asked(reward: GymReward) -> None:
    from bridge_mcore.data.gym import generate_gym

    (problem,) = generate_gym("countdown", 1, "train", 1)
    attempt = Attempt(problem.answer, "<answer>1 + 1</answer>")
    (verdict,) = reward.judge([attempt])
    assert verdict.verdict == "incorrect" and verdict.score is not None and 0 < verdict.score < 1
    plain = GymReward(workers=1)
    assert plain.judge([attempt])[0].score is None
    unknown = json.dumps({"dataset": "no_such_task", "entry": {"d": []}})
    assert plain.judge([Attempt(unknown, "<answer>1</answer>")])[0].verdict == "error"
    plain.close()
