"""One rank of a world that saves in every layout and loads each checkpoint in every layout.

python -m tests.checkpoint.resharding_job DIRECTORY DTYPE LAYOUT... [-- DIRECTORY DTYPE LAYOUT...]

In the environment: RANK, WORLD_SIZE, STORE (a file), and SAMPLE (how many checkpoints each layout loads) with a SEED.

DIRECTORY/case is a replay case. What a layout should hold is not taken from a checkpoint: θ, w and θ̂ are read from the
case's HF files, by the importer's own idea of how tensors are split, and the moments are made of them.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bridge_mcore.checkpoint.run_state import CheckpointWriter, load_state
from bridge_mcore.config.schema import Config, Parallel
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import layout_groups
from bridge_mcore.training.policy import Policy, build_policy


def parse(layout: str) -> Parallel:
    """Sizes written as `tensor=2,sequence=1`."""
    return Parallel(**{k: int(v) for k, v in (item.split("=") for item in layout.split(","))})


def build(directory: Path, parallel: Parallel, dtype: str) -> Policy:
    config = Config(parallel=parallel)
    config.model.dtype = dtype  # type: ignore[assignment]
    case = directory / "case"
    adapter = case / "adapter"
    policy = build_policy(
        config, setup_device("cpu"), case / "model", adapter=True, auxiliary=True, reference=True,
        adapter_path=adapter if adapter.exists() else None,
    )  # fmt: skip
    policy.load_slot("theta_hat", case / "auxiliary")
    return policy


def moments(value: torch.Tensor, step: int) -> dict[str, Any]:
    """An optimizer state that is a function of the value: whoever has the value knows the moments."""
    value = value.detach().float()
    return {"step": torch.tensor(float(step)), "exp_avg": value * 0.37, "exp_avg_sq": value.square() + 1e-3 * value}


def fill(policy: Policy) -> None:
    """θ has stepped 5 times and θ̂ 7 times; w never has."""
    for m in policy.optimizer.pairs["base"]:
        policy.optimizer.state(m).update(moments(m.value, 5))
    hat = policy.slots["theta_hat"]
    hat.states = [moments(value, 7) for value in hat.values]


def tensors(policy: Policy) -> dict[str, torch.Tensor]:
    """Everything that is restored, on this rank."""
    out = {}
    for group, masters in policy.optimizer.pairs.items():
        for i, m in enumerate(masters):
            out[f"{group} {i}"] = m.value
            out |= {f"{group} {i} {k}": v for k, v in policy.optimizer.state(m).items()}
    for name, slot in policy.slots.items():
        for i, (value, state) in enumerate(zip(slot.values, slot.states, strict=True)):
            out[f"{name} {i}"] = value
            out |= {f"{name} {i} {k}": v for k, v in state.items()}
    for name, parameter in ((n, p) for c in policy.chunks for n, p in c.named_parameters()):
        out[f"live {id(parameter)} {name}"] = parameter
    return {k: v.detach() for k, v in out.items()}


def scramble(policy: Policy) -> None:
    with torch.no_grad():
        for m in (m for masters in policy.optimizer.pairs.values() for m in masters):
            m.value.fill_(float("nan"))
            policy.optimizer.state(m).clear()
        for slot in policy.slots.values():
            for value in slot.values:
                value.fill_(float("nan"))
            slot.states = [{} for _ in slot.values]
        for parameter in (p for c in policy.chunks for p in c.parameters()):
            parameter.fill_(float("nan"))


def save(directory: Path, dtype: str, layout: str) -> torch.Tensor:
    """Save twice in the current layout, the second time by the first one's plan. The random stream's state then."""
    parallel = parse(layout)
    policy = build(directory, parallel, dtype)
    fill(policy)
    # In half of the layouts in the background, with training going on meanwhile.
    background = sum(map(ord, layout)) % 2 == 1
    writer = CheckpointWriter(directory / "saved" / layout, keep=1, asynchronous=background)
    for step in (1, 2):
        torch.manual_seed(100 * dist.get_rank() + step)
        stream = torch.get_rng_state()
        writer.save(policy, step, {"data": [layout, step]}, identity(parallel))
        if step == 2 and background:
            scramble(policy)
    writer.finish()
    return stream


def identity(parallel: Parallel) -> dict[str, Any]:
    return {**parallel.model_dump(), "method": "bridge", "optimizer": "adamw"}


def chosen(saved: list[Path], layout: str) -> list[Path]:
    """The layout's own checkpoint, and some of the others."""
    rng = random.Random(os.environ.get("SEED", "") + layout)
    count = min(int(os.environ.get("SAMPLE", len(saved))), len(saved))
    return [p for p in saved if p.name == layout] + rng.sample([p for p in saved if p.name != layout], count - 1)


def load_all(directory: Path, dtype: str, layout: str, stream: torch.Tensor | None) -> int:
    """Load checkpoints of all layouts in the current one: each bit must be right. Returns how many there were."""
    policy = build(directory, parse(layout), dtype)
    fill(policy)
    want = {k: v.clone() for k, v in tensors(policy).items()}
    saved = chosen(sorted((directory / "saved").iterdir()), layout)
    for source in saved:
        scramble(policy)
        remarks: list[str] = []
        step, extra = load_state(source / "step_00000002", policy, identity(parse(layout)), remarks)
        assert (step, extra) == (2, {"data": [source.name, 2]})
        got = tensors(policy)
        assert got.keys() == want.keys(), (source, layout, set(got) ^ set(want))
        wrong = [k for k in want if not torch.equal(got[k], want[k])]
        assert not wrong, f"{source} -> {layout}: {wrong[:5]} of {len(want)}"
        same = source.name == layout and stream is not None
        assert bool(remarks) != same, remarks
        if same:
            assert torch.equal(torch.get_rng_state(), stream)
    return len(saved)


def main() -> None:
    groups = [g.split() for g in " ".join(sys.argv[1:]).split(" -- ")]
    setup_device("cpu")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    loads = 0
    for directory, dtype, *layouts in groups:
        streams = {}
        for layout in layouts:
            with layout_groups(parse(layout), seed=0):
                streams[layout] = save(Path(directory), dtype, layout)
        for layout in layouts:
            with layout_groups(parse(layout), seed=0):
                loads += load_all(Path(directory), dtype, layout, streams[layout])
    dist.barrier()
    dist.destroy_process_group()
    print(f"{loads} loads are exact")


if __name__ == "__main__":
    main()
