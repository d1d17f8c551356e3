"""A run's course on disk and screen: metrics, evaluations, and what is written at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridge_mcore.checkpoint.atomic import atomic_directory
from bridge_mcore.config.expected import settings_digest
from bridge_mcore.config.schema import Config
from bridge_mcore.evaluation.evaluate import EvaluationResult, evaluate
from bridge_mcore.evaluation.records import write_records
from bridge_mcore.monitoring.expectation import expectation
from bridge_mcore.monitoring.learning import LearningWatch, remarks_after, remarks_before
from bridge_mcore.monitoring.metrics import MetricsWriter, read_metrics
from bridge_mcore.monitoring.progress import Progress, phase, say

if TYPE_CHECKING:
    from bridge_mcore.training.session import Session


#: Numbers of answers in evaluations: no training step uses them.
_EVALUATION_KEYS = 2**48


class Course:
    """Where a run stands: its writers (on rank 0), its evaluations so far, and the time it has used."""

    def __init__(self, directory: Path, started: float) -> None:
        self.directory = directory
        self.started = started
        self.before_s = 0.0  # seconds of the attempts that this one resumes
        self.accuracies: list[tuple[int, float]] = []
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.problems = 0  # of the last evaluation that counts
        self._writer: MetricsWriter | None = None
        self._progress: Progress | None = None
        self._watch: LearningWatch | None = None

    def open(self, config: Config, resume_step: int | None) -> None:
        """Rank 0: open the metrics; lines after `resume_step` are of an attempt that was lost."""
        self._writer = MetricsWriter(self.directory, config.monitoring.tensorboard, resume_step)
        self._watch = LearningWatch(config)
        for remark in remarks_before(config):
            say(f"warning: {remark}")

    def seconds(self) -> float:
        """Wall-clock seconds of the run, over all its attempts."""
        return self.before_s + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"seconds": self.seconds(), "accuracies": self.accuracies, "answers": self.answers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.before_s = state["seconds"]
        self.accuracies = [(int(s), float(a)) for s, a in state["accuracies"]]
        self.answers = state["answers"]

    @contextmanager
    def progress(self, total: int, step: int, main: bool) -> Iterator[None]:
        """Live progress on rank 0 while steps run."""
        with Progress(total, step) if main else nullcontext() as self._progress:
            yield
        self._progress = None

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """A finished step."""
        if self._writer is not None:
            self._writer.write(step, metrics)
        if self._progress is not None:
            self._progress.step(step, metrics)
            for remark in self._watch.see(step, metrics) if self._watch is not None else ():
                self._progress.note(f"warning: {remark}")

    def evaluate(self, session: Session, step: int, due: Collection[str] | None = None) -> dict[str, Any]:
        """Evaluate now, if the run has evaluation sets; returns what the step's metrics get. Collective.

        due: names of the sets; None: all of them.
        """
        sets = {name: held for name, held in session.evaluation.items() if due is None or name in due}
        if not sets:
            return {}
        began = time.perf_counter()
        collector = session.collector
        with phase(f"evaluating after step {step}") if self._writer else nullcontext():
            collector.engine.refresh(step)
            result = evaluate(sets, collector.engine, session.examiner, session.layout, _EVALUATION_KEYS)
        counts = any(held.every is None for held in sets.values()) or len(sets) == len(session.evaluation)
        if counts and result.accuracy is not None:
            self.accuracies.append((step, result.accuracy))
            self.problems = result.counted
        if due is None:
            shown = shown_answers(result, session.config.evaluation.samples)
            self.answers["before" if step == 0 else "after"] = shown
        if self._writer is not None:
            summary = result.summary()
            self._writer.write_evaluation(step, summary if counts else summary | {"accuracy": None, "problems": None})
            write_records(self.directory / "evaluations" / f"step_{step:08d}.jsonl", result.records)
        took = {"seconds_evaluation": time.perf_counter() - began}
        return {"accuracy": result.accuracy} | took if counts else took

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def shown_answers(result: EvaluationResult, count: int) -> list[dict[str, Any]]:
    """A few answered problems, evenly taken from the evaluation."""
    if not count:
        return []
    stride = max(len(result.records) // count, 1)
    return [
        {"prompt": r.prompt, "gold": r.gold, "response": r.response, "verdict": r.verdict}
        for r in result.records[::stride][:count]
    ]


def due_sets(session: Session, step: int) -> list[str]:
    """Evaluation sets whose turn it is after `step`."""
    default = session.config.evaluation.every
    periods = {name: held.every or default for name, held in session.evaluation.items()}
    return [name for name, every in periods.items() if every and step % every == 0]


def print_samples(answers: dict[str, list[dict[str, Any]]]) -> None:
    """The same problems before and after, one under the other."""
    for before, after in zip(answers.get("before", []), answers.get("after", []), strict=False):
        say(f"\n  problem  {_short(before['prompt'])}   (answer {before['gold']})")
        say(f"  before   {_short(before['response'])}   {_mark(before['verdict'])}")
        say(f"  after    {_short(after['response'])}   {_mark(after['verdict'])}")


def _mark(verdict: str) -> str:
    return {"correct": "✓", "incorrect": "✗"}.get(verdict, verdict)


def _short(text: str, width: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width // 2]} … {text[-width // 2 :]}"


def export(session: Session) -> dict[str, Path]:
    """Write the trained model as `export/` (merged HF) and, if there is a w, as PEFT adapter and base. Collective."""
    config, policy = session.config, session.policy
    directory = config.run.directory
    written: dict[str, Path] = {}
    if config.checkpoint.export:
        policy.export_merged(directory / "export", getattr(torch, config.model.dtype))
        written["model"] = directory / "export"
    if config.checkpoint.export_adapter and policy.lora is not None:
        target = directory / "export_peft"
        with atomic_directory(target) as temporary:
            policy.export_theta(temporary / "base", dtype=getattr(torch, config.model.dtype))
            policy.export_adapter(temporary / "adapter", str(target / "base"))
        written["adapter"] = target / "adapter"
    return written


def finish(session: Session, course: Course) -> None:
    """Evaluate, export, draw, and print what came of it. Collective."""
    config, main = session.config, session.layout.is_main
    total = config.training.steps
    if config.evaluation.after:
        course.evaluate(session, total)
    with phase("exporting") if main else nullcontext():
        written = export(session)
    if not main:
        return
    course.close()
    remarks = remarks_after(config, read_metrics(config.run.directory))
    accuracies = dict(course.accuracies)
    summary = {
        "method": config.method.name,
        "steps": total,
        "accuracy_before": accuracies.get(0),
        "accuracy_after": accuracies.get(total),
        "accuracies": course.accuracies,
        "seconds": round(course.seconds(), 1),
        "seed": config.run.seed,
        "settings": settings_digest(config),
        "model": str(session.source),
        "remarks": remarks,
        **{f"export_{name}": str(path) for name, path in written.items()},
    }
    (config.run.directory / "summary.json").write_text(json.dumps(summary, indent=2))
    if config.monitoring.figure:
        from bridge_mcore.monitoring.figure import draw_figure

        with phase("drawing the figure"):
            draw_figure(config.run.directory, config.run.directory / "figure.png")
    print_samples(course.answers)
    from rich.console import Console

    from bridge_mcore.monitoring.report import summary_table

    Console().print(summary_table(config.run.directory))
    for remark in remarks:
        say(f"warning: {remark}")
    if (line := expectation(config, accuracies.get(total), course.problems)) is not None:
        say(line)
