"""A run directory, read back: its config, metrics, evaluations and summary, finished or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import parse_json
from bridge_mcore.config.yaml_source import read_yaml
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.monitoring.curves import ends
from bridge_mcore.monitoring.metrics import (
    EVALUATION_FILE,
    METRICS_FILE,
    RUN_DIRECTORY_HOLDS,
    read_evaluations,
    read_metrics,
)
from bridge_mcore.monitoring.recorded import check_evaluations, check_metrics, check_settings, setting
from bridge_mcore.monitoring.text import number

METHOD_NAMES = {"bridge": "BRIDGE", "rl_zero": "RL-zero", "sft": "SFT", "cold_start": "cold start"}

#: Methods whose objective has a λ; a run of an unknown one shows what its metrics hold.
_WITHOUT_LAMBDA = ("rl_zero", "sft", "cold_start")
#: Directories of a run that hold models: the run's name says more than theirs.
_OF_RUNS = ("export", "base", "export_peft")

#: Phases of a step, as metrics name them and as people do; `seconds_step` covers them all.
PHASES = {
    "seconds_sync": "weight sync",
    "seconds_rollout": "rollouts",
    "seconds_reward": "rewards",
    "seconds_reference": "reference policy",
    "seconds_train": "training",
    "seconds_evaluation": "evaluation",
}


@dataclass
class Run:
    """What a run directory says. Everything but ``metrics`` may be missing."""

    directory: Path
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def method(self) -> str:
        name = str(self.setting("method.name") or "")
        return METHOD_NAMES.get(name, name)

    @property
    def model(self) -> str:
        """The model's name: its directory, the hub's name for a snapshot of the hub's cache, or the recipe."""
        if path := self.setting("model.path"):
            parts = Path(path).parts
            hub = [part for part in parts if part.startswith("models--")]
            if hub:
                return "/".join(hub[-1].split("--")[1:])
            first = next((i for i, part in enumerate(parts) if i and part in _OF_RUNS), len(parts))
            return "/".join(parts[min(first, len(parts)) - 1 :])
        if made := self.setting("model.generated"):
            kind = str(made.get("architecture", "model")).capitalize()
            return f"small {kind} ({made.get('layers')} layers, width {made.get('hidden_size')})"
        return ""

    @property
    def lams(self) -> list[float]:
        """λ of each step; nothing for a method that has none, whatever its metrics hold."""
        return [] if self.setting("method.name") in _WITHOUT_LAMBDA else self.series("lam")[1]

    @property
    def sft_steps(self) -> int | None:
        """The last step of cold start's first stage; None of another method."""
        if self.setting("method.name") != "cold_start" or not self.total_steps:
            return None
        return self.setting("method.sft_steps") or max(self.total_steps // 2, 1)

    @property
    def remarks(self) -> list[str]:
        """What a finished run found to keep it from learning."""
        said = self.summary.get("remarks") if self.finished else None
        return [text for text in said if isinstance(text, str)] if isinstance(said, list) else []

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def total_steps(self) -> int | None:
        return self.setting("training.steps")

    @property
    def finished(self) -> bool:
        """The summary is what a run writes last."""
        return bool(self.summary) and (self.total_steps is None or self.steps >= self.total_steps)

    def setting(self, key: str) -> Any:
        """``setting("training.steps")``: a config value, or None."""
        return setting(self.config, key)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it has a finite one."""
        found = [(line["step"], number(line.get(key))) for line in self.metrics]
        points = [(step, value) for step, value in found if value is not None]
        return [step for step, _ in points], [value for _, value in points]

    def accuracies(self) -> tuple[list[int], list[float], list[int | None]]:
        """Steps, accuracies and numbers of problems of the evaluations."""
        found = {line["step"]: (number(line.get("accuracy")), line.get("problems")) for line in self.evaluations}
        for step, value in zip(*self.series("accuracy"), strict=True):
            found.setdefault(step, (value, None))  # a run without evaluation.jsonl
        ordered = [(step, *found[step]) for step in sorted(found)]
        kept = [(step, accuracy, problems) for step, accuracy, problems in ordered if accuracy is not None]
        return [s for s, _, _ in kept], [a for _, a, _ in kept], [n if isinstance(n, int) else None for _, _, n in kept]

    def total(self, key: str) -> float:
        return sum(self.series(key)[1])


def load_run(directory: Path) -> Run:
    """Read a run directory; DataError says what is wrong with one that is none, or that is corrupt."""
    directory = Path(directory)
    if not directory.is_dir():
        kind = "is a file, not a run directory" if directory.exists() else "no such directory"
        raise DataError(f"{directory}: {kind}. {RUN_DIRECTORY_HOLDS}")
    if not (directory / METRICS_FILE).exists():
        inside = sorted(path.parent for path in directory.glob(f"*/{METRICS_FILE}"))
        hint = f" Did you mean {' or '.join(map(str, inside[:3]))}?" if inside else ""
        raise DataError(f"{directory}: not a run directory, it has no {METRICS_FILE}. {RUN_DIRECTORY_HOLDS}{hint}")
    run = Run(
        directory=directory,
        metrics=read_metrics(directory),
        evaluations=read_evaluations(directory) if (directory / EVALUATION_FILE).exists() else [],
        config=_mapping(directory / "config.yaml", _yaml),
        summary=_mapping(directory / "summary.json", lambda path: parse_json(path.read_bytes())),
    )
    check_metrics(directory / METRICS_FILE, run.metrics)
    check_evaluations(directory / EVALUATION_FILE, run.evaluations)
    check_settings(directory / "config.yaml", run.config)
    return run


def _yaml(path: Path) -> Any:
    source = read_yaml(path)
    if source.problems:
        raise ConfigError(source.problems[0])
    return source.tree


def _mapping(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """A file that a run may not have written yet, as a dictionary."""
    if not path.exists():
        return {}
    try:
        content = read(path)
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no mapping of names to values")
    return content


def facts(run: Run) -> dict[str, Any]:
    """The numbers of the report, one flat dictionary: what `--json` prints and the tables show."""
    steps, accuracies, problems = run.accuracies()
    summary = run.summary if run.finished else {}  # a run that goes on has the summary of its shorter self
    before = summary.get("accuracy_before", accuracies[0] if steps and steps[0] == 0 else None)
    after = summary.get("accuracy_after", accuracies[-1] if steps and steps[-1] > 0 else None)
    best = max(range(len(steps)), key=lambda i: accuracies[i], default=None)
    lines = [line.get("sets") or {} for line in run.evaluations]  # not every set is in every evaluation
    reward, length = ends(run.series("reward")[1]), ends(run.series("response_length")[1])
    speed, lam = run.series("tokens_per_second")[1], run.lams
    before, after = number(before), number(after)
    memory = run.series("memory_gib")[1]
    phases = {name: run.total(key) for key, name in PHASES.items() if run.series(key)[1]}
    measured = max(run.total("seconds_step"), sum(phases.values()))
    if run.series("seconds_step")[1]:
        phases["other"] = measured - sum(phases.values())
    return {
        "run": str(run.directory),
        "method": run.method or None,
        "model": run.model or None,
        "finished": run.finished,
        "steps": run.steps,
        "total_steps": run.total_steps,
        "problems": problems[-1] if problems else None,
        "accuracy_before": before,
        "accuracy_after": after,
        "accuracy_change": after - before if before is not None and after is not None else None,
        "accuracy_after_step": steps[-1] if steps else None,
        "accuracy_best": accuracies[best] if best is not None else None,
        "accuracy_best_step": steps[best] if best is not None else None,
        "sets_before": {name: value for line in reversed(lines) for name, value in line.items()},
        "sets_after": {name: value for line in lines for name, value in line.items()},
        "reward_first": reward[0],
        "reward_last": reward[1],
        "response_length_first": length[0],
        "response_length_last": length[1],
        "gain_last": ends(run.series("gain")[1])[1],
        "lam_last": lam[-1] if lam else None,
        "sft_steps": run.sft_steps,
        "tokens_per_second": sum(speed) / len(speed) if speed else None,
        "seconds": number(summary.get("seconds")) or measured or None,
        "seconds_per_phase": phases,
        "memory_gib": max(memory) if memory else None,
        "verifier_timeouts": int(run.total("verifier_timeouts")),
        "verifier_errors": int(run.total("verifier_errors")),
        "remarks": run.remarks,
    }
