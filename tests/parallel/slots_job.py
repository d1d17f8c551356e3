"""Rank program: a slot against a whole second model, bit for bit, in one layout after another within one world.

python -m tests.parallel.slots_job PLAN.json OUT_DIR      # started once per rank

A plan is a list of {"model", "seed", "parallel", "dtype", "auxiliary_optimizer", "variants"}: the second model is run
once, and each variant, NAME -> {"offload", "overlap"}, must agree with it. What each rank finds is left in
OUT_DIR/NAME-RANK.json: a claim -> whether it holds there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.methods.bridge import Bridge
from bridge_mcore.model.lora import adapters_disabled
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import joined_world, layout_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, SamplingParams
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy
from bridge_mcore.training.step import Updater
from tests.slots.test_slots import samples_of

ALPHA, BETA, LAM, ITERATIONS = 1e-3, 2e-3, 0.5, 4


def config_of(entry: dict[str, Any], offload: str = "none", overlap: bool = False) -> Config:
    """The configuration of a plan's entry, and of one of its variants."""
    overlapped = {"overlap_grad_reduce": overlap, "overlap_param_gather": overlap}
    return Config.model_validate(
        {
            "model": {"dtype": entry["dtype"]},
            "method": {"lam": LAM},
            "objective": {"kl_coefficient": 0.0},
            "optimizer": {"alpha": ALPHA, "beta": BETA, "weight_decay": 0.1, "gradient_clip": 0.5},
            "auxiliary": {"optimizer": entry.get("auxiliary_optimizer", "same")},
            "slots": {"theta_hat": {"offload": offload}, "reference": {"offload": offload}},
            "parallel": {**entry["parallel"], **overlapped},
        }
    )


def build(config: Config, platform: Platform, source: Path, slots: bool) -> tuple[Policy, PassRunner]:
    """The model with B ≠ 0, and what runs passes over it."""
    policy = build_policy(config, platform, source, adapter=True, auxiliary=slots, reference=slots)
    policy.optimizer.settle()
    with torch.no_grad():
        for name, p in ((n, p) for chunk in policy.chunks for n, p in chunk.named_parameters()):
            if ".lora.B." in name:  # of equal size: the same values, so that replicas stay replicas
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    for part in policy.optimizer.parts:  # bf16 masters were copied before B was set
        part.reload_model_params()
    policy.optimizer.set_rates(ALPHA, BETA)
    return policy, PassRunner(policy, config.objective, 120)


def state_of(policy: Policy, group: str) -> list[torch.Tensor]:
    """A group's live masters and all of their optimizer state, as they are."""
    out = []
    for m in policy.optimizer.pairs[group]:
        state = policy.optimizer.state(m)
        out += [m.value.detach(), *(torch.as_tensor(state[k]) for k in sorted(state))]
    return out


def slot_of(policy: Policy, name: str) -> list[torch.Tensor]:
    """The same of a slot."""
    slot, out = policy.slots[name], []
    for value, state in zip(slot.values, slot.states, strict=True):
        out += [value, *(torch.as_tensor(state[k]) for k in sorted(state))]
    return out


def live_of(policy: Policy) -> list[torch.Tensor]:
    """What the model computes with, all gathered."""
    policy.optimizer.settle()
    return [p.detach() for chunk in policy.chunks for p in chunk.parameters()]


