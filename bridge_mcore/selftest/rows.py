"""One row after another on all ranks: a failure of any rank fails the row, a hang ends the job and is named."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from bridge_mcore.selftest.options import SelftestOptions
from bridge_mcore.selftest.results import FAIL, LOST, Results, Row, write_note
from bridge_mcore.selftest.watchdog import STUCK, Watchdog

_GRACE_S = 15.0  # for ranks that fail in the same way as the first one


class RowRunner:
    """Runs rows; rank 0 keeps and shows them."""

    def __init__(self, options: SelftestOptions, rank: int, world: int, own: Path) -> None:
        """own: this rank's temporary directory, removed when the rank has to end at once."""
        self.options, self.rank, self.world, self.own = options, rank, world, own
        self.results = Results(options.scratch, shown=rank == 0)
        self.watchdog = Watchdog(options.limit, self._expired)
        self.count = 0

    @contextmanager
    def limited(self, title: str, factor: float = 1.0) -> Iterator[None]:
        """Inside, at most `factor` times the limit may pass; then this rank ends, with word of `title`."""
        self.results.begin(title)
        with self.watchdog.row(title, factor):
            yield

    def run(self, row: Row, body: Callable[[Row], None], shown: bool = True) -> None:
        """Run a row on all ranks of the joined world; the next one begins together. `shown`: also if it is ok."""
        error: str | None = None
        title = f"{row.title} {row.dtype}".strip()
        with self.limited(title):
            start = time.perf_counter()
            try:
                body(row)
            except Exception as failure:
                error = f"rank {self.rank}: {type(failure).__name__}: {failure}"
                failure.__traceback__ = None  # it holds the model
            row.took = time.perf_counter() - start
            self.watchdog.state = "waiting"
            first = self._agree(title, error)
        if first is not None:
            row.fail(first)
        if shown or row.status == FAIL:
            self.results.add(row)

    def _agree(self, title: str, error: str | None) -> str | None:
        """The first rank's error, once all ranks have come here.

        It goes through the store, not through a collective: other ranks may still wait in one for a rank that failed.
        That rank ends the job when they have not come after a moment.
        """
        if self.world == 1:
            return error
        self.count += 1
        store = dist.distributed_c10d._get_default_store()
        key = f"selftest/{self.count}"
        if error is not None:
            store.set(f"{key}/error/{store.add(f'{key}/failed', 1)}", error)
        if store.add(f"{key}/arrived", 1) == self.world:
            store.set(f"{key}/done", "")
        wait = _GRACE_S if error is not None else 10 * self.options.limit  # the watchdog comes first
        try:
            store.wait([f"{key}/done"], timedelta(seconds=wait))
        except RuntimeError:
            if error is None:
                raise
            self._expired(title, "failed", error.partition(": ")[2])
            os._exit(STUCK)  # others hang, and so would a clean ending
        return store.get(f"{key}/error/1").decode() if store.add(f"{key}/failed", 0) else None

    def _expired(self, row: str, state: str, where: str) -> None:
        """Leave word before this rank ends at once."""
        write_note(self.options.scratch, self.rank, {"row": row, "state": state, "text": where})
        print(f"✗ {row}: rank {self.rank} {state}: {where}", file=sys.stderr, flush=True)
        shutil.rmtree(self.own, ignore_errors=True)
        if self.rank == 0 and self.options.scratch is None:
            lost = Row(LOST, row, self.world)
            lost.fail(f"rank 0 {state}: {where}; what other ranks say is above")
            self.results.add(lost)
            self.results.finish(self.options.json)
