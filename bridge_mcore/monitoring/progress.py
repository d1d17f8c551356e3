"""What a person sees while a run works: a live view on a terminal, one plain line a step anywhere else.

Set-up phases (:func:`phase`) and loops such as an evaluation (:func:`track`) may run before, after or during training;
during it they join the live view instead of opening a second one.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from bridge_mcore.monitoring.text import (
    compact,
    cut_text,
    duration,
    number,
    percent,
    signal_text,
    signed,
    undecided_text,
    visible,
)

T = TypeVar("T")

_QUIET_SECONDS = 2.0  # a phase shorter than this gets no second line when it ends
_PLAIN_EVERY = 30.0  # seconds between the lines of a long loop when nobody watches
_WINDOW = 50  # steps that time left is estimated from: wide enough to hold an evaluation now and then

_live: Any = None  # the LiveView on the screen, of which there can be only one


class Progress:
    """Live progress of training, from ``start_step`` (a resumed run's last step) to ``total_steps``.

    ``step`` is told of every finished step with its metrics; step ``start_step`` itself may carry the evaluation
    before training. Usable as a context manager; ``close`` may be called twice.
    """

    def __init__(self, total_steps: int, start_step: int = 0, title: str = "training") -> None:
        self._timer = StepTimer(total_steps, start_step)
        self._view: Any = None
        if on_terminal():
            from bridge_mcore.monitoring.live import LiveView

            self._view = LiveView(self._timer, title)
            _show(self._view)
        # Ctrl-C or an error may skip close(): the terminal must get its cursor back all the same.
        atexit.register(self.close)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show a finished step."""
        self._timer.tick(step)
        if self._view is not None:
            self._view.step(step, metrics)
        else:
            say(plain_line(step, self._timer.total, metrics, self._timer.left()))

    def note(self, text: str) -> None:
        """A remark that stays on the screen: a checkpoint was written, a warning."""
        if self._view is not None:
            self._view.note(text)
        else:
            say(text)

    def close(self) -> None:
        """End the live view; its last state stays on the screen."""
        atexit.unregister(self.close)
        if self._view is not None:
            _show(None)
            self._view.close()
            self._view = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StepTimer:
    """Time left, from the wall-clock time between recent steps: evaluations and checkpoints in between count too."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.done = total, start
        self._start = start
        self._at = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)

    def tick(self, step: int) -> None:
        now = time.monotonic()
        if step > self._start:  # the evaluation before training is no step
            self._seconds.append((now - self._at) / max(step - self.done, 1))
        self.done, self._at = step, now

    def left(self) -> float | None:
        """Seconds, or None before the first step."""
        if not self._seconds:
            return None
        since = time.monotonic() - self._at
        mean = sum(self._seconds) / len(self._seconds)
        return max((self.total - self.done) * mean - since, 0.0)


def plain_line(step: int, total: int, metrics: Mapping[str, Any], left: float | None) -> str:
    """``step 12/60  reward 0.412  length 18.3  gain +0.0021  λ 0.50  1.9k tok/s  left 1m40s``"""
    known = {key: found for key, value in metrics.items() if (found := number(value)) is not None}
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    if "reward" in known:
        parts.append(f"reward {known['reward']:.3f}")
    elif "j_sft" in known:  # a method without rollouts: its objective is what rises
        parts.append(f"J_SFT {known['j_sft']:.3f}")
    if undecided := undecided_text(known):
        parts.append(f"undecided {undecided}")
    if "response_length" in known:
        parts.append(f"length {known['response_length']:.1f}")
    if cut := cut_text(known):
        parts.append(f"cut {cut}")
    if signal := signal_text(known):
        parts.append(f"groups with signal {signal}")
    if "gain" in known:
        parts.append(f"gain {signed(known['gain'])}")
    if "lam" in known:
        parts.append(f"λ {known['lam']:.2f}")
    if "tokens_per_second" in known:
        parts.append(f"{compact(known['tokens_per_second'])} tok/s")
    if "accuracy" in known:
        parts.append(f"accuracy {percent(known['accuracy'])}")
    if left is not None and step < total:
        parts.append(f"left {duration(left)}")
    return "  ".join(parts)


@contextmanager
def phase(text: str) -> Iterator[None]:
    """A set-up phase of unknown length: a spinner on a terminal; elsewhere a line, and one more if it took long."""
    start, text = time.monotonic(), visible(text)
    if _live is not None:
        with _live.row(text, total=None):
            yield
        return
    if on_terminal():
        from bridge_mcore.monitoring.live import spinner

        with spinner(text):
            yield
        say(f"· {text} ({duration(time.monotonic() - start)})")
        return
    say(f"· {text} …")
    yield
    if time.monotonic() - start >= _QUIET_SECONDS:
        say(f"· {text}: {duration(time.monotonic() - start)}")


def track(iterable: Iterable[T], total: int | None = None, text: str = "working") -> Iterator[T]:
    """Yield from ``iterable`` and show how far it is; ``total`` defaults to its length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    text = visible(text)
    if _live is not None:
        with _live.row(text, total) as advance:
            yield from _advancing(iterable, advance)
    elif on_terminal():
        from bridge_mcore.monitoring.live import bar

        with bar(text, total) as advance:
            yield from _advancing(iterable, advance)
    else:
        yield from _plain_track(iterable, total, text)


def _advancing(iterable: Iterable[T], advance: Any) -> Iterator[T]:
    for item in iterable:
        yield item
        advance()


def _plain_track(iterable: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    start = said = time.monotonic()
    say(f"· {text} …")
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - said >= _PLAIN_EVERY and done != total:
            said = now
            left = f"/{total}  left {duration((now - start) / done * (total - done))}" if total else ""
            say(f"· {text}: {done}{left}")
    if time.monotonic() - start >= _QUIET_SECONDS:
        say(f"· {text}: {done} in {duration(time.monotonic() - start)}")


def on_terminal() -> bool:
    """Whether a person watches standard output."""
    import os

    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(text: str) -> None:
    """Print a line at once (logs are followed while they grow), `visible`, on terminals without Unicode too."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = visible(text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("λ", "lam").replace("·", "-").replace("…", "...")
        text = text.encode(encoding, errors="replace").decode(encoding)
    print(text, flush=True)


def _show(view: Any) -> None:
    global _live
    if view is not None and _live is not None:
        _live.close()
    _live = view
