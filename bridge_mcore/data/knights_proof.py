r"""A written proof of who is who in a Knights and Knaves puzzle.

Two rules make the whole of it. One person's words, with what is known of the people in them, may leave one possibility
for somebody. Else somebody is supposed to be what they are not, and the supposition is followed to a contradiction
(which may need further suppositions). Both are sound, so a proof also shows that there is no other solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from bridge_mcore.data.knights_words import Statement, assignment_text, evaluate, kind, mentioned

Known = dict[int, bool]


def prove(names: Sequence[str], statements: Sequence[Statement], solution: Sequence[bool]) -> str:
    """The proof as text, one step a line, ending in the boxed answer."""
    known: Known = {}
    lines: list[str] = []
    while len(known) < len(names):
        steps, consistent = _follow(names, statements, known, "")
        assert consistent, "the solution contradicts a statement"
        lines += steps
        open_people = [person for person in range(len(names)) if person not in known]
        if not open_people:
            break
        refutations = [(_refute(names, statements, known, p, not solution[p], ""), p) for p in open_people]
        shortest, person = min(refutations, key=lambda entry: (len(entry[0]), entry[1]))
        lines += shortest
        known[person] = solution[person]
        lines.append(f"So {names[person]} is a {kind(solution[person])}.")
    return "\n".join([*lines, f"\\boxed{{{assignment_text(names, solution)}}}"])


def _follow(names: Sequence[str], statements: Sequence[Statement], known: Known, indent: str) -> tuple[list[str], bool]:
    """Add to ``known`` all that single statements force; (steps in words, False after a contradiction)."""
    lines: list[str] = []
    changed = True
    while changed:
        changed = False
        for speaker, said in enumerate(statements):
            possible = _possible(speaker, said, known)
            if not possible:
                lines.append(f"{indent}That contradicts what {names[speaker]} says{_being(names, speaker, known)}.")
                return lines, False
            for person in sorted(possible[0]):
                values = {truth[person] for truth in possible}
                if person not in known and len(values) == 1:
                    reason = f"what {names[speaker]} says{_being(names, speaker, known)}"
                    known[person] = values.pop()
                    lines.append(f"{indent}By {reason}, {names[person]} is a {kind(known[person])}.")
                    changed = True
    return lines, True


def _being(names: Sequence[str], speaker: int, known: Known) -> str:
    if speaker not in known:
        return ""
    return ", which is true" if known[speaker] else ", which is a lie"


def _possible(speaker: int, said: Statement, known: Known) -> list[Known]:
    """What speaker and people mentioned can be, given ``known``: knights speak the truth, knaves do not."""
    people = sorted(mentioned(said) | {speaker})
    found = []
    for values in product((True, False), repeat=len(people)):
        truth = dict(zip(people, values, strict=True))
        if all(known.get(person, value) == value for person, value in truth.items()):
            everyone = [truth.get(person, False) for person in range(max(people) + 1)]
            if evaluate(said, everyone) == truth[speaker]:
                found.append(truth)
    return found


def _refute(
    names: Sequence[str], statements: Sequence[Statement], known: Known, person: int, value: bool, indent: str
) -> list[str]:
    """Steps from the false supposition that ``person`` is ``value`` to a contradiction."""
    lines = [f"{indent}Suppose {names[person]} is a {kind(value)}."]
    supposed = {**known, person: value}
    deeper = indent + "  "
    while True:
        steps, consistent = _follow(names, statements, supposed, deeper)
        lines += steps
        if not consistent:
            return lines
        # It fits so far: take somebody still open, and refute one of the two for them, then go on with the other.
        other = next(p for p in range(len(names)) if p not in supposed)
        lines += _refute(names, statements, supposed, other, True, deeper)
        supposed[other] = False
        lines.append(f"{deeper}So {names[other]} would be a {kind(False)}.")
