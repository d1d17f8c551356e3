"""How long a checkpoint keeps training waiting: saved at once, and in the background.

python tools/bench_checkpoint.py [--hidden 384] [--layers 5]

One process on the CPU trains a random Qwen2-shaped model's state (θ, w, θ̂, moments); a "step" is a few matrix products.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from bridge_mcore.checkpoint.run_state import CheckpointWriter, load_state
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.training.policy import Policy, build_policy

LAYOUT = {"method": "bridge", "optimizer": "adamw"}


def make_state(directory: Path, hidden: int, layers: int) -> Policy:
    """A policy whose θ and θ̂ have moments."""
    config = transformers.Qwen2Config(
        vocab_size=1000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(directory)
    policy = build_policy(Config(), setup_device("cpu"), directory, adapter=True, auxiliary=True, reference=False)
    for m in policy.optimizer.pairs["base"]:
        policy.optimizer.state(m).update(_moments(m.value))
    slot = policy.slots["theta_hat"]
    slot.states = [_moments(value) for value in slot.values]
    return policy


def _moments(value: torch.Tensor) -> dict[str, torch.Tensor]:
    value = value.detach()
    return {"step": torch.tensor(1.0), "exp_avg": value * 0.1, "exp_avg_sq": value.square()}


def step(matrix: torch.Tensor) -> float:
    """Seconds of a stand-in for a training step."""
    began = time.perf_counter()
    for _ in range(6):
        torch.mm(matrix, matrix)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=5)
    args = parser.parse_args()
    matrix = torch.randn(768, 768)
    with tempfile.TemporaryDirectory() as name, process_groups(setup_device("cpu"), Parallel(), seed=0):
        policy = make_state(Path(name) / "base", args.hidden, args.layers)
        plain = statistics.median(step(matrix) for _ in range(20))
        for asynchronous in (False, True):
            stalls, totals, steps = [], [], []
            writer = CheckpointWriter(Path(name) / "checkpoints", keep=1, asynchronous=asynchronous)
            for number in range(4):
                began = time.perf_counter()
                path = writer.save(policy, number + 1, {}, LAYOUT)
                stall = time.perf_counter() - began
                while asynchronous:
                    steps.append(step(matrix))
                    polled = time.perf_counter()
                    done = writer.poll()
                    stall += time.perf_counter() - polled
                    if done:
                        break
                totals.append(time.perf_counter() - began)
                stalls.append(stall)
            size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
            kind = "background" if asynchronous else "at once"
            slower = f", steps meanwhile ×{statistics.median(steps) / plain:.2f}" if steps else ""
            print(
                f"{size:.0f} MiB {kind}: training waits {statistics.median(stalls):.3f} s, "
                f"complete after {statistics.median(totals):.3f} s{slower}"
            )
        began = time.perf_counter()
        load_state(path, policy, LAYOUT)
        print(f"loaded in {time.perf_counter() - began:.3f} s")


if __name__ == "__main__":
    main()
