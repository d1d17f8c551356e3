"""What `bridge-mcore eval` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bridge_mcore.config.engines import Servers
from bridge_mcore.evaluation.suites import Answers, Suite


@dataclass(frozen=True)
class Subject:
    """A model to evaluate. `label` names it in tables; `path` is an HF checkpoint, a run, or a run's checkpoint."""

    label: str
    path: Path


@dataclass(frozen=True)
class Serving:
    """How a checkpoint is served.

    Attributes:
        engine: embedded, sglang or vllm.
        device: cpu or cuda.
        dtype: float32 or bfloat16; None: fp32 on CPU, else bf16.
        servers: of SGLang and vLLM.
    """

    engine: str = "embedded"
    device: str = "cpu"
    dtype: str | None = None
    servers: Servers = field(default_factory=Servers)

    @property
    def weights(self) -> str:
        """dtype, the default put in."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation, checked by the command line.

    Attributes:
        subjects: models, in the order of tables; the others are compared with the first.
        suite: benchmarks and how they are answered.
        suite_name: what the command line called it.
        output: directory of records and tables.
        answers: what the command line says of answers; it goes before benchmark and suite.
        data_dir: directory of benchmarks' files.
        template, system_prompt, instruction: how a problem becomes a prompt (`data.template`).
        serving: engine and device.
        adapter: PEFT adapter to merge into every model.
        limit: use only the first problems of each benchmark.
        seed: of sampling.
        workers: processes of each reward.
        restart: forget what was answered before.
        failures: wrong answers to print for each benchmark.
    """

    subjects: tuple[Subject, ...]
    suite: Suite
    suite_name: str
    output: Path
    answers: Answers = field(default_factory=Answers)
    data_dir: Path | None = None
    template: str = "chat"
    system_prompt: str | None = None
    instruction: str | None = "auto"
    serving: Serving = field(default_factory=Serving)
    adapter: Path | None = None
    limit: int | None = None
    seed: int = 0
    workers: int = 2
    restart: bool = False
    failures: int = 0
