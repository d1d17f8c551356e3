"""What `bridge-mcore eval` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation, checked by the command line.

    Attributes:
        model: HF checkpoint directory.
        path: data file; None if `task` is given.
        task: name of a generated task, whose test split is used; None if `path` is given.
        template: how a problem becomes a prompt (`data.template`).
        max_new_tokens: longest answer, tokens.
        limit: use only the first problems.
        samples: answers per problem; more than one gives avg@k and pass@k.
        temperature: 0 is greedy.
        output: where a JSON line per answer goes, if anywhere.
        device: cpu or cuda.
        seed: of sampling.
    """

    model: Path
    path: Path | None = None
    task: str | None = None
    template: str = "chat"
    max_new_tokens: int = 1024
    limit: int | None = None
    samples: int = 1
    temperature: float = 0.0
    output: Path | None = None
    device: str = "cpu"
    seed: int = 0
