"""Estimates against enumeration, closed forms and simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from bridge_mcore.data.problem import Problem
from bridge_mcore.evaluation.majority import cluster, majority
from bridge_mcore.evaluation.metrics import (
    bootstrap,
    holm,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    powers_of_two,
)
from bridge_mcore.evaluation.records import Record, answer_of
from bridge_mcore.evaluation.results import benchmark_result, model_result
from bridge_mcore.evaluation.tables import scores_table, show


def test_pass_at_k_is_the_mean_over_all_choices(seed):
    rng = random.Random(seed)
    for _ in range(20):
        n = rng.randint(1, 8)
        right = [rng.random() < 0.4 for _ in range(n)]
        for k in range(1, n + 1):
            choices = list(itertools.combinations(right, k))
            assert pass_at_k(sum(right), n, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)
    assert mean_pass_at_k([1, 3], 4, 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="k = 5"):
        pass_at_k(1, 4, 5)


def test_the_ks_of_a_table():
    assert powers_of_two(1) == [] and powers_of_two(2) == [2] and powers_of_two(16) == [2, 4, 8, 16]
    assert powers_of_two(12) == [2, 4, 8, 12]


def test_the_bootstrap_has_the_normal_interval_where_there_are_many_problems(seed):
    rng = np.random.default_rng(seed)
    sets = [rng.integers(0, 5, size=400) / 4, (rng.random(900) < 0.3).astype(float)]
    found = bootstrap(sets)
    mean = (sets[0].mean() + sets[1].mean()) / 2
    error = math.sqrt(sum(s.var() / len(s) for s in sets)) / 2
    assert found.value == pytest.approx(mean, abs=1e-12)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.06 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.06 * error)
    assert found == bootstrap(sets)  # the same table again


def test_the_interval_holds_what_it_should(seed):
    """Over many samples of 80 problems, the true accuracy lies within about 95 % of the intervals (0.90 to 0.99)."""
    rng = np.random.default_rng(seed)
    inside = 0
    for _ in range(150):
        found = bootstrap([(rng.random(80) < 0.35).astype(float)])
        inside += found.low <= 0.35 <= found.high
    assert 0.85 <= inside / 150 <= 1.0


def test_nothing_right_is_not_certainty():
    none, all_right = bootstrap([[0.0] * 30]), bootstrap([[1.0] * 30])
    assert none.value == 0 and none.low == 0 and none.high == pytest.approx(0.1135, abs=1e-3)
    assert all_right.high == 1 and all_right.low == pytest.approx(1 - none.high, abs=1e-9)


def test_the_permutation_test_is_the_exact_sign_test_for_right_and_wrong(seed):
    """Of right and wrong answers only the discordant problems count: McNemar's exact test (a binomial one)."""
    rng = random.Random(seed)
    for _ in range(5):
        gained, lost, equal = rng.randint(5, 30), rng.randint(5, 30), rng.randint(0, 100)
        first = [0.0] * gained + [1.0] * lost + [1.0] * equal
        second = [1.0] * gained + [0.0] * lost + [1.0] * equal
        n, most = gained + lost, max(gained, lost)
        exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(most, n + 1)) / 2**n)
        found = paired_difference([first], [second])
        assert found.value == pytest.approx((gained - lost) / len(first), abs=1e-12)
        assert found.p == pytest.approx(exact, abs=0.02)
        assert found.low <= found.value <= found.high


def test_two_sets_weigh_the_same(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(10), rng.random(1000)
    found = paired_difference([a, b], [a + 0.2, b])
    assert found.value == pytest.approx(0.1, abs=1e-9)
    # All ten rise by as much: a chance of 2 in 2^10.
    assert found.p == pytest.approx(2 / 2**10, abs=0.002)


def test_equal_models_do_not_differ():
    found = paired_difference([[0.0, 1.0]], [[0.0, 1.0]])
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def same_number(pairs):
    return [float(a) == float(b) for a, b in pairs]


def test_votes_join_equal_answers_however_they_are_written(seed):
    rng = random.Random(seed)
    spelt = {1: ("1", "1.0", "01"), 2: ("2", "2.00"), 3: ("3",)}
    problems = [[rng.choice([None, 1, 2, 3]) for _ in range(rng.randint(1, 9))] for _ in range(20)]
    answers = [[None if v is None else rng.choice(spelt[v]) for v in given] for given in problems]
    asked = []

    def same(pairs):
        asked.append(len(pairs))
        return same_number(pairs)

    for given, labels in zip(problems, cluster(answers, same), strict=True):
        for i, j in itertools.product(range(len(given)), repeat=2):
            if given[i] is not None and given[j] is not None:
                assert (labels[i] == labels[j]) == (given[i] == given[j])
            assert (labels[i] is None) == (given[i] is None)
    assert len(asked) <= 9  # one batch for each position, of all problems together


def test_majority():
    assert majority([0, 0, 1], [True, True, False]) == 1
    assert majority([0, 1, 1], [True, False, False]) == 0
    assert majority([0, 1], [True, False]) == 0.5  # a draw: the chance of a fair coin
    assert majority([None, None], [False, False]) == 0
    assert majority([None, None, 0], [False, False, True]) == 1  # no answer is no vote
    assert majority([0, 0, 0], [True, True, False]) == 1  # one comparison ran out of time


def test_votes_are_for_what_the_reward_reads():
    choice = Problem("0", "?", "C/4", None, "s", "choice")
    assert {answer_of(choice, f"\\boxed{{{a}}}") for a in ("C", "(c)", r"\text{C}", "Answer: C")} == {"C"}
    assert answer_of(choice, r"\boxed{12}") == "12" and answer_of(choice, "C") is None
    logic = Problem("0", "?", "Ann is a knight, Bob is a knave", None, "s", "logic")
    said = ("Bob: knight; Ann: knave", "Ann is a knave and Bob is a knight")
    assert {answer_of(logic, f"\\boxed{{{a}}}") for a in said} == {"Ann is a knave, Bob is a knight"}
    assert answer_of(logic, r"\boxed{Ann is a knight}") == "Ann is a knight"


def test_an_average_over_fewer_benchmarks_says_so():
    def result(names: str):
        return model_result(names, {n: benchmark_result([record(n, i) for i in range(3)], 1, None) for n in names})

    def record(name: str, i: int) -> Record:
        return Record(name, str(i), 0, "p", "g", "r", None, "correct", "", 1, True)

    rows = scores_table([result("ab"), result("a")])
    assert rows[-1][0] == "average" and "(of" not in rows[-1][2] and rows[-1][3].endswith("(of 1)")


def test_names_in_tables_are_no_markup(capsys):
    show([["benchmark", "[/red] [bold]x"], ["a", "1.0"]], "t")
    assert "[/red] [bold]x" in capsys.readouterr().out
