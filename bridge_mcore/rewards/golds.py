"""Whether rewards can read the golds they are given: found when data is loaded, not when all is undecided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bridge_mcore.data.problem import ANY_OF, Problem
from bridge_mcore.errors import DataError

#: Characters of a gold beyond which it is not read twice: tests may have megabytes, and our reader made them.
_LONG = 1 << 17


def gold_problem(reward: str, gold: str) -> str | None:
    """Why a reward cannot read a gold answer; None where it can, and where only judging would tell (plugins)."""
    if len(gold) > _LONG:
        return None
    if ANY_OF in gold:  # any one of them is right
        return next((why for one in gold.split(ANY_OF) if (why := gold_problem(reward, one))), None)
    # Imported when wanted, as rewards are: a run with math alone needs no sandbox.
    if reward == "math":
        from bridge_mcore.rewards.math import gold_text

        return None if gold_text(gold) else "it is empty"
    if reward == "choice":
        from bridge_mcore.rewards.choice import read_gold as read_choice

        return found if isinstance(found := read_choice(gold), str) else None
    if reward == "logic":
        from bridge_mcore.rewards.logic import people_of

        return None if people_of(gold) else "it does not say who is a knight and who a knave"
    if reward == "code":
        from bridge_mcore.rewards.code_judge import GoldError, parse_gold

        try:
            parse_gold(gold)
        except GoldError as error:
            return str(error)
    if reward == "gym":
        from bridge_mcore.rewards.gym import read_gold as read_entry

        return found if isinstance(found := read_entry(gold), str) else None
    return None


def text_golds(problems: Iterable[Problem]) -> list[str]:
    """A remark on every source some of whose golds the reward `math` can only compare as text.

    For the beginning of a run and for a preview. Problems of several traces count once.
    """
    from bridge_mcore.rewards.math import gold_text
    from bridge_mcore.rewards.readable import is_only_text

    counts: Counter[str] = Counter()
    found: dict[str, list[str]] = {}
    for problem in {problem.id: problem for problem in problems if problem.reward == "math"}.values():
        counts[problem.source] += 1
        golds = [gold_text(gold) for gold in problem.answer.split(ANY_OF)]
        if all(gold and is_only_text(gold) for gold in golds):
            found.setdefault(problem.source, []).append(str(golds[0]))
    return [
        f"· {len(golds)} of {counts[source]} golds of {source} can only be compared as text: no other spelling of them "
        f"is ever right; the first: {shortened(golds[0], 60)!r}"
        for source, golds in found.items()
    ]


def shortened(text: str, most: int) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= most else text[: most - 1] + "…"


def check_golds(problems: Iterable[Problem]) -> list[str]:
    """A remark on every source some of whose golds its reward cannot read (their answers will be undecided), and on
    every one some of whose golds can only be compared as text.

    Raises DataError for a source none of whose golds can be read.
    """
    counts: dict[tuple[str, str], int] = {}
    unread: dict[tuple[str, str], list[str]] = {}
    problems = list({problem.id: problem for problem in problems}.values())
    for problem in problems:
        place = problem.source, problem.reward
        counts[place] = counts.get(place, 0) + 1
        if why := gold_problem(problem.reward, problem.answer):
            unread.setdefault(place, []).append(f"{problem}: {why}")
    remarks = []
    for (source, reward), found in unread.items():
        total = counts[source, reward]
        text = (
            f"{len(found)} of {total} golds of {source} cannot be read by the reward `{reward}`; the first: {found[0]}"
        )
        if len(found) == total:
            raise DataError(
                f"{text}. Choose the reward that they are for (`reward` of the data source, or reward.verifier)"
            )
        remarks.append(f"· {text}")
    return remarks + text_golds(problems)
