"""When rollouts are asked: an evaluation runs beside them and changes nothing of what training gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bridge_mcore.data.sampler import ShuffledSampler
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.remote.engine import RemoteEngine
from bridge_mcore.training.collect import Collected
from bridge_mcore.training.schedule import OneStepOff, make_schedule

STEPS, PROMPTS, SAMPLES = 5, 2, 3


class Engine(RemoteEngine):
    """Answers when it is waited for, with the version of the weights that it had when it was asked."""

    def __init__(self) -> None:
        self.version = -1
        self.log: list[str] = []
        self.under_way: dict[int, Rollout] = {}

    def refresh(self, version: int, slot: str = "theta") -> dict[str, float]:
        if version != self.version:
            assert not self.under_way, "the weights change under rollouts"
            self.version = version
            self.log.append(f"weights {version}")
        return {}

    def submit(self, requests: Sequence[Request], params: SamplingParams, first: bool = False) -> None:
        for r in requests:
            tokens = (self.version, r.key)
            self.under_way[r.key] = Rollout(
                r.key, r.prompt, tokens, np.zeros(2, np.float32), True, self.version, ((self.version, 2),)
            )
        if requests:
            self.log.append(f"ask {len(requests)}")

    def collect(
        self,
        finished: Callable[[Mapping[int, Rollout]], bool],
        choose: Callable[[Mapping[int, Rollout]], Sequence[int]],
        version: int,
    ) -> list[Rollout]:
        assert finished(self.under_way)
        return [self.under_way.pop(key) for key in choose(self.under_way)]


def scheduled() -> tuple[OneStepOff, Engine, ShuffledSampler]:
    config: Any = SimpleNamespace(
        training=SimpleNamespace(prompts_per_step=PROMPTS, steps=STEPS),
        rollout=SimpleNamespace(samples_per_prompt=SAMPLES),
    )
    engine = Engine()

    def judged(prompts: Any, rollouts: Sequence[Rollout], params: Any, seconds: float, step: int) -> Collected:
        assert [p.tokens for p in prompts for _ in range(SAMPLES)] == [list(r.prompt) for r in rollouts]
        return Collected([], list(rollouts), [], {})

    layout = SimpleNamespace(shares=1, share=0, is_main=True)
    collector: Any = SimpleNamespace(engine=engine, layout=layout, judged=judged)
    prompts: Any = [SimpleNamespace(tokens=[5, i]) for i in range(17)]
    order = ShuffledSampler(len(prompts), 3)
    made = make_schedule("one_step_off", config, collector, prompts, order, SamplingParams(4))
    assert isinstance(made, OneStepOff)
    return made, engine, order


def test_an_evaluation_beside_rollouts_changes_nothing_of_them() -> None:
    plain, _, _ = scheduled()
    wanted = [plain.next(step).rollouts for step in range(STEPS)]
    assert [r[0].version for r in wanted] == [0, 0, 1, 2, 3]
    tried, engine, _ = scheduled()
    found = []
    for step in range(STEPS):
        found.append(tried.next(step).rollouts)
        if step + 1 < STEPS:
            engine.log.clear()
            tried.make_room(step + 1)
            # It has the weights of this step, and the batch of the step after the next one is under way beside it.
            assert engine.version == step + 1
            assert len(engine.under_way) == (PROMPTS * SAMPLES if step + 2 < STEPS else 0)
            tried.make_room(step + 1)  # another one after the same step asks nothing
            assert engine.log == [f"weights {step + 1}", f"ask {PROMPTS * SAMPLES}"][: 2 if step + 2 < STEPS else 1]
    assert [[(r.key, r.prompt, r.tokens) for r in rs] for rs in found] == [
        [(r.key, r.prompt, r.tokens) for r in rs] for rs in wanted
    ]


@pytest.mark.parametrize("settles", [True, False])
def test_a_checkpoint_after_an_evaluation_keeps_the_batch_that_is_due(world: object, settles: bool) -> None:
    """What is asked of the checkpoint's own weights is asked anew, of the same weights and for the same samples."""
    going, engine, order = scheduled()
    going.next(0)
    going.make_room(1)
    if settles:
        going.settle(1)
    assert len(engine.under_way) == PROMPTS * SAMPLES, "a checkpoint does not wait for what it does not keep"
    state, place = going.state(), order.state_dict()
    assert [len(entry["answers"]) for entry in state[1:]] == [SAMPLES] * PROMPTS + [0] * PROMPTS
    resumed, fresh, again = scheduled()
    again.load_state_dict(place)
    resumed.restore(state)
    for step in range(1, STEPS):
        a, b = going.next(step).rollouts, resumed.next(step).rollouts
        assert [(r.key, r.prompt, r.tokens, r.version) for r in a] == [
            (r.key, r.prompt, r.tokens, r.version) for r in b
        ]
    assert fresh.log[:2] == ["weights 1", f"ask {PROMPTS * SAMPLES}"]
