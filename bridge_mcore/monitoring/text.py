"""Numbers, durations and curves as short text, for progress lines, tables and sparklines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"


#: Characters that a terminal obeys instead of showing: controls but tab and line end, and those that turn text around.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """A text for a terminal, where what came out of a file or a model must not move the cursor or colour a lie.

    Spelt as JSON spells it (``\\u001b``), so that JSON stays what it is.
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def duration(seconds: float) -> str:
    """``4.2s``, ``38s``, ``1m40s``, ``2h05m``, ``3d04h``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def compact(number: float) -> str:
    """``850``, ``1.9k``, ``12.3k``, ``4.5M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.99995:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}" if abs(number) >= 10 else f"{number:.2g}"


def byte_size(count: int) -> str:
    """``676 KiB``, ``1.5 GiB``: whole bytes, or three digits of the unit that fits."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 999.5:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"


def signed(number: float) -> str:
    """``+0.0021``; very small values in scientific notation, because a gain of 1e-6 is not zero."""
    if number != 0 and abs(number) < 5e-4:
        return f"{number:+.1e}"
    return f"{number:+.4f}"


def percent(fraction: float) -> str:
    """``75.0%``"""
    return f"{100 * fraction:.1f}%"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The curve of ``values`` in at most ``width`` characters: the mean of each bin, on the curve's own range."""
    if not values:
        return ""
    cells = min(width, len(values))
    edges = [len(values) * i // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        return _BARS[3] * cells  # a constant curve has no range; the middle says "flat" without looking like zero
    top = len(_BARS) - 1
    return "".join(_BARS[round((mean - low) / (high - low) * top)] for mean in means)


def undecided_text(metrics: Mapping[str, float]) -> str:
    """``3 of 24``: a step's verdicts that were not reached; empty if all were."""
    count = metrics.get("verifier_timeouts", 0) + metrics.get("verifier_errors", 0)
    return f"{count:.0f} of {metrics['verdicts']:.0f}" if count and "verdicts" in metrics else ""


def signal_text(metrics: Mapping[str, float]) -> str:
    """``2%``: a step's groups in which rewards differ, where they are so few that it matters; else empty."""
    share = metrics.get("groups_with_signal", 1.0)
    return f"{share:.0%}" if share <= 0.05 else ""


def cut_text(metrics: Mapping[str, float]) -> str:
    """``12%``: a step's answers that were cut at the longest length, where they are many; else empty."""
    share = metrics.get("truncated", 0.0)
    return f"{share:.0%}" if share >= 0.1 else ""


def number(value: object) -> float | None:
    """``value`` as a finite float, or None: metrics may be missing, null or text."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond what a float holds
        return None
