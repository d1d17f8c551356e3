"""What θ̂ and the reference cost as slots, and as models of their own: bytes a parameter, and the time of an exchange.

python tools/bench_slots.py [--hidden 384] [--layers 4] [--repeats 7]

Real BRIDGE steps on a random Qwen2-shaped model, in one process and in two (gloo, on the CPU). Bytes are those of the
tensors that are there between two passes, by storage, each once; what w holds is left out. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import timeit
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bridge_mcore.checkpoint.hf import base_parameters
from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.methods.bridge import Bridge
from bridge_mcore.model.gpt import build_chunks
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.platform.ranks import free_port
from bridge_mcore.slots.slot import Slot
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy
from bridge_mcore.training.step import Updater

#: name -> (processes, parallel)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {"data": 1}),
    "DP 2": (2, {"data": 2, "distributed_optimizer": False}),
    "DP 2, DistributedOptimizer": (2, {"data": 2}),
}
DTYPES = ("float32", "bfloat16")
AUXILIARY = {"same": ("same", "none"), "sgd": ("sgd", "none"), "same, offloaded": ("same", "pinned_cpu")}
REFERENCE = {"none": None, "on": "none", "offloaded": "pinned_cpu"}


class Count:
    """Bytes of storages by part; a storage counts once, for the part that names it first."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.bytes: Counter[str] = Counter()

    def add(self, part: str, tensors: Iterable[Tensor], without: Iterable[Tensor] = ()) -> None:
        """Count the storages of `tensors`, less the bytes of w's tensors among them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.seen:
                self.seen.add(storage.data_ptr())
                self.bytes[part] += storage.nbytes()
        self.bytes[part] -= sum(t.nbytes for t in without)


def state_tensors(state: dict) -> list[Tensor]:
    return [v for v in state.values() if torch.is_tensor(v)]


def count_policy(policy: Policy) -> Counter[str]:
    """What this rank holds between two passes."""
    count, optimizer = Count(), policy.optimizer
    parameters = [p for chunk in policy.chunks for p in chunk.parameters()]
    w = [p for p in parameters if getattr(p, "is_adapter", False)]
    count.add("live", parameters, without=w)
    buffers = [b for model in policy.model for b in (*model.buffers, *model.expert_parallel_buffers)]
    count.add("gradients", (b.grad_data for b in buffers), without=(p.main_grad for p in w))
    for m in optimizer.pairs["base"]:
        count.add("masters and moments", [m.value, *state_tensors(optimizer.state(m))])
    for name, part in (("theta_hat", "θ̂"), ("reference", "reference")):
        if slot := policy.slots.get(name):
            tensors = [*slot.values, *(t for state in slot.states for t in state_tensors(state))]
            count.add(f"{part}, host" if slot.offload else part, tensors)
    return count.bytes


def config_of(parallel: dict[str, Any], dtype: str, auxiliary: str, offload: str, reference: str | None) -> Config:
    return Config.model_validate(
        {
            "model": {"dtype": dtype},
            "parallel": parallel,
            "auxiliary": {"optimizer": auxiliary},
            "objective": {"kl_coefficient": 0.0 if reference is None else 0.1},
            "slots": {"theta_hat": {"offload": offload}, "reference": {"offload": reference or "none"}},
        }
    )


def batch_of(count: int = 4, length: int = 24) -> list[Sample]:
    """Traces and rollouts with random tokens, the same on every rank."""
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(count):
        tokens = torch.randint(0, 1000, (length,), generator=g).tolist()
        rolled = Sample(RL, tokens, 4, (-1.0) ** i, [-7.0] * (length - 4))
        samples.append(rolled if i % 2 else Sample(SFT, tokens, 4))
    return samples


def run_slots(config: Config, platform: Platform, source: Path) -> Policy:
    """Two BRIDGE steps with slots."""
    reference = config.objective.kl_coefficient > 0
    policy = build_policy(config, platform, source, adapter=True, auxiliary=True, reference=reference)
    updater = Updater(policy, PassRunner(policy, config.objective, 512), config.auxiliary)
    for _ in range(2):
        batch = batch_of()
        updater.fill_reference(batch)
        updater.update(Bridge(config).passes(0), batch, 1e-5, 1e-5)
    return policy


def count_naive(config: Config, platform: Platform, source: Path) -> Counter[str]:
    """θ, a second model with an optimizer for θ̂, and a third model's weights for the reference, all at once."""
    models = [build_policy(config, platform, source, adapter=True, auxiliary=False, reference=False) for _ in range(2)]
    for policy in models:
        policy.optimizer.release_gradients()
        PassRunner(policy, config.objective, 512).run(batch_of(), {RL: 1.0})
        policy.optimizer.gather_gradients()
        policy.optimizer.step("base")
        policy.optimizer.publish()
        policy.optimizer.release_gradients()
    first, second = (count_policy(policy) for policy in models)
    third = Count()
    chunks = build_chunks(models[0].shape, config.parallel, getattr(torch, config.model.dtype), platform.device)
    third.add("reference", (p for chunk in chunks for p in chunk.parameters()))
    return first + Counter({"θ̂": sum(second.values())}) + third.bytes


