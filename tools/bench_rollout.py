"""Tokens a second of each engine on the same prompts: embedded, and real SGLang and vLLM servers.

python tools/bench_rollout.py [--engines embedded,sglang,vllm] [--prompts 32] [--samples 4] [--new-tokens 64]
    [--model-shape 30m] [--in-flight 16] [--prompt-tokens 64] [--repeat 3] [--dtype float32] [--json FILE]

A Qwen2-shaped model with random weights in this process. A managed server is started for each of the other engines, one
after the other, gets the weights (w merged) and ends; it needs the engine's virtual environment (`make engines`).
Nothing ends an answer early, so all engines make the same number of tokens, at temperature 1 with log-probabilities.
The first round warms up; the median of --repeat others counts. Every round has new prompts, so that no server has
them in its cache; the samples of one prompt share it, in all engines. Prints a Markdown table, all of one run:

- tokens/s: prompts × samples answers of --new-tokens, at most --in-flight of them at once;
- one request: tokens/s of one answer alone; one token: seconds of one answer of one token (prefill and all overhead);
- gap: mean |log-probability| difference of the answers between engine and trainer.

One thread for each of trainer and server (OMP_NUM_THREADS=1). The trainer waits while a server works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, which reads it once

import numpy as np
from bench_sync import POSITIONS, SHAPES, change, choices, config_of, opened, save_model, table

from bridge_mcore.config.engines import default_python
from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.errors import BridgeError
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import Layout, process_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Engine, Request, Rollout, SamplingParams
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy

ENGINES = ("embedded", "sglang", "vllm")
_SINGLE = 5  # requests of one token are timed so many times


class Load:
    """The same requests for every engine: round after round of new prompts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.generator = np.random.default_rng(1)
        self.key = 0

    def requests(self, prompts: int, samples: int) -> list[Request]:
        """New prompts of random tokens, each `samples` times."""
        found = []
        for _ in range(prompts):
            tokens = self.generator.integers(0, SHAPES[self.args.model_shape][-1], self.args.prompt_tokens).tolist()
            found += [Request(self.key + i, tuple(tokens)) for i in range(samples)]
            self.key += samples
        return found


def timed(engine: Engine, requests: Sequence[Request], new_tokens: int) -> tuple[float, list[Rollout]]:
    """Seconds until all are answered, and the answers."""
    began = time.perf_counter()
    rollouts = engine.generate(requests, SamplingParams(new_tokens))
    seconds = time.perf_counter() - began
    if any(len(r.tokens) != new_tokens for r in rollouts):
        raise RuntimeError(f"an answer does not have {new_tokens} tokens")
    return seconds, rollouts


def measure(engine: Engine, name: str, args: argparse.Namespace, score: Callable[[list[Rollout]], float]) -> dict:
    """All figures of one engine."""
    load = Load(args)
    tokens = args.prompts * args.samples * args.new_tokens
    batches, singles, firsts, gap = [], [], [], 0.0
    for number in range(args.repeat + 1):
        seconds, rollouts = timed(engine, load.requests(args.prompts, args.samples), args.new_tokens)
        alone, _ = timed(engine, load.requests(1, 1), args.new_tokens)
        if number == 0:
            gap = score(rollouts[: args.samples])
        else:
            batches.append(seconds)
            singles.append(alone)
        say(f"· {name}: {tokens / seconds:.0f} tok/s{' (warm-up)' if number == 0 else ''}")
    for _ in range(_SINGLE):
        firsts.append(timed(engine, load.requests(1, 1), 1)[0])
    return {
        "engine": name, "tokens": tokens, "seconds": statistics.median(batches), "range": [min(batches), max(batches)],
        "single": args.new_tokens / statistics.median(singles), "first": statistics.median(firsts), "gap": gap,
    }  # fmt: skip


@contextmanager
def made(
    name: str, config: Config, platform: Platform, layout: Layout, policy: Policy, source: Path, args: Any
) -> Iterator[Engine]:
    """An engine with the live weights."""
    if name == "embedded":
        yield EmbeddedEngine(policy.chunks, args.in_flight)
        return
    say(f"· starting {name}")
    with opened(config, platform, layout, policy, source, args.prompt_tokens + args.new_tokens + 1) as engine:
        engine.refresh(1)
        yield engine


