"""The figure of a preparation: how long prompts and traces are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge_mcore.data.prepare.pairing import TIERS
from bridge_mcore.data.prepare.run import Result

# Okabe and Ito's palette, as in a run's figure.
_COLOURS = {"prompts": "#0072B2", "own": "#E69F00", "exact": "#009E73", "normalised": "#56B4E9", "fuzzy": "#D55E00"}
_BINS = 60


def draw_lengths(result: Result, path: Path) -> None:
    """Histograms of prompts and, by tier, of traces, over a logarithmic axis; the limit where there is one."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"font.family": "DejaVu Sans", "font.size": 12, "axes.spines.top": False, "axes.spines.right": False}
        )
        figure = Figure(figsize=(13.33, 5.0), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        found = result.trace_lengths
        traces: dict[str, Sequence[int]] = {tier: found[tier] for tier in TIERS if len(found.get(tier, ()))}
        left, right = figure.subplots(1, 2)
        _histogram(left, {"prompts": result.prompt_lengths}, result.unit)
        left.set_title(f"{len(result.prompt_lengths):,} prompts", loc="left", fontweight="bold", fontsize=14)
        _histogram(right, traces, result.unit)
        total = sum(map(len, traces.values()))
        right.set_title(f"{total:,} traces", loc="left", fontweight="bold", fontsize=14)
        limit = result.recipe.limit.length
        if limit is not None and traces:
            right.axvline(limit, color="#222222", linestyle="--", linewidth=1.5)
            right.annotate(f"limit {limit:,} ", (limit, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
        if traces:
            right.legend(frameon=False)
        # No date and no version of matplotlib: the same data give the same file.
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _histogram(axis: Any, lengths: dict[str, Sequence[int]], unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xlabel(f"length, {unit}")
    if not lengths:
        axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", color="#6B6B6B")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    values = {name: np.asarray(found, dtype=np.float64) for name, found in lengths.items()}
    low = max(min(float(v.min()) for v in values.values()), 1.0)
    high = max(max(float(v.max()) for v in values.values()), low)
    middle = (low * high) ** 0.5
    low, high = min(low, middle / 3), max(high, middle * 3)  # at least a decade: equal lengths are no wide block
    edges = np.geomspace(low, high * 1.001, _BINS + 1)
    axis.hist(
        list(values.values()),
        bins=edges,
        stacked=True,
        color=[_COLOURS[name] for name in values],
        label=[f"{name} ({len(v):,})" for name, v in values.items()],
    )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    every = np.concatenate(list(values.values()))
    for share, style in ((0.5, "-"), (0.9, ":")):
        at = float(np.quantile(every, share))
        axis.axvline(at, color="#222222", linewidth=1.2, linestyle=style)
        label = "median" if share == 0.5 else "90% below"
        place = (at, 0.97 if share == 0.5 else 0.89)
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.annotate(f" {label} {at:,.0f}", place, xycoords=("data", "axes fraction"), fontsize=11, bbox=behind)
