"""maj@k: the answer that most of k responses give (self-consistency, Wang et al., 2022, arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: (one answer, another) pairs -> whether they are the same.
Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


def cluster(answers: Sequence[Sequence[str | None]], same: Same) -> list[list[int | None]]:
    """Group each problem's answers into those that are the same; None where there is no answer.

    Answers are compared with the first of each group, all problems at once, so that `same` gets large batches.
    """
    labels: list[list[int | None]] = [[None] * len(given) for given in answers]
    groups: list[list[str]] = [[] for _ in answers]
    texts: list[dict[str, int]] = [{} for _ in answers]
    for position in range(max(map(len, answers), default=0)):
        asked: list[tuple[int, int, tuple[str, str]]] = []  # (problem, group, pair)
        for problem, given in enumerate(answers):
            text = given[position] if position < len(given) else None
            if text is None:
                continue
            if text in texts[problem]:
                labels[problem][position] = texts[problem][text]
            else:
                asked += [(problem, group, (first, text)) for group, first in enumerate(groups[problem])]
        found: dict[int, int] = {}
        for (problem, group, _), equal in zip(asked, same([pair for *_, pair in asked]) if asked else (), strict=True):
            if equal:
                found.setdefault(problem, group)
        for problem, given in enumerate(answers):
            text = given[position] if position < len(given) else None
            if text is None or labels[problem][position] is not None:
                continue
            if problem not in found:
                found[problem] = len(groups[problem])
                groups[problem].append(text)
            labels[problem][position] = texts[problem][text] = found[problem]
    return labels


def majority(labels: Sequence[int | None], correct: Sequence[bool]) -> float:
    """Whether the largest group is right. Where several are as large, the share of them that is: no luck of the draw.

    A group is right if most of its answers were judged so: they are the same answer, but a verdict may be a time-out.
    """
    sizes: dict[int, int] = {}
    right: dict[int, int] = {}
    for label, good in zip(labels, correct, strict=True):
        if label is not None:
            sizes[label] = sizes.get(label, 0) + 1
            right[label] = right.get(label, 0) + good
    if not sizes:
        return 0.0
    largest = [label for label, size in sizes.items() if size == max(sizes.values())]
    return sum(2 * right[label] > sizes[label] for label in largest) / len(largest)
