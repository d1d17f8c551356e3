"""How a slot changes places with θ: waiting in host memory, when a pass fails, and with steps counted per group."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models import save_tiny
from tests.slots.test_slots import passes_of, samples_of


def make(world, source, dtype="float32", offload="none", reference=False):
    from bridge_mcore.config.schema import Config
    from bridge_mcore.training.passes import PassRunner
    from bridge_mcore.training.policy import build_policy
    from bridge_mcore.training.step import Updater

    options = {"offload": offload}
    config = Config.model_validate(
        {
            "model": {"dtype": dtype},
            "objective": {"kl_coefficient": 0.0},
            "slots": {"theta_hat": options, "reference": options},
        }
    )
    policy = build_policy(config, world[0], source, adapter=True, auxiliary=True, reference=reference)
    runner = PassRunner(policy, config.objective, 200)
    updater = Updater(policy, runner, config.auxiliary)

    def iterate(seed: int) -> None:
        updater.update(passes_of(config), samples_of(seed), 1e-3, 2e-3)

    return policy, runner, iterate


def everything(policy) -> list[Tensor]:
    """θ, its moments, θ̂, its moments, and the live weights; copies."""
    out = []
    for m in policy.optimizer.pairs["base"]:
        out += [m.value.detach(), m.live.detach()]
        out += [v for _, v in sorted(policy.optimizer.state(m).items())]
    for slot in policy.slots.values():
        out += [*slot.values, *(v for state in slot.states for _, v in sorted(state.items()))]
    return [t.clone() for t in out]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_a_slot_waits_changes_nothing(world, tmp_path, seed, dtype):
    save_tiny("qwen2", tmp_path, seed=seed % 1000)
    results = []
    for offload in ("none", "pinned_cpu"):
        policy, _, iterate = make(world, tmp_path, dtype, offload, reference=True)
        for k in range(3):
            iterate(seed + k)
        results.append(everything(policy))
    assert same(*results)
    values, masters = policy.slots["theta_hat"].values, policy.optimizer.pairs["base"]
    assert not any(torch.equal(v, m.value) for v, m in zip(values, masters, strict=True) if v.dim() > 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_offloaded_slot_stays_in_the_memory_it_was_given(world, tmp_path, dtype):
    """Pinned memory is dear to allocate: once θ and θ̂ have both stepped, contents move and memory does not."""
    save_tiny("qwen2", tmp_path)
    policy, _, iterate = make(world, tmp_path, dtype, "pinned_cpu")
    slot = policy.slots["theta_hat"]

    def places() -> list[int]:
        moments = [s[k] for s in slot.states for k in ("exp_avg", "exp_avg_sq")]
        return [t.data_ptr() for t in (*slot.values, *moments)]

    iterate(1)
    iterate(2)
    before = places()
    iterate(3)
    with slot.swapped():
        assert places() == before
    assert places() == before


@pytest.mark.parametrize("name", ["theta_hat", "reference"])
@pytest.mark.parametrize("offload", ["none", "pinned_cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_that_fails_puts_theta_back(world, tmp_path, dtype, offload, name):
    save_tiny("qwen2", tmp_path)
    policy, runner, iterate = make(world, tmp_path, dtype, offload, reference=True)
    iterate(1)
    before = everything(policy)
    policy.optimizer.release_gradients()
    with pytest.raises(ZeroDivisionError), policy.live(name):
        inside = [m.live.detach().clone() for m in policy.optimizer.pairs["base"]]
        runner.run(samples_of(2), {"sft": 1.0})
        raise ZeroDivisionError
    assert same(everything(policy), before)
    assert not same(inside, [m.live.detach() for m in policy.optimizer.pairs["base"]])


def test_a_first_step_within_a_visit_leaves_theta_without_moments(world, tmp_path):
    """Where θ̂ steps before θ ever has, its new moments and step count go with it."""
    save_tiny("qwen2", tmp_path)
    for offload in ("none", "pinned_cpu"):
        policy, runner, _ = make(world, tmp_path, offload=offload)
        policy.optimizer.set_rates(1e-3, 2e-3)
        policy.optimizer.release_gradients()
        with policy.live("theta_hat"):
            runner.run(samples_of(1), {"rl": 1.0})
            policy.optimizer.gather_gradients()
            policy.optimizer.step("base")
        assert not any(policy.optimizer.state(m) for m in policy.optimizer.pairs["base"])
        assert all(s["step"] == 1 and s["exp_avg"].dim() for s in policy.slots["theta_hat"].states)


class GroupCounter(torch.optim.Optimizer):
    """Counts steps per group, as apex's and Transformer Engine's FusedAdam do, and adds the count to each parameter."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                self.state[p]["seen"] = torch.full_like(p, group["step"])
                p += group["step"]


@pytest.mark.parametrize("offload", ["none", "pinned_cpu"])
def test_steps_that_are_counted_per_group_go_with_their_slot(world, tmp_path, monkeypatch, offload):
    """Also where a group is stepped in several portions, and on the very first step."""
    monkeypatch.setattr("bridge_mcore.slots.optimizer._STEP_ELEMENTS", 5000)
    save_tiny("qwen2", tmp_path)
    policy, runner, _ = make(world, tmp_path, offload=offload)
    optimizer, slot = policy.optimizer, policy.slots["theta_hat"]
    for part in optimizer.parts:
        part.optimizer = GroupCounter(part.optimizer.param_groups)
    optimizer.release_gradients()
    runner.run(samples_of(1), {"sft": 1.0})
    optimizer.gather_gradients()
    start = [m.value.detach().clone() for m in optimizer.pairs["base"]]
    visits = (("theta_hat", 1), ("theta_hat", 2), ("theta", 1), ("theta_hat", 3), ("theta", 2), ("theta", 3))
    for name, count in visits:
        with policy.live(name):
            optimizer.step("base")
            assert all((optimizer.state(m)["seen"] == count).all() for m in optimizer.pairs["base"]), (name, count)
    want = [s + 1 + 2 + 3 for s in start]
    assert all(torch.allclose(m.value, w) for m, w in zip(optimizer.pairs["base"], want, strict=True))
    assert all(torch.allclose(v, w) for v, w in zip(slot.values, want, strict=True))


def test_a_step_that_fails_half_way_leaves_the_groups_whole(world, tmp_path, monkeypatch):
    monkeypatch.setattr("bridge_mcore.slots.optimizer._STEP_ELEMENTS", 5000)
    save_tiny("qwen2", tmp_path)
    policy, runner, _ = make(world, tmp_path)
    optimizer = policy.optimizer
    optimizer.release_gradients()
    runner.run(samples_of(1), {"sft": 1.0})
    optimizer.gather_gradients()
    before = [len(g["params"]) for part in optimizer.parts for g in part.param_groups]

    def fail():
        raise MemoryError

    monkeypatch.setattr(optimizer.parts[0].optimizer, "step", fail)
    with pytest.raises(MemoryError):
        optimizer.step("base")
    assert [len(g["params"]) for part in optimizer.parts for g in part.param_groups] == before
