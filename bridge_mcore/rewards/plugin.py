"""A user's own reward: a Python function by import path, called in killable workers.

    def judge(response: str, gold: str, prompt: str) -> bool | float | dict

True and False are the verdict. A number is a score, and correct from 1 on. A dict has "correct" (bool), "score" and
"reason", each optional but one of the first two. Anything else, NaN and exceptions are "error", undecided.
The function is trusted: it is limited in time and memory, but it may read files and use the network.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

_SPELLING = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.*\.py):[A-Za-z_]\w*")


class PluginReward:
    """Asks a function for each verdict.

    :param target: `module:function` or `path/to/file.py:function`.
    :raises ConfigError: the spelling is wrong, or the function cannot be imported; tried in a worker at once.
    :raises BridgeError: no worker process can be started.
    """

    def __init__(
        self,
        target: str,
        workers: int = 2,
        cpu_seconds: float = 10.0,
        wall_seconds: float = 60.0,
        memory_gib: float = 4.0,
    ) -> None:
        if not _SPELLING.fullmatch(target):
            raise ConfigError(f"plugin '{target}': write module:function or path/to/file.py:function")
        place, _, name = target.rpartition(":")
        if place.endswith(".py"):
            target = f"{Path(place).expanduser().absolute()}:{name}"
        self._target = target
        self._pool = Pool("bridge_mcore.rewards.plugin_call:run", workers, cpu_seconds, wall_seconds, memory_gib)
        self._lock = threading.Lock()
        #: Verdicts ever given, by name.
        self.counts: Counter[str] = Counter()
        (tried,) = self._pool.map([{"target": target}])
        if tried.kind != "done":
            self._pool.close()
            raise ConfigError(
                f"plugin '{target}' cannot be loaded: {tried.reason}. Is its name right, and can its module be "
                "imported from here (PYTHONPATH)?"
            )

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        jobs = [{"target": self._target, "response": a.response, "gold": a.gold, "prompt": a.prompt} for a in attempts]
        verdicts = [_verdict(outcome) for outcome in self._pool.map(jobs)]
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts)
        return verdicts

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.kind == "timeout":
        return Verdict("timeout", f"the plugin was stopped: {outcome.reason}")
    if outcome.kind == "raised":
        return Verdict("error", f"the plugin failed or gave what it may not: {outcome.reason}")
    if outcome.kind != "done":
        return Verdict("error", f"the plugin failed: {outcome.reason}")
    said = outcome.value
    return Verdict("correct" if said["correct"] else "incorrect", said["reason"] or "by the plugin", said["score"])
