"""The little statistics of a report: ends of noisy curves, a smooth course through them, a proportion's interval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ends(values: Sequence[float], points: int = 10) -> tuple[float | None, float | None]:
    """Means of the first and of the last points, which share none: one step's value is mostly noise."""
    if not values:
        return None, None
    points = max(min(points, len(values) // 2), 1)
    return sum(values[:points]) / points, sum(values[-points:]) / points


def wilson(accuracy: float, problems: int) -> tuple[float, float]:
    """95 % interval of a binomial proportion (Wilson's score interval: right near 0 and 1 and for few problems)."""
    z = 1.959964
    centre = accuracy + z * z / (2 * problems)
    half = z * math.sqrt(accuracy * (1 - accuracy) / problems + z * z / (4 * problems * problems))
    scale = 1 + z * z / problems
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def smooth(steps: Sequence[int], values: Sequence[float]) -> list[float]:
    """LOESS: at every point a line fitted to the nearest quarter of the run, near points counting more.

    Unlike an exponential moving average it does not lag behind the points, and unlike a centred mean with a window
    that shrinks at the ends it does not follow the last points' noise.
    """
    import numpy as np

    n = len(values)
    if n < 8:
        return list(values)
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    span = min(max(16, n // 4), n, 1000)  # a long run is smooth enough, and its figure stays a matter of seconds
    fit = np.empty(n)
    first = 0
    for i in range(n):
        while first + span < n and x[first + span] - x[i] < x[i] - x[first]:
            first += 1  # the window's far end is nearer on the right
        near = slice(first, first + span)
        distance = x[near] - x[i]
        weight = (1 - (np.abs(distance) / (np.abs(distance).max() * 1.001)) ** 3) ** 3
        s0, s1, s2 = weight.sum(), (weight * distance).sum(), (weight * distance**2).sum()
        fit[i] = (weight * (s2 - s1 * distance) * y[near]).sum() / max(s0 * s2 - s1 * s1, 1e-12)
    return np.clip(fit, y.min(), y.max()).tolist()
