"""Verdicts that a reward did not reach: said when they come up, and a reason to stop where there is little else.

An undecided verdict (`timeout`, `error`) earns what a wrong one does, so a reward that is dead for good looks like a
policy that is always wrong. What an answer brings on by its own doing (a program that sleeps although the machine is
idle) is no sign of that: it is counted and said, but does not stop a run, which a policy could otherwise do at will.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

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


class UndecidedWatch:
    """Looks at every step's verdicts. All methods are collective; all ranks do alike.

    It begins anew where a run is resumed: what was undecided before may have been mended since.

    Args:
        limit: share of undecided verdicts over `WINDOW` steps above which the run stops, as it does where all of one
            step's are; None: it never does.
    """

    def __init__(self, limit: float | None, layout: Layout) -> None:
        self.limit, self.layout = limit, layout
        #: (undecided without own doing, all verdicts, the first reason) of the last steps
        self._recent: deque[tuple[int, int, str]] = deque(maxlen=WINDOW)
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
        against, reason = 0, None
        if undecided:  # the same number on every rank: none is left alone in the gather
            against, reason = self._gather(names, keys, verdicts)
            shape = _DETAIL.sub("…", reason)
            if self.layout.is_main and shape not in self._said and len(self._said) < _SAID:
                say(f"· {undecided} of {total} answers could not be judged, the first {reason}")
            self._said.add(shape)
        self._recent.append((against, total, reason or ""))
        if self.limit is not None:
            self._stop(self.limit)
        return reason

    def _stop(self, limit: float) -> None:
        against, total, reason = self._recent[-1]
        what = f"none of the step's {total} answers could be judged"
        if not total or against < total:
            against, total = (sum(counts) for counts in list(zip(*self._recent, strict=True))[:2])
            if len(self._recent) < WINDOW or against <= limit * total:
                return
            reason = next(reason for count, _, reason in self._recent if count)
            what = f"{against} of the {total} answers of the last {WINDOW} steps could not be judged"
        raise RunStopped(
            f"{what}, the first {reason}. Nothing is learnt from that: mend the reward, or train on regardless with "
            "reward.stop_undecided=null"
        )

    def _gather(self, names: Sequence[str], keys: Sequence[int], verdicts: Sequence[Verdict]) -> tuple[int, str]:
        """(undecided verdicts without own doing, the first reason) over all shares; the first such, if there is one."""
        mine = [
            (verdict.own_doing, key, why_undecided(name, verdict.verdict, verdict.reason))
            for name, key, verdict in zip(names, keys, verdicts, strict=True)
            if not verdict.decided
        ]
        parts = [(sum(not own for own, _, _ in mine), min(mine, default=None))]
        if self.layout.shares > 1:
            parts = parts * self.layout.shares
            dist.all_gather_object(parts, parts[0], group=mpu.get_data_parallel_group(with_context_parallel=True))
        return sum(count for count, _ in parts), min(first for _, first in parts if first is not None)[2]
