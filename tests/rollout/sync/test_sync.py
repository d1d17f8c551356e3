"""The policy that acts is the policy that learns: real servers, every kind of sync, several layouts of the trainer.

After each sync the server's fp32 log-probabilities of what it sampled agree within 1e-5 with the trainer's, and with
transformers + peft on the exported base and adapter, which shares no code with the sync.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from bridge_mcore.config.engines import default_python
from tests.models import save_tiny, tiny_hf
from tests.parallel.processes import run_ranks
from tests.support.servers import ROOT, real_server

TOLERANCE = 1e-5
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WAYS = [[method, adapter] for method in ("disk", "tensor", "distributed") for adapter in ("merged", "adapter")]
LAYOUTS: dict[str, dict[str, Any]] = {"tp1": {}, "tp2": {"tensor": 2}, "pp2": {"pipeline": 2}}


def independent(directory: Path, rollout: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a rollout's tokens under base + adapter, by transformers and peft."""
    base = transformers.AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, directory / "adapter").eval()
    prompt, tokens = rollout["prompt"], rollout["tokens"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


def check(out: Path, ways: list[list[str]]) -> None:
    """What a sync job has left."""
    for number, way in enumerate(("-".join(w) for w in ways), start=1):
        result = json.loads((out / f"{way}.json").read_text())
        assert result["gap"] <= TOLERANCE, way
        assert result["unchanged"], f"{way} changed the trainer's weights"
        assert result["metrics"]["sync_probe_gap"] <= TOLERANCE and result["metrics"]["sync_mib"] > 0
        assert result["again"] == {}, "nothing has changed, so nothing is sent"
        assert result["counts"]["rollouts_stale"] == 0 and result["counts"]["server_losses"] == 0
        for rollout in result["rollouts"]:
            assert rollout["version"] == number and rollout["spans"] == [[number, len(rollout["tokens"])]]
            expected = independent(out / way, rollout)
            assert (expected - torch.tensor(rollout["logprobs"])).abs().max() <= TOLERANCE, way


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose vocabulary divides neither over tensor ranks nor into the engine's padding."""
    directory = tmp_path_factory.mktemp("model")
    save_tiny("qwen2_untied", directory, vocab=121)
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real SGLang server."""
    directory = tmp_path_factory.mktemp("server")
    with real_server(model, directory, lora_rank=4, lora_targets=PROJECTIONS) as running:
        yield running.url


def start(tmp_path: Path, plan: dict[str, Any], ranks: int) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run_ranks(ranks, "tests.rollout.sync.sync_job", str(tmp_path / "plan.json"), str(tmp_path), timeout=300)


@pytest.mark.slow
def test_experts_of_two_ranks_arrive(tmp_path: Path, seed: int) -> None:
    """Qwen3-MoE, untied (SGLang's has no tied output layer), its experts on two expert-parallel ranks."""
    tied = tiny_hf("qwen3_moe")
    config, tensors = tied.config, tied.state_dict()
    config.tie_word_embeddings = False
    untied = transformers.Qwen3MoeForCausalLM(config)
    untied.load_state_dict(tensors | {"lm_head.weight": tensors["lm_head.weight"] * 0.9})
    untied.save_pretrained(tmp_path / "model")
    ways = [[method, "merged"] for method in ("disk", "tensor", "distributed")]
    with real_server(tmp_path / "model", tmp_path) as running:
        plan = {
            "engine": "sglang", "url": running.url, "model": str(tmp_path / "model"), "ways": ways,
            "parallel": {"expert": 2, "data": 2}, "seed": seed % 1000, "bucket_mib": 20 / 1024,
        }  # fmt: skip
        start(tmp_path, plan, ranks=2)
    check(tmp_path, ways)


def test_vllm_has_what_was_sent(tmp_path: Path, seed: int) -> None:
    """The real vLLM server, from TP2; Qwen3, because its attention wants heads of 32."""
    if not (ROOT / default_python("vllm")).is_file():
        pytest.skip("vLLM is not installed: run `make engine-vllm`")
    model = tmp_path / "model"
    save_tiny("qwen3", model)
    with real_server(model, tmp_path, engine="vllm", lora_rank=4, lora_targets=PROJECTIONS) as running:
        plan = {
            "engine": "vllm", "url": running.url, "model": str(model), "parallel": LAYOUTS["tp2"], "ways": WAYS,
            "seed": seed % 1000, "bucket_mib": 20 / 1024,
        }  # fmt: skip
        start(tmp_path, plan, ranks=2)
    check(tmp_path, WAYS)


#: In CI those that gather most: whole models, and parts of matrices.
@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=() if n in ("tp1", "tp2") else pytest.mark.slow) for n in LAYOUTS]
)
def test_sglang_has_what_was_sent(layout: str, server: str, model: Path, tmp_path: Path, seed: int) -> None:
    # Buckets of 20 KiB: several of them, one smaller than the embedding.
    plan = {
        "engine": "sglang", "url": server, "model": str(model), "parallel": LAYOUTS[layout], "ways": WAYS,
        "seed": seed % 1000, "bucket_mib": 20 / 1024,
    }  # fmt: skip
    start(tmp_path, plan, ranks=2 if layout != "tp1" else 1)
    check(tmp_path, WAYS)
