"""What one sync of the weights to a real server costs, for each way that they can go: time, its parts, memory.

python tools/bench_sync.py [--engine sglang] [--model-shape 135m] [--methods disk,tensor,distributed] [--adapter merged]
    [--bucket-mib 64,256] [--repeat 3] [--dtype float32] [--trace] [--json FILE]

A Qwen2-shaped model with random weights (θ, and w of rank 16 with B ≠ 0) in this process, and one managed server of the
same machine, which needs the engine's virtual environment (`make engines`, or --python). θ and w change before every
sync; the first one of each kind warms up and is not counted. Prints Markdown tables, all of one run:

- sync: seconds until the server holds the weights and says so, without the proof (median of --repeat);
- probe: seconds of the probe's log-probabilities, on both sides; checksums: what comparing every tensor's digest adds.
  sync.check = auto pays both;
- copies: the sync's time in units of one torch copy of the same tensors, measured in the same run; disk: of the sync
  through a directory;
- extra: resident high-water mark of this process while it sends, above what it held just before, in MiB and in units of
  sync.bucket_mib; a bucket is at least as large as the largest group of tensors that is never cut.

--adapter adapter starts the server with a live adapter: θ and w are sent apart, and a last row sends w alone. --trace
prints every request to the server in milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, which reads it once

import torch
import transformers
from torch import Tensor

from bridge_mcore.config.schema import Config
from bridge_mcore.errors import BridgeError
from bridge_mcore.methods.base import THETA
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import Layout, process_groups
from bridge_mcore.rollout.remote.build import EngineRoom
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.rollout.sync.source import Source
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy

MIB = 2**20
#: name -> (hidden, mlp, layers, heads, key-value heads, vocabulary); tied embeddings
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (64, 96, 4, 2, 1, 120),
    "30m": (384, 1024, 8, 6, 2, 32000),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
}
POSITIONS = 2048


def save_model(name: str, dtype: str, directory: Path) -> None:
    """A Qwen2-shaped HF checkpoint with random weights."""
    hidden, mlp, layers, heads, groups, vocabulary = SHAPES[name]
    config = transformers.Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=True,
        max_position_embeddings=POSITIONS, rms_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory)


def config_of(source: Path, directory: Path, engine: str, dtype: str, python: Path | None, **sections: Any) -> Config:
    """The configuration of a run with one managed server. sections: more of it, by section."""
    servers = {"in_flight": 16, "python": python} | sections.pop("servers", {})
    return Config.model_validate(
        {
            "run": {"directory": directory}, "model": {"path": source, "dtype": dtype},
            "adapter": {"rank": 16, "alpha": 32}, "rollout": {"engine": engine}, "servers": servers, **sections,
        }
    )  # fmt: skip


@contextmanager
def opened(
    config: Config, platform: Platform, layout: Layout, policy: Policy, source: Path, context: int
) -> Iterator[RemoteEngine]:
    """The engine of a managed server, which ends with the context."""
    runner = PassRunner(policy, config.objective, 1024)
    room = EngineRoom(config, platform, layout, source, policy.shape, policy.lora, context)
    try:
        engine = room.open(policy.live_source(), runner.score_prompts)[0]
        yield engine
        engine.close()
    finally:
        room.close()


@torch.no_grad()
def change(policy: Policy, theta: bool = True) -> None:
    """Other live values of w and, if asked for, θ."""
    for chunk in policy.chunks:
        for name, p in chunk.named_parameters():
            if ".lora.B." in name:
                p.normal_(std=0.01)
            elif ".lora." not in name and theta:
                p.mul_(1.01)
    policy.changes[THETA] += theta


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {key} in /proc/self/status")


def reset_high_water(platform: Platform) -> float:
    """Give freed memory back and let the high-water mark begin anew. Returns the present level, MiB."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    platform.reset_peak()
    return resident("VmRSS")


