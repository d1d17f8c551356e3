"""The live view of a terminal, by rich. Imported only when there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.status import Status
from rich.table import Table
from rich.text import Text

from bridge_mcore.monitoring.text import (
    compact,
    cut_text,
    duration,
    number,
    percent,
    signal_text,
    signed,
    sparkline,
    undecided_text,
    visible,
)

_SPARK = 14  # characters: three curves and the numbers fit 80 columns


class LiveView:
    """The latest values with their curves over a progress bar; loops inside a step add a bar below while they run."""

    def __init__(self, timer: Any, title: str) -> None:
        self._timer = timer
        self._latest: dict[str, float] = {}
        self._curves: dict[str, list[float]] = {"reward": [], "response_length": [], "accuracy": []}
        self._accuracy_step: int | None = None
        self._title = title
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="bold"),
            expand=True,
        )
        self._task = self._bars.add_task(title, total=timer.total, completed=timer.done, left="")
        # Prints of other code appear above the view instead of through it: rich redirects stdout and stderr.
        self._live = Live(get_renderable=self._render, refresh_per_second=4)
        self._live.start()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        for key, value in metrics.items():
            value = number(value)
            if value is None:
                continue
            self._latest[key] = value
            if key in self._curves:
                self._curves[key].append(value)
            if key == "accuracy":
                self._accuracy_step = step
        self._bars.update(self._task, completed=step)
        self._live.refresh()

    def note(self, text: str) -> None:
        self._live.console.print(Text(visible(text)))

    @contextmanager
    def row(self, text: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A bar below the main one, for as long as the block runs."""
        task = self._bars.add_task(text, total=total, left="")
        try:
            yield lambda: self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Any:
        left = self._timer.left()
        finished = self._timer.done >= self._timer.total
        text = "done" if finished else "" if left is None else f"{duration(left)} left"
        self._bars.update(self._task, left=text)
        return Group(*([Panel(self._table(), border_style="dim")] if self._latest else []), self._bars)

    def _table(self) -> Table:
        columns = [(head, value, curve) for head, value, curve in self._columns() if value]
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in columns:
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(*(Text(head, style="dim") for head, _, _ in columns))
        table.add_row(*(Text(value, style="bold") for _, value, _ in columns))
        table.add_row(*(Text(curve, style="cyan") for _, _, curve in columns))
        return table

    def _columns(self) -> list[tuple[str, str, str]]:
        def show(key: str, form: Callable[[float], str]) -> str:
            return form(self._latest[key]) if key in self._latest else ""

        def curve(key: str) -> str:
            return sparkline(self._curves[key], _SPARK)

        columns = [("step", f"{self._timer.done}/{self._timer.total}", "")]
        if "reward" in self._latest:
            columns.append(("reward", show("reward", "{:.3f}".format), curve("reward")))
        else:
            columns.append(("J_SFT", show("j_sft", "{:.3f}".format), ""))
        columns.append(("undecided", undecided_text(self._latest), ""))
        columns.append(("length", show("response_length", "{:.1f}".format), curve("response_length")))
        columns.append(("cut", cut_text(self._latest), ""))
        columns.append(("signal", signal_text(self._latest), ""))
        head = "accuracy" if self._accuracy_step is None else f"accuracy @{self._accuracy_step}"
        columns.append((head, show("accuracy", percent), curve("accuracy")))
        columns.append(("gain", show("gain", signed), ""))
        columns.append(("λ", show("lam", "{:.2f}".format), ""))
        columns.append(("tok/s", show("tokens_per_second", compact), ""))
        return columns


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """A spinner beside ``text``, gone when the block ends."""
    with Status(Text(text)):
        yield


@contextmanager
def bar(text: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar of its own, which stays when it is full."""
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    with Bars(*columns, TimeElapsedColumn()) as bars:
        task = bars.add_task(text, total=total)
        yield lambda: bars.advance(task)
