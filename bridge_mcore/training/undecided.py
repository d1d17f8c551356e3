"""Verdicts that a reward did not reach: said when they come up, and a reason to stop where there is little else.

An undecided verdict (`timeout`, `error`) earns what a wrong one does, so a reward that is dead for good looks like a
policy that is always wrong. What an answer brings on by its own doing (a program that sleeps although the machine is
idle) is no sign of that: it is counted and said, but does not stop a run, which a policy could otherwise do at will.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state as mpu

from bridge_mcore.errors import RunStopped
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.distributed import Layout
from bridge_mcore.rewards.verdict import Verdict, why_undecided

#: Steps in a row over which `reward.stop_undecided` is a share.
WINDOW = 5
#: Different reasons that are said in a run; all are counted in its metrics.
_SAID = 20
_DETAIL = re.compile(r"\d+|'[^']*'")


@dataclass
class _Part:
    """One reward's verdicts of a step on one share.

    Attributes:
        undecided: without own doing.
        decided: correct and incorrect ones.
        first: (own doing, number of the answer, why) of the first undecided one; one that speaks against the reward
            goes before the others.
    """

    undecided: int = 0
    decided: int = 0
    first: tuple[bool, int, str] | None = None


class UndecidedWatch:
    """Looks at every step's verdicts. All methods are collective; all ranks do alike.

    It begins anew where a run is resumed: what was undecided before may have been mended since.

    Args:
        limit: share of undecided verdicts over `WINDOW` steps above which the run stops; it stops as well where all
            verdicts of one step are undecided, and where one reward decides nothing for `WINDOW` steps on one share: it
            may be dead there alone, or have few of the problems. None: the run never stops.
    """

    def __init__(self, limit: float | None, layout: Layout) -> None:
        self.limit, self.layout = limit, layout
        #: (undecided without own doing, all verdicts, the first reason) of the last steps
        self._recent: deque[tuple[int, int, str]] = deque(maxlen=WINDOW)
        #: steps in a row in which a reward decided nothing, by (share, its name)
        self._silent: Counter[tuple[int, str]] = Counter()
        self._said: set[str] = set()

    def see(
        self, names: Sequence[str], keys: Sequence[int], verdicts: Sequence[Verdict], undecided: int, total: int
    ) -> str | None:
        """Take note of a step's verdicts; the reason of the first that is undecided, None if none is.

        Args:
            names, keys, verdicts: the reward, the answer's number and the verdict of each of this share's answers.
            undecided, total: verdicts over all shares.

        Raises RunStopped where too many are undecided.
        """
        if not undecided:  # the same number on every rank: none is left alone in a gather
            self._silent.clear()
            self._recent.append((0, total, ""))
            return None
        shares = self._gather(names, keys, verdicts)
        parts = {(share, name): part for share, found in enumerate(shares) for name, part in found.items()}
        reason = min(part.first for part in parts.values() if part.first is not None)[2]
        shape = _DETAIL.sub("…", reason)
        if self.layout.is_main and shape not in self._said and len(self._said) < _SAID:
            say(f"· {undecided} of {total} answers could not be judged, the first {reason}")
        self._said.add(shape)
        self._recent.append((sum(part.undecided for part in parts.values()), total, reason))
        for place, part in parts.items():
            self._silent[place] = 0 if part.decided else self._silent[place] + bool(part.undecided)
        if self.limit is not None and (what := self._fault(self.limit, parts)):
            raise RunStopped(
                f"{what}. Nothing is learnt from that: mend the reward, or train on regardless with "
                "reward.stop_undecided=null"
            )
        return reason

    def _fault(self, limit: float, parts: dict[tuple[int, str], _Part]) -> str | None:
        """Why the run cannot go on, in words; None if it can."""
        against, total, reason = self._recent[-1]
        if against == total:
            return f"none of the step's {total} answers could be judged, the first {reason}"
        against, total = (sum(counts) for counts in list(zip(*self._recent, strict=True))[:2])
        if len(self._recent) == WINDOW and against > limit * total:
            first = next(reason for count, _, reason in self._recent if count)
            return f"{against} of the {total} answers of the last {WINDOW} steps could not be judged, the first {first}"
        for (share, name), part in parts.items():
            if self._silent[share, name] >= WINDOW and part.first is not None:
                where = f" on share {share} of {self.layout.shares}" if self.layout.shares > 1 else ""
                return f"the reward {name} has judged nothing{where} in {WINDOW} steps; the first {part.first[2]}"
        return None

    def _gather(self, names: Sequence[str], keys: Sequence[int], verdicts: Sequence[Verdict]) -> list[dict[str, _Part]]:
        """Each share's verdicts, by reward."""
        mine: dict[str, _Part] = {}
        for name, key, verdict in zip(names, keys, verdicts, strict=True):
            part = mine.setdefault(name, _Part())
            part.decided += verdict.decided
            if not verdict.decided:
                part.undecided += not verdict.own_doing
                found = (verdict.own_doing, key, why_undecided(name, verdict.verdict, verdict.reason))
                part.first = min(part.first or found, found)
        shares = [mine] * self.layout.shares
        if self.layout.shares > 1:
            dist.all_gather_object(shares, mine, group=mpu.get_data_parallel_group(with_context_parallel=True))
        return shares