class Watch:
    """Times the parts of a sync from outside: requests to the server, the proof, and the memory before the proof."""

    def __init__(self, engine: RemoteEngine) -> None:
        self.calls: list[tuple[str, float, float]] = []  # what, start, end
        self.probe = 0.0
        self.level = 0.0  # high-water mark when the probe begins, MiB
        self._ask = engine.http.ask
        self._check = engine.delivery._check_probe
        engine.http.ask = self._timed_ask  # type: ignore[method-assign]
        engine.delivery._check_probe = self._timed_check  # type: ignore[method-assign, assignment]

    async def _timed_ask(self, method: str, url: str, body: Any = None, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return await self._ask(method, url, body, **kwargs)
        finally:
            name = body.get("method") if isinstance(body, dict) and url.endswith("/collective_rpc") else None
            self.calls.append((name or url.split("/", 3)[3], began, time.perf_counter()))

    def _timed_check(self, *args: Any) -> None:
        self.level = resident("VmHWM")
        began = time.perf_counter()
        self._check(*args)
        self.probe = time.perf_counter() - began


class Bench:
    """Syncs to one server."""

    def __init__(self, engine: RemoteEngine, policy: Policy, platform: Platform, args: argparse.Namespace) -> None:
        self.engine, self.policy, self.platform, self.args = engine, policy, platform, args
        self.watch = Watch(engine)
        self.version = 0

    def once(self, theta: bool) -> dict[str, float]:
        """One sync, timed."""
        self.version += 1
        change(self.policy, theta)
        before = reset_high_water(self.platform)
        self.watch.calls.clear()
        self.watch.probe, self.watch.level = 0.0, 0.0
        began = time.perf_counter()
        metrics = self.engine.refresh(self.version)
        total = time.perf_counter() - began
        return {
            "total": total, "probe": self.watch.probe, "sync": total - self.watch.probe, "mib": metrics["sync_mib"],
            "extra": self.watch.level - before, "extra_proof": resident("VmHWM") - before, "began": began,
        }  # fmt: skip

    def measure(self, method: str, adapter: str, bucket: float, theta: bool = True) -> dict[str, Any]:
        """Medians of one way, with the probe alone and with checksums too."""
        delivery = self.engine.delivery
        delivery.method = method
        row: dict[str, Any] = {"method": method if theta else "w alone", "adapter": adapter, "bucket": bucket}
        for check in ("probe", "auto"):
            settings = {"bucket_mib": bucket, "check": check, "method": method}
            delivery.settings = delivery.settings.model_copy(update=settings)
            self.once(theta)  # warm-up
            runs = [self.once(theta) for _ in range(self.args.repeat)]
            for key in ("total", "probe", "sync", "mib", "extra", "extra_proof"):
                row[f"{check}_{key}"] = statistics.median(run[key] for run in runs)
            row[f"{check}_spread"] = [min(r["sync"] for r in runs), max(r["sync"] for r in runs)]
            row[f"{check}_calls"] = [
                (name, (start - runs[-1]["began"]) * 1e3, (end - start) * 1e3) for name, start, end in self.watch.calls
            ]
        if not theta:
            files = (delivery.directory / f"{delivery.adapters[self.engine.fleet.urls[0]]}").glob("*.safetensors")
            row["probe_mib"] = sum(file.stat().st_size for file in files) / MIB
        label = f"{row['method']}, {adapter}" + (f", {bucket:g} MiB" if method != "disk" and theta else "")
        say(f"· {label}: {row['probe_sync']:.3f} s, with its proof {row['auto_total']:.3f} s")
        return row


def sizes_and_copy(policy: Policy, source: Source, repeat: int) -> dict[str, float]:
    """Bytes of θ as it is sent, of its largest tensor and uncut group, and the seconds of one copy of all."""
    groups = [[t.detach().clone() for _, t in pairs] for pairs in source.groups(False)]
    tensors: list[Tensor] = [t for group in groups for t in group]
    targets = [torch.zeros_like(t) for t in tensors]
    times = []
    for _ in range(max(repeat, 3)):
        began = time.perf_counter()
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
        times.append(time.perf_counter() - began)
    return {
        "mib": sum(t.nbytes for t in tensors) / MIB, "tensors": len(tensors), "copy": statistics.median(times),
        "largest": max(t.nbytes for t in tensors) / MIB,
        "group": max(sum(t.nbytes for t in group) for group in groups) / MIB,
        "parameters": sum(t.numel() for t in tensors),
    }  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """Print a Markdown table."""
    rule = ["---"] * text_columns + ["--:"] * (len(header) - text_columns)
    for row in (header, rule, *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def report(rows: Sequence[dict[str, Any]], sizes: dict[str, float], args: argparse.Namespace) -> None:
    """Print the tables."""
    print(
        f"\n{args.engine}, {args.model_shape} ({sizes['parameters']:,.0f} base parameters, {sizes['tensors']:.0f} "
        f"tensors) in {args.dtype}: {sizes['mib']:.1f} MiB, largest tensor {sizes['largest']:.1f} MiB, largest uncut "
        f"group {sizes['group']:.1f} MiB; one copy of all: {sizes['copy']:.4f} s = {sizes['mib'] / sizes['copy']:.0f} "
        f"MiB/s. Median of {args.repeat}.\n"
    )
    lines = []
    for row in rows:
        disk = next((r for r in rows if (r["method"], r["adapter"]) == ("disk", row["adapter"])), None)
        alone, seconds = row["method"] == "w alone", row["probe_sync"]
        buckets = row["method"] not in ("disk", "w alone")
        lines.append([
            row["method"], row["adapter"], f"{row['bucket']:g}" if buckets else "–",
            f"{seconds:.3f}", "{:.3f}–{:.3f}".format(*row["probe_spread"]), f"{row['probe_mib']:.1f}",
            f"{row['probe_mib'] / seconds:.0f}", "–" if alone else f"{seconds / sizes['copy']:.1f}",
            "–" if disk is None else f"{seconds / disk['probe_sync']:.2f}",
            f"{row['probe_probe']:.3f}", "–" if alone else f"{row['auto_sync'] - seconds:.3f}",
            f"{row['auto_total']:.3f}",
        ])  # fmt: skip
    names = "way", "adapter", "bucket", "sync, s", "range, s", "MiB", "MiB/s", "copies", "disk", "probe, s"
    table([*names, "checksums, s", "all, s"], lines, 2)
    lines = []
    for row in rows:
        buckets = row["method"] not in ("disk", "w alone")
        lines.append([
            row["method"], row["adapter"], f"{row['bucket']:g}" if buckets else "–", f"{row['probe_extra']:.0f}",
            f"{row['probe_extra'] / row['bucket']:.2f}" if buckets else "–",
            f"{row['probe_extra'] / sizes['mib']:.2f}", f"{row['auto_extra_proof']:.0f}",
        ])  # fmt: skip
    table(["way", "adapter", "bucket", "extra, MiB", "buckets", "models", "with the proof, MiB"], lines, 2)
    if args.trace:
        for row in rows:
            print(f"{row['method']}, {row['adapter']}, {row['bucket']:g} MiB, sync.check = auto; request: start + ms")
            for name, start, took in row["auto_calls"]:
                print(f"    {name:32} {start:9.1f} + {took:8.1f}")
            print(f"    {'end':32} {row['auto_total'] * 1e3:9.1f}  (median)\n", flush=True)


def choices(allowed: Sequence[str] | None, kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    """A comma-separated option."""

    def parse(text: str) -> list[Any]:
        values = [kind(v.strip()) for v in text.split(",") if v.strip()]
        if wrong := [v for v in values if allowed is not None and v not in allowed]:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(allowed or ())}")
        return values

    return parse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("sglang", "vllm"), default="sglang")
    parser.add_argument("--python", type=Path, help="the engine's interpreter (default: .venv-ENGINE/bin/python)")
    parser.add_argument("--model-shape", choices=tuple(SHAPES), default="135m")
    ways = ["disk", "tensor", "distributed"]
    parser.add_argument("--methods", type=choices(ways), default=ways, metavar=",".join(ways))
    parser.add_argument("--adapter", type=choices(["merged", "adapter"]), default=["merged"], metavar="merged,adapter")
    parser.add_argument("--bucket-mib", type=choices(None, float), default=[64.0, 256.0], metavar="64,256")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--trace", action="store_true", help="print every request to the server")
    parser.add_argument("--directory", type=Path, help="for model and servers' logs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    return parser.parse_args()


def run(args: argparse.Namespace, directory: Path) -> None:
    """All ways to servers of one engine."""
    platform = setup_device("cpu")
    source = directory / "model"
    rows: list[dict[str, Any]] = []
    sizes: dict[str, float] = {}
    say(f"· making a {args.model_shape} model")
    save_model(args.model_shape, args.dtype, source)
    for adapter in args.adapter:
        config = config_of(source, directory / adapter, args.engine, args.dtype, args.python, sync={"adapter": adapter})
        with process_groups(platform, config.parallel, seed=0) as layout:
            policy = build_policy(config, platform, source, adapter=True, auxiliary=False, reference=False)
            sizes = sizes or sizes_and_copy(policy, policy.live_source(), args.repeat)
            say(f"· starting {args.engine} (adapter: {adapter})")
            with opened(config, platform, layout, policy, source, context=128) as engine:
                bench = Bench(engine, policy, platform, args)
                for method in args.methods:
                    for bucket in args.bucket_mib if method != "disk" else args.bucket_mib[:1]:
                        rows.append(bench.measure(method, adapter, bucket))
                if adapter == "adapter":
                    rows.append(bench.measure(args.methods[-1], adapter, args.bucket_mib[-1], theta=False))
    report(rows, sizes, args)
    if args.json:
        args.json.write_text(json.dumps({"sizes": sizes, "rows": rows, "arguments": vars(args)}, default=str, indent=1))


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        try:
            run(args, args.directory or Path(name))
        except BridgeError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
