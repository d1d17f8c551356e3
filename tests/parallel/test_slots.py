"""θ̂ as a slot against θ̂ as a whole second model, and the reference's visits, bit for bit in real processes (gloo).

One job goes through all layouts: starting processes is what costs time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models import MOE, save_tiny
from tests.parallel.processes import run_ranks
from tests.parallel.test_layouts import fresh_seed

#: How a slot may be kept: where it waits, and whether live weights are gathered while the forward pass runs.
KEPT = {"none": {"offload": "none"}, "pinned_cpu": {"offload": "pinned_cpu"}}
OVERLAPPED = {f"overlap-{name}": {**kept, "overlap": True} for name, kept in KEPT.items()}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "dp2-distopt": ({"parallel": {"data": 2}}, KEPT | OVERLAPPED),
    "dp2": ({"parallel": {"data": 2, "distributed_optimizer": False}}, KEPT),
    "tp2": ({"parallel": {"tensor": 2}}, KEPT),
    "cp2-distopt": ({"parallel": {"context": 2}}, KEPT),
    "dp2-distopt-sgd": (
        {"parallel": {"data": 2}, "auxiliary_optimizer": "sgd"},
        {"overlap-pinned_cpu": OVERLAPPED["overlap-pinned_cpu"]},
    ),
    # experts are stepped by a Megatron optimizer of their own
    "ep2-dp2": ({"parallel": {"data": 2, "expert": 2}, "family": MOE}, KEPT),
}
#: In bf16 live weights are copies of the masters, which differs between sharded and whole masters and in experts.
_ROUNDED = ("dp2-distopt", "dp2", "ep2-dp2")
PLAN = [
    {**entry, "dtype": dtype, "variants": {f"{layout}-{dtype}-{name}": kept for name, kept in variants.items()}}
    for layout, (entry, variants) in LAYOUTS.items()
    for dtype in ("float32", "bfloat16")
    if dtype == "float32" or layout in _ROUNDED
]
CASES = [name for entry in PLAN for name in entry["variants"]]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root, seed = tmp_path_factory.mktemp("slots"), fresh_seed()
    for family in ("qwen2_untied", MOE):
        save_tiny(family, root / family, seed=seed % 1000)
    plan = [{**entry, "seed": seed, "model": str(root / entry.get("family", "qwen2_untied"))} for entry in PLAN]
    (root / "plan.json").write_text(json.dumps(plan))
    run_ranks(2, "tests.parallel.slots_job", str(root / "plan.json"), str(root), timeout=300)
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_slot_is_exact_in_two_processes(results, name):
    for rank in range(2):
        found = json.loads((results / f"{name}-{rank}.json").read_text())
        assert len(found) >= 15
        assert [claim for claim, holds in found.items() if not holds] == [], f"rank {rank}"
