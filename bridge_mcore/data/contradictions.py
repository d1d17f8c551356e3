"""Rows that contradict each other or themselves: one question with several right answers, a trace with another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bridge_mcore.config.json_file import one_line
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import ANY_OF, Problem
from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.thoughts import after_thought
from bridge_mcore.rewards.verdict import Verdict

#: (names of rewards, attempts) -> verdicts
JudgeAll = Callable[[Sequence[str], Sequence[Attempt]], Sequence[Verdict]]
#: Rewards whose golds can be given as an answer; of others, different texts are different golds.
_COMPARED = ("math", "choice", "logic")
#: Rewards whose golds are tests and parameters: two different ones can both be right.
_MANY_GOLDS = ("code", "gym")


def note_contradictions(
    found: Iterable[tuple[Notes, Problem]], learned: Iterable[tuple[Notes, Problem]], judge: JudgeAll
) -> None:
    """Count in the notes of each source what contradicts: "two_golds", "contradicting_traces", "unboxed".

    Args:
        found: problems, in the order of their sources.
        learned: those whose traces are learned from.
        judge: the verdict of each problem's reward on an answer; what is undecided contradicts nothing.
    """
    _note_golds(found, judge)
    _note_traces(learned, judge)


def _note_golds(found: Iterable[tuple[Notes, Problem]], judge: JudgeAll) -> None:
    firsts: dict[tuple[str, str | None, str], Problem] = {}
    others: dict[tuple[str, str | None, str], dict[str, tuple[Notes, Problem]]] = {}
    for notes, problem in found:
        if problem.reward in _MANY_GOLDS:
            continue
        question = problem.prompt, problem.system, problem.reward
        first = firsts.setdefault(question, problem)
        if first.answer != problem.answer:
            others.setdefault(question, {}).setdefault(problem.answer, (notes, problem))
    pairs = [(firsts[key], *case) for key, cases in others.items() for case in cases.values()]
    differ = other_golds([(first, problem) for first, _, problem in pairs], judge)
    for (first, notes, problem), other in zip(pairs, differ, strict=True):
        if other:
            notes.add("two_golds", f"{problem}: {_short(first.answer)} and {_short(problem.answer)}")


def other_golds(pairs: Sequence[tuple[Problem, Problem]], judge: JudgeAll) -> list[bool]:
    """Of each two problems with one question and different texts as golds, whether one of them must be wrong."""
    compared = [pair for pair in pairs if pair[0].reward in _COMPARED]
    # A verifier may take more for one gold than for the other: both must refuse.
    both = [pair for first, other in compared for pair in ((first, other), (other, first))]
    verdicts = judge([a.reward for a, _ in both], [Attempt(a.answer, f"\\boxed{{{_given(b)}}}") for a, b in both])
    refused = iter([verdict.verdict == "incorrect" for verdict in verdicts])
    found = []
    for first, _ in pairs:
        differ = all([next(refused), next(refused)]) if first.reward in _COMPARED else True
        found.append(differ and first.reward not in _MANY_GOLDS)
    return found


def _note_traces(learned: Iterable[tuple[Notes, Problem]], judge: JudgeAll) -> None:
    asked: list[tuple[Notes, Problem, str]] = []
    for notes, problem in learned:
        if problem.trace is None or not problem.finished or problem.reward not in _COMPARED:
            continue
        said = after_thought(problem.trace)
        answer = last_boxed(said) if problem.reward == "math" else final_answer(said)
        if answer is None:
            if problem.reward == "math":
                notes.add("unboxed", str(problem))
        elif answer != problem.answer:
            asked.append((notes, problem, answer))
    verdicts = judge([p.reward for _, p, _ in asked], [Attempt(p.answer, p.trace or "") for _, p, _ in asked])
    for (notes, problem, answer), verdict in zip(asked, verdicts, strict=True):
        if verdict.verdict == "incorrect":
            notes.add("contradicting_traces", f"{problem}: {_short(answer)}, and the row says {_short(problem.answer)}")


def _given(problem: Problem) -> str:
    """A gold as an answer gives it."""
    answer = problem.answer.partition(ANY_OF)[0]
    return answer.partition("/")[0] if problem.reward == "choice" else answer


def _short(answer: str) -> str:
    return one_line(answer, 40)
