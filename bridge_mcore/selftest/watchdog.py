"""A limit on each row: a rank that hangs says where it stands and ends, instead of waiting for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Exit code of a rank whose row has passed the limit, or that failed while others wait for it.
STUCK = 4
#: Between a rank's word and its end, so that others of the same row can say theirs before they are ended.
_LAST_WORDS_S = 3.0
_FRAMES = 8  # of the stack, innermost
_BACKSTOP_S = 30.0  # for a rank whose interpreter itself is blocked


class Watchdog:
    """Watches the main thread of this rank."""

    def __init__(self, limit: float, on_expiry: Callable[[str, str, str], None]) -> None:
        """limit: seconds of a row. on_expiry: called with (row, state "stuck" or "waiting", where) before the end."""
        self.limit = limit
        self.on_expiry = on_expiry
        self.state = "stuck"
        self._row = ""
        self._deadline: float | None = None
        self._main = threading.main_thread().ident
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def row(self, name: str, factor: float = 1.0) -> Iterator[None]:
        """Inside, at most `factor` times the limit may pass."""
        limit = self.limit * factor
        self._row, self.state, self._deadline = name, "stuck", time.monotonic() + limit
        with suppress(OSError, ValueError, AttributeError):  # where standard error is no file
            faulthandler.dump_traceback_later(limit + _BACKSTOP_S, exit=True)
        try:
            yield
        finally:
            self._deadline = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while True:
            time.sleep(min(0.2, self.limit / 4))
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                break
        frame = sys._current_frames().get(self._main or 0)
        where = "at the end of the row, for ranks that have not come there"
        if self.state == "stuck":
            where = place(frame)
            stack = "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame is not None else ""
            print(f"rank {os.environ.get('RANK', '0')} is stuck in {self._row}:\n{stack}", file=sys.stderr, flush=True)
        try:
            self.on_expiry(self._row, self.state, where)
        finally:
            time.sleep(_LAST_WORDS_S)
            os._exit(STUCK)


def place(frame: FrameType | None) -> str:
    """``all_reduce, called by _norm (optimizer.py:161)``: the innermost function, and the innermost one of ours."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    if not frames:
        return "nobody knows where"
    own = next((f for f in frames if f"{os.sep}bridge_mcore{os.sep}" in f.f_code.co_filename), frames[0])
    spot = f"{own.f_code.co_name} ({os.path.basename(own.f_code.co_filename)}:{own.f_lineno})"
    # What our code called says more than what that ended in; torch's decorators lie between.
    called = [f.f_code.co_name for f in frames[: frames.index(own)] if f.f_code.co_name != "wrapper"]
    return f"in {called[-1]}, called by {spot}" if called else f"in {spot}"
