"""What `bridge-mcore generate` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bridge_mcore.config.engines import Servers


@dataclass(frozen=True)
class GenerateOptions:
    """One prompt and how to continue it, checked by the command line.

    Attributes:
        model: HF checkpoint directory.
        prompt: the problem, before the template.
        template: how the problem becomes a prompt (`data.template`).
        max_new_tokens: longest continuation, tokens.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability.
        samples: continuations.
        seed: of sampling.
        device: cpu or cuda.
        adapter: PEFT LoRA adapter to put on the model.
        engine: embedded, sglang or vllm.
        servers: of SGLang and vLLM.
    """

    model: Path
    prompt: str
    template: str = "chat"
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    device: str = "cpu"
    adapter: Path | None = None
    engine: str = "embedded"
    servers: Servers = field(default_factory=Servers)