def report(rows: Sequence[dict[str, Any]], args: argparse.Namespace, parameters: int) -> None:
    """Print the table."""
    print(
        f"\n{args.model_shape} ({parameters:,} base parameters) in {args.dtype}; {args.prompts} prompts of "
        f"{args.prompt_tokens} tokens × {args.samples} samples × {args.new_tokens} new tokens, {args.in_flight} in "
        f"flight. Median of {args.repeat}.\n"
    )
    embedded = next((r for r in rows if r["engine"] == "embedded"), None)

    def ratio(value: float, base: float | None) -> str:
        return "–" if base is None else f"{value / base:.2f}"

    lines = []
    for row in rows:
        speed = row["tokens"] / row["seconds"]
        slow, fast = (row["tokens"] / seconds for seconds in reversed(row["range"]))
        base = embedded or {}
        lines.append([
            row["engine"], f"{row['seconds']:.2f}", f"{speed:.0f}", f"{slow:.0f}–{fast:.0f}",
            ratio(speed, base["tokens"] / base["seconds"] if base else None), f"{row['single']:.1f}",
            ratio(row["single"], base.get("single")), f"{row['first']:.3f}", ratio(row["first"], base.get("first")),
            f"{row['gap']:.1e}",
        ])  # fmt: skip
    names = "engine", "s", "tokens/s", "range", "/ embedded", "one request, tokens/s", "/ embedded", "one token, s"
    table([*names, "/ embedded", "gap"], lines)


def run(args: argparse.Namespace, directory: Path) -> None:
    """All engines, one after the other."""
    platform, source = setup_device("cpu"), directory / "model"
    say(f"· making a {args.model_shape} model")
    save_model(args.model_shape, args.dtype, source)

    def config_for(engine: str) -> Config:
        return config_of(
            source, directory / engine, engine, args.dtype, None, servers={"in_flight": args.in_flight}
        )  # fmt: skip

    rows = []
    with process_groups(platform, config_for("embedded").parallel, seed=0) as layout:
        policy = build_policy(
            config_for("embedded"), platform, source, adapter=True, auxiliary=False, reference=False
        )  # fmt: skip
        change(policy)
        # The embedded engine computes θ and w apart, servers θ + (α/r)BA.
        runner = PassRunner(policy, config_for("embedded").objective, 4096)

        def score(rollouts: list[Rollout]) -> float:
            samples = [Sample(RL, (*r.prompt, *r.tokens), len(r.prompt)) for r in rollouts]
            gaps = [
                np.abs(values.double().numpy() - np.asarray(r.logprobs, dtype=np.float64)).mean()
                for values, r in zip(runner.score(samples), rollouts, strict=True)
            ]
            return float(np.mean(gaps))

        for name in args.engines:
            with made(name, config_for(name), platform, layout, policy, source, args) as engine:
                rows.append(measure(engine, name, args, score))
        shared = sum(p.numel() for c in policy.chunks for n, p in c.named_parameters() if ".lora." not in n)
    report(rows, args, shared)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "arguments": vars(args)}, default=str, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=choices(ENGINES), default=list(ENGINES), metavar=",".join(ENGINES))
    parser.add_argument("--model-shape", choices=tuple(SHAPES), default="30m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    sizes = {"prompts": 32, "samples": 4, "new-tokens": 64, "prompt-tokens": 64, "in-flight": 16, "repeat": 3}
    for option, default in sizes.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--directory", type=Path, help="for model and servers' logs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    args = parser.parse_args()
    if args.prompt_tokens + args.new_tokens >= POSITIONS:
        parser.error(f"the models' context is {POSITIONS} tokens")
    for engine in args.engines:  # before anything is measured
        if engine != "embedded" and not default_python(engine).is_file():
            parser.error(f"{default_python(engine)} is not there: run `make engine-{engine}`, or leave {engine} out")
    with tempfile.TemporaryDirectory() as name:
        try:
            run(args, args.directory or Path(name))
        except BridgeError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
