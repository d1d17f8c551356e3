"""The figure of a run, or of several over each other: reward, response length and accuracy over steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_mcore.errors import ConfigError
from bridge_mcore.monitoring.curves import smooth, wilson
from bridge_mcore.monitoring.labels import run_labels
from bridge_mcore.monitoring.runs import Run, load_run

# Okabe and Ito's palette: told apart with any colour vision, in print and on a bad projector.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _QUIET, _GRID = "#222222", "#6B6B6B", "#E6E6E6"
_LEFT, _RIGHT = 0.045, 0.985  # of the panels; the title stands over them
_MAX_LABELS = 6  # evaluations that all get their value written beside them; with more, only first, best and last

_STYLE: dict[Any, Any] = {  # the stubs list every key that rcParams knows
    "font.family": "DejaVu Sans",  # ships with matplotlib: the figure looks the same on every machine
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": _QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.9,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _INK,
    "axes.titlecolor": _INK,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def draw_figure(run_dirs: Path | Sequence[Path], path: Path) -> Path:
    """Draw one run, or overlay several, to ``path``: .png, or .pdf or .svg for print. Returns the path."""
    directories = [run_dirs] if isinstance(run_dirs, (str, os.PathLike)) else run_dirs
    runs = [load_run(Path(directory)) for directory in directories]
    return draw_runs(runs, Path(path))


def draw_runs(runs: Sequence[Run], path: Path) -> Path:
    """As :func:`draw_figure`, of runs that are already read."""
    import matplotlib

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"{path}: a figure's name ends in .png, .pdf or .svg")
    # The object interface, not pyplot: no global state, no window, nothing of a user's own matplotlibrc.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = _draw(runs)
        _save(figure, path)
    return path


def _draw(runs: Sequence[Run]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13.33, 5.0), facecolor="white")  # the width of a 16:9 slide
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharex=True)
    legend = len(runs) > 1
    figure.subplots_adjust(left=_LEFT, right=_RIGHT, bottom=0.20 if legend else 0.135, top=0.76, wspace=0.17)

    single = len(runs) == 1
    crowded = max((len(run.accuracies()[0]) for run in runs), default=0) > _MAX_LABELS
    for i, run in enumerate(runs):
        colours = _COLOURS[:3] if single else [_COLOURS[i % len(_COLOURS)]] * 3
        _curve(axes[0], *run.series("reward"), colours[0], faint=0.25 if single else 0.10)
        _curve(axes[1], *run.series("response_length"), colours[1], faint=0.25 if single else 0.10)
        _accuracy(axes[2], run, colours[2], single)
        _bars(axes[2], run, colours[2], 0.02 * (i - (len(runs) - 1) / 2), single or not crowded)

    last = max([1, *(run.steps for run in runs), *(s for run in runs for s in run.accuracies()[0])])
    for axis, title in zip(axes, ("Reward", "Response length", "Accuracy"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_xlim(-0.1 * last, 1.1 * last)  # room for the first and the last accuracy's label
        axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        if not axis.has_data():
            axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", va="center", color=_QUIET)
            axis.set_yticks([])
    _subtitles(axes, runs)
    _accuracy_limits(axes[2], runs)
    _title(figure, runs)
    if legend:
        _legend(figure, runs)
    return figure


def _curve(axis: Any, steps: list[int], values: list[float], colour: str, faint: float) -> None:
    """Raw points faint, their smoothed course strong."""
    if not steps:
        return
    size = 4.5 if len(steps) <= 200 else 3.0
    faint = 0.8 if len(steps) == 1 else faint  # a single point has no line to stand behind
    axis.plot(steps, values, "o", color=colour, alpha=faint, markersize=size, markeredgewidth=0)
    axis.plot(steps, smooth(steps, values), color=colour, linewidth=2.8, solid_capstyle="round")


def _bars(axis: Any, run: Run, colour: str, aside: float, every: bool) -> None:
    """Intervals of a run's accuracies, `aside` (a share of its steps) of the points, so that runs hide no other's.

    every: of all evaluations; else of the last alone, which is what runs are compared by.
    """
    found = [(s, a, *wilson(a, n)) for s, a, n in zip(*run.accuracies(), strict=True) if n]
    if not found:
        return
    x, y, low, high = zip(*(found if every else found[-1:]), strict=True)
    # Wilson's interval need not hold an accuracy of exactly 0 or 1 to the last bit.
    below = [max(a - b, 0) for a, b in zip(y, low, strict=True)]
    above = [max(b - a, 0) for a, b in zip(y, high, strict=True)]
    shifted = [step + aside * x[-1] for step in x]
    look: Any = {"fmt": "none", "ecolor": colour, "alpha": 0.55, "elinewidth": 1.6, "capsize": 4, "zorder": 2}
    axis.errorbar(shifted, y, yerr=[below, above], **look)


def _accuracy(axis: Any, run: Run, colour: str, single: bool) -> None:
    steps, accuracies, problems = run.accuracies()
    if not steps:
        return
    axis.plot(steps, accuracies, color=colour, linewidth=2.2, zorder=3)
    dot = {"markersize": 8, "markeredgecolor": "white", "markeredgewidth": 1.4}
    axis.plot(steps, accuracies, "o", color=colour, zorder=4, **dot)
    if single:
        _value_labels(axis, steps, accuracies, problems)


def _value_labels(axis: Any, steps: list[int], accuracies: list[float], problems: list[int | None]) -> None:
    """The values, above their error bars: of all evaluations if they are few, else of the first, best and last."""
    chosen = set(range(len(steps)))
    if len(steps) > _MAX_LABELS:
        chosen = {0, len(steps) - 1}
        best = max(range(len(steps)), key=lambda i: accuracies[i])
        apart = 0.12 * max(steps[-1] - steps[0], 1)
        if all(abs(steps[best] - steps[i]) >= apart for i in chosen):  # else two labels would touch
            chosen.add(best)
    digits = 0 if max(accuracies) - min(accuracies) > 0.15 else 1
    for i in chosen:
        count = problems[i]
        top = wilson(accuracies[i], count)[1] if count else accuracies[i]
        axis.annotate(
            f"{100 * accuracies[i]:.{digits}f}%",
            (steps[i], max(top, accuracies[i])),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=12,
            fontweight="bold",
            color=_INK,
            zorder=5,
        )


def _accuracy_limits(axis: Any, runs: Sequence[Run]) -> None:
    """0 to 100 % where the curve fills a good part of it; closer for the few percent of a hard benchmark."""
    lows, highs = [], []
    for run in runs:
        for _, accuracy, n in zip(*run.accuracies(), strict=True):
            low, high = wilson(accuracy, n) if n else (accuracy, accuracy)
            lows.append(min(low, accuracy))
            highs.append(max(high, accuracy))
    if not lows:
        return
    low, high = min(lows), max(highs)
    if high - low > 0.3:
        bottom, top = -0.02, max(1.04, high + 0.14)  # room for a label above the highest bar
    else:
        room = max(high - low, 0.01)
        bottom, top = max(low - 0.1 * room, 0.0) if low > 0 else -0.02 * room, high + 0.18 * room
    axis.set_ylim(bottom, top)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")


def _subtitles(axes: Any, runs: Sequence[Run]) -> None:
    """What exactly each panel shows, small under its title."""
    numbers = {n for run in runs for n in run.accuracies()[2]}
    known = numbers.pop() if len(numbers) == 1 else None
    held_out = f"{known:,} held-out problems" if known else "held-out problems"
    if any(n for run in runs for n in run.accuracies()[2]):
        held_out += ", 95% interval"
    texts = ("step means (dots), smoothed (line)", "tokens; step means (dots), smoothed (line)", held_out)
    for axis, text in zip(axes, texts, strict=True):
        if axis.has_data():
            axis.text(0, 1.012, text, transform=axis.transAxes, fontsize=10.5, color=_QUIET, ha="left", va="bottom")
            axis.set_title(axis.get_title(loc="left"), pad=24)


def _title(figure: Any, runs: Sequence[Run]) -> None:
    models = {run.model for run in runs}
    sets = {tuple(dict.fromkeys(n for line in run.evaluations for n in line.get("sets") or ())) for run in runs}
    model = models.pop() if len(models) == 1 else ""
    names = sets.pop() if len(sets) == 1 else ()
    task = f" on {names[0].replace('_', ' ')}" if model and len(names) == 1 else ""
    head = (runs[0].method or runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"
    title = figure.text(_LEFT, 0.925, " · ".join(filter(None, (head, model + task))), fontweight="bold")
    details = describe(runs[0]) if len(runs) == 1 else ""
    right = figure.text(_RIGHT, 0.925, details, fontsize=11.5, color=_QUIET, ha="right")
    room = figure.bbox.width * (_RIGHT - _LEFT - 0.02) - (right.get_window_extent().width if details else 0)
    # A long model name shrinks, and at last ends in an ellipsis, instead of running into the details.
    for size in (19, 17, 15, 13):
        title.set_fontsize(size)
        if title.get_window_extent().width <= room:
            return
    while title.get_window_extent().width > room and len(title.get_text()) > 2:
        title.set_text(title.get_text()[:-2].rstrip() + "…")


def describe(run: Run) -> str:
    """The settings a reader asks for first, and whether the run is finished."""
    parts = []
    if run.total_steps and run.steps < run.total_steps:
        parts.append(f"unfinished: step {run.steps} of {run.total_steps}")
    if lams := run.lams:
        parts.append(f"λ {lams[0]:.2g}" + (f" → {lams[-1]:.2g}" if abs(lams[-1] - lams[0]) > 1e-9 else ""))
    if run.sft_steps:
        parts.append(f"SFT to step {run.sft_steps}, then RL")
    if run.setting("method.name") == "bridge" and run.setting("adapter.rank"):
        parts.append(f"LoRA rank {run.setting('adapter.rank')}")
    if run.setting("run.seed") is not None:
        parts.append(f"seed {run.setting('run.seed')}")
    return "   ".join(parts)


def _legend(figure: Any, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=3) for i in range(len(runs))]
    stages = [f", RL from step {run.sft_steps + 1}" if run.sft_steps else "" for run in runs]
    labels = [label + stage for label, stage in zip(run_labels(runs), stages, strict=True)]
    figure.legend(handles, labels, loc="lower center", ncols=min(len(runs), 4), frameon=False, fontsize=12)


def _save(figure: Any, path: Path) -> None:
    """By temp file and rename: an old figure stays until the new one is whole."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=180)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path}: cannot write the figure there ({reason}); --figure PATH names another") from error
    finally:
        if temporary.exists():
            temporary.unlink()