def copied(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [t.clone() for t in tensors]


def equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TwoModels:
    """θ̂ the plain way: a second model with an optimizer of its own; w is trained in the first and copied over.

    It has gone through four iterations; `losses` are theirs.
    """

    def __init__(self, config: Config, platform: Platform, source: Path, seed: int) -> None:
        self.sgd = config.auxiliary.optimizer == "sgd"
        self.one, self.run_one = build(config, platform, source, slots=False)
        self.two, self.run_two = build(config, platform, source, slots=False)
        self.losses = [self.iterate(samples_of(seed + k)) for k in range(ITERATIONS)]

    def iterate(self, batch: list[Sample]) -> list[float]:
        """One iteration of Algorithm 2; its objectives."""
        one, two = self.one.optimizer, self.two.optimizer
        two.release_gradients()
        ahead = self.run_two.run([s for s in batch if s.component == RL], {RL: 1.0})
        two.gather_gradients()
        gain = [-LAM * m.value.grad for m in two.pairs["adapter"]]
        if self.sgd:
            two.ascend("base")
        else:
            two.step("base")
        one.release_gradients()
        joint = self.run_one.run(batch, {SFT: 1 - LAM, RL: LAM})
        one.gather_gradients()
        if gain:
            torch._foreach_add_([m.value.grad for m in one.pairs["adapter"]], gain)
        one.step("base")
        one.step("adapter")
        one.publish()
        two.settle()
        with torch.no_grad():
            for a, b in zip(two.pairs["adapter"], one.pairs["adapter"], strict=True):
                a.value.copy_(b.value)
        two.publish()
        return [joint["j_sft"], joint["j_rl"], ahead["j_rl"]]


def check_slot(config: Config, policy: Policy, updater: Updater, naive: TwoModels, seed: int) -> dict[str, bool]:
    """Four iterations with a slot, against the second model."""
    found: dict[str, bool] = {}
    start, losses = copied(live_of(policy)), []
    for k in range(ITERATIONS):
        metrics = updater.update(Bridge(config).passes(0), samples_of(seed + k), ALPHA, BETA)
        losses.append([metrics[n] for n in ("j_sft", "j_rl", "j_rl_auxiliary")])
    found["losses are equal"] = losses == naive.losses
    found["θ, its moments and steps are equal"] = equal(state_of(policy, "base"), state_of(naive.one, "base"))
    found["w, its moments and steps are equal"] = equal(state_of(policy, "adapter"), state_of(naive.one, "adapter"))
    found["θ̂, its moments and steps are equal"] = equal(slot_of(policy, "theta_hat"), state_of(naive.two, "base"))
    found["live weights are equal"] = equal(live_of(policy), live_of(naive.one))
    with policy.live("theta_hat"):
        found["live weights of θ̂ are equal"] = equal(live_of(policy), live_of(naive.two))
    found["θ moved"] = not equal(live_of(policy), start)
    values, masters = policy.slots["theta_hat"].values, policy.optimizer.pairs["base"]
    found["θ̂ is not θ"] = not all(torch.equal(v, m.value) for v, m in zip(values, masters, strict=True))
    if config.auxiliary.optimizer == "sgd":
        found["θ̂ has no moments"] = not any(policy.slots["theta_hat"].states)
    return found


def logprobs(runner: PassRunner, seed: int) -> list[torch.Tensor]:
    """Log-probabilities of some rollouts under the live weights."""
    rollouts = [s for s in samples_of(seed) if s.component == RL]
    runner.fill_reference(rollouts)
    return [s.reference for s in rollouts]


class Unchanged:
    """Whether everything that is live is, bit for bit, what it was."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.before = self._now()

    def _now(self) -> list[list[torch.Tensor]]:
        policy = self.policy
        return [copied(x) for x in (state_of(policy, "base"), state_of(policy, "adapter"), live_of(policy))]

    def masters(self) -> bool:
        return all(map(equal, self._now()[:2], self.before[:2]))

    def all(self) -> bool:
        return all(map(equal, self._now(), self.before))


def check_reference(policy: Policy, runner: PassRunner, start: list[torch.Tensor], seed: int) -> dict[str, bool]:
    """The reference is what θ was at the start, without w; its visit leaves no trace."""
    unchanged = Unchanged(policy)
    with policy.live("reference"):
        visit = logprobs(runner, seed)
    with adapters_disabled(policy.chunks):
        now = logprobs(runner, seed)
    return {
        "the reference is the starting θ": equal(visit, start),
        "θ is no longer the starting θ": not equal(now, start),
        "a visit of the reference changes nothing": unchanged.all(),
    }


def check_exceptions(policy: Policy, runner: PassRunner, slot: str) -> dict[str, bool]:
    """θ comes back when all ranks fail within a visit, and when one does and the others go on."""
    found, optimizer, rank = {}, policy.optimizer, dist.get_rank()
    unchanged = Unchanged(policy)
    optimizer.release_gradients()
    try:
        with policy.live(slot):
            if slot == "theta_hat":
                runner.run(samples_of(1), {SFT: 1.0})
                optimizer.gather_gradients()
                (optimizer.step if policy.slots[slot].moments else optimizer.ascend)("base")
            raise ValueError("all")
    except ValueError:
        optimizer.release_gradients()
    found[f"{slot}: masters and moments are back after all ranks failed"] = unchanged.masters()
    optimizer.publish()
    found[f"{slot}: live weights are back too"] = unchanged.all()
    failed = False
    try:
        with policy.live(slot):
            if rank == dist.get_world_size() - 1:
                raise KeyError("one")
    except KeyError:
        failed = True
        found[f"{slot}: masters and moments are back after this rank failed"] = unchanged.masters()
        optimizer.publish()  # what the others do as they leave the visit
    found[f"{slot}: all is back after one rank failed"] = unchanged.all()
    assert failed == (rank == dist.get_world_size() - 1)
    return found


def check_variant(config: Config, platform: Platform, source: Path, naive: TwoModels, seed: int) -> dict[str, bool]:
    """All claims about one way to keep the slots."""
    policy, runner = build(config, platform, source, slots=True)
    if config.parallel.overlap_param_gather and dist.get_rank() == 0:  # before anything is published
        answer = EmbeddedEngine(policy.chunks, 1).generate([Request(0, (1, 2, 3))], SamplingParams(4, 0.0, 1.0, (), 0))
        assert answer[0].tokens  # one rank may have all the requests: no forward pass may wait for another rank's
    with adapters_disabled(policy.chunks):
        start = logprobs(runner, seed + 9)
    found = check_slot(config, policy, Updater(policy, runner, config.auxiliary), naive, seed)
    found |= check_reference(policy, runner, start, seed + 9)
    for slot in ("theta_hat", "reference"):
        found |= check_exceptions(policy, runner, slot)
    return found


def main() -> None:
    plan, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    platform = setup_device("cpu")
    with joined_world(platform):
        for entry in plan:
            source, seed = Path(entry["model"]), entry["seed"]
            with layout_groups(config_of(entry).parallel, seed=0):
                naive = TwoModels(config_of(entry), platform, source, seed)
                for name, variant in entry["variants"].items():
                    found = check_variant(config_of(entry, **variant), platform, source, naive, seed)
                    (out / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