class Allocations(TorchDispatchMode):
    """The most bytes that torch's operations held at once, beyond what was there before. Not gloo's own buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                if key in self.held or key not in given:
                    self._hold(tensor, key, size)
        return out

    def _hold(self, tensor: Tensor, key: int, size: int) -> None:
        if not self.held[key]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.held[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.held[key] -= 1
        if not self.held[key]:
            del self.held[key]
            self.now -= size


def seconds(function: Callable[[], Any]) -> float:
    dist.barrier()
    return timeit.timeit(function, number=1)


def time_exchange(policy: Policy, slot: Slot, repeats: int) -> dict[str, float]:
    """One way into or out of a visit: its time, that of copying the slot's bytes once, and its peak of extra memory."""

    def exchange() -> None:
        slot._exchange()
        policy.optimizer.publish()

    source, target = torch.ones(slot.nbytes() // 4), torch.ones(slot.nbytes() // 4)
    exchanges, copies, gathers = [], [], []
    for _ in range(repeats):
        exchanges.append((seconds(exchange) + seconds(exchange)) / 2)
        copies.append(seconds(lambda: target.copy_(source)))
        gathers.append(seconds(policy.optimizer.publish))
    with Allocations() as allocations:
        exchange()
    exchange()
    return {
        "exchange": statistics.median(exchanges), "publish": statistics.median(gathers),
        "copy": statistics.median(copies), "bytes": slot.nbytes(), "peak": allocations.peak,
        "largest": max(value.nbytes for value in slot.values),
    }  # fmt: skip


def measure(rank: int, world: int, port: int, source: Path, out: Path, repeats: int) -> None:
    """All layouts of this number of processes; rank 0 leaves what it found in `out`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()})
    platform = setup_device("cpu")
    found: dict[Any, Any] = {}
    with joined_world(platform):
        for (name, (count, parallel)), dtype in itertools.product(LAYOUTS.items(), DTYPES):
            if count != world:
                continue
            with layout_groups(config_of(parallel, dtype, "same", "none", None).parallel, seed=0):
                for hat, reference in itertools.product(AUXILIARY, REFERENCE):
                    config = config_of(parallel, dtype, *AUXILIARY[hat], REFERENCE[reference])
                    policy = run_slots(config, platform, source)
                    found[name, dtype, hat, reference] = count_policy(policy)
                    if reference == "none" and hat != "sgd":
                        found[name, dtype, hat, "time"] = time_exchange(policy, policy.slots["theta_hat"], repeats)
                found[name, dtype, "naive"] = count_naive(config, platform, source)
                found["parameters"] = sum(p.numel() for p in base_parameters(policy.chunks).values())
    if rank == 0:
        torch.save(found, out)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    header = list(header)
    for row in (header, ["---"] + ["--:"] * (len(header) - 1), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def report(found: dict[Any, Any]) -> None:
    """Print the tables. Bytes a base parameter, of one rank."""
    parameters = found["parameters"]
    columns = list(itertools.product(LAYOUTS, DTYPES))
    header = ["", *map(", ".join, columns)]

    def cell(value: float) -> str:
        return f"{value / parameters:.2f}"

    print(f"{parameters:,} base parameters. Bytes a parameter and rank.\n\nEach part, by itself:\n")
    same = ("same", "on")
    parts = [(part, same, part) for part in ("live", "gradients", "masters and moments")]
    parts += [("θ̂ same", same, "θ̂"), ("θ̂ sgd", ("sgd", "on"), "θ̂"), ("reference", same, "reference")]
    rows = [[label, *(cell(found[(*c, *key)][part]) for c in columns)] for label, key, part in parts]
    for label, part in (("second model for θ̂", "θ̂"), ("third model's weights", "reference")):
        rows.append([label, *(cell(found[(*c, "naive")][part]) for c in columns)])
    table(header, rows)

    print("Total of all parts on the device + on the host, for every choice:\n")
    rows = []
    for hat, reference in itertools.product(AUXILIARY, REFERENCE):
        row = [f"θ̂ {hat}; reference {reference}"]
        for c in columns:
            bytes_of = found[(*c, hat, reference)]
            host = sum(v for part, v in bytes_of.items() if part.endswith("host"))
            row.append(cell(sum(bytes_of.values()) - host) + (f" + {cell(host)}" if host else ""))
        rows.append(row)
    naive = [found[(*c, "naive")] for c in columns]
    rows.append(["whole models; no reference", *(cell(sum(n.values()) - n["reference"]) for n in naive)])
    rows.append(["whole models; reference", *(cell(sum(n.values())) for n in naive)])
    table(header, rows)

    print("One exchange of θ̂ (half a visit), against copying θ̂'s bytes once:\n")
    rows = []
    for c, hat in itertools.product(columns, ("same", "same, offloaded")):
        t = found[(*c, hat, "time")]
        numbers = [t["bytes"] / 2**20, t["exchange"] * 1e3, t["publish"] * 1e3, t["copy"] * 1e3]
        numbers += [t["exchange"] / t["copy"], t["peak"] / 2**20, t["largest"] / 2**20]
        rows.append([f"{', '.join(c)}, θ̂ {hat}", *(f"{n:.2f}" for n in numbers)])
    names = "θ̂, MiB", "exchange, ms", "of it publishing, ms", "copy, ms", "ratio", "extra at peak, MiB"
    table(["", *names, "largest tensor, MiB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("hidden", 384), ("layers", 4), ("repeats", 7)):
        parser.add_argument(f"--{option}", type=int, default=default)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "model", Path(name) / "found"
        heads = args.hidden // 64
        config = transformers.Qwen2Config(
            vocab_size=1000, hidden_size=args.hidden, intermediate_size=4 * args.hidden, tie_word_embeddings=True,
            num_hidden_layers=args.layers, num_attention_heads=heads, num_key_value_heads=heads,
        )  # fmt: skip
        transformers.Qwen2ForCausalLM(config).save_pretrained(source)
        for world in sorted({count for count, _ in LAYOUTS.values()}):
            torch.multiprocessing.spawn(measure, (world, free_port(), source, out, args.repeats), world)
            found |= torch.load(out, weights_only=False)
    report(found)


if __name__ == "__main__":
    main()
